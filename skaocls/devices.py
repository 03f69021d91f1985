"""Where and in which precision to compute, whatever the caller has set in torch."""

import ctypes
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from joblib import cpu_count
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)
MOST_THREADS = 8  # that read files; more wait for each other
WORTH_THREADS = 16  # files
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
MOST_KEPT, MAPPED_FROM = 2**30, 2**25  # bytes; the second is the most that glibc takes
OPERATIONS = ("conv", "matmul", "rnn")
_claims: list[FileLock] = []  # held as long as this process lives
_claiming = threading.Lock()
_inside: list[Callable[[bool], None]] = []  # of each call that needs products in float32, the same
_precise = threading.Lock()


@contextmanager
def own_torch_state(*, grad: bool = False) -> Iterator[None]:
    """Torch as we need it, in this thread: no autocast, tensors on the CPU, gradients as asked.

    Also products of float32 that are in float32, see :func:`full_float32`. A context or a
    decorator. The default type of numbers belongs to the whole process, so it is left alone: this
    library names the type of each tensor that it makes.

    Parameters
    ----------
    grad : bool, default=False
        Whether gradients, or weights that will have some, are made; else this is inference mode.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(not grad))
        stack.enter_context(torch.set_grad_enabled(grad))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(full_float32())
        yield


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 tensors in float32: not in TF32 or bfloat16, whatever was allowed.

    Torch has these settings once for the whole process, so the first thread to enter changes them
    and the last to leave puts them back.
    """
    with _precise:
        _inside.append(_inside[0] if _inside else float32_precision())
        if len(_inside) == 1:
            _inside[0](False)
    try:
        yield
    finally:
        with _precise:
            put = _inside.pop()
            if not _inside:
                put(True)


def float32_precision() -> Callable[[bool], None]:
    """A function that puts the settings back as they are now or, given False, to float32."""
    found = [(each, each.fp32_precision) for each in by_backend()]
    try:
        for_all = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # what was set by backend is not read, or set, for all
        for_all = None

    def put(back: bool) -> None:
        if for_all is not None:
            torch.set_float32_matmul_precision(for_all[0] if back else "highest")
            torch.backends.cudnn.allow_tf32 = for_all[1] if back else False
        for each, value in found:
            if back:
                each.fp32_precision = value
            elif each.fp32_precision not in ("ieee", "none"):
                each.fp32_precision = "ieee"

    return put


def by_backend() -> list[Any]:
    """What has a precision of its own, since torch 2.9."""
    own = torch.backends.cudnn, torch.backends.mkldnn
    each = [torch.backends.cuda.matmul, *(getattr(b, of, None) for b in own for of in OPERATIONS)]
    return [e for e in each if hasattr(e, "fp32_precision")]


def moved(module: M, device: torch.device) -> M:
    """The module, on that device; trainable there also if it was moved in inference mode."""
    with own_torch_state(grad=True):
        return module.to(device)


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA if there is a device, else the CPU."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as exc:
        raise ValueError(
            f"device={device!r} is not known: pass 'auto', 'cpu', 'cuda' or a torch.device."
        ) from exc
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was asked for, but torch finds no CUDA device.")
    return resolved


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """Type for autocast, or None for float32: what ``"auto"`` is on the CPU."""
    if precision == "auto":
        good = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if good else None
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    raise ValueError(f"precision={precision!r} is not known: pass 'auto', 'float32' or 'bfloat16'.")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each made in another thread while the one before is worked on."""
    made = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, made, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, made, end)
            yield item  # type: ignore[misc]


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """So many threads for torch's products."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def all_threads(n: int) -> Iterator[None]:
    """So many threads for torch, scikit-learn and linear algebra, in a worker process.

    More than one would be too many beside other workers, and in a process that was forked from one
    that had threads, OpenMP waits for ever for those that were not forked with it.
    """
    with thread_pools().limit(limits=n), torch_threads(n):
        yield


@lru_cache
def thread_pools() -> ThreadpoolController:
    """The libraries that have threads, looked for once: it takes milliseconds."""
    return ThreadpoolController()


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Use freed memory again before it goes back to the system, in a worker process.

    glibc gives large blocks back as soon as they are free, and when the next tensor of that size is
    made, each of its pages is fetched and cleared again: a fifth of the time of scoring, and more
    at Dask's workers, whose environment asks for it. In a process of its own all goes back at the
    end; how a user's own process takes memory is left alone.
    """
    libc = glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
    libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
    try:
        yield
    finally:
        libc.malloc_trim(0)


@lru_cache
def glibc() -> Any:
    """The C library, if it is GNU's."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


@contextmanager
def own_cuda_device() -> Iterator[None]:
    """Let ``"cuda"`` and ``"auto"`` be a device that no other worker process uses, if there is one.

    A process claims its device by locking a file, so that any number of processes, of whatever
    engine, find theirs without being told of each other. It keeps it as long as it lives.
    """
    # where a process was forked after CUDA was set up, torch says so if CUDA is asked for
    if not torch.cuda.is_available() or torch.cuda._is_in_bad_fork():
        yield
        return
    devices = range(torch.cuda.device_count())
    names = tuple(str(torch.cuda.get_device_properties(k).uuid) for k in devices)
    with torch.cuda.device(claimed(names)):
        yield


def claimed(names: tuple[str, ...]) -> int:
    """Index of the device that this process has claimed, or claims now."""
    with _claiming:
        return _claimed(names)


@lru_cache
def _claimed(names: tuple[str, ...]) -> int:
    return first_free(names, lock_of_user)


def first_free(names: Sequence[str], lock: Callable[[str], Any]) -> int:
    """Index of the first of these devices that can be locked.

    When all are taken, each of them has a second place, then a third, and so on: the i-th to come
    gets number i modulo their number.

    Parameters
    ----------
    names : sequence of str
        Of devices, the same in all processes, in the order in which this one sees them.
    lock : callable
        Takes the name of a place and says whether it was free, and is taken now.

    Returns
    -------
    index : int

    Examples
    --------
    >>> from skaocls.devices import first_free
    >>> taken = set()
    >>> lock = lambda place: not (place in taken or taken.add(place))
    >>> [first_free(["a", "b"], lock) for _ in range(5)]
    [0, 1, 0, 1, 0]
    """
    places = ((k, f"{name}-{turn}") for turn in count() for k, name in enumerate(names))
    return next(k for k, place in places if lock(place))


def lock_of_user(place: str) -> bool:
    """Whether a place was free among this user's processes on this machine; it is taken now."""
    folder = Path(tempfile.gettempdir()) / f"skaocls-devices-{Path.home().name}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(folder / place)
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError:  # where nothing can be locked, all take the first
        return True
    _claims.append(lock)
    return True


def in_threads(function: Callable[..., T], *items: Any, threads: bool = True) -> list[T]:
    """As ``list(map(function, *items))``; what waits for files, or frees the GIL, at once.

    The first error, in the order of the items, is raised.
    """
    n = min(MOST_THREADS, cpu_count()) if threads else 1
    if n == 1 or len(items[0]) < WORTH_THREADS:
        return list(map(function, *items))
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(function, *items))

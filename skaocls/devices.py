"""Devices, precision and threads, independent of the caller's torch settings."""

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import torch
from joblib import cpu_count
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)
MAX_IO_THREADS = 8  # largest number of threads that read files; more threads are not faster
MIN_THREADED_ITEMS = 16  # for fewer items, starting threads takes longer than the work itself

thread_pools = lru_cache(ThreadpoolController)  # finding all thread pools takes milliseconds
_float32_lock = threading.Lock()
# One entry per active `full_float32` context; each entry is the result of `precision_switch`.
_float32_active: list[Callable[[bool], None]] = []


@contextmanager
def own_torch_state(*, grad: bool = False) -> Iterator[None]:
    """Make torch in this thread independent of the caller's settings.

    The context disables autocast, makes the CPU the default device, and computes float32 products
    in float32. If `grad` is False, it also turns on inference mode. The default dtype is a setting
    of the whole process, so the context does not change it. This library always passes a dtype.
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
    """Compute products of float32 tensors in float32, not in TF32 or bfloat16.

    The precision is a setting of the whole process. The first thread that enters the context
    changes the setting, and the last thread that leaves the context restores the old value.
    """
    with _float32_lock:
        _float32_active.append(_float32_active[0] if _float32_active else precision_switch())
        if len(_float32_active) == 1:
            _float32_active[0](True)
    try:
        yield
    finally:
        with _float32_lock:
            switch = _float32_active.pop()
            if not _float32_active:
                switch(False)


def precision_switch() -> Callable[[bool], None]:
    """Return a function. f(True) selects full precision; f(False) undoes f(True)."""
    by_backend = [(backend, backend.fp32_precision) for backend in precision_backends()]
    try:
        overall = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # torch rejects the overall setting if backends have been set separately
        overall = None

    def switch(full: bool) -> None:
        if overall is not None:
            torch.set_float32_matmul_precision("highest" if full else overall[0])
            torch.backends.cudnn.allow_tf32 = False if full else overall[1]
        for backend, value in by_backend:
            if not full:
                backend.fp32_precision = value
            elif backend.fp32_precision not in ("ieee", "none"):
                backend.fp32_precision = "ieee"

    return switch


def precision_backends() -> list[Any]:
    """Return the torch backends that have their own precision setting (torch >= 2.9)."""
    backends: list[Any] = [torch.backends.cuda.matmul]
    for library in (torch.backends.cudnn, torch.backends.mkldnn):
        backends += [getattr(library, name, None) for name in ("conv", "matmul", "rnn")]
    return [backend for backend in backends if hasattr(backend, "fp32_precision")]


def to_device(module: M, device: torch.device) -> M:
    """Move a module to a device; weights stay trainable even if the caller uses inference mode."""
    with own_torch_state(grad=True):
        return module.to(device)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device; ``"auto"`` is CUDA if available, otherwise the CPU."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as exc:
        raise ValueError(
            f"device={device!r} is not supported: pass 'auto', 'cpu', 'cuda' or a torch.device."
        ) from exc
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was requested, but torch finds no CUDA device.")
    return resolved


def resolve_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype for autocast, or None for float32.

    ``"auto"`` is bfloat16 on CUDA devices that support bfloat16, otherwise float32.
    """
    if precision == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else None
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    raise ValueError(
        f"precision={precision!r} is not supported: pass 'auto', 'float32' or 'bfloat16'."
    )


@contextmanager
def worker_cuda_device() -> Iterator[None]:
    """Distribute worker processes over the CUDA devices of a machine.

    In this context, ``"cuda"`` and ``"auto"`` select a device by the number of the worker process.
    """
    # a process cannot use CUDA if it was forked after the parent process initialized CUDA
    if not torch.cuda.is_available() or torch.cuda._is_in_bad_fork():
        yield
        return
    identity: tuple[int, ...] = getattr(multiprocessing.current_process(), "_identity", ())
    with torch.cuda.device(identity[-1] % torch.cuda.device_count() if identity else 0):
        yield


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def all_threads(n: int) -> Iterator[None]:
    """Use n threads for torch, scikit-learn and linear algebra in a worker process.

    With more threads, the workers would slow each other down. In a forked process, OpenMP would
    even wait forever, because a fork does not copy the threads of OpenMP.
    """
    with thread_pools().limit(limits=n), torch_threads(n):
        yield


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Yield the items; while the caller uses one item, a thread computes the next item."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, iterator, end)
        while (item := future.result()) is not end:
            future = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def map_in_threads(
    function: Callable[..., T], *items: Sequence[Any], threads: bool = True
) -> list[T]:
    """Return ``list(map(function, *items))``; use threads if there are many items.

    If the function fails for several items, the error for the first of these items is raised.
    """
    n = min(MAX_IO_THREADS, cpu_count()) if threads else 1
    if n == 1 or len(items[0]) < MIN_THREADED_ITEMS:
        return list(map(function, *items))
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(function, *items))

"""Work with a fitted model that is shared out by joblib: to threads, processes, a cluster.

Threads read the model itself. For processes it is packed once: the numbers of all its arrays and
tensors into one file, which workers map into memory, and a pickle of a few kilobytes of everything
else, which travels with the tasks. A worker keeps the model that it unpacked last, under a hash of
its content, so that it is unpacked once and never taken for another one. Where workers may be on
other machines, the numbers go through what their engine has for it: Dask copies them to each
worker, Ray to each machine.

Whatever goes wrong in a task itself is raised. Anything else is taken for the loss of a worker, and
the pieces that have not come back are computed again.
"""

import os
import pickle
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from cloudpickle import Pickler  # joblib's, which knows the classes of a script or notebook
from joblib.parallel import get_active_backend
from sklearn.utils.parallel import Parallel, delayed

from skaocls.devices import all_threads, torch_threads, worker_cuda_device
from skaocls.fitted.model import FittedModel

TRIES = 3  # in a row of which none brings anything back
LOT = 4  # tasks of each worker at a time where an engine hands back whole lists only
ALIGNED = 64  # bytes
_unpacked: dict[str, FittedModel] = {}  # the last one
_unpacking = threading.Lock()


class Packed(NamedTuple):
    """A model without its numbers.

    Attributes
    ----------
    digest : str
        Hash of all that it is made of.
    rest : bytes
        Pickle that lacks the numbers.
    places : list of (int, int)
        Where each array's numbers begin and end.
    """

    digest: str
    rest: bytes
    places: list[tuple[int, int]]


class TaskError(Exception):
    """What a task itself has raised."""


def in_parallel(
    function: Callable[..., Any],
    model: FittedModel,
    pieces: Sequence[Callable[[], tuple[Any, ...]]],
    n_jobs: int | None,
) -> Iterator[Any]:
    """Yield function(model, ...) of each piece, in their order, computed by joblib's workers.

    Parameters
    ----------
    function : callable
        Of a module, so that it can be sent.
    model : FittedModel
    pieces : sequence of callables
        Each gives the other arguments of a piece, called when it is sent off.
    n_jobs : int or None
        As joblib takes it.

    Yields
    ------
    result : object

    Raises
    ------
    Exception
        What `function` raises; or what the engine does when worker after worker is lost and none
        brings anything back.
    """
    backend, _ = get_active_backend()
    threads = getattr(backend, "inner_max_num_threads", None) or 1
    done: dict[int, Any] = {}
    at = tries = 0
    with ExitStack() as until_the_end:
        if getattr(backend, "supports_sharedmem", False):  # threads
            until_the_end.enter_context(torch_threads(threads))
            packed, path = None, None
        else:
            packed, path = until_the_end.enter_context(packed_in_file(model))
        while at < len(pieces):
            missing = [i for i in range(at, len(pieces)) if i not in done]
            try:
                numbers = model if path is None else sent(path, backend)
                tasks = (
                    delayed(work)(function, packed, numbers, threads, i, (pieces[i](),))
                    for i in missing
                )
                for i, result in outputs(tasks, backend, n_jobs):
                    done[i], tries = result, 0
                    while at in done:
                        yield done.pop(at)
                        at += 1
            except TaskError as exc:
                raise exc.args[0] from exc
            except pickle.PicklingError:
                raise
            except Exception as exc:  # each engine has errors of its own for a lost worker
                tries += 1
                if tries == TRIES:
                    raise
                left = sum(i >= at and i not in done for i in missing)
                warnings.warn(
                    f"A worker was lost ({type(exc).__name__}). What came back is kept, and "
                    f"{left} of {len(pieces)} pieces of work are sent again.",
                    RuntimeWarning,
                    stacklevel=2,
                )


def outputs(tasks: Iterator[Any], backend: Any, n_jobs: int | None) -> Iterator[tuple[int, Any]]:
    """Yield what tasks return, as they come back."""
    if backend.supports_return_generator:
        yield from Parallel(n_jobs, batch_size=1, return_as="generator_unordered")(tasks)
        return
    with Parallel(n_jobs, batch_size=1) as parallel:
        while lot := list(islice(tasks, LOT * joblib.effective_n_jobs(n_jobs))):
            yield from parallel(lot)


def work(
    function: Callable[..., Any],
    packed: Packed | None,
    numbers: Any,
    threads: int,
    i: int,
    piece: tuple[tuple[Any, ...]],
) -> tuple[int, Any]:
    """The i-th piece, in a worker.

    `numbers` is the model itself where memory is shared. `piece` is within a tuple, because Dask
    keeps arrays that are arguments at one of its workers, and loses them with it.
    """
    try:
        if packed is None:
            return i, function(numbers, *piece[0])
        with all_threads(threads), worker_cuda_device():
            return i, function(unpacked(packed, numbers), *piece[0])
    except Exception as exc:
        raise TaskError(exc) from exc


class ModelPickler(Pickler):
    """Takes tensors for arrays, whose numbers are kept apart from a pickle."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is torch.Tensor and obj.layout == torch.strided:
            tensor = obj.detach().cpu().contiguous()
            return tensor_of, (tensor.flatten().view(torch.uint8).numpy(), obj.dtype, obj.shape)
        return super().reducer_override(obj)


def tensor_of(numbers: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(numbers).view(dtype).view(shape)


@contextmanager
def packed_in_file(model: FittedModel) -> Iterator[tuple[Packed, Path]]:
    """The model without its numbers, and a file of those that is there until the end."""
    with tempfile.TemporaryDirectory(prefix="skaocls-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "numbers"
        found, places = blake2b(digest_size=16), []
        with open(path, "wb") as file:

            def keep(buffer: pickle.PickleBuffer) -> None:
                with buffer.raw() as raw:
                    found.update(raw)
                    start = file.tell()
                    places.append((start, start + file.write(raw)))
                    file.write(bytes(-file.tell() % ALIGNED))

            rest = pickled(model, keep)
            file.write(bytes(ALIGNED))  # nothing at all cannot be mapped
        found.update(rest)
        yield Packed(found.hexdigest(), rest, places), path


def pickled(model: FittedModel, keep: Callable[[pickle.PickleBuffer], None]) -> bytes:
    rest = BytesIO()
    ModelPickler(rest, protocol=5, buffer_callback=keep).dump(model)
    return rest.getvalue()


def sent(path: Path, backend: Any) -> Any:
    """The numbers in a file, as they get to a worker once: what to give to each task for them.

    Dask replaces its future by the array, which lies at each worker; Ray's reference is asked for.
    All others get the file's name.
    """
    if hasattr(backend, "client"):  # Dask's
        numbers = np.asarray(np.memmap(path, np.uint8, "r"))
        return backend.client.scatter(numbers, broadcast=True, hash=False)
    if type(backend).__module__.startswith("ray."):
        import ray

        return ray.put(np.fromfile(path, np.uint8))
    return os.fspath(path)


def unpacked(packed: Packed, numbers: Any) -> FittedModel:
    """The model again, once in a process."""
    with _unpacking:
        if packed.digest not in _unpacked:
            array = aligned(received(numbers))
            buffers = [array[start:end] for start, end in packed.places]
            with warnings.catch_warnings():  # nobody writes to weights
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                model = pickle.loads(packed.rest, buffers=buffers)
            _unpacked.clear()
            _unpacked[packed.digest] = model
        return _unpacked[packed.digest]


def aligned(array: np.ndarray) -> np.ndarray:
    """The bytes where torch would have placed them: elsewhere products are rounded otherwise."""
    if array.ctypes.data % ALIGNED == 0:
        return array
    room = np.empty(array.nbytes + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    room[start : start + array.nbytes] = array
    return room[start : start + array.nbytes]


def received(numbers: Any) -> np.ndarray:
    """What :func:`sent` sent, as it has arrived."""
    if isinstance(numbers, np.ndarray):
        return numbers
    if not isinstance(numbers, str):
        import ray

        array: np.ndarray = ray.get(numbers)
        return array
    if not os.path.exists(numbers):
        raise FileNotFoundError(
            f"This worker does not see {numbers}, the weights that it was sent: it is on another "
            "machine, or has another folder for temporary files. Set TMPDIR, where predictions are "
            "asked for, to a folder that all machines share, or use Dask or Ray, which need none."
        )
    return np.memmap(numbers, np.uint8, "c")

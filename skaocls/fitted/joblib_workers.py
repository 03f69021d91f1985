"""Split a prediction into pieces, and run the pieces in joblib's threads, processes or clusters.

Threads share the fitted model. Each process receives a small pickle of the model without weights,
and the weights as arrays. joblib writes large arrays to files only once, and all processes of a
machine map the same file. Dask copies the arrays to every worker. Other cluster backends send the
arrays with every task. Each process rebuilds the model once, and caches it under a content hash.

This process reads files and data sets, because workers may lack its current folder, its settings of
Pillow and its open files. Workers receive images in memory.

If a worker dies, the pieces without a result are sent again. If a worker has imported other code
than this process, this process computes these pieces. All other errors are raised.
"""

import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from io import BytesIO
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

import cloudpickle
import joblib
import numpy as np
import torch
from joblib.parallel import ParallelBackendBase, get_active_backend
from sklearn.utils import gen_batches
from sklearn.utils.parallel import Parallel, delayed

from skaocls.devices import all_threads, torch_threads, worker_cuda_device
from skaocls.fitted.model import FittedModel
from skaocls.hashing import HashError, hash_bytes, hash_object, installed_version
from skaocls.warn import warn

PIECES_PER_WORKER = 4  # with several small pieces, all workers finish at about the same time
MAX_LOSSES = 3  # raise an error after this number of lost workers without a new result
# Names of the exceptions that loky, Dask and Ray raise when a worker dies. The classes cannot be
# imported here, because Dask and Ray may not be installed.
LOST_WORKER_ERRORS = {"BrokenExecutor", "KilledWorker", "CommClosedError", "FutureCancelledError"}
LOST_WORKER_ERRORS |= {"RayActorError", "WorkerCrashedError"}

P = TypeVar("P")
R = TypeVar("R")
_model_cache: dict[str, FittedModel] = {}  # hash to model; has at most one entry
_cache_lock = threading.Lock()


class OtherCodeError(RuntimeError):
    """A function or class of the user has other code in a worker than in the parent."""


class Piece(NamedTuple):
    """Part of a scoring task: a range of images and a range of orders."""

    images: slice
    orders: slice


def split_work(
    n_images: int,
    n_orders: int,
    n_workers: int,
    *,
    batch_size: int,
    tile_size: int = 1,
    split_orders: bool = True,
    keep_batches: bool = False,
) -> list[Piece]:
    """Split the work into a few pieces per worker.

    The images are split first. If there are too few images, the orders are split as well. A piece
    has at most `batch_size` images. If possible, a piece has at least `tile_size` (image, order)
    pairs, because the engine pads smaller tiles to this size. With `keep_batches`, all pieces have
    `batch_size` images. The cache keys are then the same as in a single process. In the result,
    pieces with the same images are adjacent.
    """
    n_pieces = PIECES_PER_WORKER * n_workers
    images, orders = batch_size, n_orders
    if not keep_batches:
        smallest = ceil_div(tile_size, n_orders) if split_orders else 1
        images = min(batch_size, max(smallest, ceil_div(n_images, n_pieces)))
    if split_orders:
        wanted = ceil_div(n_orders * ceil_div(n_images, images), n_pieces)
        orders = min(n_orders, max(ceil_div(tile_size, min(images, n_images)), wanted))
    return [
        Piece(image_part, order_part)
        for image_part in gen_batches(n_images, images)
        for order_part in gen_batches(n_orders, orders)
    ]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def map_pieces(
    function: Callable[..., R],
    model: FittedModel,
    pieces: Sequence[P],
    arguments: Callable[[P], tuple[object, ...]],
    n_jobs: int | None,
) -> Iterator[R]:
    """Yield ``function(model, *arguments(piece))`` for each piece, in the sequence of the pieces.

    `function` must be picklable. ``arguments(piece)`` is called just before the piece is sent.
    """
    if joblib.effective_n_jobs(n_jobs) == 1:
        yield from (function(model, *arguments(piece)) for piece in pieces)
        return
    backend, _ = get_active_backend()
    threads = getattr(backend, "inner_max_num_threads", None) or 1
    return_as = "generator" if backend.supports_return_generator else "list"
    n_done = n_losses = 0
    with ExitStack() as stack:
        if getattr(backend, "supports_sharedmem", False):
            stack.enter_context(torch_threads(threads))
            call = partial(delayed(call_with), function, model)
        else:
            call = partial(delayed(run_in_process), function, threads, *pack_model(model, backend))
        while n_done < len(pieces):
            try:
                parallel = Parallel(n_jobs, batch_size=1, return_as=return_as)
                for result in parallel(call(arguments(piece)) for piece in pieces[n_done:]):
                    yield result
                    n_done, n_losses = n_done + 1, 0
            except OtherCodeError as exc:
                warn(f"{exc} The results are computed without workers.", RuntimeWarning)
                yield from (function(model, *arguments(piece)) for piece in pieces[n_done:])
                return
            except Exception as exc:
                n_losses += 1
                lost = not LOST_WORKER_ERRORS.isdisjoint(cls.__name__ for cls in type(exc).__mro__)
                if not lost or n_losses == MAX_LOSSES:
                    raise
                warn(
                    f"A worker was lost ({type(exc).__name__}). The lost work is repeated: "
                    f"{len(pieces) - n_done} of {len(pieces)} pieces are sent again.",
                    RuntimeWarning,
                )


def call_with(function: Callable[..., R], model: FittedModel, arguments: tuple[object, ...]) -> R:
    return function(model, *arguments)


def run_in_process(
    function: Callable[..., R],
    threads: int,
    digest: str,
    pickled: bytes,
    buffers: list[np.ndarray],
    arguments: tuple[object, ...],
) -> R:
    """Unpack the model, unless this process has cached it, and call the function with it.

    `arguments` is a tuple, because Dask would keep a plain array argument on a single worker. If
    this worker died, the array would be lost.
    """
    with _cache_lock:
        if digest not in _model_cache:
            _model_cache.clear()
            with warnings.catch_warnings():  # read-only arrays: no code writes to them
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                _model_cache[digest] = pickle.loads(pickled, buffers=map(map_again, buffers))
        model = _model_cache[digest]
    with all_threads(threads), worker_cuda_device():
        return function(model, *arguments)


def map_again(buffer: np.ndarray) -> np.ndarray:
    """Return a new memory map of the same file if joblib has mapped the array.

    At the end of a task, joblib waits until its own memory maps are deleted. The cached model
    outlives the task, so the model must use other maps.
    """
    if not isinstance(buffer, np.memmap) or buffer.filename is None:
        return buffer
    return np.memmap(buffer.filename, buffer.dtype, "c", buffer.offset, buffer.shape)


def pack_model(
    model: FittedModel, backend: ParallelBackendBase
) -> tuple[str, bytes, list[np.ndarray]]:
    """Return three parts: a hash of the model, a pickle without array data, and the array data."""
    pickled, buffers = pickle_out_of_band(model)
    digest = hash_bytes(pickled, *(buffer.data for buffer in buffers))
    if hasattr(backend, "client"):  # broadcast, or Dask keeps arrays on one worker
        (buffers,) = backend.client.scatter([buffers], broadcast=True, hash=False)
    return digest, pickled, buffers


def pickle_out_of_band(obj: object) -> tuple[bytes, list[np.ndarray]]:
    """Return a pickle that omits the contents of arrays and tensors, and these contents."""
    buffers: list[pickle.PickleBuffer] = []
    stream = BytesIO()
    TensorPickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    return stream.getvalue(), [np.asarray(buffer.raw()) for buffer in buffers]


class TensorPickler(cloudpickle.Pickler):
    """Pickler that converts tensors to NumPy arrays, whose data can stay out of the pickle.

    If the pickle contains only the name of a function or class of the user, the loader compares its
    code with the code in this process.
    """

    def reducer_override(self, obj: object) -> object:
        if type(obj) is torch.Tensor and obj.layout == torch.strided:
            tensor = obj.detach().cpu().contiguous()
            data = tensor.flatten().view(torch.uint8).numpy()
            return tensor_from_bytes, (data, obj.dtype, obj.shape)
        reduced = super().reducer_override(obj)
        is_code = isinstance(obj, (FunctionType, type)) and reduced is NotImplemented
        if is_code and installed_version(str(obj.__module__)) is None:
            with suppress(HashError):  # then the code is not known
                return load_code, (pickle.dumps(obj), hash_object(obj))
        return reduced


def load_code(by_name: bytes, expected_hash: str) -> Any:
    """Return the function or class with a name; raise an error if its code has another hash."""
    code = pickle.loads(by_name)
    if hash_object(code) != expected_hash:
        raise OtherCodeError(
            f"{code.__module__}.{code.__qualname__}, or a value that it uses, has changed since "
            "joblib's workers imported it. To start new workers, call "
            "joblib.externals.loky.get_reusable_executor().shutdown()."
        )
    return code


def tensor_from_bytes(data: np.ndarray, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(data).view(dtype).view(shape)

"""Run parts of a prediction in joblib's workers: threads, processes or a cluster.

Threads share the fitted model. Processes receive it as a small pickle without weights and one array
of all weights. joblib writes that array to a file once, and every process maps the file into memory.
Dask copies the array to every worker. Other cluster backends send it with every task. A process
rebuilds the model once and caches it under a hash of its content.

If a worker is lost, the pieces without a result are sent again. Any other error is raised.
"""

import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from io import BytesIO
from typing import NamedTuple, TypeVar

import cloudpickle
import numpy as np
import torch
from joblib.parallel import get_active_backend
from sklearn.utils import gen_batches
from sklearn.utils.parallel import Parallel, delayed

from skaocls.devices import all_threads, freed_memory_kept, own_cuda_device, torch_threads
from skaocls.fitted.model import FittedModel

PIECES_PER_WORKER = 4  # so that no worker waits long for the last piece
MAX_LOSSES = 3  # consecutive losses of workers without any result in between
ALIGNMENT = 64  # bytes between the starts of two tensors in the array of weights
# Names of the exceptions that joblib's backends raise when a worker dies. Dask and Ray are optional,
# so their classes cannot be imported here.
LOST_WORKER_ERRORS = {
    "BrokenExecutor",  # base class of the errors of loky and concurrent.futures
    "KilledWorker",  # Dask, as the next two
    "CommClosedError",
    "FutureCancelledError",
    "RayActorError",
    "WorkerCrashedError",  # Ray
}

P = TypeVar("P")
R = TypeVar("R")
_model_cache: dict[str, FittedModel] = {}  # at most one model, by its digest
_cache_lock = threading.Lock()


class Piece(NamedTuple):
    """Part of a scoring task: some images in some orders."""

    images: slice
    orders: slice


class PackedModel(NamedTuple):
    """A fitted model without its weights.

    Attributes
    ----------
    digest : str
        Hash of the pickle and the weights.
    pickled : bytes
        Pickle that refers to buffers outside of it.
    buffers : list of slice
        Bytes of each buffer in the array of weights.
    """

    digest: str
    pickled: bytes
    buffers: list[slice]


def split_work(
    n_images: int,
    n_orders: int,
    n_workers: int,
    *,
    batch_size: int,
    tile_size: int,
    split_orders: bool = True,
    keep_batches: bool = False,
) -> list[Piece]:
    """Split images, then orders, into a few pieces for each worker.

    Parameters
    ----------
    n_images, n_orders, n_workers : int
    batch_size : int
        Maximum number of images in a piece.
    tile_size : int
        Pairs of image and order that the engine scores in one tile. Smaller pieces would waste
        work, because every tile is filled up.
    split_orders : bool, default=True
        Whether orders may be split. Early stopping needs all orders of an image together.
    keep_batches : bool, default=False
        Keep single-process batches, so that cache keys match.

    Returns
    -------
    pieces : list of Piece
        Pieces of the same images are adjacent.

    Examples
    --------
    >>> from skaocls.fitted.parallel import split_work
    >>> split_work(1, 20, 1, batch_size=256, tile_size=1)[0]
    Piece(images=slice(0, 1, None), orders=slice(0, 5, None))
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


def map_in_workers(
    function: Callable[..., R],
    model: FittedModel,
    pieces: Sequence[P],
    arguments: Callable[[P], tuple[object, ...]],
    n_jobs: int | None,
) -> Iterator[R]:
    """Yield ``function(model, *arguments(piece))`` for each piece, in order.

    Parameters
    ----------
    function : callable
        Function at module level, so that it can be pickled.
    model : FittedModel
    pieces : sequence
    arguments : callable
        Return the arguments of a piece. It is called when the piece is sent to a worker.
    n_jobs : int or None
        Number of workers, as in joblib.

    Yields
    ------
    result : object

    Raises
    ------
    Exception
        The error of `function`, or the backend's error if workers are lost `MAX_LOSSES` times in
        succession and no result arrives.
    """
    backend, _ = get_active_backend()
    threads = getattr(backend, "inner_max_num_threads", None) or 1
    return_as = "generator" if backend.supports_return_generator else "list"
    n_done = n_losses = 0
    with ExitStack() as stack:
        shares_memory = getattr(backend, "supports_sharedmem", False)
        if shares_memory:
            stack.enter_context(torch_threads(threads))
        else:
            packed, weights = pack_model(model)
            if hasattr(backend, "client"):  # Dask would send an array to one worker only
                weights = backend.client.scatter(weights, broadcast=True, hash=False)
        while n_done < len(pieces):
            calls = (
                delayed(function)(model, *arguments(piece))
                if shares_memory
                else delayed(run_in_process)(function, threads, packed, weights, arguments(piece))
                for piece in pieces[n_done:]
            )
            try:
                # workers may write to their own copies of arrays (mmap_mode="c")
                run = Parallel(n_jobs, batch_size=1, return_as=return_as, mmap_mode="c")
                for result in run(calls):
                    yield result
                    n_done, n_losses = n_done + 1, 0
            except Exception as exc:
                n_losses += 1
                if not is_lost_worker(exc) or n_losses == MAX_LOSSES:
                    raise
                warnings.warn(
                    f"A worker was lost ({type(exc).__name__}). {len(pieces) - n_done} of "
                    f"{len(pieces)} pieces of work are sent again.",
                    RuntimeWarning,
                    stacklevel=2,
                )


def is_lost_worker(exc: Exception) -> bool:
    return any(cls.__name__ in LOST_WORKER_ERRORS for cls in type(exc).__mro__)


def run_in_process(
    function: Callable[..., R],
    threads: int,
    packed: PackedModel,
    weights: np.ndarray,
    arguments: tuple[object, ...],
) -> R:
    """Call a function with the rebuilt model, in a worker process.

    The arguments are in a tuple because Dask moves large array arguments to a single worker, and
    loses them with that worker.
    """
    with all_threads(threads), own_cuda_device(), freed_memory_kept():
        return function(unpack_model(packed, weights), *arguments)


class ModelPickler(cloudpickle.Pickler):
    """Pickle tensors as NumPy arrays, whose data can be kept outside of the pickle."""

    def reducer_override(self, obj: object) -> object:
        if type(obj) is torch.Tensor and obj.layout == torch.strided:
            tensor = obj.detach().cpu().contiguous()
            data = tensor.flatten().view(torch.uint8).numpy()
            return tensor_from_bytes, (data, obj.dtype, obj.shape)
        return super().reducer_override(obj)


def tensor_from_bytes(data: np.ndarray, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(data).view(dtype).view(shape)


def pickle_without_buffers(obj: object) -> tuple[bytes, list[np.ndarray]]:
    """Return a pickle and the data of all arrays and tensors in it, as arrays of bytes."""
    buffers: list[pickle.PickleBuffer] = []
    stream = BytesIO()
    ModelPickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    return stream.getvalue(), [np.asarray(buffer.raw()) for buffer in buffers]


def pack_model(model: FittedModel) -> tuple[PackedModel, np.ndarray]:
    """Return the model without weights, and one array of bytes with all weights."""
    pickled, arrays = pickle_without_buffers(model)
    buffers, size = [], 0
    for array in arrays:
        buffers.append(slice(size, size + array.size))
        size += ceil_div(array.size, ALIGNMENT) * ALIGNMENT
    weights = np.zeros(size, np.uint8)
    for part, array in zip(buffers, arrays, strict=True):
        weights[part] = array
    digest = blake2b(pickled, digest_size=16)
    digest.update(weights.data)
    return PackedModel(digest.hexdigest(), pickled, buffers), weights


def unpack_model(packed: PackedModel, weights: np.ndarray) -> FittedModel:
    """Rebuild a packed model, or return it from this process's cache."""
    with _cache_lock:
        if packed.digest not in _model_cache:
            _model_cache.clear()
            with warnings.catch_warnings():  # weights are never written to
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                model = pickle.loads(packed.pickled, buffers=[weights[b] for b in packed.buffers])
            _model_cache[packed.digest] = model
        return _model_cache[packed.digest]

"""Several processes started by ``torchrun``, or by a caller who has set up ``torch.distributed``.

All processes make the same calls with the same arguments. Inside a call marked by
:func:`collective_call` they share the work. Objects and small tensors travel between CPUs, in a
gloo group made here. Gradients travel in the default group: NCCL between GPUs, gloo between CPUs.

A single process needs none of this: its world size is 1 and every function returns its argument.
"""

import atexit
import gc
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

if dist.is_available():
    # Imported now, without a process group: its functions keep the default group of import time
    # alive as an argument default.
    import torch.distributed.nn

T = TypeVar("T")
# Set by torchrun and by launchers that are compatible with it.
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Long, because ranks wait while one of them fits a tokenizer. A rank that dies is noticed at once.
TIMEOUT = timedelta(days=1)

_single_process: ContextVar[bool] = ContextVar("single_process", default=False)


@dataclass
class GroupState:
    """Process groups that were made here."""

    cpu: dist.ProcessGroup | None = None  # exchanges objects and small tensors
    default: dist.ProcessGroup | None = None  # default group for which `cpu` was made
    owns_default: bool = False  # False if the caller made the default group
    failed: bool = False  # other ranks may be gone, and destroying a group could wait for them


_groups = GroupState()


class PeerError(RuntimeError):
    """Communication failed: another rank died, raised an error, or did not make the same call."""


class Shard(NamedTuple):
    """The rows that one rank works on. All ranks have equally many."""

    rows: Tensor  # int64 indices
    valid: Tensor | None  # float32: 1 for rows that count, 0 for padding; None without padding


def world_size() -> int:
    """Return the number of processes that work together.

    The first call under ``torchrun`` joins the process group. Child processes, threads other than
    the main thread, and code inside :func:`single_process` work alone.

    Returns
    -------
    world_size : int
        1 for a single process.

    Examples
    --------
    >>> from skaocls import distributed
    >>> distributed.world_size(), distributed.rank(), distributed.is_main()
    (1, 0, True)
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    in_main_process = multiprocessing.current_process().name == "MainProcess"
    if _single_process.get() or not (in_main_thread and in_main_process and dist.is_available()):
        return 1
    if not dist.is_initialized():
        by_torchrun = all(variable in os.environ for variable in TORCHRUN_VARIABLES)
        if not by_torchrun or os.environ["WORLD_SIZE"] == "1":
            return 1
        join_group()
    return dist.get_world_size()


def join_group() -> None:
    """Set up the default process group and select this rank's CUDA device."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # NCCL needs a device for each rank
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    _groups.owns_default = True
    atexit.register(leave_group)


def leave_group() -> None:
    """Destroy the process groups that were made here.

    Runs before the interpreter shuts down: a gloo thread that frees a tensor during shutdown aborts
    the process.
    """
    global _groups
    if _groups.failed:
        return
    if _groups.owns_default and dist.is_initialized():
        dist.destroy_process_group()
    elif _groups.cpu is not None and _groups.default is dist.group.WORLD:
        dist.destroy_process_group(_groups.cpu)
    _groups = GroupState()
    gc.collect()  # models trained by DistributedDataParallel keep the group in reference cycles


def rank() -> int:
    """Return the rank of this process.

    Returns
    -------
    rank : int
        0 for the main process, and for a single process.
    """
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this is the main process, which writes files and prints.

    Returns
    -------
    is_main : bool
        True in exactly one of the processes.
    """
    return rank() == 0


@contextmanager
def single_process() -> Iterator[None]:
    """Compute in this process alone, although there are others.

    Without it, a prediction that only one process makes would wait for the other processes.

    Yields
    ------
    None

    Examples
    --------
    >>> from skaocls import distributed
    >>> with distributed.single_process():
    ...     distributed.world_size()
    1
    """
    token = _single_process.set(True)
    try:
        yield
    finally:
        _single_process.reset(token)


@contextmanager
def collective_call(name: str, advice: str = "") -> Iterator[None]:
    """Mark a call that all ranks make: only the main process warns, and errors name the call."""
    if world_size() == 1:
        yield
        return
    with warnings.catch_warnings():
        if not is_main():
            warnings.simplefilter("ignore")
        try:
            yield
        except KeyboardInterrupt:  # other ranks are interrupted at other places
            _groups.failed = True
            raise
        except PeerError as exc:
            raise PeerError(f"{name} failed. {exc} {advice}".strip()) from exc


def attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Call a function in this process alone, and return its result and its error."""
    try:
        with single_process():
            return function(), None
    except Exception as exc:
        return None, exc


def result_of(outcome: tuple[T | None, Exception | None]) -> T:
    """Return the result of :func:`attempt`, or raise its error."""
    result, error = outcome
    if error is not None:
        raise error
    return cast(T, result)


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn errors of collective operations into a :class:`PeerError`; no-op in a single process."""
    try:
        yield
    except RuntimeError as exc:
        if world_size() == 1 or isinstance(exc, torch.OutOfMemoryError):
            raise
        _groups.failed = True
        raise PeerError(
            f"Rank {dist.get_rank()} of {dist.get_world_size()} cannot reach another rank, which "
            "died, raised an error, or did not make the same call; see its output. All ranks must "
            "make the same calls. To compute in one rank alone, use "
            "skaocls.distributed.single_process()."
        ) from exc


def cpu_group() -> dist.ProcessGroup:
    """Return the group that exchanges objects and small tensors."""
    default = dist.group.WORLD
    if _groups.cpu is None or _groups.default is not default:
        with peer_errors():
            _groups.cpu = dist.new_group(backend="gloo", timeout=TIMEOUT)
        _groups.default = default
        atexit.register(leave_group)
    return _groups.cpu


def run_on_main(function: Callable[[], T]) -> T:
    """Call a function in the main process; return its result, or raise its error, in all ranks."""
    if world_size() == 1:
        return function()
    outcomes = [attempt(function) if is_main() else (None, None)]
    with peer_errors():
        dist.broadcast_object_list(outcomes, src=0, group=cpu_group())
    return result_of(outcomes[0])


def broadcast(value: T) -> T:
    """Return the main process's value in all ranks."""
    return run_on_main(lambda: value)


def all_gather(value: T) -> list[T]:
    """Return the values of all ranks, sorted by rank."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    with peer_errors():
        dist.all_gather_object(values, value, group=cpu_group())
    return values


def map_ranks(function: Callable[[], T]) -> list[T]:
    """Call a function in every rank and return all results, sorted by rank.

    An error in one rank is raised in all of them.
    """
    if world_size() == 1:
        return [function()]
    own = attempt(function)
    outcomes = all_gather(own)
    result_of(own)
    return [result_of(outcome) for outcome in outcomes]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, on the tensor's device."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().cpu().clone()
    with peer_errors():
        dist.all_reduce(total, group=cpu_group())
    return total.to(tensor.device)


def all_ranks_true(condition: bool) -> bool:
    """Return whether the condition holds in all ranks."""
    return bool(all_reduce_sum(torch.tensor(int(not condition))) == 0)


def broadcast_tensor(tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the main process's tensor in all ranks, on the CPU. Other ranks may pass None."""
    if world_size() == 1:
        assert tensor is not None
        return tensor
    if tensor is None:
        tensor = torch.empty(tuple(shape), dtype=dtype)
    result = tensor.detach().cpu().contiguous()
    with peer_errors():
        dist.broadcast(result, src=0, group=cpu_group())
    return result


def shard_rows(n: int) -> Shard:
    """Return this rank's shard of n rows; n is at least 1."""
    per_rank = -(-n // world_size())
    rows = torch.arange(per_rank, dtype=torch.int64) + rank() * per_rank
    valid = None if per_rank * world_size() == n else (rows < n).float()
    return Shard(rows.clamp(max=n - 1), valid)


def rank_slice(n: int, block_size: int = 1) -> slice:
    """Return this rank's slice of n rows, in whole blocks; the last ranks' may be empty."""
    n_blocks = -(-n // block_size)
    per_rank = -(-n_blocks // world_size()) * block_size
    return slice(min(rank() * per_rank, n), min((rank() + 1) * per_rank, n))


def check_same_on_ranks(hashes: Mapping[str, str]) -> None:
    """Raise a ValueError in all ranks if one of the named hashes differs between them."""
    by_rank = all_gather(dict(hashes))
    different = [name for name in hashes if len({of_rank.get(name) for of_rank in by_rank}) > 1]
    if different:
        raise ValueError(
            f"The processes have different {', '.join(different)}. Pass the same parameters and "
            "the complete data to every process; the library divides the work among them."
        )

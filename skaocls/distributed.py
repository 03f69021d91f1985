"""Cooperation of processes that ``torchrun`` or a caller of ``torch.distributed`` has started.

All processes make the same calls with the same arguments. Inside a call marked by
:func:`collective_call`, the processes divide the work. Objects and small tensors are exchanged
between CPUs in a gloo group that this module creates. Gradients are exchanged in the default group,
which uses NCCL between GPUs and gloo between CPUs.

In a single process, the world size is 1, and the functions do not communicate.
"""

import atexit
import gc
import logging
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
    # Import this module before a process group exists. The defaults of its function arguments
    # would otherwise keep the default process group alive.
    import torch.distributed.nn

T = TypeVar("T")
# Environment variables set by torchrun and by launchers that are compatible with torchrun.
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The timeout is long, because all ranks wait while one rank fits a tokenizer. If a rank dies, the
# other ranks notice it at once, not only after the timeout.
TIMEOUT = timedelta(days=1)
JOIN_NOTICE_SECONDS = 3  # if the other ranks have not joined after this time, a message is logged
# Environment variable that a rank sets when it has joined. The programs that it starts inherit it.
JOINED = "SKAOCLS_JOINED"

_single_process: ContextVar[bool] = ContextVar("single_process", default=False)


@dataclass
class GroupState:
    """Process groups that this module created."""

    cpu: dist.ProcessGroup | None = None  # exchanges objects and small tensors
    default: dist.ProcessGroup | None = None  # default group at the time when `cpu` was created
    owns_default: bool = False  # False if the caller created the default group
    failed: bool = False  # True if other ranks may be gone; destroying a group could then hang


_groups = GroupState()


class PeerError(RuntimeError):
    """Communication failed, because another rank died, raised an error or made another call."""


class Shard(NamedTuple):
    """The rows that one rank processes. All ranks get equally many rows, so rows may repeat."""

    rows: Tensor  # int64 indices
    valid: Tensor | None  # float32, 0 for rows that repeat the last row, else 1; None if all 1


def world_size() -> int:
    """Return the number of processes that work together.

    In a process started by ``torchrun``, the first call joins the process group. The result is 1 in
    child processes, in threads other than the main thread, and inside :func:`single_process`.

    Returns
    -------
    world_size : int
        Number of processes. It is 1 if this process works alone.

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
        if not by_torchrun or os.environ["WORLD_SIZE"] == "1" or started_by_a_rank():
            return 1
        join_group()
    return dist.get_world_size()


def started_by_a_rank() -> bool:
    """Return whether a process that has joined the group started this process.

    This process then has the environment variables of a rank, but is none.
    """
    group, _, process = os.environ.get(JOINED, "").rpartition(" ")
    return group == group_address() and process != str(os.getpid())


def group_address() -> str:
    return "{MASTER_ADDR}:{MASTER_PORT}".format_map(os.environ)


def join_group() -> None:
    """Set up the default process group and select this rank's CUDA device."""
    message = (
        "Rank {RANK} of {WORLD_SIZE} waits for the other ranks at {MASTER_ADDR}:{MASTER_PORT}. "
        "Either torchrun has started this process as a rank, or this process has inherited the "
        "environment variables of a rank. To compute in this process alone, remove WORLD_SIZE "
        "from its environment, or use skaocls.distributed.single_process()."
    ).format_map(os.environ)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # NCCL needs one device per rank
        backend = "cpu:gloo,cuda:nccl"
    notice = threading.Timer(JOIN_NOTICE_SECONDS, logging.getLogger("skaocls").warning, [message])
    notice.daemon = True
    notice.start()
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as exc:
        raise PeerError(f"{message} Joining failed: {exc}") from exc
    finally:
        notice.cancel()
    _groups.owns_default = True
    os.environ[JOINED] = f"{group_address()} {os.getpid()}"
    atexit.register(leave_group)


def leave_group() -> None:
    """Destroy the process groups that this module created.

    This function must run before the interpreter shuts down. Otherwise a gloo thread may free a
    tensor during the shutdown, which aborts the process.
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
        Rank of this process. It is 0 in the main process and in a process that works alone.
    """
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this is the main process, which writes files and prints.

    Returns
    -------
    is_main : bool
        True in exactly one process of the group.
    """
    return rank() == 0


@contextmanager
def single_process() -> Iterator[None]:
    """Run the calls in this context in this process alone, even if there are other processes.

    Use this context if only one process predicts. Outside this context, the prediction would wait
    for the other processes.

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
    """Mark a call that all ranks make: only the main process warns, and errors name this call."""
    if world_size() == 1:
        yield
        return
    with warnings.catch_warnings():
        if not is_main():
            warnings.simplefilter("ignore")
        try:
            yield
        except KeyboardInterrupt:  # each rank stops at a different place, so ranks are out of step
            _groups.failed = True
            raise
        except PeerError as exc:
            raise PeerError(f"{name} failed. {exc} {advice}".strip()) from exc


def attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Call a function in this process alone; return (result, None) or (None, error)."""
    try:
        with single_process():
            return function(), None
    except Exception as exc:
        return None, exc


def result_of(outcome: tuple[T | None, Exception | None]) -> T:
    """Return the result or raise the error that :func:`attempt` returned."""
    result, error = outcome
    if error is not None:
        raise error
    return cast(T, result)


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn errors of collective operations into :class:`PeerError` if there are several ranks."""
    try:
        yield
    except RuntimeError as exc:
        if world_size() == 1 or isinstance(exc, torch.OutOfMemoryError):
            raise
        _groups.failed = True
        raise PeerError(
            f"Rank {dist.get_rank()} of {dist.get_world_size()} cannot reach another rank, which "
            "died, raised an error, or did not make the same call. See the output of the other "
            "rank. All ranks must make the same calls. To compute in one rank alone, use "
            "skaocls.distributed.single_process()."
        ) from exc


def cpu_group() -> dist.ProcessGroup:
    """Return the process group that exchanges objects and small tensors between CPUs."""
    default = dist.group.WORLD
    if _groups.cpu is None or _groups.default is not default:
        with peer_errors():
            _groups.cpu = dist.new_group(backend="gloo", timeout=TIMEOUT)
        _groups.default = default
        atexit.register(leave_group)
    return _groups.cpu


def run_on_main(function: Callable[[], T]) -> T:
    """Call a function in the main process; return the result or raise the error in all ranks."""
    if world_size() == 1:
        return function()
    outcomes = [attempt(function) if is_main() else (None, None)]
    with peer_errors():
        dist.broadcast_object_list(outcomes, src=0, group=cpu_group())
    return result_of(outcomes[0])


def broadcast(value: T) -> T:
    """Return the value of the main process in all ranks."""
    return run_on_main(lambda: value)


def all_gather(value: T) -> list[T]:
    """Return a list of the values of all ranks, sorted by rank."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    with peer_errors():
        dist.all_gather_object(values, value, group=cpu_group())
    return values


def map_ranks(function: Callable[[], T]) -> list[T]:
    """Call a function in every rank; in all ranks, return the list of results or raise an error."""
    if world_size() == 1:
        return [function()]
    own = attempt(function)
    outcomes = all_gather(own)
    result_of(own)
    return [result_of(outcome) for outcome in outcomes]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum the tensors of all ranks; return the sum on the device of this rank's tensor."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().cpu().clone()
    with peer_errors():
        dist.all_reduce(total, group=cpu_group())
    return total.to(tensor.device)


def all_ranks_true(condition: bool) -> bool:
    return bool(all_reduce_sum(torch.tensor(int(not condition))) == 0)


def broadcast_tensor(tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the tensor of the main process in all ranks; other ranks may pass None."""
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
    """Return this rank's shard of n rows, where n is at least 1."""
    per_rank = -(-n // world_size())
    rows = torch.arange(per_rank, dtype=torch.int64) + rank() * per_rank
    valid = None if per_rank * world_size() == n else (rows < n).float()
    return Shard(rows.clamp(max=n - 1), valid)


def rank_slice(n: int, block_size: int = 1) -> slice:
    """Return the slice of whole blocks that this rank processes; last ranks may get no blocks."""
    n_blocks = -(-n // block_size)
    per_rank = -(-n_blocks // world_size()) * block_size
    return slice(min(rank() * per_rank, n), min((rank() + 1) * per_rank, n))


def check_same_on_ranks(hashes: Mapping[str, str]) -> None:
    """Raise a ValueError in all ranks if a named hash differs between ranks."""
    by_rank = all_gather(dict(hashes))
    different = [name for name in hashes if len({of_rank.get(name) for of_rank in by_rank}) > 1]
    if different:
        raise ValueError(
            f"The processes have different {', '.join(different)}. Pass the same parameters and "
            "the complete data to every process; the library divides the work among the processes."
        )

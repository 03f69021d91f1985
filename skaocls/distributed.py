"""Processes that work together, as ``torchrun`` starts them. One alone needs none of it.

Where ``torchrun`` has started several processes, or the caller has set up ``torch.distributed``,
each call of :func:`together` is made by all of them, with the same arguments. They talk in a group
of their own, by way of the CPU; gradients and weights travel as ``torch.distributed`` was set up:
with NCCL between GPUs, with gloo between CPUs.
"""

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

if dist.is_available():
    # later it would keep the default group for ever, as the default argument of its functions
    import torch.distributed.nn

T = TypeVar("T")
# what torchrun tells each process
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=1)  # others wait while one tokenizes; who died is noticed at once

_by_itself: ContextVar[bool] = ContextVar("by_itself", default=False)
# the group in which to talk, of which default group it was made, whether that was joined here
_talk: dict[str, Any] = {}


class Shard(NamedTuple):
    """The rows that this process works on: as many in each, so that none waits for another.

    Attributes
    ----------
    rows : int64 tensor of shape (n,)
        Indices.
    real : float32 tensor of shape (n,) or None
        1 for what is to be counted and 0 for what fills up; None if all is.
    """

    rows: Tensor
    real: Tensor | None


def world_size() -> int:
    """How many processes work together here, 1 for one alone.

    Those that ``torchrun`` has started are joined by the first call. A process that one of them
    has started, another thread than the main one, and what is within :func:`alone` works alone.

    Returns
    -------
    size : int
        1 also where nothing was set up.

    Examples
    --------
    >>> from skaocls import distributed
    >>> distributed.world_size(), distributed.rank(), distributed.is_main()
    (1, 0, True)
    """
    main = threading.current_thread() is threading.main_thread()
    own = multiprocessing.current_process().name == "MainProcess"
    if _by_itself.get() or not (main and own and dist.is_available()):
        return 1
    if not dist.is_initialized():
        if not started_by_torchrun():
            return 1
        join_group()
    return dist.get_world_size()


def started_by_torchrun() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process and others."""
    told = all(name in os.environ for name in ENVIRONMENT)
    return told and int(os.environ["WORLD_SIZE"]) > 1


def join_group() -> None:
    """Meet the other processes; on GPUs each takes the one of its local rank."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(own_device())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    _talk["joined"] = True
    atexit.register(leave_group)


def own_device() -> int:
    """The CUDA device of this process's local rank; NCCL lets no two processes have the same."""
    local, n_devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= n_devices:
        raise RuntimeError(
            f"Process {local} of this machine has no CUDA device of its own: torch finds "
            f"{n_devices}. Start as many processes on a machine as it has devices "
            f"(--nproc-per-node {n_devices}), or set CUDA_VISIBLE_DEVICES to nothing to compute on "
            "the CPU."
        )
    return local


def leave_group() -> None:
    """Part from the others, if they are there to part from; a group that the caller set up stays.

    The threads of what was set up here end with it, while the interpreter is there. One of gloo's
    that lets go of a tensor when the interpreter has begun to end aborts the process.
    """
    if "broken" in _talk:
        return
    if "joined" in _talk and dist.is_initialized():
        dist.destroy_process_group()
    elif "group" in _talk and _talk["of"] is dist.group.WORLD:
        dist.destroy_process_group(_talk["group"])
    _talk.clear()
    gc.collect()  # of what was trained together


def rank() -> int:
    """Which of the processes this is.

    Returns
    -------
    rank : int
        From 0; of one alone 0.
    """
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and prints.

    Returns
    -------
    is_main : bool
        True in one of them, and in one alone.
    """
    return rank() == 0


@contextmanager
def single_process() -> Iterator[None]:
    """What is within is computed by this process alone, whoever else there is.

    Without it, a prediction that only one process asks for waits for the others.

    Yields
    ------
    None
        For ``with``.

    Examples
    --------
    >>> from skaocls import distributed
    >>> with distributed.single_process():
    ...     distributed.world_size()
    1
    """
    token = _by_itself.set(True)
    try:
        yield
    finally:
        _by_itself.reset(token)


@contextmanager
def collective_call(what: str, after: str = "") -> Iterator[None]:
    """A call that all processes make: warnings come once, and who is left alone is told so.

    Parameters
    ----------
    what : str
        What is called.
    after : str
        What to do if another process has died.

    Raises
    ------
    RuntimeError
        If another process died, or does not take part.
    """
    if world_size() == 1:
        yield
        return
    where = f"{what} was ended in process {rank()} of {world_size()}"
    with explain_sigterm(where, after), warnings.catch_warnings():
        if not is_main():
            warnings.simplefilter("ignore")
        try:
            yield
        except KeyboardInterrupt:  # which comes to each at another place
            _talk["broken"] = True
            raise
        except RuntimeError as exc:
            if not is_peer_error(exc):
                raise
            _talk["broken"] = True
            reason = str(exc).strip().splitlines()[0].split(". ")[0]
            raise RuntimeError(
                f"{where}, because another process has died, has raised an error of its own, "
                f"which stands in its output, or did not call {what} ({reason}). {after}"
                "All processes that torchrun starts must make the same calls; within "
                "skaocls.distributed.single_process() one computes alone."
            ) from exc


@contextmanager
def explain_sigterm(where: str, after: str) -> Iterator[None]:
    """SIGTERM, by which torchrun ends the others when one process has died, says what to do."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        yield
        return

    def end(*_: Any) -> None:
        _talk["broken"] = True
        sys.exit(f"{where} by SIGTERM: torchrun ends all when one of them has died. {after}")

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if "broken" not in _talk:  # else the process is about to end, and shall say why
            signal.signal(signal.SIGTERM, before)


def is_peer_error(exc: RuntimeError) -> bool:
    """Whether an error says that another process is missing; gloo has no type of its own for it."""
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(exc, dist.DistError) or any(sign in str(exc) for sign in signs)


def cpu_group() -> Any:
    """The group in which objects and small numbers are sent."""
    default = dist.group.WORLD
    if _talk.get("of") is not default:
        _talk.update(of=default, group=dist.new_group(backend="gloo", timeout=PATIENCE))
        atexit.register(leave_group)
    return _talk["group"]


def run_on_main(function: Callable[[], T]) -> T:
    """What function() gives in the main process, in all of them; so do its errors.

    Parameters
    ----------
    function : callable
        Called in the main process alone.

    Returns
    -------
    result : object
        In the others a copy.
    """
    if world_size() == 1:
        return function()
    told: list[Any] = [None]
    mine: Exception | None = None
    if is_main():
        try:
            with single_process():
                told = [(True, function())]
        except Exception as exc:
            mine, told = exc, [(False, exc)]
    dist.broadcast_object_list(told, src=0, group=cpu_group())
    good, result = told[0]
    if good:
        given: T = result
        return given
    raise mine or result


def broadcast(value: T) -> T:
    """The main process's value, in all of them."""
    return run_on_main(lambda: value)


def all_gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=cpu_group())
    return values


def map_ranks(function: Callable[[], T]) -> list[T]:
    """What function() gives in each process, in all of them; an error of one is raised in all."""
    if world_size() == 1:
        return [function()]
    mine: Exception | None = None
    try:
        with single_process():
            done: tuple[bool, Any] = True, function()
    except Exception as exc:
        mine, done = exc, (False, exc)
    everyone = all_gather(done)
    errors = [result for good, result in everyone if not good]
    if errors:
        raise mine or errors[0]
    return [result for _, result in everyone]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, the same in each."""
    if world_size() == 1:
        return tensor
    summed = tensor.detach().cpu().clone()
    dist.all_reduce(summed, group=cpu_group())
    return summed.to(tensor.device)


def all_ranks_true(good: bool) -> bool:
    """Whether it is so in all processes."""
    return bool(all_reduce_sum(torch.tensor(int(not good))) == 0)


def broadcast_flag(value: bool) -> bool:
    """The main process's decision, for which a number is sent and no object."""
    return bool(all_reduce_sum(torch.tensor(int(value and is_main()))) > 0)


def broadcast_tensor(tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The main process's tensor, in all of them, on the CPU; the others have none to give."""
    if world_size() == 1:
        assert tensor is not None
        return tensor
    if tensor is None:
        tensor = torch.empty(tuple(shape), dtype=dtype)
    sent = tensor.detach().cpu().contiguous()
    dist.broadcast(sent, src=0, group=cpu_group())
    return sent


def shard_rows(n: int) -> Shard:
    """This process's share of n rows.

    Parameters
    ----------
    n : int
        At least 1.

    Returns
    -------
    share : Share

    Examples
    --------
    >>> from skaocls.distributed import share_of
    >>> share_of(3)
    Share(rows=tensor([0, 1, 2]), real=None)
    """
    each = -(-n // world_size())
    rows = torch.arange(each, dtype=torch.int64) + rank() * each
    real = None if each * world_size() == n else (rows < n).float()
    return Shard(rows.clamp(max=n - 1), real)


def rank_slice(n: int, at_once: int = 1) -> slice:
    """This process's part of n things in a row, whole lots of them; later ranks may have none."""
    lots = -(-n // at_once)
    each = -(-lots // world_size()) * at_once
    return slice(min(rank() * each, n), min((rank() + 1) * each, n))


def check_same_on_ranks(what: dict[str, Any]) -> None:
    """Refuse to work on what differs between processes.

    Parameters
    ----------
    what : dict of str to object
        By name, what is to be the same; small, such as digests.

    Raises
    ------
    ValueError
        In all processes, if something differs.
    """
    mine = list(what.items())
    everyone = all_gather(mine)
    wrong = [
        name
        for k, (name, _) in enumerate(mine)
        if len({repr(theirs[k]) for theirs in everyone}) > 1
    ]
    if wrong:
        raise ValueError(
            f"The processes were given different {', '.join(wrong)}. Each must be given the same "
            "data and parameters, all of the data: they are shared out among the processes here."
        )

"""Where and in which precision to compute, whatever the caller has set in torch."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from joblib import cpu_count

T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)
MOST_THREADS = 8  # that read files; more wait for each other
WORTH_THREADS = 16  # files


@contextmanager
def own_torch_state(*, grad: bool = False) -> Iterator[None]:
    """Torch as we need it, in this thread: no autocast, tensors on the CPU, gradients as asked.

    A context or a decorator. The default type of numbers belongs to the whole process, so it is
    left alone: this library names the type of each tensor that it makes.

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
        yield


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


def in_threads(function: Callable[..., T], *items: Any, threads: bool = True) -> list[T]:
    """As ``list(map(function, *items))``; what waits for files, or frees the GIL, at once.

    The first error, in the order of the items, is raised.
    """
    n = min(MOST_THREADS, cpu_count()) if threads else 1
    if n == 1 or len(items[0]) < WORTH_THREADS:
        return list(map(function, *items))
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(function, *items))

"""Where and in which precision to compute."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def resolve_device(device):
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


def resolve_precision(precision, device):
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

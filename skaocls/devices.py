"""Where and in which precision to compute."""

import torch


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

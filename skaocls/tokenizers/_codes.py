"""What all tokenizers ask of codes."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def code_dtype(n_codes: int) -> np.dtype:
    """The type in which codes are written to files: 16 bits where the codebook fits."""
    return np.dtype(np.uint16 if n_codes <= 2**16 else np.uint32)


def check_codes(codes: Any, grid: Sequence[int], n_codes: int) -> np.ndarray:
    """Codes as an int64 array of shape (n, rows, cols), or a ValueError that says what is wrong."""
    codes = np.asarray(codes)
    if codes.ndim != 3 or codes.shape[1:] != tuple(grid):
        raise ValueError(
            f"codes have shape {codes.shape}, but (n, {grid[0]}, {grid[1]}) is expected."
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be integers, got dtype {codes.dtype}.")
    if codes.size and not 0 <= codes.min() <= codes.max() < n_codes:
        raise ValueError(
            f"codes must lie in 0 ... {n_codes - 1}, got {codes.min()} ... {codes.max()}."
        )
    checked: np.ndarray = codes.astype(np.int64, copy=False)
    return checked

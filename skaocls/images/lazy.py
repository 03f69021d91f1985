"""Sequences larger than memory, whose rows are loaded only when they are needed.

Rows of a memory-mapped array are copied a few at a time. After each copy, the memory pages of the
array are released, because they would otherwise count as memory of the process. Items of a data
set, such as a ``torch.utils.data.Dataset``, are requested one after the other.
"""

import math
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from sklearn.utils import gen_batches

PART_BYTES, PART_ROWS = 2**23, 1024  # largest number of bytes and of rows loaded at once
ALL = slice(None)
SAMPLE_SIZE = 16  # number of items from which the shape and value range of a data set are inferred


# Raises an error if the labels of some rows are not as expected
LabelCheck = Callable[[np.ndarray, Sequence[Any]], None]


class Lazy:
    """Base class for sequences of images or tokens that are not in memory.

    Indexing with a slice or an array of indices returns rows in memory. `shape` and `dtype` are
    None if they are unknown until the items are loaded. For tokens, `n_codes` is the size of the
    codebook, and `codebook` contains its vectors. Both are None if they are unknown.
    """

    shape: tuple[int, ...] | None = None
    dtype: np.dtype | None = None
    n_codes: int | None = None
    codebook: np.ndarray | None = None

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    @property
    def ndim(self) -> int:
        """Number of axes, or 1 if the shape is unknown."""
        return len(self.shape or (self.n,))

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, tuple):  # scikit-learn indexes X[rows, ...]
            key = (ALL, *rows[1:])
            selected: np.ndarray = self[rows[0]][key]
            return selected
        if np.ndim(rows) == 0 and not isinstance(rows, slice):
            row: np.ndarray = self[np.array([rows])][0]
            return row
        return self.take(np.arange(self.n)[rows])

    def __iter__(self) -> Iterator[np.ndarray]:
        for part in self.parts():
            yield from part

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Load the rows with the given non-negative indices."""
        raise NotImplementedError

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all rows, a few at a time."""
        n_rows = PART_ROWS
        if self.shape is not None and self.dtype is not None:
            row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
            n_rows = int(np.clip(PART_BYTES // max(1, row_bytes), 1, PART_ROWS))
        for part in gen_batches(self.n, n_rows):
            yield self[part]

    def sample_index(self) -> np.ndarray:
        """Return the indices of at most `SAMPLE_SIZE` evenly spaced rows."""
        return np.unique(np.linspace(0, self.n - 1, SAMPLE_SIZE).astype(int))

    @cached_property
    def sample(self) -> np.ndarray:
        """The rows at the indices `sample_index()`."""
        return self[self.sample_index()]

    def compare_labels(self, check: LabelCheck) -> None:
        """Call ``check(rows, labels)`` if the sequence contains labels of its own."""


class Mapped(Lazy):
    """A memory-mapped array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __init__(self, array: np.ndarray):
        super().__init__(len(array))
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def take(self, rows: np.ndarray) -> np.ndarray:
        taken: np.ndarray = np.asarray(self.array)[rows]
        give_back(self.array)
        return taken


class Items(Lazy):
    """A data set with a length, whose items are images or (image, label) pairs.

    Only one thread requests items, because a data set may not be thread-safe. A request can be
    slow. Therefore, equal images are not merged, and image shape and value range are inferred from
    a sample of the items.
    """

    def __init__(self, data: Any, stack: Callable[[list[object]], np.ndarray]):
        super().__init__(len(data))
        self.data, self.stack = data, stack
        self.check_labels: LabelCheck | None = None

    def compare_labels(self, check: LabelCheck) -> None:
        """Check the labels of the sample now, and other labels when their items are requested."""
        check(self.sample_index(), [label_of(item) for item in self.sample_items])
        self.check_labels = check

    @cached_property
    def sample_items(self) -> list[object]:
        """The items at the indices `sample_index()`, including labels."""
        return self.items(self.sample_index())

    @cached_property
    def sample(self) -> np.ndarray:
        """The images at the indices `sample_index()`."""
        return self.stack([image_of(item) for item in self.sample_items])

    def items(self, rows: np.ndarray) -> list[object]:
        """Return items of the data set, including labels."""
        if hasattr(self.data, "__getitems__"):  # PyTorch's protocol for several items
            return list(self.data.__getitems__(rows.tolist()))
        return [self.data[i] for i in rows.tolist()]

    def take(self, rows: np.ndarray) -> np.ndarray:
        items = self.items(rows)
        if self.check_labels is not None:
            self.check_labels(rows, [label_of(item) for item in items])
        return self.stack([image_of(item) for item in items])


class Picked(Lazy):
    """Selected rows of a lazy sequence, optionally transformed by a function."""

    def __init__(
        self,
        source: Lazy,
        index: np.ndarray | None = None,
        function: Callable[[np.ndarray], np.ndarray] | None = None,
        row_shape: tuple[int, ...] | None = None,
    ):
        super().__init__(len(source) if index is None else len(index))
        self.source, self.index, self.function = source, index, function
        self.dtype, self.n_codes, self.codebook = source.dtype, source.n_codes, source.codebook
        if row_shape is not None or source.shape is not None:
            self.shape = (self.n, *((source.shape or ())[1:] if row_shape is None else row_shape))

    def take(self, rows: np.ndarray) -> np.ndarray:
        taken = self.source[rows if self.index is None else self.index[rows]]
        return self.function(taken) if self.function is not None else taken


ArrayOrLazy = np.ndarray | Lazy


def rows_of(source: ArrayOrLazy, rows: np.ndarray) -> Any:
    """Return source[rows] for a mask or indices; the result is lazy if the source is lazy."""
    if not isinstance(source, Lazy):
        return source[rows]
    return Picked(source, np.arange(len(source))[rows])


def first_views(codes: ArrayOrLazy, rows: slice | np.ndarray = ALL) -> Any:
    """Return codes[rows, 0] for codes of shape (n, n_views, n_tokens), lazy if codes are lazy."""
    if not isinstance(codes, Lazy):
        return codes[rows, 0]
    assert codes.shape is not None
    return Picked(codes, np.arange(len(codes))[rows], itemgetter((ALL, 0)), codes.shape[2:])


def of_views(codes: ArrayOrLazy, rows: np.ndarray, views: int | np.ndarray) -> np.ndarray:
    """Return codes[rows, views] for codes of shape (n, n_views, n_tokens), as int64 in memory."""
    if isinstance(codes, Lazy):
        codes, rows = codes[rows], np.arange(len(rows))
    taken: np.ndarray = codes[rows, views]
    return taken.astype(np.int64, copy=False)


def concatenate(
    parts: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, max_bytes: int
) -> "np.ndarray | Mapped":
    """Concatenate integer arrays as int32 in memory; above `max_bytes`, use a temporary file.

    The file has no name, so the operating system removes the file when the result is deleted.
    """
    if 4 * math.prod(shape) <= max_bytes:
        result, start = np.empty(shape, dtype=np.int32), 0
        for part in parts:
            result[start : start + len(part)] = part
            start += len(part)
        return result
    with tempfile.TemporaryFile(prefix="skaocls-tokens-") as file:
        try:
            for part in parts:
                part.astype(dtype).tofile(file)
            file.flush()
        except OSError as exc:
            raise OSError(
                f"The tokens of X ({dtype.itemsize * math.prod(shape)} bytes) cannot be written to "
                f"{tempfile.gettempdir()}: {exc}. Set the environment variable TMPDIR to a folder "
                "with enough space."
            ) from exc
        return Mapped(np.memmap(file, dtype, "r", shape=shape))


def in_memory(data: ArrayOrLazy) -> np.ndarray:
    if isinstance(data, Lazy) and data.shape is not None:
        return np.concatenate(list(data.parts()))
    return data[:] if isinstance(data, Lazy) else data


def image_of(item: Any) -> Any:
    """Return the image of a data set's item, which is an image or an (image, label) pair."""
    return item[0] if isinstance(item, (tuple, list)) and item else item


def label_of(item: Any) -> Any:
    """Return the label of a data set's item, or None if the item is not a pair."""
    return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None


def memmap_of(array: object) -> np.memmap | None:
    """Return the memory-mapped array whose memory `array` uses, or None."""
    while array is not None and getattr(array, "_mmap", None) is None:
        array = getattr(array, "base", None)
    return array if isinstance(array, np.memmap) else None


def give_back(array: np.ndarray) -> None:
    """Release the memory pages of a memory-mapped array, without changing the file."""
    mapped: Any = memmap_of(array)
    mapping = getattr(mapped, "_mmap", None)
    # a copy-on-write mapping may contain changes that exist only in memory
    if mapping is not None and mapped.mode != "c" and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)

"""Rows that are read when they are asked for: data larger than memory.

What is mapped from a file is copied out a few rows at a time, and its pages are given back: they
would count as memory of this process else. What has items, as a ``torch.utils.data.Dataset``, is
asked for one after the other.
"""

import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.utils import gen_batches

READ_BYTES, READ_ROWS = 2**23, 1024  # of mapped rows that are gone through together
LOOKED_AT = 16  # items, spread evenly, that tell how all of them look


class Lazy:
    """A sequence of images or tokens that stays where it is; slices and indices bring some of it.

    Attributes
    ----------
    shape : tuple of int or None
        Of all together, as of an array; None where only the items could tell.
    dtype : numpy.dtype or None
        Of their numbers.
    merged : bool
        Whether equal rows are sought among those of `fit`, for which all are read.
    n_codes, codebook : int or None, array or None
        Of tokens that know them, how many values they may have and what these stand for.
    """

    shape: tuple[int, ...] | None = None
    dtype: np.dtype | None = None
    merged = True
    n_codes: int | None = None
    codebook: np.ndarray | None = None

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    @property
    def ndim(self) -> int:
        """Number of axes, 1 where there are only items."""
        return len(self.shape or (self.n,))

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, tuple):  # scikit-learn writes X[rows, ...]
            key = (slice(None), *rows[1:])
            return self[rows[0]][key]
        if np.ndim(rows) == 0 and not isinstance(rows, slice):
            return self[np.array([rows])][0]
        return self.take(np.arange(self.n)[rows])

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts():
            yield from part

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Those rows, none of them negative, in memory."""
        raise NotImplementedError

    def parts(self) -> Iterator[np.ndarray]:
        """All rows, a few at a time."""
        few = READ_ROWS
        if self.shape is not None and self.dtype is not None:
            size = self.dtype.itemsize * int(np.prod(self.shape[1:]))
            few = int(np.clip(READ_BYTES // max(1, size), 1, READ_ROWS))
        for part in gen_batches(self.n, few):
            yield self[part]

    def looked_at(self) -> np.ndarray:
        """Indices of a few rows that tell how all of them look."""
        return np.unique(np.linspace(0, self.n - 1, LOOKED_AT).astype(int))

    def sample(self) -> np.ndarray:
        """Those rows."""
        found: np.ndarray = self[self.looked_at()]
        return found

    def for_range(self) -> Iterator[np.ndarray]:
        """What is looked at for the least and the largest number: all, a few at a time."""
        return self.parts()


class Mapped(Lazy):
    """An array that is mapped from a file."""

    def __init__(self, array: np.ndarray):
        super().__init__(len(array))
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def take(self, rows: np.ndarray) -> np.ndarray:
        taken: np.ndarray = np.asarray(self.array)[rows]
        give_back(self.array)
        return taken


class Items(Lazy):
    """Images of a data set, which has a length and items: images, or pairs of an image and a label.

    They are asked for in one thread at a time, as data sets may be of use to one only, and no more
    often than needed: equal ones are not merged, and a few, spread evenly, tell shape and range.
    """

    merged = False

    def __init__(self, data: Any, as_batch: Callable[[list[Any]], Any]):
        super().__init__(len(data))
        self.data, self.as_batch = data, as_batch
        self.known: np.ndarray | None = None

    def items(self, rows: np.ndarray) -> list[Any]:
        """Those items as they are."""
        if hasattr(self.data, "__getitems__"):  # as PyTorch's loaders ask for several
            return list(self.data.__getitems__(rows.tolist()))
        return [self.data[i] for i in rows.tolist()]

    def take(self, rows: np.ndarray) -> np.ndarray:
        taken: np.ndarray = self.as_batch([image_of(item) for item in self.items(rows)])
        return taken

    def sample(self) -> np.ndarray:
        if self.known is None:
            self.known = super().sample()
        return self.known

    def for_range(self) -> Iterator[np.ndarray]:
        yield self.sample()


class Picked(Lazy):
    """Rows of a lazy sequence, after a function of them."""

    def __init__(
        self,
        source: Lazy,
        index: np.ndarray | None = None,
        use: Callable[[np.ndarray], np.ndarray] | None = None,
        row_shape: tuple[int, ...] | None = None,
    ):
        super().__init__(len(source) if index is None else len(index))
        self.source, self.index, self.use = source, index, use
        self.dtype, self.merged = source.dtype, source.merged
        self.n_codes, self.codebook = source.n_codes, source.codebook
        if row_shape is not None or source.shape is not None:
            self.shape = (self.n, *((source.shape or ())[1:] if row_shape is None else row_shape))

    def take(self, rows: np.ndarray) -> np.ndarray:
        taken: np.ndarray = self.source[rows if self.index is None else self.index[rows]]
        return self.use(taken) if self.use is not None else taken


def rows_of(source: Any, rows: np.ndarray) -> Any:
    """source[rows] for a mask or indices; of what is lazy, lazily."""
    if not isinstance(source, Lazy):
        return source[rows]
    return Picked(source, np.arange(len(source))[rows])


def first_views(codes: Any, rows: Any = slice(None)) -> Any:
    """codes[rows, 0] of codes (n, n_views, n_tokens); of what is lazy, lazily."""
    if not isinstance(codes, Lazy):
        return codes[rows, 0]
    assert codes.shape is not None
    return Picked(codes, np.arange(len(codes))[rows], first, codes.shape[2:])


def of_views(codes: Any, rows: np.ndarray, views: Any) -> np.ndarray:
    """codes[rows, views] of codes (n, n_views, n_tokens), as int64 in memory."""
    if isinstance(codes, Lazy):
        codes, rows = codes[rows], np.arange(len(rows))
    taken: np.ndarray = np.asarray(codes)[rows, views]
    return taken.astype(np.int64, copy=False)


def in_memory(batch: Any) -> Any:
    """All of it."""
    if isinstance(batch, Lazy) and batch.shape is not None:
        return np.concatenate(list(batch.parts()))
    return batch[:] if isinstance(batch, Lazy) else batch


def first(taken: np.ndarray) -> np.ndarray:
    return taken[:, 0]


def image_of(item: Any) -> Any:
    """The image in an item of a data set, which is one, or a pair of one and its label."""
    return item[0] if isinstance(item, (tuple, list)) and item else item


def is_mapped(array: Any) -> bool:
    """Whether an array lies in a file."""
    return isinstance(array, np.ndarray) and mapping_of(array)[0] is not None


def mapping_of(array: Any) -> tuple[mmap.mmap | None, str | None]:
    """The mapping that an array lies in, if it does, and its mode."""
    mode = None
    while array is not None and not isinstance(array, mmap.mmap):
        if mode is None and isinstance(array, np.memmap):
            mode = array.mode
        array = getattr(array, "base", None)
    return (array, mode) if mode is not None else (None, None)


def give_back(array: np.ndarray) -> None:
    """Give pages of a mapped array back: they stay in the file, and are read again when needed."""
    mapping, mode = mapping_of(array)
    # "c" has changes that are in no file
    if mapping is not None and mode != "c" and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)

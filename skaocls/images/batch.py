"""The data of one call, validated once: images, rows of a table, or tokens."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from skaocls.images.lazy import Lazy, in_memory, rows_of

if TYPE_CHECKING:
    from skaocls.images.reader import Reader


class Batch:
    """What a user passed as X, after validation.

    Made by :func:`skaocls.images.reader.learn_reader` and :meth:`Reader.open`. Nothing after that
    asks again what X might be.

    Parameters
    ----------
    reader : Reader
        Knows the kind of data, its shape, and how files are decoded.
    data : ndarray or Lazy
        Arrays of images, tables or tokens; or a 1-D object array of files and images.
    """

    def __init__(self, reader: "Reader", data: Any):
        self.reader, self.data = reader, data

    def __len__(self) -> int:
        return len(self.data)

    @property
    def lazy(self) -> bool:
        """Whether the data stay on disk, or in a data set, until they are used."""
        return isinstance(self.data, Lazy)

    def take(self, rows: Any) -> "Batch":
        """The batch of some rows: a slice, indices or a mask."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        return Batch(self.reader, rows_of(self.data, rows))

    def images(self, part: Any = slice(None)) -> np.ndarray:
        """Decoded images of some rows: float32 (n, height, width, channels)."""
        return self.reader.images(self.data, part)

    def originals(self, part: Any = slice(None)) -> list[np.ndarray]:
        """Decoded images of some rows at their full size."""
        return self.reader.originals(self.data, part)

    def values(self, part: Any = slice(None)) -> np.ndarray:
        """Rows of a table, or tokens, in memory."""
        values: np.ndarray = in_memory(self.data if part == slice(None) else self.data[part])
        return values

    def parts(self) -> Iterator[np.ndarray]:
        """Rows of a table, or tokens, a few at a time."""
        if isinstance(self.data, Lazy):
            yield from self.data.parts()
        else:
            yield self.data

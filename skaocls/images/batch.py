"""The data of one call, validated once: images, rows of a table, or tokens."""

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn.utils import gen_batches

from skaocls.images.decoding import decoded
from skaocls.images.inputs import as_array, is_items, read
from skaocls.images.lazy import Lazy, in_memory, rows_of

if TYPE_CHECKING:
    from skaocls.images.reader import Reader


HASH_BYTES = 16
HASHED_ROWS = 1024  # rows of an array hashed together


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

    def content_hash(self) -> str:
        """Return a hash of everything that the decoded data depend on.

        Arrays in memory and memory-mapped arrays have the same hash. Files are hashed by content,
        so that copies of a file are equal.

        Raises
        ------
        ValueError
            If an image cannot be read.
        """
        reader = self.reader
        result = blake2b(digest_size=HASH_BYTES)
        result.update(f"{reader.declared_shape} {reader.decoding} {len(self)}".encode())
        if self._is_array:
            result.update(f"{self.data.shape[1:]} {numeric(self.data[:1]).dtype.str}".encode())
            for part in self._array_parts():
                result.update(part.data)
        else:
            for i, item in enumerate(self.data):
                if isinstance(item, (str, os.PathLike)):
                    item = read(item, i, lambda _, path=item: Path(path).read_bytes())
                result.update(hash_item(item, i, reader.decoding))
        return result.hexdigest()

    def row_hashes(self) -> np.ndarray:
        """Return a hash of each row, an array of str; equal samples have equal hashes.

        Arrays and PIL images are hashed by content, files by absolute path: they are not opened.
        PIL images that cannot be decoded are all different.
        """
        if self._is_array:
            rows = (row for part in self._array_parts() for row in part)
            return np.array([hash_item(row, 0, self.reader.decoding).hex() for row in rows])
        hashes = []
        for i, item in enumerate(self.data):
            if isinstance(item, (str, os.PathLike)):
                digest = os.fsencode(os.path.abspath(item))
            else:
                try:
                    digest = hash_item(item, i, self.reader.decoding)
                except ValueError:  # decoding the images reports it
                    digest = f"unreadable {i}".encode()
            hashes.append(blake2b(digest, digest_size=HASH_BYTES).hexdigest())
        return np.array(hashes)

    @property
    def _is_array(self) -> bool:
        """Whether the data are one array, in memory or on disk."""
        if isinstance(self.data, Lazy):
            return self.data.shape is not None
        return not is_items(self.data)

    def _array_parts(self) -> Iterator[np.ndarray]:
        """Yield the rows of one array, some at a time."""
        if isinstance(self.data, Lazy):
            parts = self.data.parts()
        else:
            parts = (self.data[part] for part in gen_batches(len(self), HASHED_ROWS))
        for part in parts:
            yield np.ascontiguousarray(numeric(part))


def numeric(array: np.ndarray) -> np.ndarray:
    """Return an array of Python objects as numbers; None becomes NaN."""
    return array.astype(np.float64) if array.dtype.hasobject else array


def hash_item(item: Any, index: int, decoding: str) -> bytes:
    """Hash one image: file content with its decoding, PIL images and arrays by pixels."""
    if not isinstance(item, bytes):
        item = as_array(item)
        if isinstance(item, Image.Image):
            item = read(item, index, lambda image: np.asarray(decoded(image, decoding)))
        item = np.ascontiguousarray(item)
        item = f"{item.dtype.str} {item.shape}".encode() + item.tobytes()
    return blake2b(item, digest_size=HASH_BYTES).digest()

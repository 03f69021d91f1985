"""The validated data of one call: images, table rows or tokens."""

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageFile

from skaocls.devices import prefetch
from skaocls.distributed import rank_slice
from skaocls.hashing import hash_bytes, hash_object
from skaocls.images.decoding import (
    BadImage,
    convert_mode,
    decode_images,
    decode_originals,
    read_item,
    read_items,
    unreadable_items,
)
from skaocls.images.input_types import as_array
from skaocls.images.lazy import ALL, ArrayOrLazy, Lazy, in_memory, rows_of

if TYPE_CHECKING:
    from skaocls.images.reader import Reader

T = TypeVar("T")
Rows = slice | np.ndarray
BLOCK_IMAGES, BLOCK_NUMBERS = 512, 2**24  # largest number of images and of values in a block
MAX_REASONS = 5  # largest number of unreadable images that an error message describes


def block_size(image_shape: Sequence[int]) -> int:
    """Return the number of images that are decoded and tokenized together."""
    return int(np.clip(BLOCK_NUMBERS // math.prod(image_shape), 1, BLOCK_IMAGES))


class Batch:
    """Validated data, the result of :meth:`Reader.open` for the user's X.

    `data` is an array (of images, table rows or tokens), a :class:`Lazy`, or a 1-D object array of
    files and images. `index` contains the position in the user's X of each row of `data`.
    `skipped` maps the index of each unreadable image to its error message. `data` does not contain
    unreadable images.
    """

    def __init__(self, reader: "Reader", data: ArrayOrLazy, skipped: dict[int, str] | None = None):
        self.reader = reader
        self.data: Any = data
        self.skipped = skipped or {}
        self.index = np.arange(len(data) + len(self.skipped))
        self.index = np.delete(self.index, list(self.skipped))
        self._source: Batch | None = None  # the batch from which `take` selected these rows

    def __len__(self) -> int:
        return len(self.data)

    @property
    def lazy(self) -> bool:
        """Whether the data stay on disk or in a data set until they are needed."""
        return isinstance(self.data, Lazy)

    @property
    def mergeable(self) -> bool:
        """Whether equal samples can be found without requesting every item of a data set."""
        return not self.lazy or self.data.shape is not None

    def take(self, rows: Rows) -> "Batch":
        """Return a batch of the selected rows. `rows` is a slice, a mask or an index array."""
        rows = np.arange(len(self))[rows]
        part = Batch(self.reader, rows_of(self.data, rows))
        part.index = self.index[rows]
        part._source = self if self._source is None else self._source
        return part

    def images(self, rows: Rows = ALL, *, allow_nan: bool = False) -> np.ndarray:
        """Return the decoded images as float32 of shape (n, height, width, channels)."""
        return self._decode(partial(decode_images, allow_nan=allow_nan), rows)

    def image_blocks(self, rows: slice = ALL) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, decoded images) of each block, and decode the next block in a thread."""
        assert self.reader.image_shape is not None
        start, stop, _ = rows.indices(len(self))
        size = block_size(self.reader.image_shape)
        blocks = [slice(at, min(at + size, stop)) for at in range(start, stop, size)]
        yield from zip(blocks, prefetch(map(self.images, blocks)), strict=True)

    def rank_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Return an iterator of (block number, decoded images) over the blocks of this rank."""
        assert self.reader.image_shape is not None
        size = block_size(self.reader.image_shape)
        own = rank_slice(len(self), size)  # before `map_ranks` makes world_size() 1
        return ((rows.start // size, images) for rows, images in self.image_blocks(own))

    def originals(self, rows: Rows = ALL) -> list[np.ndarray]:
        """Return images, decoded at the larger size from which random crops are cut."""
        return self._decode(decode_originals, rows)

    def read(self) -> "Batch":
        """Return this batch with all data in memory, so that another process can decode it.

        Another process may have another current folder, and other settings and formats of Pillow.
        Pickles of PIL images lack parts of the palette and of the metadata.
        """
        part = copy.copy(self)
        is_image = self.reader.image_shape is not None
        part.data = self._decode(read_items, ALL) if is_image else self.values()
        part._source = None
        return part

    def _decode(self, decode: Callable[..., T], rows: Rows) -> T:
        reader = self.reader
        resize = reader.declared_shape is not None
        with_index = partial(decode, resize=resize, decoding=reader.decoding)
        try:
            return with_index(self.data[rows], reader.image_shape, index=self.index[rows])
        except BadImage as error:
            raise self.error_for_all(error) from error.__cause__

    def error_for_all(self, error: BadImage) -> BadImage:
        """Return an error that names all unreadable images; `error` names only the first one."""
        whole = self if self._source is None else self._source
        reasons = list(unreadable_items(whole.data, whole.index, self.reader.decoding).values())
        if len(reasons) < 2:
            return error
        listed = reasons[:MAX_REASONS] + ["..."] * (len(reasons) > MAX_REASONS)
        hint = (
            "skaocls.images.find_unreadable(X) returns the index of each unreadable image. If you "
            'pass on_bad_image="skip", fit leaves out these images.'
        )
        first_line = f"{len(reasons)} of {len(whole)} images cannot be read:"
        return BadImage("\n".join([first_line, *listed, hint]))

    def values(self, rows: Rows = ALL) -> np.ndarray:
        """Return table rows or tokens as an array in memory."""
        return in_memory(self.data if rows is ALL else self.data[rows])

    def parts(self) -> Iterator[np.ndarray]:
        """Yield table rows or tokens in parts; data in memory are a single part."""
        if isinstance(self.data, Lazy):
            yield from self.data.parts()
        else:
            yield self.data

    def content_hash(self) -> str:
        """Return a hash of everything that determines the decoded data.

        Files are hashed by their content. Arrays have the same hash in memory and memory-mapped.
        Tokens in a folder are hashed together with their codebook.
        """
        reader, data = self.reader, self.data
        codes = hash_object(getattr(data, "n_codes", None), getattr(data, "codebook", None))
        shapes = reader.declared_shape, reader.image_shape, len(self)
        # Pillow reads truncated files or refuses them, depending on this setting
        settings = shapes, reader.decoding, ImageFile.LOAD_TRUNCATED_IMAGES, codes
        return hash_bytes(repr(settings).encode(), *map(str.encode, self._hashes(read_files=True)))

    def row_hashes(self) -> np.ndarray:
        """Return a hash of each row, as n strings; equal samples have equal hashes.

        Arrays and PIL images are hashed by their content. Files are hashed by their real path,
        because hashing their content would take longer. A PIL image that cannot be decoded gets a
        hash that differs from the hashes of all other images.
        """
        return np.array(list(self._hashes(read_files=False)))

    def _hashes(self, *, read_files: bool) -> Iterator[str]:
        """Yield a hash of each row; files are hashed by content if `read_files`, else by path."""
        for i, item in zip(self.index.tolist(), self.data, strict=True):
            if isinstance(item, (str, os.PathLike)) and not read_files:
                yield hash_bytes(os.fsencode(os.path.realpath(item)))
                continue
            try:
                yield hash_item(item, i, self.reader.decoding)
            except BadImage as error:
                if read_files:
                    raise self.error_for_all(error) from error.__cause__
                yield hash_bytes(f"unreadable {i}".encode())  # decoding reports this error later


def hash_array(array: np.ndarray) -> str:
    """Return a hash of an array's dtype, shape and content."""
    if array.dtype.hasobject:
        array = array.astype(np.float64)  # None becomes NaN
    array = np.ascontiguousarray(array)
    return hash_bytes(f"{array.dtype.str} {array.shape}".encode(), array.data)


def hash_item(item: object, index: int, decoding: str) -> str:
    """Hash one image: a file by its bytes, any other image by its pixels."""
    if isinstance(item, (str, os.PathLike)):
        path = Path(item)
        return hash_bytes(read_item(item, index, lambda _: path.read_bytes()))
    if isinstance(item, bytes):
        return hash_bytes(item)
    if isinstance(item, Image.Image):
        return read_item(item, index, lambda x: hash_array(np.asarray(convert_mode(x, decoding))))
    return hash_array(as_array(item))

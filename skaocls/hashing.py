"""Content hashes of bytes, files and Python objects."""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from joblib.hashing import NumpyHasher, Pickler

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DIGEST_BYTES = 16
READ_BYTES = 2**20  # number of bytes of a file that are read at a time


def hash_bytes(*chunks: ReadableBuffer) -> str:
    """Return the hash of concatenated bytes or C-contiguous arrays, as 32 hexadecimal digits."""
    return hash_chunks(chunks)


def hash_chunks(chunks: Iterable[ReadableBuffer]) -> str:
    """Return the same hash as :func:`hash_bytes`, without holding all chunks in memory."""
    digest = new_hash()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def new_hash() -> blake2b:
    """Return an empty hash object of the kind that :func:`hash_bytes` uses."""
    return blake2b(digest_size=DIGEST_BYTES)


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the hash of the content of a file."""
    with open(path, "rb") as file:
        return hash_stream(file)


def hash_stream(file: BinaryIO) -> str:
    """Return the hash of an open file from the current position to the end."""
    return hash_chunks(iter(lambda: file.read(READ_BYTES), b""))


def hash_object(*values: object) -> str:
    """Hash the content of picklable objects. The hash is the same in every process.

    The order of items matters in dictionaries, because code can depend on it: a network calls its
    layers in this order. The order of attributes and of items in sets does not matter. Equal
    tensors have equal hashes.
    """
    digest: str = ContentHasher(hash_name="md5").hash(values)
    return digest


class ContentHasher(NumpyHasher):
    """Joblib's hasher, extended to tensors and to the order of items in dictionaries.

    Pickles of equal tensors can differ, and joblib's hasher ignores the order of items.
    """

    def save(self, obj: object) -> None:
        if isinstance(obj, torch.Tensor):
            tensor = obj.detach().cpu().contiguous()
            obj = str(tensor.dtype), tuple(tensor.shape), tensor.flatten().view(torch.uint8).numpy()
        super().save(obj)

    def save_reduce(self, func: Any, args: Any, state: Any = None, *rest: Any, **more: Any) -> None:
        if isinstance(state, dict):
            state = sorted(state.items(), key=lambda item: str(item[0]))
        super().save_reduce(func, args, state, *rest, **more)

    def _batch_setitems(self, *args: Any) -> None:
        Pickler._batch_setitems(self, *args)

"""A folder of results, under keys that say all that they depend on."""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from filelock import FileLock
from joblib.hashing import NumpyHasher
from numpy.lib.format import MAGIC_PREFIX

from skaocls.files import write_all
from skaocls.priors.interface import Prior
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.version import __version__

KEPT_BYTES = 10 * 2**30  # what was not used for longest goes first
LEFT_SECONDS = 3600  # after which a file that was not put in place is of no process any more
HASH_BYTES = 16


class Hasher(NumpyHasher):
    """joblib's, to which a tensor is its numbers: pickled, equal tensors differ."""

    def save(self, obj: Any) -> None:
        if isinstance(obj, torch.Tensor):
            tensor = obj.detach().cpu().contiguous()
            obj = str(tensor.dtype), tuple(tensor.shape), tensor.flatten().view(torch.uint8).numpy()
        super().save(obj)


def content_hash(*things: Any) -> str:
    """Hash of the content of things, the same in every process."""
    found: str = Hasher(hash_name="md5").hash(things)
    return found


def prior_weights(prior: Prior) -> tuple[Any, ...]:
    """All that a prior's answers depend on."""
    return prior.grid, prior.transformer.n_head, dict(prior.state_dict())


class ResultCache:
    """A folder of results, shared by processes.

    An entry is a file, written whole or not at all, which ends with a hash of what is before it:
    what was damaged is dropped with a warning, and made again. Arrays are NumPy's files, all else
    is pickled by joblib, as by a scikit-learn pipeline's `memory`: keep the folder where only you
    can write. Where it cannot be written to, a warning says so and what is there is used.

    Parameters
    ----------
    memory : str, path or joblib.Memory
        Entries go into a subfolder of it, and only those are ever removed.
    """

    def __init__(self, memory: Any):
        location = memory.location if isinstance(memory, joblib.Memory) else os.fspath(memory)
        self.folder = Path(location) / "skaocls-memory"  # no name of a package
        self.writable, self.unchecked = True, math.inf

    def recall(self, key: str, function: Callable[[], Any]) -> Any:
        """function(), run once for each key and version of this library."""
        path = self.path(key)
        with self.lock(path.name):
            if (known := self.read(path)) is not None:
                return known[0]
            result = function()
            if self.writable:
                self.write(path, result)
        return result

    def path(self, key: str) -> Path:
        """Where the result of that key is kept."""
        return self.folder / content_hash(__version__, key)

    def read(self, path: Path) -> tuple[Any] | None:
        """What is kept there, if it is whole."""
        try:
            with open(path, "rb") as file:
                end = os.fstat(file.fileno()).st_size - HASH_BYTES
                if end < 0 or hash_of(file, end) != file.read():
                    raise ValueError("its content has changed since it was written")
                file.seek(0)
                is_array = file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
                file.seek(0)
                kept = np.load(file, allow_pickle=False) if is_array else joblib.load(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as exc:  # pickles of another version of a library raise all sorts
            message = f"The entry {path} of memory is damaged, and is made again: {exc}."
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            return None
        with suppress(OSError):
            os.utime(path)  # it was used
        return (kept,)

    def write(self, path: Path, result: Any) -> None:
        def write(temporary: str) -> None:
            with open(temporary, "rb+") as file:
                if isinstance(result, np.ndarray):
                    np.save(file, result, allow_pickle=False)
                else:
                    joblib.dump(result, file)
                end = file.tell()
                file.seek(0)
                file.write(hash_of(file, end))

        try:
            write_all(self.folder, {path.name: write})
            self.unchecked += path.stat().st_size
            if self.unchecked > KEPT_BYTES / 16:
                self.reduce()
        except OSError as exc:
            self.writable = False
            message = f"Nothing more is kept in memory={str(self.folder.parent)!r}: {exc}."
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def reduce(self) -> None:
        """Remove what was not used for longest, and what processes that were killed have left."""
        self.unchecked, size = 0, 0
        entries = [(p, p.stat()) for p in self.folder.iterdir() if p.is_file()]
        for path, about in sorted(entries, key=lambda entry: -entry[1].st_mtime):
            size += about.st_size
            left = path.name.startswith(".") and time.time() - about.st_mtime > LEFT_SECONDS
            if left or size > KEPT_BYTES:
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Of processes that want the same result one computes it."""
        locks = self.folder / "locks"
        lock = FileLock(locks / key[:2])  # a few files serve all keys
        try:
            locks.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError:  # `write` tells
            yield
            return
        try:
            yield
        finally:
            lock.release()


def hash_of(file: Any, end: int) -> bytes:
    """Of the first bytes of a file; it is then read up to there."""
    found = blake2b(digest_size=HASH_BYTES)
    while part := file.read(min(2**20, end - file.tell())):
        found.update(part)
    return found.digest()


def open_cache(memory: Any) -> ResultCache | None:
    """Where to keep results, if anywhere."""
    if memory is None or (isinstance(memory, joblib.Memory) and memory.location is None):
        return None
    return ResultCache(memory)


def cached_log_likelihoods(
    store: ResultCache,
    prior: Prior,
    known_as: str,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: torch.dtype,
) -> np.ndarray:
    """As :func:`skaocls.scoring.exhaustive.log_likelihoods`, each order of the same tokens once.

    `known_as` is a digest of the prior's weights.
    """
    parts = []
    for k, order in enumerate(orders):
        tokens = codes if codes.ndim == 2 else codes[:, k]
        key = content_hash(known_as, tokens, order, labels, str(dtype))
        parts.append(
            store.recall(
                key,
                partial(log_likelihoods, prior, tokens, order[None], labels, dtype=dtype),
            )
        )
    return np.concatenate(parts, axis=1)

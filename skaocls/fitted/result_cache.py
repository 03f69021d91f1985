"""The cache of the parameter `memory`, which stores fitted models and log-likelihoods in a folder.

The cache has three features that ``joblib.Memory`` lacks. It detects damaged entries, limits the
total size of all entries, and lets only one of several processes compute an entry.
"""

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import cloudpickle
import joblib
import numpy as np
import torch
from filelock import FileLock

from skaocls.distributed import is_main, run_on_main
from skaocls.files import check_writable, write_all
from skaocls.hashing import hash_object, hash_stream
from skaocls.priors.transformer import Prior
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.version import __version__
from skaocls.warn import warn

T = TypeVar("T")
MAX_BYTES = 10 * 2**30  # if the cache is larger, the least recently used entries are removed
ABANDONED_SECONDS = 3600  # older temporary files are removed; killed processes left these files
HASH_LENGTH = 32  # number of characters of the hash at the start of each entry


class ResultCache:
    """Cache of results in the folder ``skaocls-memory`` inside the folder `memory`.

    Several processes may share the folder. Each entry is a file: first the hash, then the pickled
    result. Files are written completely or not at all. If an entry is damaged, the cache issues a
    warning and computes the result again. If the folder is not writable, the cache issues a warning
    and still uses existing entries. Loading a pickle can execute code, so nobody else should be
    able to write to the folder.
    """

    def __init__(self, memory: str | os.PathLike[str] | joblib.Memory):
        location = memory.location if isinstance(memory, joblib.Memory) else os.fspath(memory)
        # Because of the hyphen, Python cannot import the folder as a package. The path is absolute,
        # because workers may have another current folder.
        self.folder = Path(location).absolute() / "skaocls-memory"
        self.writable = True  # becomes False when a write fails
        self._bytes_since_cleanup = math.inf

    def get_or_compute(
        self, key: str, function: Callable[[], T], keep: Callable[[T], bool] | None = None
    ) -> T:
        """Return the cached result for a key; if it is missing, compute and store the result.

        `keep` takes the result and returns whether to store it. All ranks must call this method.
        If the entry is missing, every rank calls the function. Only the main process reads and
        writes the cache.
        """
        path = self.path(key)
        with ExitStack() as stack:

            def lock_and_read() -> tuple[T] | None:
                stack.enter_context(self.lock(path.name))
                entry: tuple[T] | None = self.read(path)
                if entry is None and self.writable:
                    self.check_writable(path)
                return entry

            if (entry := run_on_main(lock_and_read)) is not None:
                return entry[0]
            result = function()
            if is_main() and self.writable and (keep is None or keep(result)):
                self.write(path, result)
        return result

    def path(self, key: str) -> Path:
        return self.folder / hash_object(__version__, key)

    def read(self, path: Path) -> tuple[T] | None:
        """Return the stored result in a tuple, or None if the file is missing or damaged."""
        try:
            with open(path, "rb") as file:
                if file.read(HASH_LENGTH) != hash_stream(file).encode():
                    with suppress(OSError):
                        path.unlink()
                    raise ValueError("its content has changed since it was written")
                file.seek(HASH_LENGTH)
                result: T = pickle.load(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as exc:  # damaged pickles can raise errors of any type
            message = f"The entry {path} of memory is damaged and is computed again: {exc}."
            warn(message, RuntimeWarning)
            return None
        with suppress(OSError):
            os.utime(path)  # marks the entry as recently used
        return (result,)

    def write(self, path: Path, result: object) -> None:
        """Store a result; if this fails, issue a warning and never store a result again."""

        def dump(temporary: str) -> None:
            with open(temporary, "rb+") as file:
                file.seek(HASH_LENGTH)
                cloudpickle.dump(result, file)  # unlike pickle, stores lambda functions
                file.seek(HASH_LENGTH)
                digest = hash_stream(file)
                file.seek(0)
                file.write(digest.encode())

        try:
            write_all(self.folder, {path.name: dump})
            self._bytes_since_cleanup += path.stat().st_size
            if self._bytes_since_cleanup > MAX_BYTES / 16:
                self.clean_up()
        except Exception as exc:  # a tokenizer of the user may refuse to be pickled
            self.stop_writing(exc)

    def check_writable(self, path: Path) -> None:
        """Issue a warning if the result cannot be stored, before it is computed."""
        try:
            check_writable(path, "the folder")
        except OSError as exc:
            self.stop_writing(exc)

    def stop_writing(self, reason: Exception) -> None:
        self.writable = False
        where = f"memory={str(self.folder.parent)!r}"
        warn(f"No more results are stored in {where}: {reason}.", RuntimeWarning)

    def clean_up(self) -> None:
        """Remove old temporary files, and the least recently used entries beyond `MAX_BYTES`."""
        self._bytes_since_cleanup, total = 0, 0
        entries = [(path, path.stat()) for path in self.folder.iterdir() if path.is_file()]
        for path, stat in sorted(entries, key=lambda entry: -entry[1].st_mtime):
            total += stat.st_size
            age = time.time() - stat.st_mtime
            if total > MAX_BYTES or (path.name.startswith(".") and age > ABANDONED_SECONDS):
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of an entry, so that only one process computes the entry."""
        folder = self.folder / "locks"
        lock = FileLock(folder / name[:2])  # there are 256 lock files, which the entries share
        with suppress(OSError):  # if the folder is not writable, `write` issues a warning
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def open_cache(memory: str | os.PathLike[str] | joblib.Memory | None) -> ResultCache | None:
    """Return the cache for the parameter `memory`, or None if `memory` names no folder."""
    if memory is None or (isinstance(memory, joblib.Memory) and memory.location is None):
        return None
    return ResultCache(memory)


def prior_weights(prior: Prior) -> tuple[object, ...]:
    """Return everything that determines the log-likelihoods of a prior, as input for a hash."""
    tensors = dict(prior.named_parameters()), dict(prior.named_buffers())
    return type(prior), tuple(prior.grid), prior.transformer.n_head, *tensors


def cached_log_likelihoods(
    cache: ResultCache,
    prior: Prior,
    prior_hash: str,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: torch.dtype,
    per_token: bool = False,
) -> np.ndarray:
    """Call :func:`skaocls.scoring.exhaustive.log_likelihoods` for each order; cache each result.

    `prior_hash` is the hash of :func:`prior_weights`.
    """
    parts = []
    for k, order in enumerate(orders):
        tokens = codes if codes.ndim == 2 else codes[:, k]
        key = hash_object(prior_hash, tokens, order, labels, str(dtype), per_token)
        compute = partial(
            log_likelihoods, prior, tokens, order[None], labels, dtype=dtype, per_token=per_token
        )
        parts.append(cache.get_or_compute(key, compute))
    return np.concatenate(parts, axis=1)

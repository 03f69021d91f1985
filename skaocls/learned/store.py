"""A folder of results, under keys that say all that they depend on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from filelock import FileLock
from joblib.hashing import NumpyHasher
from PIL import Image

from skaocls.images.inputs import is_items, orientation_of
from skaocls.priors.interface import Prior
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.version import __version__

KEPT_BYTES = 10 * 2**30  # what was not used for longest goes first


class Hasher(NumpyHasher):
    """joblib's, to which a tensor is its numbers: pickled, equal tensors differ."""

    def save(self, obj: Any) -> None:
        if isinstance(obj, torch.Tensor):
            tensor = obj.detach().cpu().contiguous()
            obj = str(tensor.dtype), tuple(tensor.shape), tensor.flatten().view(torch.uint8).numpy()
        super().save(obj)


def digest(*things: Any) -> str:
    """Hash of the content of things, the same in every process."""
    found: str = Hasher(hash_name="md5").hash(things)
    return found


def content(batch: np.ndarray) -> Any:
    """What images are made of, to be hashed: of files their bytes, not their names."""
    if not is_items(batch):
        return batch
    parts = []
    for item in batch:
        if isinstance(item, (str, os.PathLike)):
            item = digest(Path(item).read_bytes())
        elif isinstance(item, Image.Image):
            item = item.mode, item.size, orientation_of(item), digest(item.tobytes())
        parts.append(item)
    return parts


def weights_of(prior: Prior) -> tuple[Any, ...]:
    """All that a prior's answers depend on."""
    return prior.grid, prior.transformer.n_head, dict(prior.state_dict())


class Store:
    """A folder of results, shared by processes.

    Entries are pickles written by joblib, as those of a scikit-learn pipeline's `memory`: keep
    them where only you can write.

    Parameters
    ----------
    memory : str, path or joblib.Memory
        Entries go into a subfolder of it, and only those are ever removed.
    """

    def __init__(self, memory: Any):
        location = memory.location if isinstance(memory, joblib.Memory) else os.fspath(memory)
        self.folder = Path(location) / "skaocls"
        self.memory = joblib.Memory(self.folder, verbose=0)
        self.cached = self.memory.cache(call, ignore=["function"])

    def recall(self, key: str, function: Callable[..., Any]) -> Any:
        """function(), run once for each key and version of this library."""
        with self.lock(key):
            known = self.cached.check_call_in_cache(__version__, key, function)
            result = self.cached(__version__, key, function)
        if not known:
            self.memory.reduce_size(bytes_limit=KEPT_BYTES)
        return result

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Of processes that want the same result one computes it."""
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / key[:2]):  # a few files serve all keys
            yield


def open_store(memory: Any) -> Store | None:
    """Where to keep results, if anywhere."""
    if memory is None or (isinstance(memory, joblib.Memory) and memory.location is None):
        return None
    return Store(memory)


def call(version: str, key: str, function: Callable[[], Any]) -> Any:
    return function()


def recall_log_likelihoods(
    store: Store,
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
        key = digest(known_as, tokens, order, labels, str(dtype))
        parts.append(
            store.recall(
                key,
                lambda tokens=tokens, order=order: log_likelihoods(
                    prior, tokens, order[None], labels, dtype=dtype
                ),
            )
        )
    return np.concatenate(parts, axis=1)

"""A folder in which a training that is cut short finds itself again.

A checkpoint is ``checkpoint-<n>.safetensors`` with all tensors and ``checkpoint-<n>.json`` with the
rest and a hash of the former, written last: one without the other, or of another hash, is none.
The last good two are kept. Of several processes the main one alone reads and writes.
"""

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from skaocls.distributed import broadcast_flag, is_main, run_on_main
from skaocls.files import read_state_dict, tensor_writer, write_all
from skaocls.training.state import TrainingState

FORMAT = 1
KEPT = 2
SHARE = 20  # of the time between two checkpoints, one part at most is spent on writing
NAME = re.compile(r"checkpoint-(\d+)\.json")


class Checkpoints:
    """Checkpoints of one training.

    Parameters
    ----------
    folder : path
        Made if need be, and used by one training at a time: see :func:`checkpoints_in`.
    about : dict of str to str
        What the training depends on, by name, as digests.
    seed : int
        Governs the training, unless one is found that had another.

    Attributes
    ----------
    seed : int
        That of the training that is found, or else the given one.

    Raises
    ------
    ValueError
        If the folder holds checkpoints of another training.
    """

    def __init__(self, folder: str | os.PathLike[str], about: dict[str, str], seed: int):
        self.folder, self.about, self.seed = Path(folder), about, seed
        self.due, self.n = 0.0, 0
        self.found: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.seed = run_on_main(self.look)

    def look(self) -> int:
        """Find the last whole checkpoint, and tell its seed or else the given one."""
        halves = self.folder.glob("checkpoint-*.safetensors")
        alone = [half for half in halves if not half.with_suffix(".json").exists()]
        for left in [*alone, *self.folder.glob(".checkpoint-*")]:  # of a process that was killed
            left.unlink()
        self.found = self.newest()
        return self.seed if self.found is None else int(self.found[1]["seed"])

    def numbers(self) -> list[int]:
        """Of all checkpoints, the newest first."""
        found = [NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def files(self, n: int) -> tuple[Path, Path]:
        """Of one checkpoint: the tensors and the rest."""
        stem = self.folder / f"checkpoint-{n}"
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last whole checkpoint; those that are damaged are removed."""
        for n in self.numbers():
            weights, rest = self.files(n)
            try:
                facts = json.loads(rest.read_text(encoding="utf-8"))
                if facts["format"] == FORMAT:
                    if facts["hash"] != hash_of(weights):
                        raise ValueError("its content has changed since it was written")
                    tensors = read_state_dict(weights)
            except (OSError, ValueError, KeyError, TypeError) as exc:
                warnings.warn(
                    f"The checkpoint {rest} is damaged, and is removed: {exc}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self.remove(n)
                continue
            self.n = n
            self.check(facts)
            return tensors, facts
        return None

    def check(self, facts: dict[str, Any]) -> None:
        """Refuse the checkpoint of another training."""
        instead = (
            f"To start anew, pass another checkpoint_dir or remove the checkpoint-* files in "
            f"{str(self.folder)!r}."
        )
        if facts["format"] != FORMAT:
            raise ValueError(
                f"The checkpoints in {str(self.folder)!r} are of format {facts['format']!r}, but "
                f"this version of skaocls reads format {FORMAT}. {instead}"
            )
        about = facts["about"]
        names = sorted(k for k in {*about, *self.about} if about.get(k) != self.about.get(k))
        if names:
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} holds checkpoints of another fit: it differs "
                f"in {', '.join(names)}. To go on with it, call fit with the same data and "
                f"parameters. {instead}"
            )

    def resume(self, state: TrainingState) -> None:
        """Set the state to the one that was found, if any."""
        if broadcast_flag(self.found is not None):
            state.restore(*(self.found or ({}, {})))
            self.found = None

    def keep(self, state: TrainingState) -> None:
        """Write a checkpoint if it is time and the state is a good one; say so if that fails."""
        if not (broadcast_flag(time.monotonic() >= self.due) and state.is_finite()):
            return
        begin = time.monotonic()
        tensors, facts = state.tensors(), state.facts()
        if not is_main():
            return
        try:
            self.write(tensors, facts)
        except (OSError, SafetensorError) as exc:
            warnings.warn(
                f"No checkpoint could be written to {str(self.folder)!r}: {exc}. Training goes on, "
                "earlier checkpoints stay.",
                RuntimeWarning,
                stacklevel=2,
            )
        end = time.monotonic()
        self.due = end + SHARE * (end - begin)

    def write(self, tensors: dict[str, Tensor], of_state: dict[str, Any]) -> None:
        weights, rest = self.files(self.n + 1)
        facts = {"format": FORMAT, "about": self.about, "seed": self.seed} | of_state

        def write_tensors(path: str) -> None:
            tensor_writer(tensors)(path)
            facts["hash"] = hash_of(Path(path))

        def write_rest(path: str) -> None:
            Path(path).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

        write_all(self.folder, {weights.name: write_tensors, rest.name: write_rest})
        self.n += 1
        for n in self.numbers()[KEPT:]:
            self.remove(n)

    def remove(self, n: int) -> None:
        for path in reversed(self.files(n)):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all checkpoints: the training has come to its end."""
        for n in self.numbers() if is_main() else []:
            self.remove(n)


@contextmanager
def checkpoints_in(
    folder: str | os.PathLike[str] | None, about: dict[str, str], seed: int
) -> Iterator[Checkpoints | None]:
    """Checkpoints in a folder, which no one else uses meanwhile; None without a folder.

    Raises
    ------
    OSError
        If the folder cannot be written to, or another training uses it.
    ValueError
        If it holds checkpoints of another training.
    """
    if folder is None:
        yield None
        return
    lock = FileLock(Path(folder) / "checkpoint.lock", timeout=0)
    run_on_main(lambda: take(lock, folder))
    try:
        yield Checkpoints(folder, about, seed)
    finally:
        lock.release()


def take(lock: FileLock, folder: str | os.PathLike[str]) -> None:
    """Lock a folder, which is made if need be."""
    where = f"checkpoint_dir={os.fspath(folder)!r}"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as exc:
        raise OSError(
            f"{where} is in use by another fit. Pass a folder of its own to each, or to none: in a "
            "search, checkpoint_dir=None and memory."
        ) from exc
    except OSError as exc:
        raise OSError(f"{where} cannot be written to: {exc}") from exc


def hash_of(path: Path) -> str:
    """Of a file's content."""
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()

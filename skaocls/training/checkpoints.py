"""Checkpoints: files from which an interrupted training run can continue.

A checkpoint is a pair of files. ``checkpoint-<n>.safetensors`` contains all tensors.
``checkpoint-<n>.json`` contains everything else and a hash of the tensor file. The JSON file is
written last, so a tensor file without a JSON file is incomplete. A pair is valid if the hash in the
JSON file matches the tensor file. Only the two newest checkpoints are kept. Only the main rank
reads and writes files.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from skaocls.distributed import broadcast, is_main, run_on_main
from skaocls.files import check_writable, read_state_dict, tensor_writer, write_all
from skaocls.hashing import hash_file
from skaocls.training.state import Metadata, TrainingState
from skaocls.warn import warn

FORMAT = 1
N_KEPT = 2
# The time between two checkpoints is at least 20 times the time that writing a checkpoint takes.
# Writing therefore takes at most 5 % of the training time.
INTERVAL_FACTOR = 20
NAME = re.compile(r"checkpoint-(\d+)\.json")


class Checkpoints:
    """The checkpoints of one training run, created by :func:`checkpoints_in`.

    `fingerprint` maps the names of the inputs of the training run to hashes of these inputs. If the
    folder contains a checkpoint of this training run, the seed of the checkpoint replaces `seed`.
    If the folder contains checkpoints of a different training run, a ValueError is raised.
    """

    def __init__(self, folder: str | os.PathLike[str], fingerprint: dict[str, str], seed: int):
        self.folder, self.fingerprint, self.seed = Path(folder), fingerprint, seed
        self.next_time, self.last_number = 0.0, 0
        self.found: tuple[dict[str, Tensor], Metadata] | None = None
        self.seed = run_on_main(self.find)

    def find(self) -> int:
        """Read the newest valid checkpoint, if one exists. Return the seed of the training run."""
        tensor_files = self.folder.glob("checkpoint-*.safetensors")
        incomplete = [path for path in tensor_files if not path.with_suffix(".json").exists()]
        for path in [*incomplete, *self.folder.glob(".checkpoint-*")]:
            path.unlink()
        for n in self.numbers():
            if (content := self.read(n)) is not None:
                self.check(content[1])
                self.found, self.last_number = content, n
                return int(content[1]["seed"])
        return self.seed

    def numbers(self) -> list[int]:
        """Return the numbers of all checkpoints in the folder, newest first."""
        matches = [NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def files(self, n: int) -> tuple[Path, Path]:
        """Return the paths of both files of checkpoint `n`: the tensor file and the JSON file."""
        stem = self.folder / f"checkpoint-{n}"
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")

    def read(self, n: int) -> tuple[dict[str, Tensor], Metadata] | None:
        """Read checkpoint `n`. If the checkpoint is damaged, remove it with a warning."""
        tensor_path, json_path = self.files(n)
        try:
            metadata = json.loads(json_path.read_text(encoding="utf-8"))
            if metadata["format"] != FORMAT:
                return {}, metadata  # `check` raises an error
            if metadata["hash"] != hash_file(tensor_path):
                raise ValueError("the tensor file has changed since it was written")
            return read_state_dict(tensor_path), metadata
        except (OSError, ValueError, KeyError, TypeError) as exc:
            self.remove(n)
            warn(f"Removed the checkpoint {json_path}: it was damaged ({exc}).", RuntimeWarning)
            return None

    def check(self, metadata: Metadata) -> None:
        """Raise an error if a checkpoint has another format or belongs to another training run."""
        advice = (
            "To start a new fit, pass another checkpoint_dir or remove the checkpoint-* files in "
            f"{str(self.folder)!r}."
        )
        if metadata["format"] != FORMAT:
            raise ValueError(
                f"The checkpoints in {str(self.folder)!r} have format {metadata['format']!r}, but "
                f"this version of skaocls reads format {FORMAT}. {advice}"
            )
        old, new = metadata["fingerprint"], self.fingerprint
        changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        if changed:
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} contains checkpoints of another fit, with "
                f"different {', '.join(changed)}. To resume the fit that wrote them, "
                f"pass the data and parameters of that fit. {advice}"
            )

    def restore(self, state: TrainingState) -> None:
        """Restore the state from the newest valid checkpoint, if one exists."""
        if broadcast(self.found is not None):
            state.restore(*(self.found or ({}, {})))
            self.found = None

    def save_if_due(self, state: TrainingState) -> None:
        """Save the state if a checkpoint is due and the state is finite. If writing fails, warn."""
        if not (broadcast(time.monotonic() >= self.next_time) and state.is_finite()):
            return
        start = time.monotonic()
        tensors, metadata = state.tensors(), state.metadata()
        if not is_main():
            return
        try:
            self.write(tensors, metadata)
        except (OSError, SafetensorError) as exc:
            warn(
                f"Could not write a checkpoint to {str(self.folder)!r}: {exc}. Training continues, "
                "and earlier checkpoints are kept.",
                RuntimeWarning,
            )
        end = time.monotonic()
        self.next_time = end + INTERVAL_FACTOR * (end - start)

    def write(self, tensors: dict[str, Tensor], state_metadata: Metadata) -> None:
        """Write a new checkpoint, and remove all checkpoints except the newest two."""
        tensor_path, json_path = self.files(self.last_number + 1)
        metadata = {"format": FORMAT, "fingerprint": self.fingerprint, "seed": self.seed}
        metadata |= state_metadata
        writers = {
            tensor_path.name: partial(write_tensors, tensors, metadata),
            json_path.name: partial(write_json, metadata),
        }
        write_all(self.folder, writers)
        self.last_number += 1
        for n in self.numbers()[N_KEPT:]:
            self.remove(n)

    def remove(self, n: int) -> None:
        """Remove checkpoint `n`: first the JSON file, then the tensor file."""
        for path in reversed(self.files(n)):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        for n in self.numbers() if is_main() else []:
            self.remove(n)


def write_tensors(tensors: dict[str, Tensor], metadata: Metadata, path: str) -> None:
    """Write tensors to a file, and add the hash of the file to `metadata`."""
    tensor_writer(tensors)(path)
    metadata["hash"] = hash_file(path)


def write_json(metadata: Metadata, path: str) -> None:
    Path(path).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


@contextmanager
def checkpoints_in(
    folder: str | os.PathLike[str] | None, fingerprint: dict[str, str], seed: int
) -> Iterator[Checkpoints | None]:
    """Open the checkpoints in a folder and lock the folder. If `folder` is None, yield None.

    Raise an OSError if the folder is not writable or if another training run uses the folder.
    """
    if folder is None:
        yield None
        return
    lock = FileLock(Path(folder) / "checkpoint.lock", timeout=0)
    run_on_main(partial(create_and_lock, lock, folder))
    try:
        yield Checkpoints(folder, fingerprint, seed)
    finally:
        lock.release()


def check_checkpoint_dir(folder: str | os.PathLike[str] | None) -> None:
    """Raise an OSError if the folder is not writable. The folder may be None or not exist yet."""
    if folder is not None:
        path = Path(folder) / "checkpoint-1.json"
        run_on_main(partial(check_writable, path, f"checkpoint_dir={os.fspath(folder)!r}"))


def create_and_lock(lock: FileLock, folder: str | os.PathLike[str]) -> None:
    name = f"checkpoint_dir={os.fspath(folder)!r}"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as exc:
        raise OSError(
            f"{name} is in use by another fit. Pass a different folder to each fit. In a "
            "parameter search, use memory instead of checkpoint_dir."
        ) from exc
    except OSError as exc:
        raise OSError(f"{name} cannot be written to: {exc}") from exc

"""Folders of tokens: one manifest, and one ``.npy`` file for each shard of consecutive images.

``manifest.json`` describes the tokens and lists every complete shard with the hashes of its files.
The tokens of shard k are in ``tokens-<k>.npy`` and its labels, if known, in ``labels-<k>.npy``. If
the tokenizer has a codebook, ``codebook.npy`` contains the vectors of the codes. Files are never
unpickled.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, TypedDict, cast

import numpy as np
from filelock import FileLock

from skaocls.devices import prefetch
from skaocls.files import write_all
from skaocls.hashing import hash_file, hash_object, new_hash
from skaocls.images.lazy import LabelCheck, Lazy, give_back
from skaocls.warn import warn

FORMAT = 2
MANIFEST, CODEBOOK = "manifest.json", "codebook.npy"
MAX_LISTED = 5  # largest number of missing files that a message lists
ADVICE = "Call skaocls.tokenize_dataset with the same arguments to write it again."


class ShardInfo(TypedDict):
    """Entry of one shard in the manifest."""

    n: int  # number of images
    files: dict[str, str]  # maps the names of the token and label file to the file hashes
    X: str  # hash of the decoded images
    y: str  # hash of the images' labels


class Manifest(TypedDict):
    """Content of ``manifest.json``. `tokenizer`, `y` and `codebook` are hashes."""

    library: str
    format: int
    version: str
    n: int | None  # number of images; None if X is a stream
    n_views: int
    shard_size: int
    parts: int
    grid: list[int]
    n_codes: int
    dtype: str
    random_state: int
    tokenizer: str
    y: str | None
    codebook: str | None
    shards: dict[str, ShardInfo]  # by shard number
    n_shards: dict[str, int]  # number of shards of each part whose stream has ended


Chunks = Iterator[tuple[np.ndarray, np.ndarray | None]]  # decoded images and labels of the images
Encode = Callable[[np.ndarray, np.random.RandomState], np.ndarray]


class TokenDataset(Lazy):
    """Tokens in a folder, loaded when needed; :func:`load_tokens` describes the attributes."""

    def __init__(self, folder: str | os.PathLike[str], check: bool = True):
        self.folder = Path(folder).absolute()
        manifest = read_manifest(self.folder)
        self.identity = hash_object(manifest)
        self.numbers, missing = shard_numbers(manifest)
        if missing or not self.numbers:
            listed = ", ".join(missing[:MAX_LISTED]) or "all shards"
            more = f", ... ({len(missing)} in total)" if len(missing) > MAX_LISTED else ""
            raise ValueError(f"{self.folder} is incomplete; missing: {listed}{more}. {ADVICE}")
        self.shards = [map_shard(self.folder, k, manifest, check=check) for k in self.numbers]
        self.starts = np.cumsum([0, *map(len, self.shards)])
        super().__init__(int(self.starts[-1]))
        views = () if manifest["n_views"] == 1 else (manifest["n_views"],)
        self.shape = (self.n, *views, *manifest["grid"])
        self.dtype = np.dtype(manifest["dtype"])
        self.n_codes = manifest["n_codes"]
        self.codebook = read_codebook(self.folder, manifest)
        self.has_labels = all(len(shard["files"]) == 2 for shard in manifest["shards"].values())

    @property
    def labels(self) -> np.ndarray | None:
        """Labels that were written with the tokens, or None if no labels were written."""
        if not self.has_labels:
            return None
        check_identity(read_manifest(self.folder), self.identity, self.folder)
        files = [self.folder / shard_file("labels", k) for k in self.numbers]
        return np.concatenate([np.load(file, allow_pickle=False) for file in files])

    def compare_labels(self, check: LabelCheck) -> None:
        """Check all labels that were written with the tokens."""
        if (labels := self.labels) is not None:
            check(np.arange(self.n), labels.tolist())

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the tokens of the given rows as an array."""
        assert self.shape is not None
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        for k in np.unique(shard):
            where, tokens = shard == k, self.shards[k]
            taken[where] = tokens[rows[where] - self.starts[k]].reshape(-1, *self.shape[1:])
            give_back(tokens)
        return taken

    def __reduce__(self) -> tuple[object, ...]:
        return open_again, (self.folder, self.identity)  # the pickle contains no tokens

    def __repr__(self) -> str:
        return f"TokenDataset({str(self.folder)!r}), {self.dtype} of shape {self.shape}"


def open_again(folder: Path, identity: str) -> TokenDataset:
    """Open the tokens of a pickled :class:`TokenDataset`."""
    check_identity(read_manifest(folder), identity, folder)
    return TokenDataset(folder, check=False)


def check_identity(manifest: Manifest, identity: str, folder: Path) -> None:
    """Raise a ValueError if the folder contains other tokens than when it was opened."""
    if hash_object(manifest) != identity:
        raise ValueError(
            f"{folder} contains other tokens than when it was opened. Call skaocls.load_tokens "
            "again."
        )


def load_tokens(folder: str | os.PathLike[str], check: bool = True) -> TokenDataset:
    """Open tokens that were written by :func:`skaocls.tokenize_dataset`.

    Tokens stay in memory-mapped files. Loading never executes code from the files.

    Parameters
    ----------
    folder : str or path
        Folder of the tokens.
    check : bool, default=True
        Whether to compare the hash of every file with the hash in the manifest. For this check,
        every file is read once. Shapes and dtypes are always checked.

    Returns
    -------
    tokens : TokenDataset
        Sequence of tokens. Pass it as X to a classifier with ``tokenizer="precomputed"``. `shape`
        is ``(n, rows, cols)``, or ``(n, n_views, rows, cols)`` with several views. `dtype` is
        uint16 or uint32, and `n_codes` is the size of the codebook. `codebook` contains the vectors
        of the codes, or is None if the tokenizer has no codebook. `labels` is None if no labels
        were written.

    Raises
    ------
    FileNotFoundError
        If the folder does not contain tokens.
    ValueError
        If shards are missing or damaged. The message names these shards.

    See Also
    --------
    skaocls.tokenize_dataset : Write tokens.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from skaocls import PatchTokenizer, load_tokens, tokenize_dataset
    >>> images, y = load_digits().images, load_digits().target
    >>> tokenizer = PatchTokenizer(random_state=0).fit(images, y)
    >>> folder = tempfile.mkdtemp()
    >>> _ = tokenize_dataset(tokenizer, images, folder, y=y)
    >>> tokens = load_tokens(folder)
    >>> tokens.shape, tokens.labels.shape
    ((1797, 4, 4), (1797,))
    """
    return TokenDataset(folder, check)


def shard_file(kind: Literal["tokens", "labels"], k: int) -> str:
    return f"{kind}-{k:06d}.npy"


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} does not contain tokens: {MANIFEST} is missing.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if missing := sorted(Manifest.__annotations__.keys() - manifest.keys()):
            raise ValueError(f"missing: {', '.join(missing)}")
        if manifest["library"] != "skaocls" or manifest["format"] != FORMAT:
            raise ValueError(f"format {FORMAT} is expected, found {manifest['format']!r}")
        sizes = [manifest["n_views"], manifest["n_codes"], manifest["parts"], *manifest["grid"]]
        if len(sizes) != 5 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"sizes must be positive integers, found {sizes}")
        if manifest["dtype"] not in ("uint16", "uint32"):
            raise ValueError(f"dtype must be uint16 or uint32, found {manifest['dtype']!r}")
    except (ValueError, TypeError, AttributeError) as exc:
        raise ValueError(f"{path} is not a valid manifest of tokens: {exc!r}.") from exc
    return cast(Manifest, manifest)


def read_codebook(folder: Path, manifest: Manifest) -> np.ndarray | None:
    """Read and check the vectors of the codes; return None if the tokenizer has no codebook."""
    path = folder / CODEBOOK
    if manifest["codebook"] is None:
        return None
    if not path.is_file() or hash_file(path) != manifest["codebook"]:
        raise ValueError(
            f"The codebook {path} is missing or damaged. Write the tokens to a new folder."
        )
    codebook: np.ndarray = np.load(path, allow_pickle=False)
    return codebook


def shard_numbers(manifest: Manifest) -> tuple[list[int], list[str]]:
    """Return the numbers of all shards, and the names of the missing shards."""
    parts = manifest["parts"]
    if manifest["n"] is not None:
        numbers = list(range(-(-manifest["n"] // manifest["shard_size"])))
    else:
        unfinished = [part for part in range(parts) if str(part) not in manifest["n_shards"]]
        if unfinished:
            return [], [f"part ({part}, {parts})" for part in unfinished]
        ends = {int(part): n * parts for part, n in manifest["n_shards"].items()}
        numbers = sorted(k for part, end in ends.items() for k in range(part, part + end, parts))
    return numbers, [shard_file("tokens", k) for k in numbers if str(k) not in manifest["shards"]]


def map_shard(folder: Path, k: int, manifest: Manifest, *, check: bool = True) -> np.ndarray:
    """Memory-map the tokens of a shard; if `check`, compare file hashes with the manifest."""
    path = folder / shard_file("tokens", k)
    try:
        shard = manifest["shards"][str(k)]
        tokens: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        shape = (shard["n"], manifest["n_views"], *manifest["grid"])
        if tokens.shape != shape or tokens.dtype != manifest["dtype"]:
            raise ValueError(f"expected shape {shape}, found {tokens.dtype} of {tokens.shape}")
        for name, digest in shard["files"].items() if check else ():
            if hash_file(folder / name) != digest:
                raise ValueError(f"the content of {name} has changed since it was written")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as exc:
        raise ValueError(f"The shard {path} is damaged: {exc}. {ADVICE}") from exc
    return tokens


class ShardWriter:
    """Write shards to a folder, and list each complete shard in the folder's manifest.

    If the folder already contains a manifest, the argument `manifest` must match it. `encode` takes
    images and a RandomState, and returns codes of shape (n, n_views, n_tokens).
    """

    def __init__(
        self, folder: Path, manifest: Manifest, codebook: np.ndarray | None, encode: Encode
    ):
        self.folder, self.encode = folder, encode
        self.lock = FileLock(folder / ".lock")  # held by the process that writes the manifest
        folder.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if not (folder / MANIFEST).exists():
                if codebook is not None:
                    write_all(folder, {CODEBOOK: array_writer(codebook)})
                    manifest["codebook"] = hash_file(folder / CODEBOOK)
                self.write_manifest(manifest)
        self.manifest = read_manifest(folder)
        names = manifest.keys() - {"version", "codebook", "shards", "n_shards"}
        self.refuse(name for name in names if self.manifest.get(name) != manifest.get(name))

    def refuse(self, names: Iterable[str]) -> None:
        """Raise an error if there are `names` of properties that differ from the manifest."""
        if different := ", ".join(sorted(names)):
            raise ValueError(
                f"{self.folder} contains other tokens; different: {different}. Pass another "
                "folder, or the same images, labels, tokenizer and options."
            )

    def write(self, k: int, chunks: Chunks) -> None:
        """Write shard k; if a valid shard k exists, only check that its images are the same."""
        if str(k) in self.manifest["shards"]:
            try:
                map_shard(self.folder, k, self.manifest)
            except ValueError as exc:
                self.remove_from_manifest([k])
                warn(f"{exc} This shard is written again.", RuntimeWarning)
            else:
                return self.check(k, chunks)
        for abandoned in self.folder.glob(f".*-{k:06d}.*"):  # temporary files of a killed process
            abandoned.unlink()
        rng = np.random.RandomState([self.manifest["random_state"], k])
        codes, labels, images_hash = read_chunks(chunks, lambda images: self.encode(images, rng))
        shape = (-1, self.manifest["n_views"], *self.manifest["grid"])
        tokens = np.concatenate(codes).reshape(shape)
        writers = {shard_file("tokens", k): array_writer(tokens)}
        if labels is not None:
            writers[shard_file("labels", k)] = array_writer(labels)
        write_all(self.folder, writers)
        shard: ShardInfo = {
            "n": len(tokens),
            "files": {name: hash_file(self.folder / name) for name in writers},
            "X": images_hash,
            "y": hash_object(labels),
        }
        self.update_manifest(lambda manifest: manifest["shards"].update({str(k): shard}))

    def check(self, k: int, chunks: Chunks) -> None:
        """Check that the existing shard k contains the tokens of these images and labels."""
        _, labels, images_hash = read_chunks(chunks)
        shard = self.manifest["shards"][str(k)]
        same = {"X": images_hash == shard["X"], "y": hash_object(labels) == shard["y"]}
        self.refuse(name for name in same if not same[name])

    def end_stream(self, part: int, n_shards: int) -> None:
        """Record in the manifest the number of shards of a part whose stream has ended."""
        if self.manifest["n_shards"].get(str(part), n_shards) != n_shards:
            self.refuse(["X"])
        self.update_manifest(lambda manifest: manifest["n_shards"].update({str(part): n_shards}))

    def remove_from_manifest(self, numbers: Iterable[int]) -> None:
        """Remove shards from the manifest. The folder is then incomplete and cannot be loaded."""
        removed = set(map(str, numbers))

        def keep_others(manifest: Manifest) -> None:
            shards = manifest["shards"].items()
            manifest["shards"] = {k: shard for k, shard in shards if k not in removed}

        self.update_manifest(keep_others)

    def update_manifest(self, change: Callable[[Manifest], None]) -> None:
        """Read the newest manifest from the file, apply `change`, and write the result."""
        with self.lock:
            self.manifest = read_manifest(self.folder)
            change(self.manifest)
            self.write_manifest(self.manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest file; the caller must hold the lock."""
        text = json.dumps(manifest, indent=1) + "\n"
        write_all(self.folder, {MANIFEST: lambda path: Path(path).write_text(text)})


def read_chunks(
    chunks: Chunks, encode: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[list[np.ndarray], np.ndarray | None, str]:
    """Return the codes and labels of a shard, and the hash of the shard's images."""
    digest = new_hash()
    codes: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for images, chunk_labels in prefetch(chunks):
        digest.update(np.ascontiguousarray(images).data)
        if encode is not None:
            codes.append(encode(images))
        if chunk_labels is not None:
            labels.append(chunk_labels)
    return codes, np.concatenate(labels) if labels else None, digest.hexdigest()


def array_writer(array: np.ndarray) -> Callable[[str], None]:
    """Return a function that writes an array to a path in NumPy's format."""

    def write(path: str) -> None:
        with open(path, "wb") as file:  # `np.save` would add a suffix to a path
            np.save(file, array, allow_pickle=False)

    return write

"""Tokens in files: a folder of shards, each of them whole or not there.

``tokens.json`` says what all of them are, ``codebook.npy`` holds the codes' vectors if there are
some, ``tokens-000000.npy`` and so on hold the codes, NumPy's files, which are mapped and never
unpickled; ``labels-000000.npy`` the labels if there are some, and ``tokens-000000.json``, written
last, how many and a hash. So a shard without it is none.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from skaocls.images.lazy import Lazy, give_back

FORMAT = 1
HEADER, CODEBOOK = "tokens.json", "codebook.npy"
OPEN = 256  # shards that are mapped at a time
AGAIN = "skaocls.tokenize_dataset with the same folder makes what is missing."


class TokenCache(Lazy):
    """Tokens in a folder, read when they are needed; what :func:`load_tokens` returns.

    It may be passed as X where ``tokenizer="precomputed"``. Slices and arrays of indices give
    codes in memory.

    Parameters
    ----------
    folder : str or path
        The folder.
    check : bool, default=True
        Whether to compare every shard with its hash, for which it is read.

    Attributes
    ----------
    shape : tuple of int
        ``(n, rows, cols)``, or ``(n, n_views, rows, cols)`` if there are several views.
    dtype : numpy.dtype
        uint16, or uint32 if the codebook has more than 65536 entries.
    n_codes : int
        Size of the codebook.
    codebook : ndarray of shape (n_codes, n_numbers) or None
        The tokenizer's vector of each code, by which a new prior knows which are alike.
    labels : ndarray of shape (n,) or None
        The labels that were written with the tokens.
    """

    def __init__(self, folder: str | os.PathLike[str], check: bool = True):
        self.folder = Path(folder)
        header = read_header(self.folder)
        self.numbers, missing = shards_in(self.folder, header)
        if missing or not self.numbers:
            lacking = ", ".join(missing) or "any shard"
            raise ValueError(f"{self.folder} is not complete, it lacks {lacking}. {AGAIN}")
        facts = [read_shard(self.folder, k, header, check=check) for k in self.numbers]
        self.starts = np.cumsum([0, *(fact["n"] for fact in facts)])
        super().__init__(int(self.starts[-1]))
        views = () if header["n_views"] == 1 else (header["n_views"],)
        self.shape = (self.n, *views, *header["grid"])
        self.dtype = np.dtype(header["dtype"])
        self.n_codes = header["n_codes"]
        self.codebook = read_codebook(self.folder, header)
        self.has_labels = all("labels" in fact for fact in facts)
        self.opened: dict[int, np.ndarray] = {}

    @property
    def labels(self) -> np.ndarray | None:
        """The labels that were written with the tokens."""
        if not self.has_labels:
            return None
        files = [self.folder / names_of(k)[1] for k in self.numbers]
        return np.concatenate([np.load(file, allow_pickle=False) for file in files])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Codes of those rows, in memory."""
        assert self.shape is not None
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        for k in np.unique(shard):
            mine = shard == k
            codes = self.mapped(int(k))
            taken[mine] = codes[rows[mine] - self.starts[k]].reshape(-1, *self.shape[1:])
            give_back(codes)
        return taken

    def mapped(self, k: int) -> np.ndarray:
        """The k-th shard."""
        if k not in self.opened:
            if len(self.opened) >= OPEN:
                self.opened.clear()
            path = self.folder / names_of(self.numbers[k])[0]
            self.opened[k] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self.opened[k]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": {}}  # another process maps them itself

    def __repr__(self) -> str:
        return f"TokenCache({str(self.folder)!r}), {self.dtype} of shape {self.shape}"


def load_tokens(folder: str | os.PathLike[str], check: bool = True) -> TokenCache:
    """Open the tokens that :func:`skaocls.tokenize_dataset` wrote.

    They stay in their files, which are mapped into memory a few at a time; nothing in them is
    executed.

    Parameters
    ----------
    folder : str or path
        Where they are.
    check : bool, default=True
        Whether to compare every shard with its hash, for which all of it is read once. Sizes and
        types are compared in any case.

    Returns
    -------
    tokens : TokenCache
        A sequence of tokens that may be passed as X where ``tokenizer="precomputed"``: slices and
        arrays of indices give them in memory. It has a `shape`, ``(n, rows, cols)`` or
        ``(n, n_views, rows, cols)``, a `dtype`, the size of the codebook `n_codes`, its vectors
        `codebook`, and `labels`, those that were written with the tokens, or None.

    Raises
    ------
    FileNotFoundError
        If there are no tokens.
    ValueError
        If shards are missing or damaged: the message names them.

    See Also
    --------
    skaocls.tokenize_dataset : Writes them.

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
    return TokenCache(folder, check)


def read_header(folder: Path) -> dict[str, Any]:
    """What all shards of a folder are."""
    path = folder / HEADER
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no tokens: there is no {HEADER}.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header["library"] != "skaocls" or header["format"] != FORMAT:
            raise ValueError(f"it is of format {header['format']!r}, and {FORMAT} is read here")
        sizes = [header["n_views"], header["n_codes"], header["parts"], *header["grid"]]
        if not all(isinstance(size, int) and size > 0 for size in sizes) or len(sizes) != 5:
            raise ValueError(f"its sizes are {sizes}")
        if header["dtype"] not in ("uint16", "uint32"):
            raise ValueError(f"its codes are of type {header['dtype']!r}")
    except (ValueError, KeyError, TypeError) as exc:
        raise ValueError(f"{path} does not say what tokens are there: {exc!r}.") from exc
    return dict(header)


def read_codebook(folder: Path, header: dict[str, Any]) -> np.ndarray | None:
    """The vectors of the codes, if the tokenizer had some."""
    path = folder / CODEBOOK
    if header.get("codebook") is None:
        return None
    try:
        if hash_of(path) != header["codebook"]:
            raise ValueError("its content has changed since it was written")
        codebook: np.ndarray = np.load(path, allow_pickle=False)
        if codebook.ndim != 2 or len(codebook) != header["n_codes"]:
            raise ValueError(f"it has shape {codebook.shape}")
    except (OSError, EOFError, ValueError) as exc:
        raise ValueError(f"The codebook {path} is damaged: {exc}. Write the tokens anew.") from exc
    return codebook


def names_of(k: int) -> tuple[str, str, str]:
    """Files of a shard: codes, labels, and what says that they are complete."""
    return f"tokens-{k:06d}.npy", f"labels-{k:06d}.npy", f"tokens-{k:06d}.json"


def end_of(part: int) -> str:
    """The file that says how many shards a part has whose length was not known before."""
    return f"end-{part:06d}.json"


def shards_in(folder: Path, header: dict[str, Any]) -> tuple[list[int], list[str]]:
    """Numbers of all shards that there should be, and the files that are missing."""
    parts = header["parts"]
    if header["n"] is not None:
        numbers = list(range(-(-header["n"] // header["shard_size"])))
    else:
        numbers = []
        for part in range(parts):
            path = folder / end_of(part)
            if not path.is_file():
                return [], [path.name]
            shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
            numbers += range(part, part + shards * parts, parts)
    there = set(os.listdir(folder))
    missing = [name for k in sorted(numbers) if (name := names_of(k)[2]) not in there]
    shown = missing[:5] + ([f"... ({len(missing)} in all)"] if len(missing) > 5 else [])
    return sorted(numbers), shown


def read_shard(folder: Path, k: int, header: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """What is known of a shard: its length, and whether it is the one that was written.

    Raises
    ------
    FileNotFoundError
        If it was not completed.
    ValueError
        If it is damaged; the message names it.
    """
    codes, labels, about = (folder / name for name in names_of(k))
    facts = about.read_text(encoding="utf-8")
    try:
        known = json.loads(facts)
        mapped = np.load(codes, mmap_mode="r", allow_pickle=False)
        shape = (known["n"], header["n_views"], *header["grid"])
        if mapped.shape != shape or mapped.dtype != header["dtype"]:
            raise ValueError(f"it holds {mapped.dtype} of shape {mapped.shape}, not {shape}")
        if check and hash_of(codes) != known["hash"]:
            raise ValueError("its content has changed since it was written")
        if check and "labels" in known and hash_of(labels) != known["labels"]:
            raise ValueError("its labels have changed since they were written")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as exc:
        raise ValueError(f"The shard {codes} is damaged: {exc}. {AGAIN}") from exc
    return dict(known)


def hash_of(path: Path) -> str:
    """Of a file's content."""
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()

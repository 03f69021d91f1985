"""Tokens of a data set, written once: a step of its own, in as many processes as there are."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import chain, count, islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_consistent_length, gen_batches
from sklearn.utils.validation import check_is_fitted
from torch.utils.data import IterableDataset

from skaocls.devices import ahead
from skaocls.files import write_all
from skaocls.fitted.model import FittedModel
from skaocls.fitted.result_cache import content_hash
from skaocls.fitted.saving import TOKENIZERS, tokenizer_state
from skaocls.fitted.tokenization import random_view_indices, views_of
from skaocls.images.batch import block_size
from skaocls.images.inputs import convert_input, is_items, stack_items
from skaocls.images.lazy import Items, image_of
from skaocls.images.reader import Reader, learn_reader
from skaocls.progress import progress
from skaocls.tokenizers.checks import code_dtype
from skaocls.tokenizers.token_files import (
    CODEBOOK,
    FORMAT,
    HEADER,
    TokenCache,
    end_of,
    hash_of,
    names_of,
    read_header,
    read_shard,
    shards_in,
)
from skaocls.version import __version__

SHARD = 8192  # images


def tokenize_dataset(
    tokenizer: Any,
    X: Any,
    folder: str | os.PathLike[str],
    *,
    y: Any = None,
    n_views: int = 1,
    shard_size: int = SHARD,
    part: tuple[int, int] = (0, 1),
    random_state: int = 0,
    verbose: int = 0,
) -> TokenCache | None:
    """Write the tokens of images into a folder, from which a classifier is trained or asked.

    Each image is decoded and encoded once, however long training is. Tokens are written in shards,
    each whole or not at all: called again, also after a kill, it makes those that are missing or
    damaged, and refuses to mix tokens of other images, tokenizers or options. Several processes, on
    as many machines as share the folder, each make a `part`.

    Parameters
    ----------
    tokenizer : transformer or AnyOrderARClassifier
        A fitted tokenizer; or a fitted classifier, whose tokenizer it is then, and images are read
        as the classifier reads them.
    X : array-like, data set or iterable
        Images, as in :meth:`AnyOrderARClassifier.fit`. Or what can only be gone through, as a
        WebDataset or a PyTorch loader: of images, of pairs (image, label), or of batches of them as
        arrays or tensors. It must give the same each time, and with several parts, to each its own.
    folder : str or path
        Made if need be.
    y : array-like of shape (n,), default=None
        Labels to keep beside the tokens. None takes those of X, if it is a PyTorch data set or an
        iterable of pairs.
    n_views : int, default=1
        Of each image, the first the image itself, the others moved a little as by `augmentation`.
    shard_size : int, default=8192
        Images in a file.
    part : tuple of int (i, n), default=(0, 1)
        Make the i-th of n parts, i from 0 to n - 1: the shards i, i + n, ...
    random_state : int, default=0
        Seed of the views, the same in all parts.
    verbose : int, default=0
        1 shows how far it is.

    Returns
    -------
    tokens : TokenCache or None
        What :func:`skaocls.load_tokens` gives; None as long as other parts are missing.

    Raises
    ------
    ValueError
        If the folder holds tokens of something else, or an image cannot be read.
    OSError
        If the folder cannot be written to.

    See Also
    --------
    load_tokens : Opens them.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from skaocls import PatchTokenizer, tokenize_dataset
    >>> images, y = load_digits().images, load_digits().target
    >>> tokenizer = PatchTokenizer(random_state=0).fit(images, y)
    >>> tokens = tokenize_dataset(tokenizer, images, tempfile.mkdtemp(), y=y, n_views=4)
    >>> tokens.shape
    (1797, 4, 4, 4)
    """
    check_is_fitted(tokenizer)
    tokenizer, reader = tokenizer_and_reader(tokenizer)
    folder = Path(folder)
    here, parts = check_part(part)
    if n_views < 1 or shard_size < 1:
        raise ValueError(f"n_views={n_views} and shard_size={shard_size} must be at least 1.")
    seed = random_state
    if not isinstance(seed, Integral):
        raise ValueError(f"random_state={seed!r} must be an int, the same for all parts.")
    batch, singles = None, None
    if is_stream(X):
        if y is not None:
            raise ValueError("X can only be gone through: let it give pairs (image, label), no y.")
        singles = one_by_one(X)
        if reader is None:
            first = list(islice(singles, 1))
            reader = learn_reader(apart(first)[0], type(tokenizer).__name__).reader
            singles = chain(first, singles)
    else:
        X = convert_input(X)
        if reader is None:
            batch = learn_reader(X, type(tokenizer).__name__)
            reader = batch.reader
        else:
            batch = reader.open(X)
        if y is not None:
            y = plain(y)
            check_consistent_length(batch, y)
    sizes = {"n": None if batch is None else len(batch), "n_views": int(n_views)}
    sizes |= {"shard_size": int(shard_size), "parts": parts}
    header = sizes | {
        "format": FORMAT,
        "library": "skaocls",
        "version": __version__,
        "grid": [int(side) for side in tokenizer.grid_],
        "n_codes": int(tokenizer.n_codes_),
        "dtype": code_dtype(tokenizer.n_codes_).name,
        "about": {
            "tokenizer": of_tokenizer(tokenizer, reader),
            "X": None if batch is None else of_images(batch.data),
            "y": None if y is None else content_hash(y),
            "random_state": int(seed),
        },
    }
    same_or_new(folder, header, getattr(tokenizer, "codebook_", None))
    total = None if batch is None else len(batch) * (1 + len(random_view_indices(n_views))) // parts
    with progress(total, "tokenizing", "view", verbose) as bar:
        make = partial(make_shard, folder, header, tokenizer, int(seed), bar)
        if singles is None:
            for k, rows in list(enumerate(gen_batches(len(batch), shard_size)))[here::parts]:
                if known_shard(folder, k, header) is None:
                    make(k, chunks_of(reader, batch, y, rows))
        else:
            for k in count(here, parts):
                n = known_shard(folder, k, header)
                if n is None:
                    n = make(k, chunks_of_stream(reader, islice(singles, shard_size)))
                elif sum(1 for _ in islice(singles, n)) < n:
                    raise ValueError(f"X ended before the images of which {folder} has tokens.")
                if n < shard_size:
                    break
            text = json.dumps({"shards": (k - here) // parts + (n > 0)}) + "\n"
            write_all(folder, {end_of(here): lambda path: Path(path).write_text(text)})
    return None if shards_in(folder, header)[1] else TokenCache(folder, check=False)


def tokenizer_and_reader(tokenizer: Any) -> tuple[Any, Reader | None]:
    """A tokenizer, and how the images are read that it is given."""
    if isinstance(tokenizer, FrozenEstimator):
        tokenizer = tokenizer.estimator
    reader: Reader | None
    model = getattr(tokenizer, "model_", None)
    if isinstance(model, FittedModel):
        tokenizer, reader = model.tokenizer, model.reader
    else:
        reader = getattr(tokenizer, "reader_", None)
    if reader is not None and reader.image_shape is None:
        raise ValueError("Only tokenizers of images write tokens of images.")
    return tokenizer, reader


def check_part(part: Any) -> tuple[int, int]:
    """The number of a part, and of all parts."""
    i, n = part
    if not 0 <= i < n:
        raise ValueError(f"part={part!r} must be (i, n) with 0 <= i < n.")
    return int(i), int(n)


def is_stream(X: Any) -> bool:
    """Whether X can only be gone through."""
    if isinstance(X, (str, os.PathLike)):
        return False
    in_any_order = hasattr(X, "__len__") and hasattr(X, "__getitem__")
    return isinstance(X, IterableDataset) or (isinstance(X, Iterable) and not in_any_order)


def make_shard(
    folder: Path,
    header: dict[str, Any],
    tokenizer: Any,
    seed: int,
    bar: Any,
    k: int,
    chunks: Iterator[tuple[np.ndarray, Any]],
) -> int:
    """Write the k-th shard, unless there are no images for it; how many it holds."""
    n_views, rng = header["n_views"], np.random.RandomState([seed, k])
    codes: list[np.ndarray] = []
    labels: list[Any] = []
    for images, some in ahead(chunks):
        codes.append(views_of(tokenizer, images, n_views, rng, bar).astype(header["dtype"]))
        labels.append(some)
    if not codes:
        return 0
    shard = np.concatenate(codes).reshape(-1, n_views, *tokenizer.grid_)
    write_shard(folder, k, shard, None if labels[0] is None else np.concatenate(labels))
    return len(shard)


def chunks_of(
    reader: Reader, batch: Any, y: np.ndarray | None, rows: slice
) -> Iterator[tuple[np.ndarray, Any]]:
    """Decoded images and labels of some rows, a few at a time."""
    assert reader.image_shape is not None
    pairs = (
        isinstance(batch.data, Items) and y is None and of_pairs(batch.data.items(np.arange(1))[0])
    )
    for few in gen_batches(rows.stop - rows.start, block_size(reader.image_shape)):
        part = slice(rows.start + few.start, rows.start + few.stop)
        if pairs:
            images, labels = apart(batch.data.items(np.arange(part.start, part.stop)))
            yield reader.open(images).images(), labels
        else:
            yield batch.images(part), None if y is None else y[part]


def chunks_of_stream(reader: Reader, singles: Iterator[Any]) -> Iterator[tuple[np.ndarray, Any]]:
    """Decoded images and labels of what is gone through, a few at a time."""
    assert reader.image_shape is not None
    while items := list(islice(singles, block_size(reader.image_shape))):
        images, labels = apart(items)
        yield reader.open(images).images(), labels


def one_by_one(X: Iterable[Any]) -> Iterator[Any]:
    """Items, of batches one after the other."""
    for item in X:
        image = image_of(item)
        labels: Any = item[1] if of_pairs(item) else None
        if hasattr(image, "ndim") and (image.ndim == 4 or np.ndim(labels) == 1):
            yield from zip(image, np.asarray(item[1])) if of_pairs(item) else image
        else:
            yield item


def of_pairs(item: Any) -> bool:
    """Whether an item has a label."""
    return isinstance(item, (tuple, list)) and len(item) > 1


def apart(items: list[Any]) -> tuple[Any, Any]:
    """Images, and their labels if they have some."""
    images = stack_items([image_of(item) for item in items])
    return images, plain([item[1] for item in items]) if of_pairs(items[0]) else None


def plain(y: Any) -> np.ndarray:
    """Labels as an array that needs no pickle."""
    labels = np.asarray(y)
    if labels.dtype == object:
        labels = np.array(labels.tolist())
    if labels.ndim != 1 or labels.dtype == object:
        raise ValueError("Labels must be numbers or strings, one for each image.")
    return labels


def known_shard(folder: Path, k: int, header: dict[str, Any]) -> int | None:
    """Images in a shard that is there; a damaged one is to be made again, with a warning."""
    try:
        return int(read_shard(folder, k, header, check=True)["n"])
    except FileNotFoundError:
        return None
    except ValueError as exc:
        warnings.warn(f"{exc} It is made again.", RuntimeWarning, stacklevel=3)
        return None


def write_shard(folder: Path, k: int, codes: np.ndarray, labels: np.ndarray | None) -> None:
    """Write a shard whole, or not at all."""
    for left in folder.glob(f".*-{k:06d}.*"):  # of a process that was killed
        left.unlink()
    facts: dict[str, Any] = {"n": len(codes)}
    for_codes, for_labels, about = names_of(k)
    writers: dict[str, Callable[[str], object]] = {}
    writers[for_codes] = array_writer(facts, "hash", codes)
    if labels is not None:
        writers[for_labels] = array_writer(facts, "labels", labels)
    writers[about] = lambda path: Path(path).write_text(json.dumps(facts) + "\n")
    write_all(folder, writers)


def same_or_new(folder: Path, header: dict[str, Any], codebook: Any) -> None:
    """Write what the tokens of a folder are, or see that they are the same.

    Raises
    ------
    ValueError
        If it holds other ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / HEADER).exists():
        known = read_header(folder)
        have, want = (h | h["about"] for h in (known, header))
        names = sorted(k for k in want if k not in ("about", "version") and have.get(k) != want[k])
        if names:
            raise ValueError(
                f"{folder} holds other tokens: they differ in {', '.join(names)}. Pass another "
                "folder, or the same images, tokenizer and options."
            )
        return
    facts = dict(header)
    writers: dict[str, Callable[[str], object]] = {}
    if np.ndim(codebook) == 2:
        writers[CODEBOOK] = array_writer(facts, "codebook", np.asarray(codebook))
    writers[HEADER] = lambda path: Path(path).write_text(json.dumps(facts, indent=1) + "\n")
    write_all(folder, writers)


def array_writer(facts: dict[str, Any], name: str, array: np.ndarray) -> Callable[[str], None]:
    """What writes an array as NumPy's file, and its hash into the facts under that name."""

    def write(path: str) -> None:
        with open(path, "wb") as file:
            np.save(file, array, allow_pickle=False)
        facts[name] = hash_of(Path(path))

    return write


def of_tokenizer(tokenizer: Any, reader: Reader | None) -> str:
    """Digest of what the tokens of an image depend on."""
    how = None if reader is None else (reader.declared_shape, reader.image_shape, reader.decoding)
    if TOKENIZERS.get(type(tokenizer).__name__) is not type(tokenizer):
        return content_hash(tokenizer, how)
    config, arrays = tokenizer_state(tokenizer)
    return content_hash(config["type"], config.get("attributes"), dict(arrays), how)


def of_images(batch: Any) -> str:
    """What tells one data set from another at no cost: names of files, shape and type of arrays."""
    found = blake2b(digest_size=16)
    for item in batch if is_items(batch) else ():
        named = isinstance(item, (str, os.PathLike))
        found.update((os.fspath(item) if named else type(item).__name__).encode() + b"\0")
    about = f"{len(batch)} {getattr(batch, 'shape', None)} {getattr(batch, 'dtype', None)}"
    return f"{about} {found.hexdigest()}"

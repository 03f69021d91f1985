"""Write the tokens of a data set to a folder, in one process or in several processes."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count, islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted
from torch.utils.data import IterableDataset

from skaocls.files import check_writable
from skaocls.fitted.labels import compare_own_labels
from skaocls.fitted.model import FittedModel
from skaocls.fitted.saving import TOKENIZERS, tokenizer_state
from skaocls.fitted.tokenization import random_view_indices, views_of
from skaocls.hashing import HashError, hash_object
from skaocls.images.batch import Batch, block_size
from skaocls.images.input_types import as_array, stack_items
from skaocls.images.lazy import Items, image_of
from skaocls.images.reader import Reader, learn_reader
from skaocls.progress import progress
from skaocls.tokenizers.contract import code_dtype
from skaocls.tokenizers.token_files import (
    FORMAT,
    MANIFEST,
    Chunks,
    Manifest,
    ShardWriter,
    TokenDataset,
    read_manifest,
    shard_numbers,
)
from skaocls.version import __version__

SHARD_SIZE = 8192  # default number of images in a shard


def tokenize_dataset(
    tokenizer: Any,
    X: Any,
    folder: str | os.PathLike[str],
    *,
    y: Any = None,
    n_views: int = 1,
    shard_size: int = SHARD_SIZE,
    part: tuple[int, int] = (0, 1),
    random_state: int = 0,
    verbose: int = 0,
) -> TokenDataset | None:
    """Write the tokens of images to a folder. A classifier can train or predict on these tokens.

    Tokens are written in shards. If a call is interrupted, call the function again. The new call
    writes only shards that are missing or damaged. Several processes can each write one `part` to
    the same folder. The processes may run on several machines that share the folder.

    All tokens in a folder come from the same images, labels, tokenizer and options. To check this,
    a repeated call decodes the images of existing shards again, but does not tokenize these images.
    A process that writes one of several parts also decodes one shard of up to two other parts. If
    parts have different images, the part that ends last is refused, and the folder is incomplete.

    Parameters
    ----------
    tokenizer : transformer or AnyOrderARClassifier
        A fitted tokenizer or a fitted classifier. A classifier provides its tokenizer and its
        settings for decoding images.
    X : array-like, data set or iterable
        Images, as in :meth:`AnyOrderARClassifier.fit`, or a stream, such as a WebDataset or a
        PyTorch loader. A stream yields images or (image, label) pairs, one by one or in batches of
        arrays or tensors. A stream must yield the images in the same order each time. If there are
        several parts, each part needs its own stream, which contains only the images of the part.
    folder : str or path
        Folder for the tokens. It is created if it does not exist.
    y : array-like of shape (n,), default=None
        Labels to store with the tokens. If None, and X is a PyTorch data set or an iterable of
        (image, label) pairs, the labels of X are stored.
    n_views : int, default=1
        Number of views of each image. The first view is the image itself. The other views are
        random transformations of the image, as with `augmentation` of the classifier.
    shard_size : int, default=8192
        Number of images in each file.
    part : tuple of int (i, n), default=(0, 1)
        Write only part i of n. Part i consists of the shards i, i + n, i + 2 n, ...
    random_state : int, default=0
        Seed of the random views. Pass the same seed for all parts.
    verbose : int, default=0
        If 1, show the progress.

    Returns
    -------
    tokens : TokenDataset or None
        The tokens, as returned by :func:`skaocls.load_tokens`. None if other parts are not
        complete yet.

    Raises
    ------
    ValueError
        If the folder contains tokens of other data or options, if an image cannot be read, or if X
        contains labels that differ from `y`.
    OSError
        If the folder is not writable.

    See Also
    --------
    load_tokens : Open the tokens.

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
    i, n_parts = part
    if not 0 <= i < n_parts:
        raise ValueError(f"part={part!r} must be (i, n) with 0 <= i < n.")
    if n_views < 1 or shard_size < 1 or not isinstance(random_state, Integral):
        raise ValueError(
            f"n_views={n_views!r} and shard_size={shard_size!r} must be at least 1, and "
            f"random_state={random_state!r} must be an int."
        )
    check_writable(Path(folder) / MANIFEST, f"folder={os.fspath(folder)!r}")
    tokenizer, reader = tokenizer_and_reader(tokenizer)
    reader, n, y_hash, chunks_of = open_source(X, y, tokenizer, reader, shard_size)
    dtype = code_dtype(tokenizer.n_codes_)
    manifest: Manifest = {
        "library": "skaocls",
        "format": FORMAT,
        "version": __version__,
        "n": n,
        "n_views": int(n_views),
        "shard_size": int(shard_size),
        "parts": int(n_parts),
        "grid": [int(side) for side in tokenizer.grid_],
        "n_codes": int(tokenizer.n_codes_),
        "dtype": dtype.name,
        "random_state": int(random_state),
        "tokenizer": hash_tokenizer(tokenizer, reader),
        "y": y_hash,
        "codebook": None,
        "shards": {},
        "n_shards": {},
    }
    codebook = getattr(tokenizer, "codebook_", None)
    codebook = np.asarray(codebook) if np.ndim(codebook) == 2 else None
    total = None if n is None else n * (1 + len(random_view_indices(n_views))) // n_parts
    with progress(total, "tokenizing", "view", verbose) as bar:
        writer = ShardWriter(
            Path(folder),
            manifest,
            codebook,
            lambda images, rng: views_of(tokenizer, images, n_views, rng, bar).astype(dtype),
        )
        write_part(writer, chunks_of, i, is_stream=n is None)
    complete = not shard_numbers(read_manifest(Path(folder)))[1]
    return TokenDataset(folder, check=False) if complete else None


def write_part(
    writer: ShardWriter, chunks_of: Callable[[int], Chunks], part: int, *, is_stream: bool
) -> None:
    """Write the shards of a part. If X is not a stream, check the parts before and after it, too.

    If two of these parts are written at the same time, the part that ends later finds shards of
    both.
    """
    n_parts, checked = writer.manifest["parts"], {part}

    def check_adjacent_parts() -> None:
        for other in sorted({(part - 1) % n_parts, (part + 1) % n_parts} - checked):
            shards = [k for k in map(int, writer.manifest["shards"]) if k % n_parts == other]
            if shards and not is_stream:
                writer.check(min(shards), chunks_of(min(shards)))
                checked.add(other)

    check_adjacent_parts()
    for k in count(part, n_parts):
        chunks = chunks_of(k)
        if not (first := list(islice(chunks, 1))):
            break
        writer.write(k, chain(first, chunks))
    try:
        check_adjacent_parts()
    except ValueError:
        writer.remove_from_manifest(range(part, k, n_parts))
        raise
    if is_stream:
        writer.end_stream(part, k // n_parts)


# Images and labels ------------------------------------------------------------------------------


def open_source(
    X: Any, y: Any, tokenizer: Any, reader: Reader | None, shard_size: int
) -> tuple[Reader, int | None, str | None, Callable[[int], Chunks]]:
    """Validate X and y; if `reader` is None, learn a reader from X.

    Return the reader, the number of images (None for a stream), the hash of y, and a function. The
    returned function maps a shard number to the decoded images and the labels of this shard. Call
    the returned function with ascending shard numbers.
    """
    owner = type(tokenizer).__name__
    if is_stream(X):
        if y is not None:
            raise ValueError(
                "y is not supported if X is a stream. X must yield (image, label) pairs instead."
            )
        items = single_items(X)
        if reader is None:
            first = list(islice(items, 1))
            reader = learn_reader(split_pairs(first)[0], owner).reader
            items = chain(first, items)
        return reader, None, None, partial(stream_chunks, reader, items, shard_size)
    batch = learn_reader(X, owner) if reader is None else reader.open(X)
    if y is not None:
        y = label_array(y)
        check_consistent_length(batch, y)
        compare_own_labels(batch, y)
    y_hash = None if y is None else hash_object(y)
    return batch.reader, len(batch), y_hash, partial(batch_chunks, batch, y, shard_size)


def tokenizer_and_reader(tokenizer: Any) -> tuple[Any, Reader | None]:
    """Return the fitted tokenizer, and its reader (None if the tokenizer has no reader)."""
    if isinstance(tokenizer, FrozenEstimator):
        tokenizer = tokenizer.estimator
    model = getattr(tokenizer, "model_", None)
    reader: Reader | None = getattr(tokenizer, "reader_", None)
    if isinstance(model, FittedModel):  # the argument is a classifier
        tokenizer, reader = model.tokenizer, model.reader
    if reader is not None and reader.image_shape is None:
        raise ValueError("The tokenizer must be fitted on images, not on tables or tokens.")
    return tokenizer, reader


def is_stream(X: object) -> bool:
    """Return whether X can be iterated but not indexed."""
    if isinstance(X, (str, os.PathLike)):
        return False
    is_sequence = hasattr(X, "__len__") and hasattr(X, "__getitem__")
    return isinstance(X, IterableDataset) or (isinstance(X, Iterable) and not is_sequence)


def batch_chunks(batch: Batch, y: np.ndarray | None, shard_size: int, k: int) -> Chunks:
    """Yield the decoded images and the labels of shard k, for an X that can be indexed."""
    reader, data = batch.reader, batch.data
    is_pairs = y is None and isinstance(data, Items) and has_label(data.items(np.arange(1))[0])
    stop = min((k + 1) * shard_size, len(batch))
    for start in range(k * shard_size, stop, chunk_size(reader)):
        rows = np.arange(start, min(start + chunk_size(reader), stop))
        if is_pairs:
            images, labels = split_pairs(data.items(rows))
            yield reader.open(images, check_scale=False).images(), labels
        else:
            yield batch.images(rows), None if y is None else y[rows]


def stream_chunks(reader: Reader, items: Iterator[Any], shard_size: int, k: int) -> Chunks:
    """Yield the decoded images and the labels of the next shard of a stream; k is not used."""
    items = islice(items, shard_size)
    while chunk := list(islice(items, chunk_size(reader))):
        images, labels = split_pairs(chunk)
        yield reader.open(images).images(), labels


def chunk_size(reader: Reader) -> int:
    assert reader.image_shape is not None
    return block_size(reader.image_shape)


def single_items(X: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a stream one by one; split batches into their items."""
    for item in X:
        image = image_of(item)
        labels: Any = item[1] if has_label(item) else None
        if hasattr(image, "ndim") and (image.ndim == 4 or np.ndim(labels) == 1):
            yield from zip(image, np.asarray(item[1])) if has_label(item) else image
        else:
            yield item


def has_label(item: Any) -> bool:
    """Return whether an item is an (image, label) pair."""
    return isinstance(item, (tuple, list)) and len(item) > 1


def split_pairs(items: list[Any]) -> tuple[Any, np.ndarray | None]:
    """Return the images of the items, and the labels (None if the items have no labels)."""
    images = stack_items([image_of(item) for item in items])
    return images, label_array([item[1] for item in items]) if has_label(items[0]) else None


def label_array(y: Any) -> np.ndarray:
    """Return labels as an array that can be saved without pickling."""
    labels = np.asarray(as_array(y, "y"))
    if labels.dtype == object:
        labels = np.array(labels.tolist())
    if labels.ndim != 1 or labels.dtype == object:
        raise ValueError("Labels must be numbers or strings, one for each image.")
    return labels


def hash_tokenizer(tokenizer: Any, reader: Reader) -> str:
    """Return a hash of everything that determines the tokens of an image."""
    reading = reader.declared_shape, reader.image_shape, reader.decoding
    if TOKENIZERS.get(type(tokenizer).__name__) is not type(tokenizer):
        try:
            return hash_object(tokenizer, reading)
        except HashError as exc:
            raise TypeError(
                f"tokenize_dataset could not recognize {type(tokenizer).__name__} in a later call, "
                f"because its content is not known: {exc}."
            ) from exc
    config, arrays = tokenizer_state(tokenizer)
    return hash_object(config["type"], config.get("attributes"), dict(arrays), reading)

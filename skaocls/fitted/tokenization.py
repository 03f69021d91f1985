"""From data to tokens: choice of tokenizer, training views, crops and noise."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import gen_batches

from skaocls.devices import prefetch
from skaocls.images.advice import pixels_in_rows
from skaocls.images.augmentation import random_views
from skaocls.images.batch import Batch
from skaocls.images.crops import random_crop
from skaocls.images.inputs import shape_of_array
from skaocls.images.lazy import Lazy, Mapped, Picked
from skaocls.images.reader import Reader
from skaocls.progress import progress, say
from skaocls.tokenizers import (
    FeatureTokenizer,
    LlamaGenTokenizer,
    MaskGITTokenizer,
    PatchTokenizer,
    QuantileTokenizer,
)
from skaocls.tokenizers._codes import code_dtype
from skaocls.tokenizers.checks import check_fitted, check_made

ENCODE_AT_ONCE = 512  # images decoded and tokenized together, fewer if large:
ENCODE_NUMBERS = 2**24
SHOWN_AT_ONCE = 8  # of slow tokenizers, between two looks at the progress
FIT_TOKENIZER_ON = 2**27  # numbers (images times pixels times channels) it may see
DECODED_AT_ONCE = 2**24  # of these, if it is one that reads on its own what it needs
CODES_IN_MEMORY = 2**26  # bytes; more go into a file
N_VIEWS, N_VIEWS_SLOW = 16, 4  # of each training image, the first of them the image itself
OF_ORDERS = 0.5  # how far the views that orders read are moved, as a share of those in training
SHARP_EVERY = 5  # of the views one is the image itself, or blurred tokens become the familiar ones


def fit_tokenizer(
    tokenizer: Any,
    batch: Batch,
    y: np.ndarray,
    rng: np.random.RandomState,
    verbose: int = 0,
) -> Any:
    """The given tokenizer, or the default for the data, cloned and fitted unless frozen."""
    by_default, reader = isinstance(tokenizer, str), batch.reader
    images = reader.image_shape is not None
    if isinstance(tokenizer, str):
        if not images and (shape := pixels_in_rows(batch.values())):
            warnings.warn(
                f"X has {reader.n_features} columns, none of them negative, all on one scale: if "
                f"they are the pixels of images, pass image_shape={shape}, which is faster and "
                "more accurate. If they are not, tokenizer=QuantileTokenizer() says so.",
                UserWarning,
                stacklevel=5,
            )
        tokenizer = PatchTokenizer() if images else QuantileTokenizer()
    if isinstance(tokenizer, FrozenEstimator):
        check_fitted(tokenizer.estimator, tokenizer.estimator)
        return tokenizer.estimator
    tokenizer = clone(tokenizer)
    seed = rng.randint(2**31 - 1)
    params = tokenizer.get_params(deep=False)
    if "random_state" in params:
        tokenizer.set_params(random_state=seed)
    if reader.image_shape is not None:
        if params.get("image_shape", ()) is None and not tells_channels(reader.image_shape):
            tokenizer.set_params(image_shape=reader.image_shape)
        size = int(np.prod(reader.image_shape))
        n = max(1, FIT_TOKENIZER_ON // size)
        some = np.sort(rng.permutation(len(batch))[:n])
        large = batch.lazy or len(some) * size > DECODED_AT_ONCE
        data: Any = Decoded(batch, some)
        y = y[some]
        if not (large and isinstance(tokenizer, PatchTokenizer)):
            data = data[:]
    else:
        data = batch.values()
    name, kind = type(tokenizer).__name__, "images" if images else "tabular data"
    say(verbose, f"fitting {name} to {len(data)} samples")
    check_fitted(tokenizer, tokenizer.fit(data, y))
    rows, cols = tokenizer.grid_
    why = f", the default for {kind}" if by_default else ""
    say(verbose, f"{name}{why}: {rows} x {cols} tokens of {tokenizer.n_codes_} values", 2)
    return tokenizer


def tells_channels(shape: tuple[int, ...]) -> bool:
    """Whether arrays of that shape are taken for (height, width, channels)."""
    try:
        return shape_of_array(shape) == shape
    except ValueError:
        return False


def training_tokens(
    tokenizer: Any,
    batch: Batch,
    augmentation: int | str | None,
    rng: np.random.RandomState,
    verbose: int = 0,
) -> Any:
    """Tokens of the training data, (n_samples, n_views, n_tokens).

    Of data that are tokens, crops are views. Those that are mapped from a file stay there, and
    those that would take much memory go into one that has no name, which the system removes.
    """
    reader = batch.reader
    if batch.lazy and reader.image_shape is None:
        for part in batch.parts():
            tokens(tokenizer, part)  # which checks them
        data = batch.data
        crops = data.shape[1] if data.ndim == 4 else 1
        return Picked(data, use=as_views, row_shape=(crops, reader.n_features))
    if reader.image_shape is None:
        codes = encode(tokenizer, batch, slice(0, len(batch)))
        return codes if codes.ndim == 3 else codes[:, None]
    n_views = views_wanted(tokenizer, augmentation)
    if isinstance(augmentation, str):
        why = "its tokenizer is slow" if is_slow(tokenizer) else "its tokenizer is fast"
        say(verbose, f"{n_views} views of each image: {why}", 2)
    rows, cols = tokenizer.grid_
    shape = len(batch), n_views, int(rows) * int(cols)
    in_parts = gen_batches(len(batch), encoded_at_once(reader.image_shape))
    with progress(len(batch) * (1 + len(drawn(n_views))), "tokenizing", "view", verbose) as bar:
        decoded = prefetch(batch.images(part) for part in in_parts)
        views = (views_of(tokenizer, images, n_views, rng, bar) for images in decoded)
        return kept(views, shape, tokenizer.n_codes_)


def views_of(
    tokenizer: Any, images: np.ndarray, n_views: int, rng: np.random.RandomState, bar: Any
) -> np.ndarray:
    """Tokens of images and of random views of them, (n, n_views, n_tokens)."""
    few = SHOWN_AT_ONCE if is_slow(tokenizer) else ENCODE_AT_ONCE

    def read(images: np.ndarray) -> np.ndarray:
        codes = []
        for some in gen_batches(len(images), few):
            codes.append(tokens(tokenizer, images[some]))
            bar.update(len(codes[-1]))
        return np.concatenate(codes)

    views = [read(images)] * n_views
    for view in drawn(n_views):
        views[view] = read(random_views(images, rng))
    return np.stack(views, axis=1)


def views_wanted(tokenizer: Any, augmentation: int | str | None) -> int:
    """Views of each image, the image itself among them."""
    if isinstance(augmentation, str):
        return N_VIEWS_SLOW if is_slow(tokenizer) else N_VIEWS
    return 1 if augmentation is None else augmentation


def has_views(tokenizer: Any, reader: Reader, augmentation: int | str | None) -> bool:
    """Whether a prior of images learns from random views of them, and reads others as readily.

    Those of slow tokenizers are left out: each order's would take seconds.
    """
    if reader.image_shape is None or is_slow(tokenizer):
        return False
    return len(drawn(views_wanted(tokenizer, augmentation))) > 0


def drawn(n_views: int) -> list[int]:
    """Which of the views are not the image itself."""
    return [view for view in range(1, n_views) if view % SHARP_EVERY]


def is_slow(tokenizer: Any) -> bool:
    return isinstance(tokenizer, (FeatureTokenizer, LlamaGenTokenizer, MaskGITTokenizer))


def encoded_at_once(image_shape: Sequence[int]) -> int:
    """Images decoded and tokenized together."""
    return int(np.clip(ENCODE_NUMBERS // int(np.prod(image_shape)), 1, ENCODE_AT_ONCE))


def kept(parts: Iterator[np.ndarray], shape: tuple[int, ...], n_codes: int) -> Any:
    """Parts of codes put together: in memory, or in a file if they are large."""
    if 4 * np.prod(shape, dtype=np.int64) <= CODES_IN_MEMORY:
        codes, at = np.empty(shape, dtype=np.int32), 0
        for part in parts:
            codes[at : at + len(part)] = part
            at += len(part)
        return codes
    dtype = code_dtype(n_codes)
    with tempfile.TemporaryFile(prefix="skaocls-tokens-") as file:
        try:
            for part in parts:
                part.astype(dtype).tofile(file)
            file.flush()
        except OSError as exc:
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            raise OSError(
                f"The tokens of X, {size} bytes, cannot be written to {tempfile.gettempdir()}: "
                f"{exc}. Let the environment variable TMPDIR name a folder with room for them."
            ) from exc
        return Mapped(np.memmap(file, dtype, "r", shape=shape))


class Decoded(Lazy):
    """Images as numbers, decoded when they are asked for."""

    def __init__(self, batch: Batch, rows: np.ndarray):
        super().__init__(len(rows))
        reader = batch.reader
        assert reader.image_shape is not None
        self.reader, self.batch, self.rows = reader, batch, rows
        self.shape, self.dtype = (len(rows), *reader.image_shape), np.dtype(np.float32)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.batch.images(self.rows[rows])

    def for_range(self) -> Iterator[np.ndarray]:
        yield np.array(self.reader.value_range)


def as_views(codes: np.ndarray) -> np.ndarray:
    """Tokens (n, rows, cols) or (n, n_crops, rows, cols) as (n, n_views, n_tokens)."""
    crops = codes.shape[1] if codes.ndim == 4 else 1
    return codes.reshape(len(codes), crops, -1)


def encode(tokenizer: Any, batch: Batch, part: slice) -> np.ndarray:
    """Tokens of batch[part] as it is, (n, n_tokens), or (n, n_crops, n_tokens) if it has crops."""
    reader = batch.reader
    if reader.image_shape is None:
        return tokens(tokenizer, batch.values(part))
    step = encoded_at_once(reader.image_shape)
    few = (slice(at, min(at + step, part.stop)) for at in range(part.start, part.stop, step))
    return np.concatenate([tokens(tokenizer, batch.images(part)) for part in few])


def encode_for_orders(
    tokenizer: Any,
    batch: Batch,
    part: slice,
    n_orders: int,
    *,
    crop: str = "center",
    latent_noise: float = 0.0,
    seed: int,
) -> np.ndarray:
    """Tokens of batch[part], with a crop and noise of its own for each order if they are wanted.

    Crop and noise of an order are the same for all images: what is drawn are shares of what an
    image has room for. Of views the first order's is the image itself. Of data that are tokens of
    several crops, orders take them in turn.

    Returns
    -------
    codes : int array of shape (n, n_tokens) or (n, n_orders, n_tokens)
    """
    reader = batch.reader
    if reader.grid is not None:
        if crop != "center" or latent_noise:
            raise ValueError(
                f"crop={crop!r} and latent_noise need images, but the classifier reads tokens. "
                "Pass tokens of several crops, (n, n_crops, rows, cols): each order reads one."
            )
        codes = encode(tokenizer, batch, part)
        return codes if codes.ndim == 2 else codes[:, np.arange(n_orders) % codes.shape[1]]
    if reader.image_shape is None or (crop == "center" and not latent_noise):
        return encode(tokenizer, batch, part)
    rng = np.random.RandomState(seed)
    sides = np.random.RandomState([seed, 1]).uniform(size=n_orders)
    images: Any = batch.originals(part) if crop == "random" else batch.images(part)
    views = []
    for order, side in enumerate(sides):
        where, noise_seed = rng.uniform(size=2), rng.randint(2**31 - 1)
        pixels = images
        if crop == "random":
            pixels = np.stack([random_crop(x, reader.image_shape, side, where) for x in images])
        elif crop == "views" and order:
            drawing = np.random.RandomState([seed, 2, order])
            pixels = random_views(images, drawing, share=OF_ORDERS, alike=True)
        noise = {"latent_noise": latent_noise, "seed": noise_seed} if latent_noise else {}
        views.append(tokens(tokenizer, pixels, **noise))
    return np.stack(views, axis=1)


def tokens(tokenizer: Any, data: Any, **noise: Any) -> np.ndarray:
    codes = check_made(tokenizer, tokenizer.transform(data, **noise), len(data))
    crops = codes.shape[1:2] if codes.ndim == 4 else ()
    return codes.reshape(len(data), *crops, -1).astype(np.int32)


def tokens_of_pixels(
    tokenizer: Any, shape: Sequence[int], grid: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Which row of tokens each row of pixels belongs to, and which column each column.

    Tokens are patches of `patch_size_` pixels, where the tokenizer has that, of which the last may
    overhang; else they share the image evenly, as those of networks do that resize it.
    """
    patch = getattr(tokenizer, "patch_size_", None)
    rows, cols = (
        np.arange(size) * n // size if patch is None else np.arange(size) // patch[axis]
        for axis, (size, n) in enumerate(zip(shape, grid, strict=True))
    )
    return rows.clip(max=grid[0] - 1), cols.clip(max=grid[1] - 1)

"""Fit tokenizers, and compute the tokens of training views and of images to be classified."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skaocls.devices import resolve_device
from skaocls.distributed import map_ranks, run_on_main, world_size
from skaocls.hashing import hash_file
from skaocls.images.augmentation import random_crop, random_views
from skaocls.images.batch import Batch
from skaocls.images.lazy import Picked, concatenate
from skaocls.images.reader import Reader
from skaocls.progress import progress, say
from skaocls.scoring.orders import Views
from skaocls.tokenizers import FeatureTokenizer, PatchTokenizer, QuantileTokenizer
from skaocls.tokenizers.base import ImageTokenizer
from skaocls.tokenizers.contract import check_fitted_tokenizer, check_transformed, code_dtype
from skaocls.tokenizers.vq import VQTokenizer
from skaocls.warn import warn

# Training views with augmentation="auto" (chosen with the tasks of benchmarks/quality)
N_VIEWS, N_VIEWS_SLOW = 16, 4  # number of views, image included, for fast and slow tokenizers
SHARP_EVERY = 5  # every fifth view is the image itself, because random views are slightly blurred
SCORING_STRENGTH = 0.5  # strength of random views for scoring, relative to training views

# Fitting a PatchTokenizer takes about as long as FIT_COST random views of each image. Tokenizing a
# view takes about as long as ENCODE_COST random views. In measurements with images of 32 x 32 to
# 512 x 512 pixels, the estimated total differed from the actual time by a factor of at most 1.8.
FIT_COST, ENCODE_COST = 50, 4
LONG_TOKENIZING_SECONDS = 60  # a warning is issued if tokenizing will take longer

# Memory
MAX_FIT_NUMBERS = 2**27  # largest number of pixel values to which a tokenizer is fitted
MAX_TOKEN_BYTES = 2**26  # larger arrays of training tokens are written to a temporary file


def fit_tokenizer(
    tokenizer: Any, batch: Batch, y: np.ndarray, rng: np.random.RandomState, verbose: int = 0
) -> Any:
    """Fit the tokenizer of a classifier in the main process; return the tokenizer in all ranks.

    ``"auto"`` selects the default tokenizer for the data. If `tokenizer` is a FrozenEstimator, the
    tokenizer inside it is returned unchanged.
    """
    if isinstance(tokenizer, FrozenEstimator):
        check_usable(tokenizer.estimator, batch, tokenizer.estimator)
        return tokenizer.estimator
    seed, rows = rng.randint(2**31 - 1), np.arange(len(batch))
    if batch.reader.image_shape is not None:
        n_images = max(1, MAX_FIT_NUMBERS // math.prod(batch.reader.image_shape))
        rows = np.sort(rng.permutation(rows)[:n_images])
    return run_on_main(partial(fit_new, tokenizer, batch, y, rows, seed, verbose))


def fit_new(
    tokenizer: Any, batch: Batch, y: np.ndarray, rows: np.ndarray, seed: int, verbose: int
) -> Any:
    """Clone the tokenizer, or create the default tokenizer, and fit it to a subset of the rows."""
    tokenizer = default_tokenizer(batch) if isinstance(tokenizer, str) else clone(tokenizer)
    name = type(tokenizer).__name__
    params = tokenizer.get_params(deep=False)
    if "random_state" in params:
        tokenizer.set_params(random_state=seed)
    say(verbose, f"fitting {name} to {len(rows)} samples")
    if len(rows) < len(batch):
        batch, y = batch.take(rows), y[rows]
    if batch.reader.image_shape is None:
        fitted = tokenizer.fit(batch.data, y)  # tokens in files keep their attribute `codebook`
    elif has_library_method(tokenizer, "fit"):
        tokenizer._validate_params()
        fitted = tokenizer._fit(batch, y)
    else:
        if params.get("image_shape", ()) is None:
            tokenizer.set_params(image_shape=batch.reader.image_shape)
        fitted = tokenizer.fit(batch.images(), y)
    check_usable(tokenizer, batch, fitted)
    n_rows, n_cols = tokenizer.grid_
    say(verbose, f"{name}: {n_rows} x {n_cols} tokens of {tokenizer.n_codes_} values", 2)
    return tokenizer


def tokenizer_identity(tokenizer: Any) -> tuple[object, ...]:
    """Return everything that determines a tokenizer after `fit`, except the data."""
    weights = hash_file(tokenizer._weights_file()) if isinstance(tokenizer, VQTokenizer) else None
    return tokenizer, weights


def announce_patches(tokenizer: Any, batch: Batch, augmentation: int | str | None) -> None:
    """Warn if fitting a PatchTokenizer and tokenizing the training images will take long."""
    is_default = isinstance(tokenizer, str)
    if batch.reader.image_shape is None or not (
        is_default or isinstance(tokenizer, PatchTokenizer)
    ):
        return
    make_views = partial(random_views, rng=np.random.RandomState(0))
    n_encoded = 1 + len(random_view_indices(resolve_n_views(tokenizer, augmentation)))
    cost = FIT_COST + n_encoded * (1 + ENCODE_COST)
    seconds = cost * measure_seconds(make_views, batch, max(1, len(batch) // 20), repetitions=5)
    warn_if_long(seconds, batch, "Pass fewer or smaller images (image_shape resizes files).")


def announce_network(tokenizer: Any, batch: Batch, n_encoded: int) -> None:
    """Warn if tokenizing the images and their views on the CPU will take long."""
    if resolve_device(tokenizer.device).type != "cpu":
        return
    batch_size = getattr(tokenizer, "batch_size", 1)
    seconds = measure_seconds(partial(encode_data, tokenizer), batch, batch_size, repetitions=1)
    warn_if_long(
        seconds * n_encoded / len(batch),
        batch,
        "Use a CUDA device, or lower augmentation. To tokenize the images only once for several "
        "fits, use skaocls.tokenize_dataset.",
    )


def measure_seconds(
    function: Callable[[np.ndarray], object], batch: Batch, n_images: int, repetitions: int
) -> float:
    """Measure the time of function(images) for at most 8 images; return the time for the batch.

    The images are random numbers, because items of data sets should not be read more than once.
    """
    shape = min(n_images, len(batch), 8), *batch.reader.image_shape  # type: ignore[misc]
    images = np.random.RandomState(0).uniform(size=shape).astype(np.float32)
    times = [time.perf_counter()]
    for _ in range(repetitions):
        function(images)
        times.append(time.perf_counter())
    return float(np.median(np.diff(times))) * len(batch) / len(images)


def warn_if_long(seconds: float, batch: Batch, advice: str) -> None:
    if seconds > LONG_TOKENIZING_SECONDS:
        height, width = batch.reader.image_shape[:2]  # type: ignore[index]
        warn(
            f"Tokenizing {len(batch)} images of {height} x {width} pixels and their training views "
            f"will take about {seconds / 60:.1f} minutes before training starts. {advice}"
        )


def check_usable(tokenizer: Any, batch: Batch, returned: object) -> None:
    """Raise a ValueError if the tokenizer is not fitted or was fitted on images of another kind."""
    check_fitted_tokenizer(tokenizer, returned)
    if batch.reader.image_shape is not None and isinstance(tokenizer, ImageTokenizer):
        tokenizer.reader_.check_agreement(batch.reader)


def default_tokenizer(batch: Batch) -> Any:
    """Return the default tokenizer for the data; warn if a table looks like flattened images."""
    if batch.reader.image_shape is not None:
        return PatchTokenizer()
    if shape := guess_pixel_shape(batch.values()):
        warn(
            f"The {batch.reader.n_features} columns of X look like pixels: they are not negative "
            f"and have one scale. If they are pixels, pass image_shape={shape}, which makes fit "
            "faster and predictions more accurate. If they are not pixels, pass "
            "tokenizer=QuantileTokenizer() to silence this warning."
        )
    return QuantileTokenizer()


def guess_pixel_shape(X: np.ndarray) -> tuple[int, ...] | None:
    """Return the likely `image_shape` if the columns of a table look like pixels, else None.

    Columns look like pixels if they are not negative, have one scale, and could form a square
    grayscale or RGB image of at least 8 x 8 pixels.
    """
    for channels in (1, 3):
        side = math.isqrt(X.shape[1] // channels)
        if side >= 8 and side * side * channels == X.shape[1]:
            one_scale = X.min() >= 0 and 2 * np.median(X.max(axis=0)) >= X.max() > 0
            return ((side, side) if channels == 1 else (side, side, 3)) if one_scale else None
    return None


def has_library_method(tokenizer: Any, method: str) -> bool:
    """Return whether `method` (`fit` or `transform`) of an image tokenizer is from this library.

    If so, decoded images can be passed to `_fit` or `_encode`, which do not validate the images.
    """
    defined_in: str = getattr(type(tokenizer), method).__module__
    return isinstance(tokenizer, ImageTokenizer) and defined_in.startswith("skaocls.")


def training_tokens(
    tokenizer: Any,
    batch: Batch,
    augmentation: int | str | None,
    rng: np.random.RandomState,
    verbose: int = 0,
) -> Any:
    """Return the tokens (n_samples, n_views, n_tokens) of the training data and random views.

    Images are tokenized in blocks, which are divided among the ranks. Each block has its own seed,
    so the tokens do not depend on the number of ranks. If the data are tokens of several crops, the
    crops are used as views. Memory-mapped tokens stay on disk. Large results are written to a
    temporary file, which is then memory-mapped.
    """
    reader = batch.reader
    if reader.image_shape is None:
        for part in batch.parts():  # data in memory have exactly one part
            codes = encode_data(tokenizer, part, is_image=False)
        codes = codes if codes.ndim == 3 else codes[:, None]
        if batch.lazy:  # the loop above only validated the tokens
            return Picked(batch.data, function=crops_as_views, row_shape=codes.shape[1:])
        return codes
    n_views = resolve_n_views(tokenizer, augmentation)
    say(verbose, f"{n_views} views of each image", 2)
    seed = rng.randint(2**31 - 1) if random_view_indices(n_views) else 0
    own_blocks = batch.rank_blocks()

    def encode_blocks() -> Iterator[np.ndarray]:
        for block, images in own_blocks:
            block_rng = np.random.RandomState([seed, block])
            yield views_of(tokenizer, images, n_views, block_rng, bar)

    n_encoded = len(batch) * (1 + len(random_view_indices(n_views)))
    if is_slow(tokenizer):
        announce_network(tokenizer, batch, n_encoded // world_size())
    with progress(n_encoded // world_size(), "tokenizing", "view", verbose) as bar:
        blocks = encode_blocks()
        if world_size() > 1:
            blocks = chain.from_iterable(map_ranks(lambda: list(encode_blocks())))
        shape = len(batch), n_views, math.prod(tokenizer.grid_)
        return concatenate(blocks, shape, code_dtype(tokenizer.n_codes_), MAX_TOKEN_BYTES)


def views_of(
    tokenizer: Any, images: np.ndarray, n_views: int, rng: np.random.RandomState, bar: Any
) -> np.ndarray:
    """Return the tokens (n, n_views, n_tokens) of images and of random views of the images."""
    views = [encode_data(tokenizer, images)] * n_views
    bar.update(len(images))
    for view in random_view_indices(n_views):
        views[view] = encode_data(tokenizer, random_views(images, rng))
        bar.update(len(images))
    return np.stack(views, axis=1)


def resolve_n_views(tokenizer: Any, augmentation: int | str | None) -> int:
    """Return the number of views of each image, including the image itself."""
    if isinstance(augmentation, str):
        return N_VIEWS_SLOW if is_slow(tokenizer) else N_VIEWS
    return 1 if augmentation is None else augmentation


def random_view_indices(n_views: int) -> list[int]:
    """Return the indices of the random views; all other views are the image itself."""
    return [view for view in range(1, n_views) if view % SHARP_EVERY]


def has_views(tokenizer: Any, reader: Reader, augmentation: int | str | None) -> bool:
    """Return whether training uses random views. Only then may scoring use random views too.

    The result is False for slow tokenizers: tokenizing one view per order would take seconds.
    """
    if reader.image_shape is None or is_slow(tokenizer):
        return False
    return len(random_view_indices(resolve_n_views(tokenizer, augmentation))) > 0


def is_slow(tokenizer: Any) -> bool:
    """Return whether the tokenizer uses a network and is therefore slow."""
    return isinstance(tokenizer, (FeatureTokenizer, VQTokenizer))


def crops_as_views(codes: np.ndarray) -> np.ndarray:
    """Reshape (n, rows, cols) or (n, n_crops, rows, cols) tokens to (n, n_views, n_tokens)."""
    n_crops = codes.shape[1] if codes.ndim == 4 else 1
    return codes.reshape(len(codes), n_crops, -1)


def encode(tokenizer: Any, batch: Batch, part: slice) -> np.ndarray:
    """Tokenize a slice; return (n, n_tokens), or (n, n_crops, n_tokens) for several crops."""
    if batch.reader.image_shape is None:
        return encode_data(tokenizer, batch.values(part), is_image=False)
    blocks = batch.image_blocks(part)
    return np.concatenate([encode_data(tokenizer, images) for _, images in blocks])


def encode_data(
    tokenizer: Any, data: np.ndarray, *, is_image: bool = True, **options: Any
) -> np.ndarray:
    """Tokenize decoded images, table rows or tokens; pass `options` to `transform`."""
    if is_image and has_library_method(tokenizer, "transform"):
        codes: np.ndarray = tokenizer._encode(data, **options)
    else:
        codes = check_transformed(tokenizer, tokenizer.transform(data, **options), len(data))
    n_crops = codes.shape[1:2] if codes.ndim == 4 else ()
    return codes.reshape(len(data), *n_crops, -1).astype(np.int32)


def check_crop(crop: str, reader: Reader) -> None:
    """Raise a ValueError if `crop` cannot be used with the data of the reader."""
    if reader.grid is not None and crop not in ("auto", "center"):
        raise ValueError(
            f"crop={crop!r} requires images, but the classifier was fitted on tokens. Pass tokens "
            "of several crops, (n, n_crops, rows, cols); each order uses one crop."
        )


def encode_for_orders(
    tokenizer: Any,
    batch: Batch,
    part: slice,
    n_orders: int,
    *,
    crop: str = "center",
    seed: int,
) -> np.ndarray | Views:
    """Return the tokens (n, n_tokens), or `Views` if the orders use different tokens.

    With `crop` = "center", all orders use the whole image. With "random", each order uses a new
    random crop. With "views", the first order uses the image, and each other order uses a new
    random view. Within one order, all images get the same crop (size and position), the same
    transformation and the same noise, which `seed` determines. If the data are tokens of several
    crops, the first order uses the first crop, the second order uses the second crop, and so on;
    the result is then an array (n, n_orders, n_tokens).
    """
    reader = batch.reader
    noisy = isinstance(tokenizer, VQTokenizer) and tokenizer.latent_noise > 0
    check_crop(crop, reader)
    if reader.grid is not None:
        codes = encode(tokenizer, batch, part)
        return codes if codes.ndim == 2 else codes[:, np.arange(n_orders) % codes.shape[1]]
    shape = reader.image_shape
    if shape is None or (crop == "center" and not noisy):
        return encode(tokenizer, batch, part)
    rng = np.random.RandomState(seed)
    sizes = np.random.RandomState([seed, 1]).uniform(size=n_orders)
    drawn = [(rng.uniform(size=2), rng.randint(2**31 - 1)) for _ in range(n_orders)]
    images: Any = batch.originals(part) if crop == "random" else batch.images(part)

    def encode_order(rows: np.ndarray, order: int) -> np.ndarray:
        position, noise_seed = drawn[order]
        if crop == "random":
            view = np.stack([random_crop(images[i], shape, sizes[order], position) for i in rows])
        elif crop == "views" and order:
            view_rng = np.random.RandomState([seed, 2, order])
            view = random_views(images[rows], view_rng, strength=SCORING_STRENGTH, same=True)
        else:
            view = images[rows]
        noise: dict[str, Any] = {"seed": noise_seed} if noisy else {}
        return encode_data(tokenizer, view, **noise)

    return Views(len(images), n_orders, encode_order)


def tokens_of_pixels(
    tokenizer: Any, shape: Sequence[int], grid: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the token row of each pixel row, and the token column of each pixel column.

    If the tokenizer has an attribute `patch_size_`, each token covers a patch of this size, and the
    last patch may extend beyond the image. Otherwise the tokens divide the image evenly.
    """
    patch_size = getattr(tokenizer, "patch_size_", None)
    rows, cols = (
        np.arange(size) * n // size if patch_size is None else np.arange(size) // patch_size[axis]
        for axis, (size, n) in enumerate(zip(shape, grid, strict=True))
    )
    return rows.clip(max=grid[0] - 1), cols.clip(max=grid[1] - 1)

"""From data to tokens: choice of tokenizer, training views, crops and noise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import gen_batches

from skaocls.images.augmentation import random_views
from skaocls.images.crops import random_crop
from skaocls.images.reader import Reader
from skaocls.tokenizers import (
    LlamaGenTokenizer,
    MaskGITTokenizer,
    PatchTokenizer,
    QuantileTokenizer,
)

ENCODE_AT_ONCE = 512  # images decoded and tokenized together
FIT_TOKENIZER_ON = 2**27  # numbers (images times pixels times channels) it may see
N_VIEWS, N_VIEWS_SLOW = 16, 4  # of each training image, the first of them the image itself
SHARP_EVERY = 5  # of the views one is the image itself, or blurred tokens become the familiar ones


def fit_tokenizer(tokenizer: Any, reader: Reader, batch: Any, rng: np.random.RandomState) -> Any:
    """The given tokenizer, or the default for the data, cloned and fitted unless frozen."""
    images = reader.image_shape is not None
    if isinstance(tokenizer, str):
        tokenizer = PatchTokenizer() if images else QuantileTokenizer()
    if isinstance(tokenizer, FrozenEstimator):
        return tokenizer.estimator
    tokenizer = clone(tokenizer)
    seed = rng.randint(2**31 - 1)
    if "random_state" in tokenizer.get_params(deep=False):
        tokenizer.set_params(random_state=seed)
    if reader.image_shape is not None:
        n = max(1, FIT_TOKENIZER_ON // int(np.prod(reader.image_shape)))
        batch = reader.images(batch, np.sort(rng.permutation(len(batch))[:n]))
    return tokenizer.fit(batch)


def training_tokens(
    tokenizer: Any,
    reader: Reader,
    batch: Any,
    augmentation: int | str | None,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Tokens of the training data, (n_samples, n_views, n_tokens).

    Of data that are tokens, crops are views.
    """
    if augmentation is None or reader.image_shape is None:
        codes = encode(tokenizer, reader, batch, slice(0, len(batch)))
        return codes if codes.ndim == 3 else codes[:, None]
    n_views = augmentation
    if isinstance(n_views, str):
        slow = isinstance(tokenizer, (LlamaGenTokenizer, MaskGITTokenizer))
        n_views = N_VIEWS_SLOW if slow else N_VIEWS
    parts = []
    for part in gen_batches(len(batch), ENCODE_AT_ONCE):
        images = reader.images(batch, part)
        views = [tokens(tokenizer, images)]
        for view in range(1, n_views):
            if view % SHARP_EVERY == 0:
                views.append(views[0])
            else:
                views.append(tokens(tokenizer, random_views(images, rng)))
        parts.append(np.stack(views, axis=1))
    return np.concatenate(parts)


def encode(tokenizer: Any, reader: Reader, batch: Any, part: slice) -> np.ndarray:
    """Tokens of batch[part] as it is, (n, n_tokens), or (n, n_crops, n_tokens) if it has crops."""
    if reader.image_shape is None:
        return tokens(tokenizer, batch[part])
    few = (
        slice(at, min(at + ENCODE_AT_ONCE, part.stop))
        for at in range(part.start, part.stop, ENCODE_AT_ONCE)
    )
    return np.concatenate([tokens(tokenizer, reader.images(batch, part)) for part in few])


def encode_for_orders(
    tokenizer: Any,
    reader: Reader,
    batch: Any,
    part: slice,
    n_orders: int,
    *,
    crop: str = "center",
    latent_noise: float = 0.0,
    seed: int,
) -> np.ndarray:
    """Tokens of batch[part], with a crop and noise of its own for each order if they are wanted.

    Crop and noise of an order are the same for all images: what is drawn are shares of what an
    image has room for. Of data that are tokens of several crops, orders take them in turn.

    Returns
    -------
    codes : int array of shape (n, n_tokens) or (n, n_orders, n_tokens)
    """
    if reader.grid is not None:
        if crop != "center" or latent_noise:
            raise ValueError(
                'crop="random" and latent_noise need images, but the classifier reads tokens. Pass '
                "tokens of several crops, (n, n_crops, rows, cols): each order reads one of them."
            )
        codes = encode(tokenizer, reader, batch, part)
        return codes if codes.ndim == 2 else codes[:, np.arange(n_orders) % codes.shape[1]]
    if reader.image_shape is None or (crop == "center" and not latent_noise):
        return encode(tokenizer, reader, batch, part)
    rng = np.random.RandomState(seed)
    sides = np.random.RandomState([seed, 1]).uniform(size=n_orders)
    images: Any = reader.originals(batch, part) if crop == "random" else reader.images(batch, part)
    views = []
    for side in sides:
        where, noise_seed = rng.uniform(size=2), rng.randint(2**31 - 1)
        pixels = images
        if crop == "random":
            pixels = np.stack([random_crop(x, reader.image_shape, side, where) for x in images])
        noise = {"latent_noise": latent_noise, "seed": noise_seed} if latent_noise else {}
        views.append(tokens(tokenizer, pixels, **noise))
    return np.stack(views, axis=1)


def tokens(tokenizer: Any, data: Any, **noise: Any) -> np.ndarray:
    codes: np.ndarray = tokenizer.transform(data, **noise)
    crops = codes.shape[1:2] if codes.ndim == 4 else ()
    return codes.reshape(len(data), *crops, -1).astype(np.int32)


def patch_shape(tokenizer: Any, shape: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels of what a token stands for, in images of that height and width."""
    height, width = getattr(tokenizer, "patch_size_", None) or (
        size // n for size, n in zip(shape, grid, strict=True)
    )
    return height, width

"""From an estimator's data to tokens: choice of tokenizer, training views, crops and noise."""

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import gen_batches
from torch.nn import functional as F

from skaocls._validation import read_images
from skaocls.augmentation import random_views
from skaocls.tokenizers import PatchTokenizer, QuantileTokenizer

ENCODE_AT_ONCE = 512  # images decoded and tokenized together
FIT_TOKENIZER_ON = 2**27  # numbers (images times pixels times channels) it may see
N_VIEWS, N_VIEWS_SLOW = 16, 4  # of each training image, the first of them the image itself
SHARP_EVERY = 5  # of the views one is the image itself, or blurred tokens become the familiar ones
CROP_MARGIN = 0.1  # share of its size by which an image is larger than what is cropped from it
ENLARGED_FROM = 64  # pixels; smaller images would be blurred


def fit_tokenizer(estimator, tokenizer, X, rng):
    """The given tokenizer, or the default for the data, cloned and fitted unless frozen."""
    if isinstance(tokenizer, str):
        images = estimator.image_shape_ is not None
        tokenizer = PatchTokenizer() if images else QuantileTokenizer()
    if isinstance(tokenizer, FrozenEstimator):
        return tokenizer.estimator
    tokenizer = clone(tokenizer)
    seed = rng.randint(2**31 - 1)
    if "random_state" in tokenizer.get_params(deep=False):
        tokenizer.set_params(random_state=seed)
    if estimator.image_shape_ is not None:
        n = max(1, FIT_TOKENIZER_ON // int(np.prod(estimator.image_shape_)))
        X = read_images(estimator, X, np.sort(rng.permutation(len(X))[:n]))
    return tokenizer.fit(X)


def training_tokens(estimator, X, rng):
    """Tokens of the training data, (n_samples, n_views, n_tokens)."""
    n_views = estimator.augmentation
    if n_views == "auto":
        n_views = N_VIEWS_SLOW if hasattr(estimator.tokenizer_, "model_") else N_VIEWS
    if estimator.augmentation is None or estimator.image_shape_ is None:
        return encode(estimator, X, slice(0, len(X)))[:, None]
    parts = []
    for part in gen_batches(len(X), ENCODE_AT_ONCE):
        images = read_images(estimator, X, part)
        views = [tokens(estimator.tokenizer_, images)]
        for view in range(1, n_views):
            if view % SHARP_EVERY == 0:
                views.append(views[0])
            else:
                views.append(tokens(estimator.tokenizer_, random_views(images, rng)))
        parts.append(np.stack(views, axis=1))
    return np.concatenate(parts)


def encode(estimator, X, part):
    """Tokens of X[part] as it is, (n, n_tokens)."""
    if estimator.image_shape_ is None:
        return tokens(estimator.tokenizer_, X[part])
    parts = []
    for at in range(part.start, part.stop, ENCODE_AT_ONCE):
        few = slice(at, min(at + ENCODE_AT_ONCE, part.stop))
        parts.append(tokens(estimator.tokenizer_, read_images(estimator, X, few)))
    return np.concatenate(parts)


def encode_for_orders(estimator, X, part, n_orders, seed):
    """Tokens of X[part], with a crop and noise of its own for each order if the estimator asks.

    Crop and noise of an order are the same for all images.

    Returns
    -------
    codes : int array of shape (n, n_tokens) or (n, n_orders, n_tokens)
    """
    images = estimator.image_shape_ is not None
    if not images or (estimator.crop == "center" and not estimator.latent_noise):
        return encode(estimator, X, part)
    rng = np.random.RandomState(seed)
    large = enlarged(read_images(estimator, X, part)) if estimator.crop == "random" else None
    codes = []
    for _ in range(n_orders):
        where, noise_seed = rng.uniform(size=2), rng.randint(2**31 - 1)
        if large is not None:
            pixels = crop(large, estimator.image_shape_, where)
        else:
            pixels = read_images(estimator, X, part)
        noise = {}
        if estimator.latent_noise:
            noise = {"latent_noise": estimator.latent_noise, "seed": noise_seed}
        codes.append(tokens(estimator.tokenizer_, pixels, **noise))
    return np.stack(codes, axis=1)


def tokens(tokenizer, data, **noise):
    return tokenizer.transform(data, **noise).reshape(len(data), -1).astype(np.int32)


def enlarged(images):
    """Images with the margin that random crops need; small ones get it by repeating their edges."""
    margins = [max(1, round(CROP_MARGIN * s)) if s > 1 else 0 for s in images.shape[1:3]]
    if min(images.shape[1:3]) < ENLARGED_FROM:
        before = [(m - m // 2, m - m // 2) for m in margins]
        return np.pad(images, [(0, 0), *before, (0, 0)], mode="edge")
    size = [s + m for s, m in zip(images.shape[1:3], margins, strict=True)]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    large = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    return large.permute(0, 2, 3, 1).numpy()


def crop(images, shape, where):
    """The window of that shape whose corner lies at the share `where` of the margin."""
    top, left = (
        int(share * (have - want + 1))
        for share, have, want in zip(where, images.shape[1:3], shape[:2], strict=True)
    )
    return images[:, top : top + shape[0], left : left + shape[1]]


def patch_shape(tokenizer, shape, grid):
    """Height and width in pixels of what a token stands for, in images of that height and width."""
    return getattr(tokenizer, "patch_size_", None) or tuple(
        size // n for size, n in zip(shape, grid, strict=True)
    )

"""Draw images from a fitted model, and fill in missing parts of images."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import TransformerMixin

from skaocls.devices import resolve_device
from skaocls.fitted.class_statistics import draw_statistics
from skaocls.fitted.model import FittedModel
from skaocls.fitted.tokenization import encode_data, tokens_of_pixels
from skaocls.images.batch import Batch
from skaocls.scoring.exhaustive import scoring_dtype
from skaocls.scoring.orders import DRAWN
from skaocls.scoring.token_sampling import (
    generate,
    known_first,
    known_log_likelihoods,
)

Device = str | torch.device
OrderSetting = Any  # a name or an array, like the parameter `order` of the classifier


def generate_images(
    model: FittedModel,
    columns: np.ndarray,
    orders: np.ndarray,
    rng: np.random.RandomState,
    options: dict[str, Any],
    *,
    codes: np.ndarray | None = None,
    n_known: int | np.ndarray = 0,
    device: Device = "auto",
    **tokenizer_options: np.ndarray,
) -> np.ndarray:
    """Draw image i from the class ``columns[i]`` in the order ``orders[i]``.

    If the tokenizer removes brightness, contrast, polarity or colour casts, those of image i are
    drawn from the training images of its class, unless `tokenizer_options` contains `statistics`.
    For `codes`, `n_known` and `options`, see :func:`skaocls.scoring.token_sampling.generate`. The
    result is the output of the tokenizer's `inverse_transform`. If the images have one channel, the
    result has no channel axis.
    """
    check_decodable(model)
    codes = np.zeros_like(orders) if codes is None else codes
    n_known = np.broadcast_to(n_known, len(columns))
    sampled = np.empty_like(orders)
    for prior, where in model.by_prior(columns, resolve_device(device)):
        sampled[where] = generate(
            prior,
            model.rows[columns[where]],
            orders[where],
            codes[where],
            n_known[where],
            **options,
            seed=rng.randint(2**31 - 1),
        )
    grids = sampled.reshape(-1, *model.prior.grid)
    if (statistics := draw_statistics(model, columns, rng)) is not None:
        tokenizer_options = {"statistics": statistics} | tokenizer_options
    images: np.ndarray = model.tokenizer.inverse_transform(grids, **tokenizer_options)
    gray = model.reader.image_shape is not None and images.ndim == 4 and images.shape[-1] == 1
    return images[..., 0] if gray else images


def check_decodable(model: FittedModel) -> None:
    """Raise an error if the tokenizer cannot convert tokens to images."""
    if not hasattr(model.tokenizer, "inverse_transform"):
        raise NotImplementedError(
            f"{type(model.tokenizer).__name__} has no inverse_transform, so tokens cannot be "
            "converted to images. To generate images, use a tokenizer such as PatchTokenizer."
        )


def inpaint_images(
    model: FittedModel,
    batch: Batch,
    mask: np.ndarray,
    columns: np.ndarray | None,
    order: OrderSetting,
    n_orders: int,
    joint_log_proba: Callable[[np.ndarray], np.ndarray] | None,
    rng: np.random.RandomState,
    options: dict[str, Any],
    device: Device,
    precision: str,
) -> np.ndarray:
    """Draw the masked tokens of images, see :meth:`skaocls.AnyOrderARClassifier.inpaint`.

    `columns` contains the class column of each image. If None, the function uses the most probable
    class of each image, given its known tokens. For this purpose only, `joint_log_proba` converts
    log p(known tokens | class, order) to log p(known tokens, class).
    """
    n, grid, is_image = len(batch), model.prior.grid, model.reader.image_shape is not None
    if model.reader.grid is not None and batch.values().ndim == 4:
        raise ValueError(f"inpaint requires tokens of one crop, (n, {grid[0]}, {grid[1]}).")
    mask = check_mask(model, mask, n)
    check_decodable(model)
    unknown = unknown_tokens(model.tokenizer, mask, grid)
    images = batch.images(allow_nan=True) if is_image else batch.values()
    check_decoded_shape(model, images.shape[1:])
    known = valid_values(images, mask, model.reader.value_range)
    tokenizer_options = {}
    if hasattr(model.tokenizer, "image_statistics"):  # use only the known pixels
        tokenizer_options["statistics"] = model.tokenizer.image_statistics(known, ~mask)
    codes = encode_data(model.tokenizer, known, is_image=is_image, **tokenizer_options)
    if columns is None:
        assert joint_log_proba is not None
        orders = model.orders(order, n_orders)
        ll = known_token_log_likelihoods(model, codes, unknown, orders, device, precision)
        columns = joint_log_proba(ll).argmax(1)
    orders = known_first(generation_orders(model, order, n_orders, n, rng), unknown)
    sampled = generate_images(
        model,
        columns,
        orders,
        rng,
        options,
        codes=codes,
        n_known=(~unknown).sum(1),
        device=device,
        **tokenizer_options,
    )
    pixel_mask = mask[..., None] if is_image else mask
    filled: np.ndarray = np.where(pixel_mask, sampled.reshape(images.shape), images)
    return filled.reshape(sampled.shape)


def check_decoded_shape(model: FittedModel, shape: tuple[int, ...]) -> None:
    """Raise a ValueError if decoded tokens do not have the shape of the images to fill in."""
    decoded = model.tokenizer.inverse_transform(np.zeros((1, *model.prior.grid), dtype=np.int64))
    if decoded.size != math.prod(shape):
        raise ValueError(
            f"{type(model.tokenizer).__name__}.inverse_transform returns images of shape "
            f"{decoded.shape[1:]}, but the images to fill in have shape {shape}."
        )


def valid_values(
    X: np.ndarray, mask: np.ndarray, value_range: tuple[float, float] | None
) -> np.ndarray:
    """Return X after masked values that are NaN or out of range are replaced by valid values."""
    if np.isnan(X[~mask]).any():
        raise ValueError("X contains NaN where mask is False. Only masked values may be NaN.")
    low, high = value_range or (0.0, 1.0)
    valid = np.nan_to_num(X, nan=(low + high) / 2)
    if value_range is not None:
        valid = valid.clip(low, high)
    return np.where(mask.reshape(*mask.shape, *(1,) * (X.ndim - mask.ndim)), valid, X)


def check_mask(model: FittedModel, mask: np.ndarray, n: int) -> np.ndarray:
    """Return one mask for each of n images, or raise a ValueError if `mask` is invalid."""
    shape = (model.reader.image_shape or (model.reader.n_features,))[:2]
    if model.reader.grid is not None:
        shape = model.prior.grid
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask must be boolean (True if unknown), but it has dtype {mask.dtype}.")
    if mask.shape not in (shape, (n, *shape)):
        raise ValueError(f"mask has shape {mask.shape}, but {shape} or {(n, *shape)} is expected.")
    return np.broadcast_to(mask, (n, *shape))


def unknown_tokens(
    tokenizer: TransformerMixin, mask: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """Return an array (n, n_tokens) that is True for tokens with at least one masked pixel."""
    mask = mask.reshape(len(mask), *(1, *mask.shape[1:])[-2:])  # treat a table row as an image
    rows, cols = tokens_of_pixels(tokenizer, mask.shape[1:], grid)
    for axis, (token_of_pixel, n) in enumerate(zip((rows, cols), grid), start=1):
        starts = token_of_pixel.searchsorted(np.arange(n)).clip(max=len(token_of_pixel) - 1)
        mask = np.logical_or.reduceat(mask, starts, axis)
    return mask.reshape(len(mask), -1)


def known_token_log_likelihoods(
    model: FittedModel,
    codes: np.ndarray,
    unknown: np.ndarray,
    orders: np.ndarray,
    device: Device = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Compute log p(known tokens | class, order) as an array (n, n_orders, n_classes)."""
    shape = (len(codes), *orders.shape)
    reordered = known_first(
        np.broadcast_to(orders, shape), np.broadcast_to(unknown[:, None], shape)
    )
    n_known, columns = (~unknown).sum(1), np.arange(len(model.classes))
    ll = np.empty((*shape[:2], len(columns)))
    for prior, where in model.by_prior(columns, resolve_device(device)):
        dtype = scoring_dtype(prior, precision)
        ll[:, :, where] = known_log_likelihoods(
            prior, codes, reordered, model.rows[where], n_known, dtype=dtype
        )
    return ll


def generation_orders(
    model: FittedModel, order: OrderSetting, n_orders: int, n: int, rng: np.random.RandomState
) -> np.ndarray:
    """Draw one order for each of n images. The parameter `order` defines the possible orders."""
    if isinstance(order, str) and order in DRAWN:
        return np.stack([rng.permutation(model.prior.n_tokens) for _ in range(n)])
    orders = model.orders(order, n_orders)
    return orders[rng.randint(len(orders), size=n)]

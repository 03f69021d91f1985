"""Sample and inpaint images with a fitted model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from skaocls.devices import resolve_device
from skaocls.fitted.model import FittedModel
from skaocls.fitted.tokenization import encode_data, tokens_of_pixels
from skaocls.images.batch import Batch
from skaocls.scoring.exhaustive import scoring_dtype
from skaocls.scoring.orders import DRAWN
from skaocls.scoring.sampling import (
    generate,
    known_first,
    known_log_likelihoods,
    tokens_in_mask,
)

Device = str | torch.device
OrderSetting = Any  # a name or an array, as in the classifier


def generate_images(
    model: FittedModel,
    columns: np.ndarray,
    orders: np.ndarray,
    rng: np.random.RandomState,
    options: dict[str, Any],
    *,
    codes: np.ndarray | None = None,
    n_known: np.ndarray | None = None,
    device: Device = "auto",
    statistics: np.ndarray | None = None,
) -> np.ndarray:
    """Sample images of given classes, each along its own order.

    Parameters
    ----------
    model : FittedModel
    columns : int array of shape (n,)
        Column of each image's class.
    orders : int array of shape (n, n_tokens)
    rng : RandomState
    options : dict
        Options of :func:`skaocls.scoring.sampling.generate`.
    codes : int array of shape (n, n_tokens), default=None
        Known tokens.
    n_known : int array of shape (n,), default=None
        Number of known tokens at the start of each order.
    device : str or torch.device, default="auto"
    statistics : array, default=None
        Mean and contrast of each image, for tokenizers that normalize them.

    Returns
    -------
    images : array
        Output of the tokenizer's `inverse_transform`, without the axis of a single channel.
    """
    if n_known is None:
        n_known = np.zeros(len(columns), dtype=int)
    sampled = np.empty_like(orders)
    for prior, where in model.by_prior(columns, resolve_device(device)):
        sampled[where] = generate(
            prior,
            model.rows[columns[where]],
            orders[where],
            None if codes is None else codes[where],
            n_known[where],
            **options,
            seed=rng.randint(2**31 - 1),
        )
    grids = sampled.reshape(-1, *model.prior.grid)
    images: np.ndarray
    if statistics is None:
        images = model.tokenizer.inverse_transform(grids)
    else:
        images = model.tokenizer.inverse_transform(grids, statistics=statistics)
    gray = model.reader.image_shape is not None and images.ndim == 4 and images.shape[-1] == 1
    return images[..., 0] if gray else images


def inpaint_images(
    model: FittedModel,
    batch: Batch,
    mask: np.ndarray,
    columns: np.ndarray | None,
    order: OrderSetting,
    n_orders: int,
    joint_log_proba: Callable[[np.ndarray], np.ndarray],
    rng: np.random.RandomState,
    options: dict[str, Any],
    *,
    device: Device = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Sample the masked tokens of images; see :meth:`skaocls.AnyOrderARClassifier.inpaint`.

    Parameters
    ----------
    model : FittedModel
    batch : Batch
        Images, rows of a table or tokens.
    mask : bool array-like
        Shape (height, width) or (n, height, width); for tables (n_features,) or (n, n_features);
        for tokens (rows, cols) or (n, rows, cols).
    columns : int array of shape (n,) or None
        Column of each image's class. None uses the most probable class given the known tokens.
    order, n_orders
        As in the classifier.
    joint_log_proba : callable
        Maps log p(known tokens | class, order) to log p(known tokens, class).
    rng : RandomState
    options : dict
        Options of :func:`skaocls.scoring.sampling.generate`.
    device : str or torch.device, default="auto"
    precision : {"auto", "float32", "bfloat16"}, default="auto"

    Returns
    -------
    images : array
        Known pixels are copied from the input.

    Raises
    ------
    ValueError
        If the mask has another shape or type, or if the tokens of `batch` have several crops.
    """
    n, grid, is_image = len(batch), model.prior.grid, model.reader.image_shape is not None
    if model.reader.grid is not None and batch.values().ndim == 4:
        raise ValueError(f"inpaint takes tokens of one crop, (n, {grid[0]}, {grid[1]}).")
    mask = check_mask(mask, n, mask_shape(model))
    unknown = unknown_tokens(model, mask)
    images = batch.images() if is_image else batch.values()
    pixel_mask = mask[..., None] if is_image else mask
    known = images
    if is_image:  # masked pixels must not be out of range
        low, high = model.reader.value_range or (-np.inf, np.inf)
        known = np.where(pixel_mask, images.clip(low, high), images)
    tokenizer_options = {}
    if hasattr(model.tokenizer, "image_statistics"):  # estimated from the known pixels
        tokenizer_options["statistics"] = model.tokenizer.image_statistics(known, ~mask)
    codes = encode_data(model.tokenizer, known, is_image=is_image, **tokenizer_options)
    if columns is None:
        ll = known_token_log_likelihoods(
            model,
            codes,
            unknown,
            model.orders(order, n_orders),
            device=device,
            precision=precision,
        )
        columns = joint_log_proba(ll).argmax(1)
    sampled = generate_images(
        model,
        columns,
        known_first(generation_orders(model, order, n_orders, n, rng), unknown),
        rng,
        options,
        codes=codes,
        n_known=(~unknown).sum(1),
        device=device,
        **tokenizer_options,
    )
    if sampled.size != images.size:
        raise ValueError(
            f"{type(model.tokenizer).__name__}.inverse_transform returns images of shape "
            f"{sampled.shape[1:]}, but the images to fill in have shape {images.shape[1:]}."
        )
    filled = np.where(pixel_mask, sampled.reshape(images.shape), images)
    result: np.ndarray = filled.reshape(sampled.shape)
    return result


def mask_shape(model: FittedModel) -> tuple[int, ...]:
    """Return the shape of one image's mask."""
    reader = model.reader
    if reader.grid is not None:
        return model.prior.grid
    if reader.image_shape is None:
        return (reader.n_features,)
    return reader.image_shape[:2]


def check_mask(mask: np.ndarray, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask as a bool array of shape (n, *shape), or raise a ValueError."""
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask must be boolean, True where X is unknown; got dtype {mask.dtype}.")
    if mask.shape not in (shape, (n, *shape)):
        raise ValueError(f"mask has shape {mask.shape}, but {shape} or {(n, *shape)} is expected.")
    return np.broadcast_to(mask, (n, *shape))


def unknown_tokens(model: FittedModel, mask: np.ndarray) -> np.ndarray:
    """Return which tokens (n, n_tokens) have masked pixels, features or tokens."""
    mask = mask.reshape(len(mask), *(1, *mask.shape[1:])[-2:])  # a row of a table is an image
    pixels = tokens_of_pixels(model.tokenizer, mask.shape[1:], model.prior.grid)
    return tokens_in_mask(mask, *pixels, model.prior.grid)


def known_token_log_likelihoods(
    model: FittedModel,
    codes: np.ndarray,
    unknown: np.ndarray,
    orders: np.ndarray,
    *,
    device: Device = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Compute log p(known tokens | class, order), shape (n, n_orders, n_classes).

    `codes` and the bool array `unknown` are (n, n_tokens), `orders` is (n_orders, n_tokens).
    """
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
    """Draw an order for each of n images from the orders that the prior was trained for."""
    if isinstance(order, str) and order in DRAWN:
        return np.stack([rng.permutation(model.prior.n_tokens) for _ in range(n)])
    orders = model.orders(order, n_orders)
    return orders[rng.randint(len(orders), size=n)]

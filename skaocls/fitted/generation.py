"""Images that a fitted model draws, and what it fills in."""

from collections.abc import Callable
from typing import Any

import numpy as np

from skaocls.devices import resolve_device
from skaocls.fitted.model import FittedModel
from skaocls.fitted.tokenization import encode_data, tokens_of_pixels
from skaocls.scoring.exhaustive import scoring_dtype
from skaocls.scoring.orders import DRAWN
from skaocls.scoring.sampling import generate, known_first, known_log_likelihoods, touched


def generate_images(
    model: FittedModel,
    columns: np.ndarray,
    orders: np.ndarray,
    rng: np.random.RandomState,
    how: dict[str, Any],
    *,
    codes: np.ndarray | None = None,
    n_known: np.ndarray | None = None,
    device: Any = "auto",
    **statistics: Any,
) -> np.ndarray:
    """Images of classes, each image along its own order.

    Parameters
    ----------
    model : FittedModel
    columns : int array of shape (n,)
        Classes.
    orders : int array of shape (n, n_tokens)
    rng : RandomState
    how : dict
        Options of :func:`skaocls.scoring.sampling.generate`.
    codes, n_known : int arrays of shape (n, n_tokens) and (n,), default=None
        What is known, and how many places at the start of each order are.
    device : str
    **statistics : object
        Mean and contrast of the images, for tokenizers that normalize them.

    Returns
    -------
    images : array
        What the tokenizer's `inverse_transform` gives; with one channel, no axis of channels.
    """
    known = np.zeros(len(columns), dtype=int) if n_known is None else n_known
    out = np.empty_like(orders)
    for prior, where in model.by_prior(columns, resolve_device(device)):
        out[where] = generate(
            prior,
            model.rows[columns[where]],
            orders[where],
            None if codes is None else codes[where],
            known[where],
            **how,
            seed=rng.randint(2**31 - 1),
        )
    images: np.ndarray = model.tokenizer.inverse_transform(
        out.reshape(-1, *model.prior.grid), **statistics
    )
    gray = model.reader.image_shape is not None and images.ndim == 4 and images.shape[-1] == 1
    return images[..., 0] if gray else images


def inpaint_images(
    model: FittedModel,
    batch: Any,
    mask: Any,
    columns: np.ndarray | None,
    order: Any,
    n_orders: int,
    joint: Callable[[np.ndarray], np.ndarray],
    rng: np.random.RandomState,
    how: dict[str, Any],
    *,
    device: Any = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Images whose masked tokens are drawn anew; see :meth:`AnyOrderARClassifier.inpaint`.

    Parameters
    ----------
    model : FittedModel
    batch : object
        What ``model.reader.open`` returns.
    mask : bool array-like of shape (height, width) or (n, height, width)
        Of tables (n_features,) or (n, n_features), of tokens (rows, cols) or (n, rows, cols).
    columns : int array of shape (n,) or None
        Classes; None takes the most probable ones given what is known.
    order, n_orders
        As in the classifier.
    joint : callable
        From log p(known tokens | class, order) to log P(image, class).
    rng : RandomState
    how : dict
        Options of :func:`skaocls.scoring.sampling.generate`.
    device, precision : str

    Returns
    -------
    images : array
    """
    n, grid, image_shape = len(batch), model.prior.grid, model.reader.image_shape
    of_mask: tuple[int, ...]
    if model.reader.grid is not None:
        shape = of_mask = grid
        if batch.values().ndim == 4:
            raise ValueError(f"inpaint takes tokens of one crop, (n, {grid[0]}, {grid[1]}).")
    elif image_shape is None:
        shape, of_mask = (1, model.reader.n_features), (model.reader.n_features,)
    else:
        shape = image_shape[0], image_shape[1]
        of_mask = shape
    mask = check_mask(mask, n, of_mask)
    unknown = touched(
        mask.reshape(n, *shape), *tokens_of_pixels(model.tokenizer, shape, grid), grid
    )
    n_known = (~unknown).sum(1)
    if image_shape is None:
        known = batch.values()
    else:
        pixels = batch.images()
        low, high = model.reader.value_range or (-np.inf, np.inf)
        known = np.where(mask[..., None], pixels.clip(low, high), pixels)
    statistics = {}
    if hasattr(model.tokenizer, "image_statistics"):  # estimated from the known pixels
        statistics["statistics"] = model.tokenizer.image_statistics(known, ~mask)
    is_image = image_shape is not None
    codes = encode_data(model.tokenizer, known, is_image=is_image, **statistics)
    if columns is None:
        along = model.orders(order, n_orders)
        ll = known_token_log_likelihoods(
            model, codes, unknown, along, device=device, precision=precision
        )
        columns = joint(ll).argmax(1)
    orders = known_first(generation_orders(model, order, n_orders, n, rng), unknown)
    given = {"codes": codes, "n_known": n_known, "device": device}
    images = generate_images(model, columns, orders, rng, how, **given, **statistics)
    if image_shape is None:
        filled_in: np.ndarray = np.where(mask, images, known)
        return filled_in
    if images.size != pixels.size:
        raise ValueError(
            f"{type(model.tokenizer).__name__}.inverse_transform makes images of shape "
            f"{images.shape[1:]}, but those to fill in have {pixels.shape[1:]}."
        )
    filled = np.where(mask[..., None], images.reshape(pixels.shape), pixels)
    completed: np.ndarray = filled.reshape(images.shape)
    return completed


def known_token_log_likelihoods(
    model: FittedModel,
    codes: np.ndarray,
    unknown: np.ndarray,
    orders: np.ndarray,
    *,
    device: Any = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """log p(known tokens | class, order), (n, n_orders, n_classes).

    `codes` and `unknown`, which of them are not known, are (n, n_tokens).
    """
    shape = (len(codes), *orders.shape)
    along = known_first(np.broadcast_to(orders, shape), np.broadcast_to(unknown[:, None], shape))
    n_known, columns = (~unknown).sum(1), np.arange(len(model.classes))
    ll = np.empty((*shape[:2], len(columns)))
    for prior, where in model.by_prior(columns, resolve_device(device)):
        dtype = scoring_dtype(prior, precision)
        ll[:, :, where] = known_log_likelihoods(
            prior, codes, along, model.rows[where], n_known, dtype=dtype
        )
    return ll


def generation_orders(
    model: FittedModel, order: Any, n_orders: int, n: int, rng: np.random.RandomState
) -> np.ndarray:
    """An order for each of n images, of those that the prior was trained for."""
    if isinstance(order, str) and order in DRAWN:
        return np.stack([rng.permutation(model.prior.n_tokens) for _ in range(n)])
    orders = model.orders(order, n_orders)
    return orders[rng.randint(len(orders), size=n)]


def check_mask(mask: Any, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """The mask as a bool array of shape (n, *shape), or a ValueError that says what is wrong."""
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask must be boolean, True where X is unknown; got dtype {mask.dtype}.")
    if mask.shape not in (shape, (n, *shape)):
        raise ValueError(f"mask has shape {mask.shape}, but {shape} or {(n, *shape)} is expected.")
    return np.broadcast_to(mask, (n, *shape))

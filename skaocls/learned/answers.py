"""What a fitted model says of images: log-likelihoods and evidence."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from sklearn.utils import gen_batches

from skaocls.devices import ahead, moved, resolve_device
from skaocls.learned.encoding import encode_for_orders, patch_shape
from skaocls.learned.model import FittedModel
from skaocls.learned.store import Store, digest, recall_log_likelihoods, weights_of
from skaocls.progress import progress
from skaocls.scoring.evidence import Evidence, spread, token_log_likelihoods, weigh
from skaocls.scoring.exhaustive import log_likelihoods as score
from skaocls.scoring.exhaustive import scoring_dtype
from skaocls.scoring.racing import Race, race

SCORE_AT_ONCE = 256  # images scored before their orders are aggregated
LARGE = 512, 32  # priors so wide score so many: they take long, and `verbose` shows each lot


def races(
    model: FittedModel,
    batch: Any,
    orders: np.ndarray,
    *,
    crop: str = "center",
    latent_noise: float = 0.0,
    racing: dict[str, Any] | None = None,
    device: Any = "auto",
    precision: str = "auto",
    store: Store | None = None,
    verbose: int = 0,
) -> Iterator[Race]:
    """Yield log p(tokens | class, order) and what it took, a few images at a time.

    Parameters
    ----------
    model : FittedModel
    batch : object
        What ``model.reader.check`` returns.
    orders : int array of shape (n_orders, n_tokens)
    crop, latent_noise : str, float
        Of the images, see :func:`skaocls.learned.encoding.encode_for_orders`.
    racing : dict, default=None
        `class_log_prior`, `error` and `screen` of :func:`skaocls.scoring.racing.race`; None scores
        all classes to the end, as does a model of several priors.
    device, precision : str
        Where and in which type of products to compute.
    store : Store, default=None
        Keeps the log-likelihoods of exhaustive scoring.
    verbose : int, default=0
        Whether to show how far it is.

    Yields
    ------
    race : Race
    """
    on = resolve_device(device)
    encoded = encode_all(model, batch, len(orders), crop, latent_noise)
    all_evaluations = orders.size * model.readings
    with progress(len(batch), "scoring", "image", verbose) as bar:
        for codes in ahead(encoded) if on.type == "cuda" else encoded:
            if racing is not None and len(model.priors) == 1:
                prior = moved(model.prior, on)
                dtype = scoring_dtype(prior, precision)
                yield race(prior, codes, orders, model.rows, dtype=dtype, **racing)
            else:
                how: dict[str, Any] = {"device": on, "precision": precision, "store": store}
                evaluations = np.full(len(codes), all_evaluations)
                yield Race(log_likelihoods(model, codes, orders, **how), evaluations)
            bar.update(len(codes))


def encode_all(
    model: FittedModel, batch: Any, n_orders: int, crop: str, latent_noise: float
) -> Iterator[np.ndarray]:
    """Yield the codes of a few images at a time, as each order sees them."""
    for part in gen_batches(len(batch), at_once(model)):
        yield encode_for_orders(
            model.tokenizer,
            model.reader,
            batch,
            part,
            n_orders,
            crop=crop,
            latent_noise=latent_noise,
            seed=model.order_seed,
        )


def at_once(model: FittedModel) -> int:
    """Images scored together."""
    wide, few = LARGE
    return min(SCORE_AT_ONCE, few) if model.prior.dim >= wide else SCORE_AT_ONCE


def log_likelihoods(
    model: FittedModel,
    codes: np.ndarray,
    orders: np.ndarray,
    *,
    device: Any = "auto",
    precision: str = "auto",
    store: Store | None = None,
) -> np.ndarray:
    """log p(codes | class, order), (n, n_orders, n_classes), each class by its prior.

    `codes` are (n, n_tokens) or (n, n_orders, n_tokens).
    """
    columns = np.arange(len(model.classes))
    ll = np.empty((len(codes), len(orders), len(columns)))
    for prior, where in model.by_prior(columns, resolve_device(device)):
        read = partial(score, prior)
        if store is not None:
            read = partial(recall_log_likelihoods, store, prior, digest(weights_of(prior)))
        dtype = scoring_dtype(prior, precision)
        ll[:, :, where] = read(codes, orders, labels=model.rows[where], dtype=dtype)
    return ll


def explain(
    model: FittedModel,
    batch: Any,
    own: np.ndarray,
    rivals: np.ndarray | None,
    orders: np.ndarray,
    *,
    crop: str = "center",
    latent_noise: float = 0.0,
    device: Any = "auto",
    precision: str = "auto",
) -> Evidence:
    """Evidence for a class of each image against a rival.

    Parameters
    ----------
    model, batch, orders, crop, latent_noise, device, precision
        As in :func:`races`.
    own : int array of shape (n_images,)
        Columns of the classes to explain.
    rivals : int array of shape (n_images,) or None
        Columns of their rivals; None is no class at all.

    Returns
    -------
    evidence : Evidence
        With maps if `batch` is images.
    """
    grid, parts = model.prior.grid, []
    how = {"device": device, "precision": precision}
    encoded = encode_all(model, batch, len(orders), crop, latent_noise)
    for part, codes in zip(gen_batches(len(batch), at_once(model)), encoded):
        against = own[part] if rivals is None else rivals[part]
        log_prob = [
            token_by_token(model, codes, own[part], orders, **how),
            token_by_token(model, codes, against, orders, no_class=rivals is None, **how),
        ]
        parts.append(weigh(np.stack(log_prob, axis=2), grid))
    tokens = np.concatenate([part.tokens for part in parts])
    error = np.concatenate([part.standard_error for part in parts])
    if model.reader.image_shape is None:
        return Evidence(tokens, error)
    height, width, _ = model.reader.image_shape
    shape = height, width
    patch = patch_shape(model.tokenizer, shape, grid)
    return Evidence(tokens, error, spread(tokens, patch, shape), spread(error, patch, shape))


def token_by_token(
    model: FittedModel,
    codes: np.ndarray,
    columns: np.ndarray,
    orders: np.ndarray,
    *,
    no_class: bool = False,
    device: Any,
    precision: str,
) -> np.ndarray:
    """log p(token | class or no class), (n, n_orders, n_tokens), by the prior of that class."""
    out = np.empty((len(codes), *orders.shape))
    for prior, where in model.by_prior(columns, resolve_device(device)):
        rows = np.full(len(where), prior.num_classes)
        if not no_class:
            rows = model.rows[columns[where]]
        dtype = scoring_dtype(prior, precision)
        some = codes[where], orders, rows[:, None]
        out[where] = token_log_likelihoods(prior, *some, dtype=dtype)[:, :, 0]
    return out

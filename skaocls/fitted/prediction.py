"""What a fitted model says of images: log-likelihoods and evidence."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

import joblib
import numpy as np
from sklearn.utils import gen_batches

from skaocls.devices import prefetch, resolve_device, to_device
from skaocls.fitted.model import FittedModel
from skaocls.fitted.parallel import in_parallel
from skaocls.fitted.pieces import EACH, Piece, pieces_of, share
from skaocls.fitted.result_cache import (
    ResultCache,
    cached_log_likelihoods,
    prior_weights,
)
from skaocls.fitted.tokenization import encode_for_orders, tokens_of_pixels
from skaocls.hashing import hash_object
from skaocls.progress import progress
from skaocls.scoring.evidence import Evidence, spread, token_log_likelihoods, weigh
from skaocls.scoring.exhaustive import ScoringResult, scoring_dtype
from skaocls.scoring.exhaustive import log_likelihoods as score

SCORE_AT_ONCE = 256  # images scored before their orders are aggregated
LARGE = 512, 32  # priors so wide score so many: they take long, and `verbose` shows each lot


def score_batches(
    model: FittedModel,
    batch: Any,
    orders: np.ndarray,
    *,
    crop: str = "auto",
    racing: Callable[..., ScoringResult] | None = None,
    device: Any = "auto",
    precision: str = "auto",
    store: ResultCache | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Iterator[ScoringResult]:
    """Yield log p(tokens | class, order) and what it took, a few images at a time.

    Parameters
    ----------
    model : FittedModel
    batch : object
        What ``model.reader.open`` returns.
    orders : int array of shape (n_orders, n_tokens)
    crop : str
        See :func:`skaocls.fitted.tokenization.encode_for_orders`; ``"auto"`` is
        ``"views"`` for a model that learned from views, else ``"center"``.
    racing : callable, default=None
        :func:`skaocls.scoring.early_stopping.score_until_decided` with class priors and options.
        None scores all classes exhaustively, as does a model of several priors.
    device, precision : str
        Where and in which type of products to compute.
    store : Store, default=None
        Keeps the log-likelihoods of exhaustive scoring.
    n_jobs : int, default=None
        How many of joblib's workers share the work, see :mod:`skaocls.fitted.parallel`.
    verbose : int, default=0
        Whether to show how far it is.

    Yields
    ------
    race : Race
    """
    reading = {"crop": crop}
    how = {"racing": racing, "device": device, "precision": precision, "store": store}
    if (n_workers := joblib.effective_n_jobs(n_jobs)) > 1:
        pieces = pieces_of(
            model,
            len(batch),
            len(orders),
            n_workers,
            at_once(model),
            racing=is_race(model, racing),
            whole=store is not None,
        )
        found = score_in_parallel(model, batch, orders, pieces, reading, how, n_jobs)
    else:
        encoded = encode_all(model, batch, len(orders), crop)
        prepared = prefetch(encoded) if resolve_device(device).type == "cuda" else encoded
        found = (score_codes(model, codes, orders, **how) for codes in prepared)
    with progress(len(batch), "scoring", "image", verbose) as bar:
        for some in found:
            yield some
            bar.update(len(some.evaluations))


def is_race(model: FittedModel, racing: Callable[..., ScoringResult] | None) -> bool:
    return racing is not None and len(model.priors) == 1


def score_codes(
    model: FittedModel,
    codes: np.ndarray,
    orders: np.ndarray,
    *,
    racing: Callable[..., ScoringResult] | None,
    device: Any,
    precision: str,
    store: ResultCache | None,
) -> ScoringResult:
    """What :func:`races` yields, of codes."""
    on = resolve_device(device)
    if racing is not None and is_race(model, racing):
        prior = to_device(model.prior, on)
        dtype = scoring_dtype(prior, precision)
        return racing(prior, codes, orders, model.rows, dtype=dtype)
    ll = log_likelihoods(model, codes, orders, device=on, precision=precision, store=store)
    return ScoringResult(ll, np.full(len(codes), orders.size * model.readings))


def score_in_parallel(
    model: FittedModel,
    batch: Any,
    orders: np.ndarray,
    pieces: list[Piece],
    reading: dict[str, Any],
    how: dict[str, Any],
    n_jobs: int | None,
) -> Iterator[ScoringResult]:
    """Yield a race for each slice of images, put together from its pieces."""
    calls = [partial(arguments, batch, orders, piece, reading, how) for piece in pieces]
    shape, evaluations = (len(orders), len(model.classes)), orders.size * model.readings
    found = in_parallel(score_piece, model, calls, n_jobs)
    # asked first, what was found comes to its end
    for images, group in groupby(zip(found, pieces), key=lambda pair: pair[1].images):
        ll = np.empty((images.stop - images.start, *shape))
        took = np.full(len(ll), evaluations)
        for some, piece in group:
            ll[:, piece.orders, piece.classes] = some.log_likelihood
            if is_race(model, how["racing"]):
                took = some.evaluations
        yield ScoringResult(ll, took)


def arguments(
    batch: Any, orders: np.ndarray, piece: Piece, reading: dict[str, Any], how: dict[str, Any]
) -> tuple[Any, ...]:
    """What :func:`race_of_piece` is sent."""
    return batch.take(piece.images), orders, piece, reading, how


def score_piece(
    model: FittedModel,
    images: Any,
    orders: np.ndarray,
    piece: Piece,
    reading: dict[str, Any],
    how: dict[str, Any],
) -> ScoringResult:
    """The race of some images in some of the orders and under some classes."""
    (codes,) = encode_all(model, images, len(orders), **reading, together=len(images))
    if codes.ndim == 3:
        codes = codes[:, piece.orders]
    columns = range(len(model.classes))[piece.classes]
    if len(columns) < len(model.classes):
        model = model.restricted(columns)
    return score_codes(model, codes, orders[piece.orders], **how)


def encode_all(
    model: FittedModel,
    batch: Any,
    n_orders: int,
    crop: str,
    together: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield the codes of a few images at a time, as each order sees them."""
    if crop == "auto":
        crop = "views" if model.views else "center"
    for part in gen_batches(len(batch), together or at_once(model)):
        yield encode_for_orders(
            model.tokenizer,
            batch,
            part,
            n_orders,
            crop=crop,
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
    store: ResultCache | None = None,
) -> np.ndarray:
    """log p(codes | class, order), (n, n_orders, n_classes), each class by its prior.

    `codes` are (n, n_tokens) or (n, n_orders, n_tokens).
    """
    columns = np.arange(len(model.classes))
    ll = np.empty((len(codes), len(orders), len(columns)))
    for prior, where in model.by_prior(columns, resolve_device(device)):
        read = partial(score, prior)
        if store is not None:
            read = partial(cached_log_likelihoods, store, prior, hash_object(prior_weights(prior)))
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
    crop: str = "auto",
    device: Any = "auto",
    precision: str = "auto",
    n_jobs: int | None = None,
) -> Evidence:
    """Evidence for a class of each image against a rival.

    Parameters
    ----------
    model, batch, orders, crop, device, precision, n_jobs
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
    how = {"crop": crop, "device": device, "precision": precision}
    n_workers = joblib.effective_n_jobs(n_jobs)
    images = at_once(model)
    if n_workers > 1:
        images = min(images, share(len(batch), EACH * n_workers))

    def arguments(part: slice) -> tuple[Any, ...]:
        against = None if rivals is None else rivals[part]
        return batch.take(part), own[part], against, orders, how

    calls = [partial(arguments, part) for part in gen_batches(len(batch), images)]
    if n_workers > 1:
        parts = list(in_parallel(explain_some, model, calls, n_jobs))
    else:
        parts = [explain_some(model, *call()) for call in calls]
    together: list[Any] = [None if a[0] is None else np.concatenate(a) for a in zip(*parts)]
    return Evidence(*together)


def explain_some(
    model: FittedModel,
    images: Any,
    own: np.ndarray,
    rivals: np.ndarray | None,
    orders: np.ndarray,
    how: dict[str, Any],
) -> Evidence:
    """:func:`explain` for a few images."""
    grid = model.prior.grid
    computing = {name: how[name] for name in ("device", "precision")}
    (codes,) = encode_all(model, images, len(orders), how["crop"], together=len(images))
    log_prob = [
        token_by_token(model, codes, own, orders, **computing),
        token_by_token(
            model,
            codes,
            own if rivals is None else rivals,
            orders,
            no_class=rivals is None,
            **computing,
        ),
    ]
    tokens, error = weigh(np.stack(log_prob, axis=2), grid)[:2]
    if model.reader.image_shape is None:
        return Evidence(tokens, error)
    pixels = tokens_of_pixels(model.tokenizer, model.reader.image_shape[:2], grid)
    return Evidence(tokens, error, spread(tokens, *pixels), spread(error, *pixels))


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

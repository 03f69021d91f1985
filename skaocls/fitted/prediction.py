"""Use a fitted model to compute the log-likelihoods of new images, and evidence for classes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, groupby

import joblib
import numpy as np
import torch
from sklearn.utils import gen_batches

from skaocls.devices import prefetch, resolve_device, to_device
from skaocls.distributed import collective_call, is_main, map_ranks, rank, world_size
from skaocls.fitted.joblib_workers import Piece, ceil_div, map_pieces, split_work
from skaocls.fitted.model import FittedModel
from skaocls.fitted.result_cache import ResultCache, cached_log_likelihoods, prior_weights
from skaocls.fitted.tokenization import encode_for_orders, tokens_of_pixels
from skaocls.hashing import HashError, hash_object
from skaocls.images.batch import Batch
from skaocls.progress import progress
from skaocls.scoring.bounded import token_evidence
from skaocls.scoring.evidence import Evidence, token_log_likelihoods
from skaocls.scoring.exhaustive import ScoringResult, lanes_at_once, scoring_dtype
from skaocls.scoring.exhaustive import log_likelihoods as score_exhaustively
from skaocls.scoring.orders import Views
from skaocls.warn import warn

# Number of images that are scored together. Wide priors are slow, so they use smaller batches, and
# the progress bar moves more often.
BATCH_SIZE = 256
WIDE_PRIOR, WIDE_PRIOR_BATCH_SIZE = 512, 32

Stopping = Callable[..., ScoringResult]


@dataclass(frozen=True)
class ScoringOptions:
    """Options for scoring images. Most of them are parameters of the classifier.

    ``stopping(prior, codes, orders, labels, dtype=dtype)`` is a function that scores with early
    stopping, and returns a `ScoringResult`. If `stopping` is None, or if the model has several
    priors, every class is scored in every order. `cache` stores the log-likelihoods of exhaustive
    scoring. If `per_token` is True, results contain the log-likelihoods of single tokens.
    """

    crop: str = "auto"
    per_token: bool = False
    stopping: Stopping | None = None
    device: str | torch.device = "auto"
    precision: str = "auto"
    cache: ResultCache | None = None
    n_jobs: int | None = None


DEFAULT_OPTIONS = ScoringOptions()


def score_batches(
    model: FittedModel,
    batch: Batch,
    orders: np.ndarray,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    verbose: int = 0,
) -> Iterator[ScoringResult]:
    """Score the images in batches, and yield one result per batch, in the order of the images.

    If ``torchrun`` has started several processes, each process scores a part of the images, but
    yields the results of all images.
    """
    if len(model.priors) > 1:
        options = replace(options, stopping=None)
    score = score_on_ranks if world_size() > 1 else score_in_process
    with progress(len(batch), "scoring", "image", verbose if is_main() else 0) as bar:
        for result in score(model, batch, orders, options):
            yield result
            bar.update(len(result.evaluations))


def score_on_ranks(
    model: FittedModel, batch: Batch, orders: np.ndarray, options: ScoringOptions
) -> Iterator[ScoringResult]:
    """Score a part of the images on each rank. Every rank yields the results of all images."""
    size = min(images_per_batch(model), ceil_div(len(batch), world_size()))
    for part in gen_batches(len(batch), size * world_size()):
        with collective_call("A prediction"):
            start = min(part.start + rank() * size, part.stop)
            own = batch.take(slice(start, min(start + size, part.stop)))
            results: list[list[ScoringResult]] = map_ranks(
                partial(list, score_in_process(model, own, orders, options))
            )
        yield from chain.from_iterable(results)


def score_in_process(
    model: FittedModel, batch: Batch, orders: np.ndarray, options: ScoringOptions
) -> Iterator[ScoringResult]:
    """Score images in this process or, if `n_jobs` asks for workers, in joblib workers."""
    if len(batch) == 0:  # with fewer images than ranks, some ranks have no images
        return
    size, n_workers = images_per_batch(model), joblib.effective_n_jobs(options.n_jobs)
    if n_workers == 1:
        parts = gen_batches(len(batch), size)
        encode = encode_part if options.stopping is None else views_of_part
        encoded = (encode(model, batch, part, len(orders), options.crop) for part in parts)
        on_cuda = resolve_device(options.device).type == "cuda"
        for codes in prefetch(encoded) if on_cuda else encoded:
            yield score_codes(model, codes, orders, options)
        return
    pieces = split_work(
        len(batch),
        len(orders),
        n_workers,
        batch_size=size,
        tile_size=max(1, lanes_at_once(model.prior) // model.prior.readings(len(model.classes))),
        split_orders=options.stopping is None,
        keep_batches=options.cache is not None,
    )

    @lru_cache(maxsize=1)  # adjacent pieces may have the same images
    def read(start: int, stop: int) -> Batch:
        return batch.take(slice(start, stop)).read()

    def arguments(piece: Piece) -> tuple[object, ...]:
        return read(piece.images.start, piece.images.stop), orders, piece.orders, options

    results = map_pieces(score_piece, model, pieces, arguments, options.n_jobs)
    # zip only runs its first argument to the end, so `results` must come first
    for _, group in groupby(zip(results, pieces), key=lambda pair: pair[1].images):
        parts_of_orders = [result for result, _ in group]
        yield ScoringResult(
            np.concatenate([part.log_likelihood for part in parts_of_orders], axis=1),
            np.sum([part.evaluations for part in parts_of_orders], axis=0),
        )


def score_piece(
    model: FittedModel, batch: Batch, orders: np.ndarray, part: slice, options: ScoringOptions
) -> ScoringResult:
    """Score the images of a batch in the orders ``orders[part]``."""
    rows = slice(0, len(batch))
    if options.stopping is not None:
        views = views_of_part(model, batch, rows, len(orders), options.crop)
        return score_codes(model, views, orders, options)
    codes = encode_part(model, batch, rows, len(orders), options.crop)
    if codes.ndim == 3:
        codes = codes[:, part]
    return score_codes(model, codes, orders[part], options)


def score_codes(
    model: FittedModel, codes: np.ndarray | Views, orders: np.ndarray, options: ScoringOptions
) -> ScoringResult:
    """Score tokens, with early stopping if `options.stopping` is set."""
    if options.stopping is not None:
        prior = to_device(model.prior, resolve_device(options.device))
        dtype = scoring_dtype(prior, options.precision)
        return options.stopping(prior, codes, orders, model.rows, dtype=dtype)
    assert not isinstance(codes, Views)
    ll = log_likelihoods(model, codes, orders, options)
    return ScoringResult(ll, np.full(len(codes), orders.size * model.readings))


def log_likelihoods(
    model: FittedModel,
    codes: np.ndarray,
    orders: np.ndarray,
    options: ScoringOptions = DEFAULT_OPTIONS,
) -> np.ndarray:
    """Compute log p(tokens | class, order) for all classes and orders.

    Each class is scored by its own prior. `codes` have the shape (n_images, n_tokens) or (n_images,
    n_orders, n_tokens). For the shape of the result, see
    :func:`skaocls.scoring.exhaustive.log_likelihoods`.
    """
    columns = np.arange(len(model.classes))
    shape = (len(codes), *(orders.shape if options.per_token else orders.shape[:1]), len(columns))
    ll = np.empty(shape, np.float32 if options.per_token else np.float64)
    for prior, where in model.by_prior(columns, resolve_device(options.device)):
        score = partial(score_exhaustively, prior)
        if options.cache is not None:
            try:
                prior_hash = hash_object(prior_weights(prior))
            except HashError as exc:
                warn(f"memory is not used, because the prior cannot be recognized later: {exc}.")
            else:
                score = partial(cached_log_likelihoods, options.cache, prior, prior_hash)
        dtype = scoring_dtype(prior, options.precision)
        labels = model.rows[where]
        ll[..., where] = score(
            codes, orders, labels=labels, dtype=dtype, per_token=options.per_token
        )
    return ll


def encode_part(
    model: FittedModel, batch: Batch, part: slice, n_orders: int, crop: str
) -> np.ndarray:
    """Return the tokens of a part of the images. If `crop` selects views, each order has its own.

    ``crop="auto"`` selects ``"views"`` if ``model.views`` is True, and ``"center"`` otherwise.
    """
    codes = views_of_part(model, batch, part, n_orders, crop)
    return codes.all_codes() if isinstance(codes, Views) else codes


def views_of_part(
    model: FittedModel, batch: Batch, part: slice, n_orders: int, crop: str
) -> np.ndarray | Views:
    """Return the same tokens as `encode_part`, but tokenize views only when they are needed."""
    if crop == "auto":
        crop = "views" if model.views else "center"
    seed = model.order_seed
    return encode_for_orders(model.tokenizer, batch, part, n_orders, crop=crop, seed=seed)


def images_per_batch(model: FittedModel) -> int:
    return WIDE_PRIOR_BATCH_SIZE if model.prior.dim >= WIDE_PRIOR else BATCH_SIZE


def explain(
    model: FittedModel,
    batch: Batch,
    columns: np.ndarray,
    rival_columns: np.ndarray | None,
    orders: np.ndarray,
    options: ScoringOptions = DEFAULT_OPTIONS,
    bound: float | None = None,
) -> Evidence:
    """Compute how much each token supports a class over a rival class.

    For each image, `columns` contains the column of the class, and `rival_columns` contains the
    column of the rival. If `rival_columns` is None, the rival is the null class, which models
    log p(tokens). If X contains images, the result also has evidence maps. With a `bound`, the
    evidence is the bounded evidence.
    """
    n_workers, size = joblib.effective_n_jobs(options.n_jobs), images_per_batch(model)
    pieces = split_work(len(batch), 1, n_workers, batch_size=size, keep_batches=n_workers == 1)

    def arguments(piece: Piece) -> tuple[object, ...]:
        rows = piece.images
        rivals = None if rival_columns is None else rival_columns[rows]
        return batch.take(rows).read(), columns[rows], rivals, orders, options, bound

    parts = list(map_pieces(explain_piece, model, pieces, arguments, options.n_jobs))
    tokens, error = (np.concatenate(values) for values in zip(*parts))
    if model.reader.image_shape is None:
        return Evidence(tokens, error)
    rows, cols = tokens_of_pixels(model.tokenizer, model.reader.image_shape[:2], model.prior.grid)
    maps = (values[:, rows][:, :, cols] for values in (tokens, error))
    return Evidence(tokens, error, *maps)


def explain_piece(
    model: FittedModel,
    batch: Batch,
    columns: np.ndarray,
    rival_columns: np.ndarray | None,
    orders: np.ndarray,
    options: ScoringOptions,
    bound: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the evidence of each token, averaged over orders, and its standard error."""
    codes = encode_part(model, batch, slice(0, len(batch)), len(orders), options.crop)
    if bound is not None:
        return explain_bounded(model, codes, columns, rival_columns, orders, options, bound)

    def log_prob(columns: np.ndarray, null_class: bool = False) -> np.ndarray:
        out = np.empty((len(codes), *orders.shape))
        for prior, where in model.by_prior(columns, resolve_device(options.device)):
            labels = model.rows[columns[where]]
            if null_class:
                labels = np.full(len(where), prior.num_classes)
            dtype = scoring_dtype(prior, options.precision)
            out[where] = token_log_likelihoods(prior, codes[where], orders, labels, dtype=dtype)
        return out

    rival = log_prob(columns, True) if rival_columns is None else log_prob(rival_columns)
    ratio = log_prob(columns) - rival
    grid = (len(codes), *model.prior.grid)
    return ratio.mean(1).reshape(grid), standard_error(ratio).reshape(grid)


def explain_bounded(
    model: FittedModel,
    codes: np.ndarray,
    columns: np.ndarray,
    rival_columns: np.ndarray | None,
    orders: np.ndarray,
    options: ScoringOptions,
    bound: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounded evidence of each token, and the standard error before the bound.

    If `rival_columns` is None, the evidence is relative to the mean of all classes.
    """
    ll = log_likelihoods(model, codes, orders, replace(options, per_token=True, cache=None))
    evidence, rows = token_evidence(ll).numpy(), np.arange(len(codes))

    def of(columns: np.ndarray) -> np.ndarray:
        own: np.ndarray = evidence[rows, :, :, columns]
        return own

    per_order = of(columns)
    mean = per_order.mean(1).clip(-bound, bound)
    if rival_columns is not None:
        rival = of(rival_columns)
        mean = mean - rival.mean(1).clip(-bound, bound)
        per_order = per_order - rival
    grid = (len(codes), *model.prior.grid)
    return mean.reshape(grid), standard_error(per_order).reshape(grid)


def standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over the orders (axis 1); NaN for a single order."""
    if values.shape[1] == 1:
        return np.full_like(values[:, 0], np.nan)
    error: np.ndarray = values.std(1, ddof=1) / values.shape[1] ** 0.5
    return error

"""Racing: the class that exhaustive scoring would find, with a fraction of the work.

All classes of an image start on the same order and the same tokens. Round by round a few more
tokens are read, and classes that have fallen too far behind leave. Compared are differences to the
leader on common tokens, which vary far less than the log-likelihoods themselves.

A class leaves when its lag, class priors included, exceeds a bound.

*In the first order it is Wald's*, ``log((n_classes - 1) / error)``: if the tokens come from one of
the classes as the prior describes them, the probability that any other ever gets so far ahead of it
is at most `error` (likelihood ratios are martingales, and Ville's inequality holds for all rounds
together). Priors are not perfect, so the lag must also be twice its standard error.

*From its end on Student's, if that is less*: the exhaustive score is a sum over a finite
population, n_orders times n_tokens log-probabilities of each class. The lag after m of these M is a
sum over a sample drawn without replacement; its standard error is ``s * sqrt(m * (1 - m / M))``, s
the standard deviation of the m differences, and the bound is that times Student's quantile of
``1 - error`` with m - 1 degrees of freedom. It tightens as the sum is completed.

*Where each order reads other tokens of the image* (a view, a crop or noise of its own), tokens of
one reading are no sample of all: a background that is a rare code in one view may be none in the
next. Nobody leaves before `FEWEST_READINGS` of them, and the standard error is no less than that of
the mean of whole readings.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from skaocls.devices import own_torch_state
from skaocls.priors.interface import Prior
from skaocls.priors.transformer import AnyOrderPrior
from skaocls.scoring.engine import Cache, Engine, Pairs
from skaocls.scoring.engines import make_engine
from skaocls.scoring.exhaustive import checked, lanes_at_once
from skaocls.scoring.screening import COST, N_ANCHORS, survivors

# Shares of an order after which classes may leave
ROUNDS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 1)
ROUNDS_OF_HEADS = (1 / 8, 1 / 4, 1 / 2, 1)  # of a shared trunk, which has read all of the order
FEW_HEADS = 32  # classes from which on they pay
FEWEST_TOKENS = 2  # before the first of them does
FEWEST_READINGS = 3  # the same, where orders read different tokens
STANDARD_ERRORS = 2.0  # that a lag beyond Wald's bound must have
IMPOSSIBLE = -1e30  # log prior of a class of probability 0, with which one can calculate
LANES_STARTED = 2**15  # classes times images that race at the same time
CACHE_BYTES, CACHE_BYTES_CUDA = 2**28, 2**33  # keys and values kept between rounds, at most
CACHE_SHARE = 8  # an eighth of a CUDA device's memory at most


class ScoringResult(NamedTuple):
    """What scoring found.

    Attributes
    ----------
    log_likelihood : float64 array of shape (n_images, n_orders, n_classes)
        Where a class was read to the end of an order, exactly its log-likelihood. A class that
        left lags the leader of that moment in all further orders by what it lagged then. Orders
        that an image did not need are the mean of those that were read.
    evaluations : int array of shape (n_images,)
        Tokens that the transformer read, over all classes and orders; exhaustive scoring needs
        ``n_orders * n_classes * n_tokens``, or ``n_orders * n_tokens`` of a shared trunk.
    """

    log_likelihood: np.ndarray
    evaluations: np.ndarray


class Lanes(NamedTuple):
    """Classes still in the race, one row for each (image, class)."""

    image: Tensor
    label: Tensor
    log_prob: Tensor  # of the tokens read so far, order after order

    def keep(self, rows: Tensor) -> "Lanes":
        return Lanes(self.image[rows], self.label[rows], self.log_prob[rows])


@own_torch_state(grad=True)  # a screen takes gradients
def race(
    prior: Prior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    class_log_prior: np.ndarray,
    *,
    error: float = 1e-3,
    screen: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> ScoringResult:
    """Log-likelihoods of the classes that matter, estimates for the others.

    Parameters
    ----------
    prior : Prior
        Where its weights are, there it runs.
    codes : int array of shape (n_images, n_tokens) or (n_images, n_orders, n_tokens)
        Tokens in raster order.
    orders : int array of shape (n_orders, n_tokens)
        The orders that exhaustive scoring would average over.
    labels : int array of shape (n_classes,)
        Classes to score.
    class_log_prior : float array of shape (n_classes,)
        Log probability of each class.
    error : float, default=1e-3
        Allowed probability of losing the class that exhaustive scoring ranks first by the mean
        log-likelihood.
    screen : int, default=None
        How many classes of each image enter the race, the best by a first-order estimate
        (:mod:`skaocls.scoring.screening`); None is all of them. `error` knows nothing of the
        screen. A prior that shares its trunk has none: its classes cost next to nothing.
    dtype : torch.dtype, default=torch.float32
        Type of the matrix products.

    Returns
    -------
    race : Race
        Log-likelihoods and evaluations.

    Raises
    ------
    ValueError
        As in :func:`skaocls.scoring.exhaustive.log_likelihoods`.

    Notes
    -----
    Wald's bound is about a perfect prior, Student's about one comparison and differences that are
    exchangeable: `error` is a scale for the risk, not a guarantee. What it amounts to is measured
    by ``benchmarks/racing.py``.

    References
    ----------
    Wald, "Sequential tests of statistical hypotheses", Annals of Mathematical Statistics 16, 1945.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.scoring.racing import race
    >>> prior = AnyOrderPrior(vocab_size=8, grid=(2, 2), num_classes=3, dim=32, n_layer=1)
    >>> codes, orders = np.array([[1, 5, 0, 7]]), np.array([[0, 1, 2, 3], [3, 1, 0, 2]])
    >>> race(prior, codes, orders, np.arange(3), np.log(np.full(3, 1 / 3))).log_likelihood.shape
    (1, 2, 3)
    """
    log_prior = np.maximum(class_log_prior, IMPOSSIBLE)
    screened = None
    if screen is not None and screen < len(labels) and isinstance(prior, AnyOrderPrior):
        first = codes if codes.ndim == 2 else codes[:, 0]
        screened = survivors(prior, first, orders[0], labels, log_prior, screen)
    prior.eval()
    device = prior.device
    with torch.inference_mode():
        engine = make_engine(prior, torch.as_tensor(labels, device=device), dtype)
        all_codes = torch.as_tensor(codes, dtype=torch.long, device=device)
        all_orders = torch.as_tensor(orders, dtype=torch.long, device=device)
        weighs = torch.as_tensor(log_prior, dtype=torch.float64, device=device)
        bytes_each = max(1, engine.cache_bytes(stops_of(engine, len(labels))[0]))
        started = min(LANES_STARTED, cache_limit(engine) // bytes_each)
        entering = len(labels) if screened is None else min(len(labels), screen or len(labels))
        at_once = max(1, started // entering)
        parts = []
        for i in range(0, len(codes), at_once):
            few = slice(i, i + at_once)
            screening = None
            if screened is not None:
                enter, score = (torch.as_tensor(a[few], device=device) for a in screened)
                screening = enter, score
            parts.append(race_some(engine, all_codes[few], all_orders, weighs, error, screening))
    ll, evaluations = (torch.cat(a).cpu().numpy() for a in zip(*parts, strict=True))
    return ScoringResult(checked(ll), evaluations)


def race_some(
    engine: Engine,
    codes: Tensor,
    orders: Tensor,
    log_prior: Tensor,
    error: float,
    screening: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Race the classes of a few images, all of them at the same time.

    `screening` is what :func:`skaocls.scoring.screening.survivors` returns.
    """
    n_images, n_classes, n_tokens = len(codes), len(log_prior), engine.n_tokens
    device = codes.device
    images = torch.arange(n_images, device=device)
    evaluations = torch.zeros(n_images, dtype=torch.long, device=device)
    exits: list[tuple[Tensor, ...]] = []
    enters = torch.ones(n_images, n_classes, dtype=torch.bool, device=device)
    if screening is not None:
        enters, score = screening
        best, leader = score.max(1)
        image, label = torch.where(~enters)
        exits.append((image, label, leader[image], (best[:, None] - score)[image, label]))
        evaluations += COST * n_tokens * min(N_ANCHORS, n_classes)
    image, label = torch.where(enters)
    lanes = Lanes(image, label, torch.empty(len(image), 0, dtype=torch.float32, device=device))
    ll = torch.full(
        (n_images, len(orders), n_classes), torch.nan, dtype=torch.float64, device=device
    )
    population, differ = len(orders) * n_tokens, codes.ndim == 3
    fewest = fewest_tokens(n_tokens, differ)
    shared = engine.prior.readings(2) == 1  # the trunk reads each order as a whole
    for k, order in enumerate(orders):
        if k:  # whoever is alone has won, and need not run on
            lanes = lanes.keep(torch.bincount(lanes.image, minlength=n_images)[lanes.image] > 1)
            if not len(lanes.image):
                break
        racing = lanes.image.unique()
        pair = torch.zeros_like(images).index_put_((racing,), torch.arange(len(racing)).to(device))
        these = codes[racing] if codes.ndim == 2 else codes[racing, k]
        pairs = read_pairs(engine, these, order)
        if shared:
            evaluations[racing] += n_tokens
        cache: Cache | None = None
        read = 0
        for stop in stops_of(engine, len(lanes.image) / len(racing)):
            start = 0 if cache is None else read
            before = lanes.log_prob[:, : k * n_tokens + start]
            asked = pairs, pair[lanes.image], lanes.label, start, stop, cache
            log_prob, cache = engine.read(*asked) if shared else read_lanes(engine, *asked)
            lanes = lanes._replace(log_prob=torch.cat([before, log_prob], 1))
            if not shared:
                evaluations += (stop - start) * torch.bincount(lanes.image, minlength=n_images)
            if stop == n_tokens:
                last = lanes.log_prob[:, -n_tokens:].double().sum(1)
                ll[lanes.image, k, lanes.label] = last
            read = stop
            if (k * n_tokens + read) in range(fewest, population):
                lag, bound, leader = lags(lanes, log_prior, n_tokens, population, error, differ)
                leaves = lag > bound
                out = lanes.image[leaves], lanes.label[leaves], leader[leaves], lag[leaves]
                exits.append(out)
                stays = ~leaves
                lanes = lanes.keep(stays)
                if cache is not None:
                    cache = [(keys[stays], values[stays]) for keys, values in cache]
    return fill(ll, exits, log_prior), evaluations


def stops_of(engine: Engine, n_classes: float) -> list[int]:
    """Tokens of an order read when each round ends, with so many classes of an image racing."""
    shares: tuple[float, ...] = ROUNDS
    if engine.prior.readings(2) == 1:  # the trunk has read all of the order
        shares = ROUNDS_OF_HEADS if n_classes > FEW_HEADS else (1,)
    return sorted({max(1, round(share * engine.n_tokens)) for share in shares})


def cache_limit(engine: Engine) -> int:
    if not engine.output.is_cuda:
        return CACHE_BYTES
    total = torch.cuda.get_device_properties(engine.output.device).total_memory
    return int(min(CACHE_BYTES_CUDA, total // CACHE_SHARE))


def lags(
    lanes: Lanes,
    log_prior: Tensor,
    n_tokens: int,
    population: int,
    error: float,
    differ: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """How far each lane lags its image's leader, how far it may, and the leader's class.

    In nats per order; what was seen of the first order counts as it is.
    """
    m = lanes.log_prob.shape[1]
    orders_seen = max(1.0, m / n_tokens)
    score = lanes.log_prob.double().sum(1) / orders_seen + log_prior[lanes.label]
    n_images = int(lanes.image.max()) + 1
    best = torch.full((n_images,), -torch.inf, dtype=score.dtype, device=score.device)
    best.scatter_reduce_(0, lanes.image, score, "amax")
    rows = torch.arange(len(score), device=score.device)
    leader = torch.zeros(n_images, dtype=torch.long, device=score.device)
    leads = score == best[lanes.image]
    leader[lanes.image[leads]] = rows[leads]
    leader = leader[lanes.image]
    difference = lanes.log_prob[leader] - lanes.log_prob
    error_of_lag = standard_error(difference, n_tokens, population, differ)
    bound = bound_of(error_of_lag, m, n_tokens, len(log_prior), error)
    return best[lanes.image] - score, bound, lanes.label[leader]


def fewest_tokens(n_tokens: int, differ: bool) -> int:
    """Read before a class may leave; `differ`: orders read different tokens."""
    return FEWEST_READINGS * n_tokens if differ else FEWEST_TOKENS


def standard_error(difference: Tensor, n_tokens: int, population: int, differ: bool) -> Tensor:
    """Of a lag in nats per order, from what it is in each token read (..., m)."""
    m = difference.shape[-1]
    left = 1 - m / population
    found: Tensor = difference.std(-1).double() * (m * left) ** 0.5 / max(1.0, m / n_tokens)
    if not differ:
        return found
    n_read = m // n_tokens
    readings = difference[..., : n_read * n_tokens].unflatten(-1, (n_read, n_tokens))
    of_readings = readings.sum(-1, dtype=torch.float64).std(-1)
    return torch.maximum(found, of_readings * (left / n_read) ** 0.5)


def bound_of(error_of_lag: Tensor, m: int, n_tokens: int, n_classes: int, error: float) -> Tensor:
    """How far a class may lag after m tokens, of which an order has n_tokens."""
    wald = np.log(max(n_classes - 1, 1) / error)
    bound = (STANDARD_ERRORS * error_of_lag).clamp_min(wald)
    if m >= n_tokens:  # of fewer differences the spread is not known well enough
        quantile = stats.t.isf(max(error, 1e-12), m - 1)  # beyond, its accuracy ends
        bound = torch.minimum(bound, quantile * error_of_lag)
    return bound


def fill(ll: Tensor, exits: list[tuple[Tensor, ...]], log_prior: Tensor) -> Tensor:
    """Complete log-likelihoods (n_images, n_orders, n_classes) where orders were not read."""
    stayed = torch.ones_like(ll[:, 0], dtype=torch.bool)
    for image, label, _, _ in exits:
        stayed[image, label] = False
    stayed = stayed.unsqueeze(1)
    ll = torch.where(ll.isnan() & stayed, ll.nanmean(1, keepdim=True), ll)
    for image, label, leader, lag in reversed(exits):  # a leader leaves later than whom it leads
        estimate = ll[image, :, leader] - (lag + log_prior[label] - log_prior[leader])[:, None]
        own = ll[image, :, label]
        ll[image, :, label] = torch.where(own.isnan(), estimate, own)
    return ll


def read_pairs(engine: Engine, codes: Tensor, order: Tensor) -> Pairs:
    """:meth:`Engine.pairs` in tiles, of images along one order."""
    at_once = lanes_at_once(engine.prior)
    tiles = [engine.pairs(few, order.expand_as(few)) for few in codes.split(at_once)]
    return type(tiles[0])(*(torch.cat(a) for a in zip(*tiles, strict=True)))


def read_lanes(
    engine: Engine,
    pairs: Pairs,
    pair: Tensor,
    label: Tensor,
    start: int,
    stop: int,
    cache: Cache | None,
) -> tuple[Tensor, Cache | None]:
    """:meth:`Engine.read` in tiles, keeping keys and values if they are small enough."""
    keep = stop < engine.n_tokens and len(pair) * engine.cache_bytes(stop) <= cache_limit(engine)
    at_once = lanes_at_once(engine.prior) * (engine.n_tokens // (stop - start))
    parts, at = [], 0
    while at < len(pair):
        # of a few shapes only: rows are repeated to the next power of two
        tile = min(at_once, 1 << (len(pair) - at - 1).bit_length())
        rows = torch.arange(at, at + tile, device=pair.device).clamp_(max=len(pair) - 1)
        before = [(keys[rows], values[rows]) for keys, values in cache or []]
        try:
            log_prob, kept = engine.read(
                pairs, pair[rows], label[rows], start, stop, before or None, keep
            )
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
            at_once //= 2
            continue
        n = min(tile, len(pair) - at)
        parts.append((log_prob[:n], [(keys[:n], values[:n]) for keys, values in kept]))
        at += tile
    log_prob = torch.cat([a for a, _ in parts])
    if not keep:
        return log_prob, None
    layers = zip(*(kept for _, kept in parts), strict=True)
    return log_prob, [
        (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers
    ]

"""Early stopping: the class that exhaustive scoring would choose, from fewer tokens.

The algorithm compares the classes of an image on the tokens read so far. It drops classes that are
too far behind the leader, and reads no further orders of an image once a single class is left. All
comparisons use differences to the leader on the same tokens, because these vary far less than the
log-likelihoods themselves.

A class is dropped when its lag, class prior included, exceeds a bound:

*Within the first order*, the bound is Wald's ("Sequential tests of statistical hypotheses", Annals
of Mathematical Statistics 16, 1945), ``log((n_classes - 1) / error)``. If the prior
describes the true class correctly, the probability that another class ever leads by that much is at
most `error`: likelihood ratios are martingales, and Ville's inequality covers all checks at once.
Since priors are imperfect, the lag must also be at least twice its standard error.

*From the end of the first order*, Student's bound applies if it is smaller. The exhaustive score is
a sum over a finite population of M = n_orders * n_tokens log-probabilities per class. The lag after
m of them is estimated from a sample drawn without replacement. Its standard error is
``s * sqrt(m * (1 - m / M))``, where s is the standard deviation of the m differences. The bound is
this standard error times the ``1 - error`` quantile of Student's distribution with m - 1 degrees of
freedom. It shrinks to zero as m approaches M.

*Where each order reads its own view of the image*, the tokens of one view are not a random sample
of all tokens: a background may be a rare code in one view only. No class is dropped before three
orders are complete, and the standard error is at least that of the mean over whole orders.

The allowed `error` is the probability that the best class by the mean log-likelihood differs from
that of exhaustive scoring. Wald's bound assumes a perfect prior, Student's bound exchangeable
differences and a single comparison. `error` therefore sets the scale of the risk and is not a
guarantee; ``benchmarks/speed/early_stopping_errors.py`` measures the actual risk.

Log-likelihoods are exact for the orders that a class was read in. The other orders of a class that
was not dropped get the mean of its read orders. Those of a dropped class get the leader's
log-likelihood minus the lag, in nats per order, at the time of the drop. Posteriors are therefore
estimates, and are closest to those of exhaustive scoring where one class is clearly ahead.

Both architectures use these rules. Classes are compared at several points of the first order, and
then at the end of each order. A shared trunk reads an order once for all classes, in tiles of the
same fixed shape as exhaustive scoring, so the log-probabilities are equal bit for bit. If it scores
only a few classes, dropping them one by one saves no time: it compares classes at the ends of
orders only, and drops them all when the image is decided.
"""

from itertools import pairwise

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from skaocls.devices import own_torch_state
from skaocls.priors.transformer import Prior
from skaocls.scoring.engine import Cache, Engine
from skaocls.scoring.exhaustive import ScoringResult, check_not_nan, lanes_at_once
from skaocls.scoring.shared_trunk_engine import HeadEngine, make_engine
from skaocls.scoring.token_scores import cache_limit, open_tile, read_lanes, read_pairs

# Rules, chosen by benchmarks/speed/early_stopping_errors.py:
# fractions of the first order after which classes may be dropped
CHECKPOINTS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 1)
CHECKPOINTS_SHARED = (1 / 8, 1 / 4, 1 / 2, 1)
MIN_TOKENS = 2  # tokens read before the first class may be dropped
MIN_VIEWS = 3  # orders read before the first class may be dropped if each reads its own view
MIN_STANDARD_ERRORS = 2.0  # smallest lag under Wald's bound, in standard errors
MIN_LOG_PRIOR = -1e30  # finite stand-in for the log prior of classes with zero probability
# Speed and memory, chosen by benchmarks/speed/early_stopping.py:
# smallest number of classes that a shared trunk drops one by one; with fewer classes the trunk
# takes most of the time, and all classes are read until the image is decided
DROP_FROM = 32
KEPT_NUMBERS = 2**26  # log-probabilities kept for the images that are scored together


@own_torch_state()
def score_until_decided(
    prior: Prior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    class_log_prior: np.ndarray,
    *,
    error: float = 1e-3,
    dtype: torch.dtype = torch.float32,
) -> ScoringResult:
    """Score classes until each image is decided.

    The arguments are those of :func:`skaocls.scoring.exhaustive.log_likelihoods`. The log prior
    (n_classes,) may be -inf. The result for an image does not depend on the other images.
    """
    prior.eval()
    device = prior.device
    with torch.inference_mode():
        engine = make_engine(prior, torch.as_tensor(labels, device=device), dtype)
        all_codes = torch.as_tensor(codes, dtype=torch.long, device=device)
        all_orders = torch.as_tensor(orders, dtype=torch.long, device=device)
        log_prior = torch.as_tensor(
            np.maximum(class_log_prior, MIN_LOG_PRIOR), dtype=torch.float64, device=device
        )
        parts = [
            score_group(engine, group, all_orders, log_prior, error)
            for group in all_codes.split(images_at_once(engine, all_orders.shape, len(labels)))
        ]
    ll, evaluations = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return ScoringResult(ll, evaluations)


def score_group(
    engine: Engine | HeadEngine, codes: Tensor, orders: Tensor, log_prior: Tensor, error: float
) -> tuple[Tensor, Tensor]:
    """Return log-likelihoods (n_images, n_orders, n_classes) and evaluations (n_images,)."""
    n_tokens = orders.shape[1]
    views, shared = codes.ndim == 3, isinstance(engine, HeadEngine)
    comparison = Comparison(len(codes), orders.shape, log_prior, error, views, shared)
    if isinstance(engine, Engine) and not views and len(log_prior) > 1:
        read_first_order(engine, codes, orders[0], comparison)
    while True:
        image, order = comparison.next_pairs(lanes_at_once(engine.prior))
        if not len(image):
            return comparison.log_likelihoods(), comparison.evaluations
        tokens = codes[image, order] if views else codes[image]
        look_up = open_tile(engine, tokens, orders[order], comparison.active[image])
        for k in order.unique().tolist():
            # a tile may contain orders that an image turns out not to need
            rows = torch.where((order == k) & comparison.undecided[image])[0]
            for start, stop in pairwise(comparison.checkpoints(k)) if len(rows) else ():
                log_prob = look_up(rows, comparison.active[image[rows]], start, stop)
                comparison.add(image[rows], k * n_tokens + start, log_prob)


class Comparison:
    """Log-probabilities of the tokens of some images, and the classes that are still candidates.

    `shape` is (n_orders, n_tokens). `views` tells whether each order reads its own view, `shared`
    whether one evaluation of the transformer serves all classes.
    """

    def __init__(
        self,
        n_images: int,
        shape: torch.Size,
        log_prior: Tensor,
        error: float,
        views: bool,
        shared: bool,
    ):
        n_orders, self.n_tokens = shape
        n_classes, device = len(log_prior), log_prior.device
        self.population = n_orders * self.n_tokens
        self.log_prior, self.error, self.views, self.shared = log_prior, error, views, shared
        # whether classes are dropped only together, when the image is decided
        self.all_or_none = shared and n_classes < DROP_FROM
        self.min_read = MIN_VIEWS * self.n_tokens if views else MIN_TOKENS
        # log p(token | class) in the sequence of reading; only what was read is initialized
        self.log_prob = torch.empty(
            n_images, self.population, n_classes, dtype=torch.float32, device=device
        )
        new = torch.zeros(n_images, n_classes, dtype=torch.float64, device=device)
        self.total = new.clone()
        # sums over the tokens of leader minus class, and of its square
        self.difference, self.squares = new.clone(), new.clone()
        self.by_order = torch.full_like(self.total[:, None].expand(-1, n_orders, -1), torch.nan)
        self.leader = torch.full((n_images,), -1, device=device)
        self.active = torch.ones_like(new, dtype=torch.bool)
        self.undecided = torch.ones_like(self.leader, dtype=torch.bool)
        self.orders_read = torch.zeros_like(self.leader)
        self.evaluations = torch.zeros_like(self.leader)
        # image, class, leader and lag in nats per order, without class priors, at each drop
        self.dropped: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def next_pairs(self, lanes: int) -> tuple[Tensor, Tensor]:
        """Return the next (image, order) pairs to read, at most one tile of them.

        Low orders are read first, and within an order images with a similar number of classes.
        """
        n_active = self.active.sum(1)
        images = n_active.argsort(descending=True, stable=True)
        orders = torch.arange(self.by_order.shape[1], device=images.device)
        unread = (orders[:, None] >= self.orders_read[images]) & self.undecided[images]
        order, row = torch.where(unread)
        image = images[row]
        n_pairs = lanes
        if not self.shared:
            n_pairs = max(1, int((n_active[image].cumsum(0) <= lanes).sum()))
        # The orders of an image are neighbours, as in exhaustive scoring. Rounding in the attention
        # depends on the parity of a lane, which otherwise depends on how many images precede it.
        together = image[:n_pairs].argsort(stable=True)
        return image[:n_pairs][together], order[:n_pairs][together]

    def checkpoints(self, order: int) -> list[int]:
        """Return 0 and the numbers of tokens of an order after which to compare classes."""
        fractions: tuple[float, ...] = CHECKPOINTS_SHARED if self.shared else CHECKPOINTS
        if order or self.views or self.all_or_none:
            fractions = (1,)
        return sorted({0, *(max(1, round(f * self.n_tokens)) for f in fractions)})

    def add(self, image: Tensor, start: int, log_prob: Tensor) -> None:
        """Add log p(token | class) (n, n_new, n_classes) of some images (n,), and drop classes.

        Each of these images has read `start` tokens before. Dropped classes are ignored.
        """
        n_new = log_prob.shape[1]
        stop = start + n_new
        active = self.active[image]
        self.log_prob[image, start:stop] = log_prob
        new = log_prob.sum(1, dtype=torch.float64).masked_fill(~active, 0)
        self.total[image] += check_not_nan(new)
        self.evaluations[image] += n_new if self.shared else n_new * active.sum(1)
        n_read = stop // self.n_tokens
        if stop % self.n_tokens == 0:
            order = self.log_prob[image, stop - self.n_tokens : stop]
            order = order.sum(1, dtype=torch.float64)
            self.by_order[image, n_read - 1] = order.masked_fill(~active, torch.nan)
            self.orders_read[image] = n_read
        if self.min_read <= stop < self.population:
            self._drop(image, log_prob, stop)
        self.undecided[image] = (self.active[image].sum(1) > 1) | (n_read == 0)

    def _drop(self, image: Tensor, log_prob: Tensor, m: int) -> None:
        """Drop classes whose lag exceeds the bound after m tokens."""
        active = self.active[image]
        mean = self.total[image] / max(1.0, m / self.n_tokens)
        score = (mean + self.log_prior).masked_fill(~active, -torch.inf)
        best, leader = score.max(1)
        self._add_differences(image, leader, log_prob, m)
        lag = best[:, None] - score
        leaves = active & (lag > self._bound(image, leader, m))
        if self.all_or_none:
            leaves &= (leaves.sum(1) == active.sum(1) - 1)[:, None]
        row, label = torch.where(leaves)
        self.active[image[row], label] = False
        gap = mean[row, leader[row]] - mean[row, label]
        self.dropped.append((image[row], label, leader[row], gap))

    def _add_differences(self, image: Tensor, leader: Tensor, log_prob: Tensor, m: int) -> None:
        """Update the sums of differences; from all m tokens where the leader has changed."""
        changed = leader != self.leader[image]
        self.leader[image] = leader
        same, other = image[~changed], image[changed]
        difference, squares = difference_sums(log_prob[~changed], leader[~changed])
        self.difference[same] += difference
        self.squares[same] += squares
        of_all = difference_sums(self.log_prob[other, :m], leader[changed])
        self.difference[other], self.squares[other] = of_all

    def _bound(self, image: Tensor, leader: Tensor, m: int) -> Tensor:
        """Return how far each class may lag after m tokens, in nats per order."""
        unread = 1 - m / self.population
        variance = (self.squares[image] - self.difference[image] ** 2 / m).clamp_min(0) / (m - 1)
        standard_error = (variance * (m * unread)).sqrt() / max(1.0, m / self.n_tokens)
        if self.views:
            n_read = m // self.n_tokens
            by_order = self.by_order[image, :n_read]
            spread = (at_leader(by_order, leader) - by_order).std(1)
            standard_error = standard_error.maximum(spread * (unread / n_read) ** 0.5)
        wald = np.log(max(len(self.log_prior) - 1, 1) / self.error)
        bound = (MIN_STANDARD_ERRORS * standard_error).clamp_min(wald)
        if m < self.n_tokens:  # too few differences for their standard deviation to be reliable
            return bound
        # scipy's quantiles are accurate down to this error
        quantile = stats.t.isf(max(self.error, 1e-12), m - 1)
        return bound.minimum(quantile * standard_error)

    def log_likelihoods(self) -> Tensor:
        """Return log-likelihoods (n_images, n_orders, n_classes) with unread orders filled in."""
        ll = self.by_order
        unread = ll.isnan() & self.active[:, None]
        ll = torch.where(unread, ll.nanmean(1, keepdim=True), ll)
        for image, label, leader, gap in reversed(self.dropped):
            # a leader is dropped after the classes that it leads, so it is complete here
            estimate = ll[image, :, leader] - gap[:, None]
            read = ll[image, :, label]
            ll[image, :, label] = torch.where(read.isnan(), estimate, read)
        return ll


def at_leader(values: Tensor, leader: Tensor) -> Tensor:
    """Return the leader's values (n, m, 1) of (n, m, n_classes)."""
    return values.gather(2, leader[:, None, None].expand(-1, values.shape[1], 1))


def difference_sums(log_prob: Tensor, leader: Tensor) -> tuple[Tensor, Tensor]:
    """Sum leader minus class, and its square, over the tokens of (n, n_tokens, n_classes)."""
    difference = at_leader(log_prob, leader) - log_prob
    total = difference.sum(1, dtype=torch.float64)
    return total, difference.square_().sum(1, dtype=torch.float64)


def read_first_order(engine: Engine, codes: Tensor, order: Tensor, comparison: Comparison) -> None:
    """Read all images along one order, and compare classes at its checkpoints."""
    images = torch.arange(len(codes), device=codes.device)
    pairs = read_pairs(engine, codes, order.expand_as(codes))
    image, label = torch.where(comparison.active)
    cache: Cache | None = None
    for start, stop in pairwise(comparison.checkpoints(0)):
        log_prob, cache = read_lanes(engine, pairs, image, label, start, stop, cache)
        new = log_prob.new_empty(*comparison.active.shape, stop - start)
        new[image, label] = log_prob
        comparison.add(images, start, new.transpose(1, 2))
        stays = comparison.active[image, label]
        image, label = image[stays], label[stays]
        if cache is not None:
            cache = [(keys[stays], values[stays]) for keys, values in cache]


def images_at_once(engine: Engine | HeadEngine, shape: torch.Size, n_classes: int) -> int:
    """Return how many images to score together within the memory limits."""
    images = KEPT_NUMBERS // (shape.numel() * n_classes)
    if isinstance(engine, Engine):
        lane_bytes = max(1, engine.cache_bytes(max(1, round(CHECKPOINTS[0] * engine.n_tokens))))
        images = min(images, cache_limit(engine) // (lane_bytes * n_classes))
    return max(1, images)

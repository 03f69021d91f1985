"""Early stopping: find the class that exhaustive scoring would choose, but score fewer tokens.

The algorithm compares the classes of an image on the tokens that it has scored so far. It drops
each class that is too far behind the leading class. When only one class is left, no further orders
of the image are scored. For each token, the log-probability under a class is
subtracted from the log-probability under the leading class. These differences vary far less from
token to token than the log-probabilities themselves.

The *lag* of a class is the log-probability of the leading class minus the log-probability of this
class, both including the class prior. A class is dropped when its lag exceeds a bound.

*While the first token order is scored*, the bound of Wald's sequential test applies:
``log((n_classes - 1) / error)`` ("Sequential tests of statistical hypotheses", Annals of
Mathematical Statistics 16, 1945). If the prior describes the true class correctly, the probability
that another class ever leads by more than the bound is at most `error`. This limit holds for all
comparisons together, because likelihood ratios are martingales (Ville's inequality). Since real
priors are imperfect, the lag must also be at least twice the standard error of the lag.

*From the end of the first order*, Student's bound applies if it is smaller than Wald's bound.
Exhaustive scoring adds up M = n_orders * n_tokens log-probabilities per class. Early stopping
treats the first m of these values as a random sample, drawn without replacement. The standard error
of the lag after m tokens is ``s * sqrt(m * (1 - m / M))``, where s is the standard deviation of the
m differences from the leading class. Student's bound is this standard error times the ``1 - error``
quantile of Student's distribution with m - 1 degrees of freedom. The bound shrinks to zero as m
approaches M.

*If each order uses its own view of the image*, the tokens of one view are not a random sample of
all tokens. For example, a background may be a rare code in one view only. Therefore no class is
dropped before two orders are complete. The orders are then treated as a random sample of all
orders, and Student's bound uses the variance of their totals. The totals of a few orders say little
about this variance. The tokens say more: if they were independent, the variance of the totals would
be ``n_tokens * s**2``. The actual standard deviation is about `VIEW_SPREAD` times as large as this.
The estimate pools the two: the variance of the k totals with k - 1 degrees of freedom, and the
variance from the tokens with `TOKEN_FREEDOM` degrees of freedom.

The parameter `error` is the allowed probability that early stopping and exhaustive scoring find
different best classes (by the mean log-likelihood). The actual probability may be larger, because
the assumptions are never met exactly. Wald's bound assumes a perfect prior. Student's bound assumes
exchangeable differences and a single comparison. The script
``benchmarks/speed/early_stopping_errors.py`` measures the actual probability.

The log-likelihood of a class is exact for each order in which the class was scored. For all other
orders, the log-likelihood is estimated. If the class was not dropped, the estimate is the mean of
the exact values. If the class was dropped, the estimate is the log-likelihood of the leading class
minus the lag (in nats per order) when the class was dropped. Posteriors are therefore estimates.
The estimates are best if one class is clearly ahead.

Both architectures use these rules. Classes are compared at several points of the first order, and
at the end of each later order. A shared trunk processes an order once for all classes. The trunk
uses the same tiles in early stopping and in exhaustive scoring, so the log-probabilities are equal
bit for bit. If a shared trunk scores only a few classes, dropping single classes saves no time. In
this case, classes are compared only at the ends of orders. All classes except the leading class are
then dropped together, when the image is decided.
"""

from itertools import pairwise

import numpy as np
import torch
from scipy import stats
from sklearn.utils import gen_batches
from torch import Tensor

from skaocls.devices import own_torch_state
from skaocls.priors.transformer import Prior
from skaocls.scoring.engine import Cache, Engine
from skaocls.scoring.exhaustive import ScoringResult, check_not_nan, lanes_at_once
from skaocls.scoring.orders import Views
from skaocls.scoring.shared_trunk_engine import HeadEngine, make_engine
from skaocls.scoring.token_scores import (
    TokenReader,
    cache_limit,
    open_tile,
    read_lanes,
    read_pairs,
)

# The constants of the rules were chosen with benchmarks/speed/early_stopping_errors.py. Classes are
# compared, and may be dropped, after the following fractions of the first order.
CHECKPOINTS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 1)
CHECKPOINTS_SHARED = (1 / 8, 1 / 4, 1 / 2, 1)
MIN_TOKENS = 2  # number of tokens that are scored before a class may be dropped
MIN_VIEWS = 2  # complete orders before a class may be dropped, if orders use different views
# If orders use different views, the standard deviation of their totals is about VIEW_SPREAD times
# the value for independent tokens. TOKEN_FREEDOM is the weight of this estimate, as degrees of
# freedom (see the module docstring).
VIEW_SPREAD, TOKEN_FREEDOM = 0.7, 30
MIN_STANDARD_ERRORS = 2.0  # smallest lag, in standard errors, in addition to Wald's bound
MIN_LOG_PRIOR = -1e30  # finite value that replaces a log prior of -inf
# The following constants affect only speed and memory (benchmarks/speed/early_stopping.py).
# With a shared trunk, single classes are dropped only if there are at least `DROP_FROM` classes.
# With fewer classes, the trunk takes most of the time, so dropping saves little.
DROP_FROM = 32
KEPT_NUMBERS = 2**26  # largest number of log-probabilities in memory


@own_torch_state()
def score_until_decided(
    prior: Prior,
    codes: np.ndarray | Views,
    orders: np.ndarray,
    labels: np.ndarray,
    class_log_prior: np.ndarray,
    *,
    error: float = 1e-3,
    dtype: torch.dtype = torch.float32,
) -> ScoringResult:
    """Score the classes of each image until only one class is left (the image is decided).

    Most arguments are documented in :func:`skaocls.scoring.exhaustive.log_likelihoods`. If `codes`
    are `Views`, a view of an image is only tokenized if the image is scored in this order.
    `class_log_prior` (n_classes,) may contain -inf. The result for an image does not depend on the
    other images.
    """
    prior.eval()
    device = prior.device
    with torch.inference_mode():
        engine = make_engine(prior, torch.as_tensor(labels, device=device), dtype)
        all_orders = torch.as_tensor(orders, dtype=torch.long, device=device)
        log_prior = torch.as_tensor(
            np.maximum(class_log_prior, MIN_LOG_PRIOR), dtype=torch.float64, device=device
        )
        parts = [
            score_group(engine, TokenReader(codes, rows, device), all_orders, log_prior, error)
            for rows in gen_batches(
                len(codes), images_at_once(engine, all_orders.shape, len(labels))
            )
        ]
    ll, evaluations = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return ScoringResult(ll, evaluations)


def score_group(
    engine: Engine | HeadEngine,
    tokens: TokenReader,
    orders: Tensor,
    log_prior: Tensor,
    error: float,
) -> tuple[Tensor, Tensor]:
    """Return log-likelihoods (n_images, n_orders, n_classes) and evaluation counts (n_images,)."""
    n_tokens = orders.shape[1]
    views, shared = tokens.views, isinstance(engine, HeadEngine)
    comparison = Comparison(len(tokens), orders.shape, log_prior, error, views, shared)
    if isinstance(engine, Engine) and not views and len(log_prior) > 1:
        read_first_order(engine, tokens.codes, orders[0], comparison)
    while True:
        image, order = comparison.next_pairs(lanes_at_once(engine.prior))
        if not len(image):
            return comparison.log_likelihoods(), comparison.evaluations
        codes = tokens.read(image, order, comparison.undecided)
        look_up = open_tile(engine, codes, orders[order], comparison.active[image])
        for k in order.unique().tolist():
            # skip images that an earlier order of the same tile decided
            rows = torch.where((order == k) & comparison.undecided[image])[0]
            for start, stop in pairwise(comparison.checkpoints(k)) if len(rows) else ():
                log_prob = look_up(rows, comparison.active[image[rows]], start, stop)
                comparison.add(image[rows], k * n_tokens + start, log_prob)


class Comparison:
    """Token log-probabilities of a group of images, and the classes that are not yet dropped.

    `shape` is (n_orders, n_tokens). `views` tells whether each order uses its own view. `shared`
    tells whether one forward pass of the transformer is used for all classes.
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
        # whether all losing classes are dropped together, when the image is decided
        self.all_or_none = shared and n_classes < DROP_FROM
        self.min_read = MIN_VIEWS * self.n_tokens if views else MIN_TOKENS
        # log p(token | class), sorted by order and step; undefined for tokens that are not scored
        self.log_prob = torch.empty(
            n_images, self.population, n_classes, dtype=torch.float32, device=device
        )
        new = torch.zeros(n_images, n_classes, dtype=torch.float64, device=device)
        self.total = new.clone()
        # sums over the tokens: leading class minus class, and the square of this difference
        self.difference, self.squares = new.clone(), new.clone()
        self.by_order = torch.full_like(self.total[:, None].expand(-1, n_orders, -1), torch.nan)
        self.leader = torch.full((n_images,), -1, device=device)
        self.active = torch.ones_like(new, dtype=torch.bool)
        self.undecided = torch.ones_like(self.leader, dtype=torch.bool)
        self.orders_read = torch.zeros_like(self.leader)
        self.evaluations = torch.zeros_like(self.leader)
        # for each drop: image, class, leading class, and lag in nats per order (without priors)
        self.dropped: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def next_pairs(self, lanes: int) -> tuple[Tensor, Tensor]:
        """Return the next (image, order) pairs to score, at most as many as fit into one tile.

        Pairs of earlier orders are selected first. Among the pairs of one order, images with more
        remaining classes are selected first.
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
        # Sort the pairs by image, as in exhaustive scoring. The rounding in the attention depends
        # on whether the index of a lane is odd or even. If pairs were not sorted, this index would
        # depend on the other images.
        together = image[:n_pairs].argsort(stable=True)
        return image[:n_pairs][together], order[:n_pairs][together]

    def checkpoints(self, order: int) -> list[int]:
        """Return the numbers of tokens of an order after which classes are compared, and 0."""
        fractions: tuple[float, ...] = CHECKPOINTS_SHARED if self.shared else CHECKPOINTS
        if order or self.views or self.all_or_none:
            fractions = (1,)
        return sorted({0, *(max(1, round(f * self.n_tokens)) for f in fractions)})

    def add(self, image: Tensor, start: int, log_prob: Tensor) -> None:
        """Add the log-probabilities of new tokens of some images, and drop classes.

        `image` (n,) contains indices of images. `log_prob` (n, n_new, n_classes) is log p(token |
        class). Earlier calls added exactly `start` tokens of each image. Values of dropped classes
        are ignored.
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
        """Drop each class whose lag after m tokens exceeds the bound."""
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
        """Update the sums of differences. If the leader changed, recompute them from all tokens."""
        changed = leader != self.leader[image]
        self.leader[image] = leader
        same, other = image[~changed], image[changed]
        difference, squares = difference_sums(log_prob[~changed], leader[~changed])
        self.difference[same] += difference
        self.squares[same] += squares
        of_all = difference_sums(self.log_prob[other, :m], leader[changed])
        self.difference[other], self.squares[other] = of_all

    def _bound(self, image: Tensor, leader: Tensor, m: int) -> Tensor:
        """Return the bound of the lag after m tokens, in nats per order."""
        unread = 1 - m / self.population
        # scipy's quantiles are inaccurate for errors below 1e-12
        error = max(self.error, 1e-12)
        variance = (self.squares[image] - self.difference[image] ** 2 / m).clamp_min(0) / (m - 1)
        if self.views:
            n_read = m // self.n_tokens
            by_order = self.by_order[image, :n_read]
            spread = (at_leader(by_order, leader) - by_order).var(1)
            freedom = TOKEN_FREEDOM + n_read - 1
            variance *= TOKEN_FREEDOM * VIEW_SPREAD**2 * self.n_tokens
            variance = (variance + (n_read - 1) * spread) / freedom
            return (variance * (unread / n_read)).sqrt() * float(stats.t.isf(error, freedom))
        standard_error = (variance * (m * unread)).sqrt() / max(1.0, m / self.n_tokens)
        wald = np.log(max(len(self.log_prior) - 1, 1) / self.error)
        bound = (MIN_STANDARD_ERRORS * standard_error).clamp_min(wald)
        if m < self.n_tokens:  # the standard deviation of so few differences is unreliable
            return bound
        return bound.minimum(stats.t.isf(error, m - 1) * standard_error)

    def log_likelihoods(self) -> Tensor:
        """Return log-likelihoods (n_images, n_orders, n_classes), with estimates for gaps."""
        ll = self.by_order
        unread = ll.isnan() & self.active[:, None]
        ll = torch.where(unread, ll.nanmean(1, keepdim=True), ll)
        for image, label, leader, gap in reversed(self.dropped):
            # the latest drop comes first, so the values of the leader are already complete
            estimate = ll[image, :, leader] - gap[:, None]
            read = ll[image, :, label]
            ll[image, :, label] = torch.where(read.isnan(), estimate, read)
        return ll


def at_leader(values: Tensor, leader: Tensor) -> Tensor:
    """Select the values of the leading class, (n, m, 1), from values (n, m, n_classes)."""
    return values.gather(2, leader[:, None, None].expand(-1, values.shape[1], 1))


def difference_sums(log_prob: Tensor, leader: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the differences (leader minus class) and their squares over the tokens (axis 1)."""
    difference = at_leader(log_prob, leader) - log_prob
    total = difference.sum(1, dtype=torch.float64)
    return total, difference.square_().sum(1, dtype=torch.float64)


def read_first_order(engine: Engine, codes: Tensor, order: Tensor, comparison: Comparison) -> None:
    """Score all images in one order, and compare the classes at the checkpoints of this order."""
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
    """Return how many images can be scored together within the memory limits."""
    images = KEPT_NUMBERS // (shape.numel() * n_classes)
    if isinstance(engine, Engine):
        lane_bytes = max(1, engine.cache_bytes(max(1, round(CHECKPOINTS[0] * engine.n_tokens))))
        images = min(images, cache_limit(engine) // (lane_bytes * n_classes))
    return max(1, images)

"""Bounded evidence: limit how much a single place of the image can say about the class.

The log-likelihood of an image is a sum over its tokens, and nothing limits the terms of this sum. A
single unusual token, such as a watermark, can therefore outweigh the rest of the image.

The *evidence* of a token for a class is log p(token | previous tokens, class) minus the logarithm
of the mean of this probability over the classes. The position of a token in the image is its
*place*. The evidence is averaged over the orders, which gives one value for each place and class.
Values beyond the bound are set to the bound. The sum over the places replaces the log-likelihood.

If the evidence of k places is replaced by any other values, the sum for a class changes by at most
``2 * k * bound``. The difference between two classes changes by at most ``4 * k * bound``. If
tokens are replaced, the evidence of the other places can also change, because they are read after
the replaced tokens in some orders.
"""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from skaocls.priors.transformer import Prior
from skaocls.scoring.early_stopping import MIN_LOG_PRIOR
from skaocls.scoring.exhaustive import ScoringResult, lanes_at_once, log_likelihoods
from skaocls.scoring.orders import Views

MIN_ORDERS, STEP = 4, 2  # early stopping compares the classes after 4, 6, 8, ... orders
IMPOSSIBLE = -1e9  # evidence of a token that is impossible under one class, instead of -inf


def token_evidence(log_likelihood: np.ndarray) -> Tensor:
    """Return the evidence of each token for each class, in nats.

    `log_likelihood` (..., n_classes) contains log p(token | previous tokens, class). The result
    is float64 and has the same shape. Tokens that are impossible under all classes have evidence 0.
    """
    ll = torch.from_numpy(log_likelihood).double()
    mean = ll.logsumexp(-1, keepdim=True) - np.log(ll.shape[-1])
    evidence: Tensor = (ll - mean).nan_to_num(nan=0.0, neginf=IMPOSSIBLE)
    return evidence


def mean_evidence(log_likelihood: np.ndarray) -> Tensor:
    """Return the evidence of each place, averaged over the orders: (n_images, n_tokens, n_classes).

    `log_likelihood` (n_images, n_orders, n_tokens, n_classes) is NaN in orders that early stopping
    did not score. These orders are ignored.
    """
    total = torch.zeros(log_likelihood[:, 0].shape, dtype=torch.float64)
    scored = torch.from_numpy(~np.isnan(log_likelihood[:, :, :1, :1]))
    for k in range(log_likelihood.shape[1]):
        total += token_evidence(log_likelihood[:, k]).where(scored[:, k], 0)
    return total / scored.sum(1)


def default_bound(n_tokens: int) -> float:
    """Return the bound in nats of ``aggregation="bounded"``: 0.71 for 16 tokens, 0.18 for 256.

    With more tokens, each token has less evidence, and a mark covers more tokens.
    """
    return float(np.sqrt(8 / n_tokens))  # benchmarks/quality/bounded.py


def bounded_evidence(log_likelihood: np.ndarray, bound: float) -> Tensor:
    """Return the sum over the places of the bounded evidence, with shape (n_images, n_classes)."""
    return mean_evidence(log_likelihood).clamp(-bound, bound).sum(1)


def score_bounded_until_decided(
    prior: Prior,
    codes: np.ndarray | Views,
    orders: np.ndarray,
    labels: np.ndarray,
    class_log_prior: np.ndarray,
    *,
    bound: float,
    error: float,
    dtype: torch.dtype = torch.float32,
) -> ScoringResult:
    """Score the orders of each image until the class with the most bounded evidence is decided.

    The arguments are documented in :func:`skaocls.scoring.early_stopping.score_until_decided`. All
    classes are scored in each order, because the evidence for a class depends on all classes. The
    log-likelihoods (n_images, n_orders, n_tokens, n_classes) are NaN in orders that are not scored.
    """
    (n_orders, n_tokens), n_classes = orders.shape, len(labels)
    log_prior = torch.from_numpy(np.maximum(class_log_prior, MIN_LOG_PRIOR))
    ll = np.full((len(codes), n_orders, n_tokens, n_classes), np.nan, dtype=np.float32)
    n_scored = np.zeros(len(codes), dtype=int)
    rows, start = np.arange(len(codes)), 0
    while len(rows):
        # tiles have a fixed size: if few images are left, score more orders at once
        n_new = max(MIN_ORDERS, lanes_at_once(prior) // len(rows) // STEP * STEP)
        new = orders[start : start + n_new]
        stop = start + len(new)
        if isinstance(codes, Views):
            tokens = codes.codes(rows, range(start, stop))
        else:
            tokens = codes[rows] if codes.ndim == 2 else codes[rows, start:stop]
        ll[rows, start:stop] = log_likelihoods(
            prior, tokens, new, labels, dtype=dtype, per_token=True
        )
        first, last = max(start + STEP, MIN_ORDERS), max(stop, MIN_ORDERS)
        for k in range(first, last + STEP, STEP):
            k = min(k, n_orders)
            decided = is_decided(ll[rows, :k], log_prior, bound, error, n_orders)
            ll[rows[decided], k:] = np.nan
            n_scored[rows[decided]] = k
            rows = rows[~decided]
        start = stop
    return ScoringResult(ll, n_scored * n_tokens * prior.readings(n_classes))


def is_decided(
    log_likelihood: np.ndarray, log_prior: Tensor, bound: float, error: float, n_orders: int
) -> np.ndarray:
    """Return for each image whether the scored orders decide the class.

    They decide it if the leading class leads each other class by more than Student's bound: the
    standard error of the lead times the ``1 - error`` quantile of Student's distribution. The
    orders that are scored are treated as a sample, drawn without replacement from `n_orders`
    orders. The bounded evidence is not a sum over the orders, so the standard error is computed by
    leaving out one order at a time (the jackknife; Efron, "The jackknife, the bootstrap and other
    resampling plans", 1982, chapter 3).
    """
    n_images, k = log_likelihood.shape[:2]
    if k == n_orders:
        return np.ones(n_images, dtype=bool)
    evidence = token_evidence(log_likelihood)
    total = evidence.sum(1, keepdim=True)
    joint = (total / k).clamp(-bound, bound).sum(2) + log_prior
    without_one = ((total - evidence) / (k - 1)).clamp(-bound, bound).sum(2)
    leader = joint.argmax(2, keepdim=True)
    lead = (joint.gather(2, leader) - joint)[:, 0]
    lead_without_one = without_one.gather(2, leader.expand(-1, k, -1)) - without_one
    deviation = lead_without_one - lead_without_one.mean(1, keepdim=True)
    variance = (k - 1) / k * deviation.square().sum(1) * (1 - k / n_orders)
    limit = stats.t.isf(error, k - 1) * variance.sqrt()
    others = torch.ones_like(lead, dtype=torch.bool).scatter_(1, leader[:, 0], False)
    decided: Tensor = ((lead > limit) | ~others).all(1)
    return decided.numpy()

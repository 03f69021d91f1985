"""Order marginalization: compute class posteriors from log p(tokens | class, order)."""

from numbers import Real

import numpy as np
import torch

from skaocls.scoring.bounded import bounded_evidence, default_bound

AGGREGATIONS = ("mean_log_likelihood", "mean_posterior", "logsumexp")
BOUNDED = "bounded"  # combines the log-likelihoods of single tokens, unlike the others


def evidence_bound(aggregation: str | float, n_tokens: int) -> float | None:
    """Return the bound of the evidence in nats, or None if `aggregation` has no bound."""
    if isinstance(aggregation, Real):
        return float(aggregation)
    return default_bound(n_tokens) if aggregation == BOUNDED else None


def joint_log_proba(
    log_likelihood: np.ndarray,
    class_log_prior: np.ndarray,
    aggregation: str | float,
    temperature: float = 1.0,
) -> np.ndarray:
    """Combine the log-likelihoods of all orders into log p(image, class).

    `log_likelihood` has shape (n_images, n_orders, n_classes). The result has shape (n_images,
    n_classes). The posterior is the softmax of the result over the classes. Log-likelihoods are
    divided by the temperature.

    ``"mean_log_likelihood"`` averages the log-likelihoods over the orders. This is the log of the
    geometric mean of the likelihoods. ``"logsumexp"`` averages the likelihoods over the orders, as
    if the order were a latent variable with a uniform prior. ``"mean_posterior"`` averages the
    posteriors of the individual orders. The result is the log of this average plus log p(image), as
    estimated by ``"logsumexp"``. Impossible tokens have a log-likelihood of -inf. If an order is
    impossible under every class, the posterior of this order is the class prior.

    With ``"bounded"`` or a number, the posterior follows from the bounded evidence, see
    :mod:`skaocls.scoring.bounded`, which is also divided by the temperature. The result is the
    logarithm of this posterior plus log p(image), as estimated by ``"mean_log_likelihood"``. In
    this case, `log_likelihood` has shape (n_images, n_orders, n_tokens, n_classes).
    """
    bound = evidence_bound(aggregation, log_likelihood.shape[2])
    if bound is not None:
        evidence = bounded_evidence(log_likelihood, bound).numpy()
        log_posterior = torch.from_numpy(evidence / temperature + class_log_prior).log_softmax(1)
        image = np.nanmean(log_likelihood.sum(2, dtype=np.float64), 1) / temperature
        return (
            log_posterior + torch.from_numpy(image + class_log_prior).logsumexp(1, True)
        ).numpy()
    per_order = torch.from_numpy(log_likelihood / temperature + class_log_prior)
    if aggregation == "mean_log_likelihood":
        return per_order.mean(1).numpy()
    log_n_orders = np.log(per_order.shape[1])
    marginal: torch.Tensor = per_order.logsumexp(1) - log_n_orders
    if aggregation == "logsumexp":
        return marginal.numpy()
    if aggregation == "mean_posterior":
        impossible = per_order.amax(2, keepdim=True) == -torch.inf
        per_order = torch.where(impossible, torch.from_numpy(class_log_prior), per_order)
        posterior: torch.Tensor = per_order.log_softmax(2).logsumexp(1) - log_n_orders
        return (posterior + marginal.logsumexp(1, keepdim=True)).numpy()
    raise ValueError(f"aggregation={aggregation!r} is unknown; pass one of {AGGREGATIONS}.")


def where_possible(joint: np.ndarray, class_log_prior: np.ndarray) -> np.ndarray:
    """If all classes of an image have zero likelihood, use the log class prior instead."""
    return np.where(joint.max(1, keepdims=True) == -np.inf, class_log_prior, joint)

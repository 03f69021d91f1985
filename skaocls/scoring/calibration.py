"""How sure to be: the temperature of the likelihoods."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from skaocls.scoring.aggregation import joint_log_proba

COLDEST, HOTTEST = 1e-2, 1e3


def fit_temperature(
    log_likelihood: np.ndarray,
    labels: Any,
    class_log_prior: np.ndarray,
    aggregation: str,
    sample_weight: Any = None,
) -> float:
    """Temperature under which held-out labels are most probable.

    Sums of log-likelihoods over many tokens claim more certainty than the tokens, which say the
    same thing several times, can give. Divided by a temperature they claim less.

    Parameters
    ----------
    log_likelihood : array of shape (n_images, n_orders, n_classes)
        Of images that were not trained on.
    labels : int array of shape (n_images,)
        Their classes.
    class_log_prior : array of shape (n_classes,)
        log p(class), which is not divided. Classes of probability 0 are left out, with their
        images, and so are images that are impossible under their class.
    aggregation : str
        See :func:`skaocls.scoring.aggregation.joint_log_proba`.
    sample_weight : array of shape (n_images,), default=None
        How many images each one counts for.

    Returns
    -------
    temperature : float
        Between 0.01 and 1000.

    Notes
    -----
    Where all of n labels are the most probable ones, no temperature would be too cold. As in
    Platt's scaling, one image in n + 2 is counted as if it were of the next best class.

    References
    ----------
    Guo et al., "On calibration of modern neural networks", arXiv 1706.04599, section 4.2; Platt,
    "Probabilistic outputs for support vector machines", 1999, section 2.2.

    Examples
    --------
    Two thirds of the claims of 100 to 1 are right, which is 2 to 1:

    >>> import numpy as np
    >>> from skaocls.scoring.calibration import fit_temperature
    >>> claims = np.log([[[100.0, 1.0]]] * 3000)
    >>> labels = [0, 0, 1] * 1000
    >>> t = fit_temperature(claims, labels, np.log([0.5, 0.5]), "mean_log_likelihood")
    >>> round(100 ** (1 / t), 2)
    2.0
    """
    weights = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight)
    possible = np.isfinite(class_log_prior)  # of others no temperature makes anything
    kept = possible[labels]
    log_likelihood, weights = log_likelihood[kept][:, :, possible], weights[kept]
    labels = (np.cumsum(possible) - 1)[labels][kept]
    class_log_prior = class_log_prior[possible]
    own = joint_log_proba(log_likelihood, class_log_prior, aggregation)[
        np.arange(len(labels)), labels
    ]
    kept = np.isfinite(own)
    log_likelihood, weights, labels = log_likelihood[kept], weights[kept], labels[kept]
    if not len(labels) or len(class_log_prior) == 1:
        return 1.0
    n, rows = weights.sum(), np.arange(len(labels))

    def loss(log_temperature: float) -> Any:
        tempered = log_likelihood / np.exp(log_temperature)
        joint = torch.from_numpy(joint_log_proba(tempered, class_log_prior, aggregation))
        log_proba = joint.log_softmax(1).numpy()
        own = log_proba[rows, labels].copy()
        log_proba[rows, labels] = -np.inf
        next_best = log_proba.max(1)
        next_best[next_best == -np.inf] = 0  # at any temperature
        return -weights @ ((n + 1) * own + next_best)

    bounds = np.log([COLDEST, HOTTEST])
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def expected_calibration_error(proba: Any, labels: Any, n_bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins of equal width, weighted by their size.

    Parameters
    ----------
    proba : array of shape (n_samples, n_classes)
        Class probabilities.
    labels : int array of shape (n_samples,)
        Column of the true class.
    n_bins : int, default=15

    Returns
    -------
    ece : float
        From 0, calibrated, to 1.

    References
    ----------
    Guo et al., arXiv 1706.04599, equation 3.

    Examples
    --------
    >>> from skaocls.scoring.calibration import expected_calibration_error
    >>> proba = [[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]]
    >>> round(expected_calibration_error(proba, [0, 0, 0, 1]), 3)  # 1.0 at 0.8, 0.5 at 0.6
    0.15
    """
    proba, labels = np.asarray(proba), np.asarray(labels)
    confidence, right = proba.max(1), proba.argmax(1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, confidence - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(labels))

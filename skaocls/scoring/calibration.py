"""Calibration: fit the temperature of the likelihoods, and measure the calibration error.

The log-likelihood of an image is a sum over many tokens that carry redundant information. The
posteriors are therefore overconfident. Dividing the log-likelihoods by a temperature makes the
posteriors less confident (Guo et al., "On calibration of modern neural networks", arXiv 1706.04599,
section 4.2). If the classifier predicted all n labels correctly, the best temperature would be
zero. To prevent this, each image has two labels: the true class with weight (n + 1) / (n + 2), and
the runner-up class with weight 1 / (n + 2). Platt scaling uses the same weights (Platt,
"Probabilistic outputs for support vector machines", 1999, section 2.2).
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from skaocls.scoring.aggregation import joint_log_proba

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-2, 1e3  # bounds of the temperature


def fit_temperature(
    log_likelihood: np.ndarray,
    labels: ArrayLike,
    class_log_prior: np.ndarray,
    aggregation: str,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Find the temperature that maximizes the predicted probability of held-out labels.

    `log_likelihood`, `class_log_prior` and `aggregation` are passed to
    :func:`skaocls.scoring.aggregation.joint_log_proba`. For each image, `labels` contains the
    column index of the true class. The class prior is not divided by the temperature. Images with
    zero likelihood under their true class are ignored. The temperature is 1 if no images are left,
    or if only one class has a positive prior probability.
    """
    columns = np.asarray(labels)
    weights = np.ones(len(columns)) if sample_weight is None else np.asarray(sample_weight)
    joint = joint_log_proba(log_likelihood, class_log_prior, aggregation)
    kept = np.isfinite(joint[np.arange(len(columns)), columns])
    log_likelihood, weights, columns = log_likelihood[kept], weights[kept], columns[kept]
    if not len(columns) or np.isfinite(class_log_prior).sum() == 1:
        return 1.0
    n, rows = weights.sum(), np.arange(len(columns))

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        joint = joint_log_proba(log_likelihood, class_log_prior, aggregation, temperature)
        log_proba = torch.from_numpy(joint).log_softmax(1).numpy()
        own = log_proba[rows, columns].copy()
        log_proba[rows, columns] = -np.inf
        runner_up = log_proba.max(1)
        runner_up[runner_up == -np.inf] = 0  # the runner-up is impossible at any temperature
        return float(-weights @ ((n + 1) * own + runner_up))

    bounds = np.log([MIN_TEMPERATURE, MAX_TEMPERATURE])
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def expected_calibration_error(proba: ArrayLike, labels: ArrayLike, n_bins: int = 15) -> float:
    """Compute the expected calibration error (ECE) of class probabilities.

    Images are grouped into bins by confidence. The error of a bin is the absolute difference
    between the mean confidence and the accuracy. The ECE is the mean error over all images.

    Parameters
    ----------
    proba : array of shape (n_samples, n_classes)
        Class probabilities.
    labels : int array of shape (n_samples,)
        For each image, the column index of the true class in `proba`.
    n_bins : int, default=15
        Number of confidence bins. All bins have the same width.

    Returns
    -------
    ece : float
        Expected calibration error, from 0 (perfectly calibrated) to 1.

    References
    ----------
    Guo et al., arXiv 1706.04599, equation 3.

    Examples
    --------
    >>> from skaocls.scoring.calibration import expected_calibration_error
    >>> proba = [[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]]
    >>> round(expected_calibration_error(proba, [0, 0, 0, 1]), 3)  # accuracies: 1.0, 0.5
    0.15
    """
    proba, labels = np.asarray(proba), np.asarray(labels)
    confidence, correct = proba.max(1), proba.argmax(1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, confidence - correct, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(labels))

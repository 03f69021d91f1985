"""Validation of labels, sample weights and class priors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

from skaocls.images.batch import Batch

ClassWeight = Mapping[Any, float] | str | None


def read_labels(
    batch: Batch,
    y: Any,
    sample_weight: ArrayLike | None = None,
    class_weight: ClassWeight = None,
    *,
    owner: str,
) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Validate labels and weights, and merge equal samples into one sample.

    The weight of a merged sample is the sum of the weights of the equal samples. If any samples are
    equal or weights differ, the function also sorts the samples by their content. A sample of
    weight n therefore gives the same training result as n equal samples. Items of data sets are not
    merged, because the function would have to read all items. `batch` may have skipped unreadable
    images. `y` and `sample_weight` must contain entries for these images, too.
    """
    y = check_labels(y, owner)
    all_rows = np.empty((len(batch) + len(batch.skipped), 1))
    check_consistent_length(all_rows, y)
    weights = np.ones(len(y))
    if sample_weight is not None:
        weights = _check_sample_weight(sample_weight, all_rows, ensure_non_negative=True, copy=True)
        if not weights.any():  # scikit-learn before 1.8 accepts this
            raise ValueError("Sample weights must contain at least one non-zero number.")
    if batch.skipped:
        y, weights = y[batch.index], weights[batch.index]
    if class_weight is not None:
        weights *= expand_class_weight(class_weight, y, weights)
    if not weights.all():
        nonzero = weights > 0
        batch, y, weights = batch.take(nonzero), y[nonzero], weights[nonzero]
    if not batch.mergeable:
        return batch, y, weights
    labels = np.unique(y, return_inverse=True)[1]
    samples = np.char.add(batch.row_hashes(), labels.astype(str))
    _, first, which = np.unique(samples, return_index=True, return_inverse=True)
    if len(first) == len(y) and (weights == weights[0]).all():
        return batch, y, weights
    return batch.take(first), y[first], np.bincount(which, weights)


def check_labels(y: Any, owner: str) -> np.ndarray:
    if y is None:
        raise ValueError(f"{owner} requires y to be passed, but the target y is None.")
    labels: np.ndarray = column_or_1d(y, warn=True)
    assert_all_finite(labels, input_name="y")
    if labels.dtype.kind in "mM" and np.isnat(labels).any():
        raise ValueError("Input y contains NaT.")
    check_classification_targets(labels)
    return labels


def check_targets(
    classes: np.ndarray, n: int, y: Any, sample_weight: ArrayLike | None = None
) -> None:
    """Raise the error that the accuracy of n predictions would raise for true labels y."""
    accuracy_score(y, np.repeat(classes[:1], n), sample_weight=sample_weight)


def expand_class_weight(
    class_weight: ClassWeight, y: np.ndarray, sample_weight: np.ndarray
) -> np.ndarray:
    """Return the class weight of each sample. For "balanced", class counts are sums of weights."""
    classes, columns = np.unique(y, return_inverse=True)
    if isinstance(class_weight, Mapping):
        weights = compute_class_weight(class_weight, classes=classes, y=y)
        if not (weights >= 0).all():
            raise ValueError(f"class_weight={class_weight!r} must not be negative.")
        if not weights.any():
            raise ValueError(f"class_weight={class_weight!r} is zero for all classes in y.")
    else:
        counts = np.bincount(columns, sample_weight)
        n_classes = np.count_nonzero(counts)
        weights = sample_weight.sum() / (n_classes * np.where(counts, counts, np.inf))
    return np.asarray(weights[columns])


def known_classes(y: np.ndarray, classes: ArrayLike | None = None) -> np.ndarray:
    """Return the sorted classes. If given, `classes` must include all labels in y."""
    labels = np.unique(y)
    if classes is None:
        return labels
    classes = np.unique(column_or_1d(classes))
    if not np.isin(labels, classes).all():
        raise ValueError(
            f"y has labels that are not in classes={classes}: {np.setdiff1d(labels, classes)}."
        )
    return classes


def class_log_prior(class_prior: ArrayLike | None, class_count: np.ndarray) -> np.ndarray:
    """Return the logarithm of `class_prior`. If None, use the class frequencies as prior."""
    if class_prior is None:
        class_prior = class_count / class_count.sum()
    class_prior = np.asarray(class_prior, dtype=np.float64)
    if class_prior.shape != class_count.shape:
        raise ValueError(
            f"class_prior must contain one probability for each class, but it has shape "
            f"{class_prior.shape} for {class_count.size} classes."
        )
    if not np.isclose(class_prior.sum(), 1.0):
        raise ValueError(f"class_prior must sum to 1, but its sum is {class_prior.sum()}.")
    if (class_prior < 0).any():
        raise ValueError("class_prior must not be negative.")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(class_prior))

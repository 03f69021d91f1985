"""Labels and weights of the training data, and class probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import (
    _safe_indexing,
    assert_all_finite,
    check_consistent_length,
    column_or_1d,
)
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

from skaocls.images.advice import gathered
from skaocls.images.lazy import Lazy
from skaocls.images.reader import find_unreadable


def read_labels(
    batch: Any, y: Any, sample_weight: Any = None, class_weight: Any = None, *, owner: str
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Check labels and weights; repeated samples become one that weighs as much.

    A sample of weight n is the same as n samples, so both are brought into one form: where samples
    repeat or weights differ, each distinct sample comes once, in an order that does not depend on
    the order in `batch`. Items of data sets, of which each would have to be read for that, are left
    as they are. `class_weight` is as in scikit-learn: None, "balanced" or a dict, of which
    weights are multiplied by those of `sample_weight`.

    Returns
    -------
    batch, y : the distinct samples and their labels
    sample_weight : float64 array of shape (n_distinct,)
    """
    if y is None:
        raise ValueError(f"{owner} requires y to be passed, but the target y is None.")
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    if y.dtype.kind in "mM" and np.isnat(y).any():
        raise ValueError("Input y contains NaT.")
    check_classification_targets(y)
    check_consistent_length(batch, y)
    weights = np.ones(len(y))
    if sample_weight is not None:
        weights = _check_sample_weight(
            sample_weight, np.empty((len(y), 1)), ensure_non_negative=True, copy=True
        )
        if not weights.any():  # scikit-learn itself says so since 1.8
            raise ValueError("Sample weights must contain at least one non-zero number.")
    if class_weight is not None:
        weights *= weights_of_classes(class_weight, y, weights)
    if not weights.all():
        kept = weights > 0
        batch, y, weights = batch.take(kept), y[kept], weights[kept]
    if isinstance(batch.data, Lazy) and not batch.data.merged:
        return batch, y, weights
    labels = np.unique(y, return_inverse=True)[1]
    samples = np.char.add(batch.row_hashes(), labels.astype(str))
    _, first, which = np.unique(samples, return_index=True, return_inverse=True)
    if len(first) == len(y) and (weights == weights[0]).all():
        return batch, y, weights
    return batch.take(first), y[first], np.bincount(which, weights)


def weights_of_classes(class_weight: Any, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weight of each sample's class; "balanced" counts a sample as often as it weighs."""
    names, rows = np.unique(y, return_inverse=True)
    if isinstance(class_weight, dict):
        of_class = compute_class_weight(class_weight, classes=names, y=y)
        if not (of_class >= 0).all():
            raise ValueError(f"class_weight={class_weight!r} must not be negative.")
        if not of_class.any():
            raise ValueError(f"class_weight={class_weight!r} leaves no class in y.")
    else:
        counts = np.bincount(rows, weights)
        of_class = weights.sum() / (np.count_nonzero(counts) * np.where(counts, counts, np.inf))
    found: np.ndarray = of_class[rows]
    return found


def known_classes(y: np.ndarray, classes: Sequence[Any] | np.ndarray | None = None) -> np.ndarray:
    """The labels in y, sorted; or `classes`, which must hold them all."""
    found = np.unique(y)
    if classes is None:
        return found
    classes = np.unique(column_or_1d(classes))
    if not np.isin(found, classes).all():
        raise ValueError(
            f"y has labels that classes={classes} does not have: {np.setdiff1d(found, classes)}."
        )
    return classes


def class_log_prior(class_prior: Any, class_count: np.ndarray) -> np.ndarray:
    """Return the log of the class prior, or of the class frequencies if it is None.

    Raises
    ------
    ValueError
        If the class prior is not a probability for each class.
    """
    if class_prior is None:
        class_prior = class_count / class_count.sum()
    class_prior = np.asarray(class_prior, dtype=np.float64)
    if class_prior.shape != class_count.shape:
        raise ValueError(
            f"class_prior must contain one probability for each class: it has shape "
            f"{class_prior.shape}, but there are {class_count.size} classes."
        )
    if not np.isclose(class_prior.sum(), 1.0):
        raise ValueError(f"class_prior must sum to 1, but its sum is {class_prior.sum()}.")
    if (class_prior < 0).any():
        raise ValueError("class_prior must not be negative.")
    with np.errstate(divide="ignore"):
        log_prior: np.ndarray = np.log(class_prior)
    return log_prior


def drop_unreadable(
    X: Any, y: Any, sample_weight: Any, decoding: str
) -> tuple[Any, Any, Any, dict[int, str]]:
    """Return X, y and weights without the images that cannot be read, and the reasons by index.

    Raises
    ------
    ValueError
        If none of the images can be read.
    """
    X = gathered(X)
    reasons = find_unreadable(X, decoding)
    if not reasons:
        return X, y, sample_weight, reasons
    bad = list(reasons)
    if np.ndim(sample_weight) == 0:  # None, or one weight for all
        check_consistent_length(X, y)
    else:
        check_consistent_length(X, y, sample_weight)
        sample_weight = np.delete(np.asarray(sample_weight), bad)
    kept = np.delete(np.arange(len(X)), bad)
    if not len(kept):
        raise ValueError(f"None of the {len(bad)} images can be read. {reasons[bad[0]]}")
    return _safe_indexing(X, kept), np.asarray(y)[kept], sample_weight, reasons

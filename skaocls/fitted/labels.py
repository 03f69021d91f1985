"""Validation of labels, sample weights and class priors."""

from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight

from skaocls.images.batch import Batch
from skaocls.images.input_types import as_array
from skaocls.images.lazy import Items, Lazy

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
    if y is None:
        hint = ""
        if isinstance(batch.data, Items):
            hint = " If X contains labels, pass them as y: [label for _, label in X]."
        raise ValueError(f"{owner} requires y to be passed, but the target y is None.{hint}")
    y = label_array(y)
    check_classification_targets(y)
    all_rows = np.empty((len(batch) + len(batch.skipped), 1))
    check_consistent_length(all_rows, y)
    compare_own_labels(batch, y)
    weights = np.ones(len(y))
    if sample_weight is not None:
        sample_weight = as_array(sample_weight, "sample_weight")
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


def label_array(y: Any, name: str = "y") -> np.ndarray:
    """Return labels as a 1-D array; numbers in an object array become an array of numbers."""
    # `column_or_1d` converts integers of pandas' nullable types to floats, which may round them
    y = y.to_numpy() if hasattr(y, "to_numpy") else as_array(y, name)
    labels: np.ndarray = column_or_1d(y, warn=True)
    if labels.dtype == object:
        numbers = [isinstance(x, (Real, np.bool_)) for x in labels]
        for label, is_number in zip(labels, numbers, strict=True):
            if not (is_number or isinstance(label, str)):
                raise ValueError(
                    f"Unknown label type: {name} contains {label!r}. Labels must be numbers or "
                    "strings."
                )
        labels = np.array(labels.tolist()) if all(numbers) else labels
    assert_all_finite(labels, input_name=name)
    if labels.dtype.kind in "mM" and np.isnat(labels).any():
        raise ValueError(f"Input {name} contains NaT.")
    return labels


def compare_own_labels(batch: Batch, y: np.ndarray) -> None:
    """Raise an error if X is a data set with labels of its own that differ from y.

    A data set of pairs is only checked in part. The other labels are checked when `batch` loads
    them.
    """
    if isinstance(batch.data, Lazy):
        batch.data.compare_labels(partial(check_own_labels, y, {}))


def check_own_labels(
    y: np.ndarray, renamed: dict[Any, Any], rows: np.ndarray, own: Sequence[Any]
) -> None:
    """Raise an error if labels of the rows of a data set differ from y.

    If y contains strings and the data set contains numbers, or the reverse, all images with the
    same label in the data set must have the same label in y. These pairs are stored in `renamed`.
    """
    advice = (
        "Pass the labels of X as y. If y is right, pass a data set whose items are images without "
        "labels."
    )
    values: list[Any] = [x if isinstance(x, (str, Real)) else as_array(x) for x in own]
    values = [x.item() if getattr(x, "shape", None) == () else x for x in values]
    pairs = [(i, x) for i, x in zip(rows.tolist(), values) if isinstance(x, (str, Real))]
    if not pairs:
        return
    same_kind = kind_of(np.array([x for _, x in pairs])) == kind_of(y)
    for (i, label), given in zip(pairs, y[[i for i, _ in pairs]].tolist(), strict=True):
        expected = label if same_kind else renamed.setdefault(label, given)
        if given != expected:
            other = "" if same_kind else f", but elsewhere {expected!r}"
            raise ValueError(
                f"y differs from the labels in X: where X has the label {label!r}, at index {i}, y "
                f"has {given!r}{other}. {advice}"
            )


# Comparison of labels of different types ---------------------------------------------------------


def kind_of(labels: np.ndarray) -> str:
    """Return the kind of labels. Only labels of the same kind can be equal."""
    kind = labels.dtype.kind
    return "number" if kind in "biuf" else "string" if kind in "OU" else kind


def class_columns(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the index in `classes` of each label, or -1 if the label is not in `classes`.

    Labels are compared by value, so the types may differ: 1, 1.0 and True are equal, and so are
    strings in arrays of type object and str.
    """
    if kind_of(classes) != kind_of(labels):
        return np.full(len(labels), -1)
    if classes.dtype.kind in "mM":  # the units may differ
        dtype = np.result_type(classes, labels)
        classes, labels = classes.astype(dtype), labels.astype(dtype)
    index = {label: column for column, label in enumerate(classes.tolist())}
    return np.array([index.get(label, -1) for label in labels.tolist()], dtype=int)


def merge_classes(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the sorted union of classes and labels, which are compared by value.

    The union has the dtype of `classes` if this dtype can represent all labels. Otherwise the dtype
    is a larger dtype of the same kind. No label is rounded.
    """
    added = np.unique(labels[class_columns(classes, labels) < 0])
    if not len(added):
        return classes
    if kind_of(classes) == kind_of(labels):
        if classes.dtype.kind in "mM":
            return np.union1d(classes, added)
        if added.dtype == object:
            added = np.array(added.tolist())
        kinds = "iu" if classes.dtype.kind in "iu" else classes.dtype.kind
        values = classes.tolist() + added.tolist()
        for dtype in (classes.dtype, np.result_type(classes, added), np.dtype(np.int64)):
            merged = exact_array(values, dtype)
            if merged is not None and (dtype == classes.dtype or dtype.kind in kinds):
                return np.sort(merged)
    raise ValueError(
        f"y has labels of type {labels.dtype}, but the classes of the classifier have type "
        f"{classes.dtype}. Pass labels of the same type."
    )


def exact_array(values: list[Any], dtype: np.dtype) -> np.ndarray | None:
    """Return an array of the given dtype, or None if the dtype cannot represent a value."""
    try:
        with np.errstate(invalid="ignore"):
            array = np.array(values).astype(dtype)
    except (OverflowError, ValueError):
        return None
    return array if array.tolist() == values else None


def expand_class_weight(
    class_weight: ClassWeight, y: np.ndarray, sample_weight: np.ndarray
) -> np.ndarray:
    """Return the class weight of each sample. For "balanced", class counts are sums of weights."""
    classes, columns = np.unique(y, return_inverse=True)
    if isinstance(class_weight, Mapping):
        plain = [x.tolist() if isinstance(x, np.generic) else x for x in class_weight]
        given = dict(zip(plain, class_weight.values(), strict=True))
        labels = classes.tolist()
        missing = [label for label in labels if label not in given]
        if missing and len(given) > len(labels) - len(missing):
            raise ValueError(f"The classes {missing} are not in class_weight={class_weight!r}.")
        weights = np.array([given.get(label, 1.0) for label in labels])
        if not (weights >= 0).all():
            raise ValueError(f"class_weight={class_weight!r} must not be negative.")
        if not weights.any():
            raise ValueError(f"class_weight={class_weight!r} is zero for all classes in y.")
    else:
        counts = np.bincount(columns, sample_weight)
        n_classes = np.count_nonzero(counts)
        weights = sample_weight.sum() / (n_classes * np.where(counts, counts, np.inf))
    return np.asarray(weights[columns])


def known_classes(y: np.ndarray, classes: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted classes, and y as an array of the same dtype.

    If `classes` is given, it must include all labels in y.
    """
    if classes is None:
        return np.unique(y), y
    known = np.unique(label_array(classes, "classes"))
    columns = class_columns(known, y)
    if (columns < 0).any():
        missing = np.unique(y[columns < 0])
        raise ValueError(f"y has labels that are not in classes={known}: {missing}.")
    return known, known[columns]


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

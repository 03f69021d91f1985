"""How estimators read X: tables by scikit-learn's rules, images by ours."""

import os
from hashlib import blake2b

import numpy as np
from PIL import Image
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_feature_names, _check_sample_weight, validate_data

from skaocls.images import as_batch, check_image_shape, holds_images, image_shape_of, load_images


def read_data(estimator, X, *, reset, signals=False, image_shape=None):
    """Check X against what `fit` saw or, with `reset`, learn what it looks like.

    Rows of numbers are tabular data; images if `image_shape` (default: the estimator's) says so,
    or, with `signals`, images one pixel high. Sets `declared_shape_` (that `image_shape`),
    `image_shape_` (None for tabular data), `n_features_in_` and, for data frames,
    `feature_names_in_`. Returns something to slice; images are decoded later, by
    :func:`read_images`.
    """
    if reset:
        shape = estimator.image_shape if image_shape is None else image_shape
        estimator.declared_shape_ = check_image_shape(shape)
    declared = estimator.declared_shape_
    batch = as_batch(X)
    images = holds_images(batch)
    if not reset:
        if images and estimator.image_shape_ is None:
            raise ValueError(
                f"X holds images, but {type(estimator).__name__} was fitted on tabular data of "
                f"{estimator.n_features_in_} features."
            )
        if not images and estimator.image_shape_ is not None and not (declared or signals):
            raise ValueError(
                f"X holds no images, but {type(estimator).__name__} was fitted on images of shape "
                f"{estimator.image_shape_}. Pass images, or image_shape to read flat rows."
            )
    if not images:
        as_images = declared or signals
        dtype = "numeric" if as_images else [np.float64, np.float32]
        X = validate_data(estimator, X, reset=reset, dtype=dtype)
        if reset:
            row = declared or (1, X.shape[1])
            estimator.image_shape_ = image_shape_of(X, row) if as_images else None
        return X
    if not len(batch):
        check_array(batch, allow_nd=True, ensure_all_finite=False)  # says so
    if reset:
        estimator.image_shape_ = image_shape_of(batch, declared)
        table = getattr(X, "ndim", None) == 2 or hasattr(X, "columns")
        estimator.n_features_in_ = 1 if table else int(np.prod(estimator.image_shape_))
    if hasattr(X, "columns"):
        _check_feature_names(estimator, X, reset=reset)
    return batch


def read_images(estimator, X, part=slice(None)):
    """Decode the images X[part] as `fit` learned: float32 (n, height, width, channels)."""
    start = (part.start or 0) if isinstance(part, slice) else 0
    resize = estimator.declared_shape_ is not None
    return load_images(X[part], estimator.image_shape_, resize=resize, start=start)


def read_labels(estimator, X, y, sample_weight=None):
    """Check labels and weights; repeated samples become one that weighs as much.

    A sample of weight n is the same as n samples, so both are brought into one form: where samples
    repeat or weights differ, each distinct sample comes once, in an order that does not depend on
    the order in X.

    Returns
    -------
    X, y : the distinct samples and their labels
    sample_weight : float64 array of shape (n_distinct,)
    """
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None."
        )
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    check_consistent_length(X, y)
    weights = np.ones(len(y))
    if sample_weight is not None:
        weights = _check_sample_weight(
            sample_weight, np.empty((len(y), 1)), ensure_non_negative=True, copy=True
        )
        if not weights.any():  # scikit-learn itself says so since 1.8
            raise ValueError("Sample weights must contain at least one non-zero number.")
        kept = weights > 0
        X, y, weights = X[kept], y[kept], weights[kept]
    names, labels = np.unique(y, return_inverse=True)
    keys = [digest_of(x, names[label]) for x, label in zip(X, labels)]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(y) and (weights == weights[0]).all():
        return X, y, weights
    return X[first], y[first], np.bincount(which, weights)


def digest_of(x, label):
    """Hash of one sample: numbers by value, files by name."""
    if isinstance(x, (str, os.PathLike)):
        data = os.fsencode(x)
    elif isinstance(x, Image.Image):
        data = f"{x.mode} {x.size} {sorted(x.getexif().items())}".encode() + x.tobytes()
    else:
        x = np.ascontiguousarray(x.detach().cpu() if hasattr(x, "detach") else x)
        data = f"{x.dtype} {x.shape}".encode() + x.tobytes()
    return blake2b(data + repr(label).encode(), digest_size=16).hexdigest()


def known_classes(y, classes=None):
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


def class_log_prior(priors, class_count):
    """Log of the given class probabilities, or else of the frequencies."""
    if priors is None:
        priors = class_count / class_count.sum()
    priors = np.asarray(priors, dtype=np.float64)
    if priors.shape != class_count.shape:
        raise ValueError(
            f"Number of priors must match number of classes: got {priors.size}, "
            f"expected {class_count.size}."
        )
    if not np.isclose(priors.sum(), 1.0):
        raise ValueError(f"The sum of the priors should be 1, got {priors.sum()}.")
    if (priors < 0).any():
        raise ValueError("Priors must be non-negative.")
    with np.errstate(divide="ignore"):
        return np.log(priors)

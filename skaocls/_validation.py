"""How estimators read X: tables by scikit-learn's rules, images by ours."""

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import _check_feature_names, validate_data

from skaocls.images import as_batch, check_image_shape, holds_images, image_shape_of, load_images


def read_data(estimator, X, *, reset, signals=False):
    """Check X against what `fit` saw or, with `reset`, learn what it looks like.

    Rows of numbers are tabular data; images if the estimator's `image_shape` says so, or, with
    `signals`, images one pixel high. Sets `image_shape_` (None for tabular data),
    `n_features_in_` and, for data frames, `feature_names_in_`. Returns something to slice; images
    are decoded later, by :func:`read_images`.
    """
    declared = check_image_shape(estimator.image_shape)
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
    resize = estimator.image_shape is not None
    return load_images(X[part], estimator.image_shape_, resize=resize, start=start)

"""Validation of X: `fit` records properties of the training data, which later data must match."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import _check_feature_names, _get_feature_names

from skaocls.images.batch import Batch
from skaocls.images.decoding import BadImage, check_file_channels, full_scale, unreadable_items
from skaocls.images.input_types import (
    as_array,
    contains_images,
    convert_input,
    is_image_file,
    is_items,
    keep_mapped,
)
from skaocls.images.lazy import ArrayOrLazy, Lazy, Mapped
from skaocls.images.shapes import check_image_shape, infer_image_shape, shorten
from skaocls.warn import warn

# Images are rejected if a value lies outside the range of the training data by more than MAX_EXCESS
# times the width of this range. For example, images in [0, 255] are rejected after a fit in [0, 1].
MAX_EXCESS = 8
STRINGS = (
    "Columns of X that contain strings: {}. Convert strings to numbers, for example with "
    "make_column_transformer((OrdinalEncoder(), columns), remainder='passthrough')."
)


@dataclass(frozen=True, eq=False)
class Reader:
    """Properties of the data seen in `fit`, used to validate and decode later data."""

    owner: str  # class name of the estimator, for error messages
    declared_shape: tuple[int, ...] | None  # the user's image_shape, to which files are resized
    image_shape: tuple[int, ...] | None  # height, width, channels; None for tables and tokens
    n_features: int  # columns of a table, or values in one image
    feature_names: np.ndarray | None = None  # column names of a data frame, if all are strings
    signals: bool = False  # whether rows of a 2-D X are images one pixel high, not table rows
    value_range: tuple[float, float] | None = None  # of the training data, after scaling
    decoding: str = "as_seen"  # or "plain", see skaocls.images.to_pixels
    grid: tuple[int, int] | None = None  # rows and columns of tokens; None for images and tables

    def open(
        self,
        X: object,
        *,
        check_scale: bool = True,
        skip_unreadable: bool = False,
        allow_nan: bool = False,
    ) -> Batch:
        """Check that X matches the training data, without decoding images.

        If `check_scale`, images with values far outside the training range are rejected. If
        `skip_unreadable`, unreadable images are left out and listed in `Batch.skipped`. If
        `allow_nan`, tables may contain NaN. If X is already a batch of this reader, the result is
        X.
        """
        if isinstance(X, Batch) and X.reader is self:
            return X
        if self.grid is not None:
            return Batch(self, check_tokens(X, self.grid))
        data = convert_input(X, self.image_shape, flat_rows=self.reads_rows)
        images = contains_images(data)
        if images and self.image_shape is None:
            raise ValueError(
                f"X contains images, but {self.owner} was fitted on tabular data of "
                f"{self.n_features} features."
            )
        if not images and self.image_shape is not None and not self.reads_rows:
            raise ValueError(
                f"X does not contain images, but {self.owner} was fitted on images of shape "
                f"{self.image_shape}. Pass images. If the rows of X are flattened images, pass "
                "image_shape to fit."
            )
        skipped: dict[int, str] = {}
        if images:
            check_not_empty(data)
            if hasattr(X, "columns"):
                self._check_feature_names(X)
            assert self.image_shape is not None
            if is_items(data) and not all(hasattr(as_array(x), "dtype") for x in data):
                check_file_channels(self.image_shape[2])
            if skip_unreadable:
                data, skipped = drop_unreadable(data, self.decoding)
        else:
            self._check_feature_names(X)
            data = check_table(data, self.owner, numeric=self.reads_rows, allow_nan=allow_nan)
            if data.shape[1] != self.n_features:
                raise ValueError(
                    f"X has {data.shape[1]} features, but {self.owner} is expecting "
                    f"{self.n_features} features as input."
                )
        if check_scale and self.value_range is not None:
            self._check_range(value_range(data), has_full_scale(data))
        return Batch(self, data, skipped)

    def check_agreement(self, other: "Reader") -> None:
        """Raise a ValueError if the images of the other reader have another shape or scale."""
        if other.image_shape != self.image_shape:
            raise ValueError(
                f"X has images of shape {other.image_shape}, but {self.owner} expects images of "
                f"shape {self.image_shape}."
            )
        if self.value_range is not None and other.value_range is not None:
            self._check_range(other.value_range, has_scale=False)

    @property
    def tabular(self) -> bool:
        """Whether X is a table rather than images or tokens."""
        return self.image_shape is None and self.grid is None

    @property
    def reads_rows(self) -> bool:
        """Whether each row of a 2-D X is an image."""
        return self.declared_shape is not None or self.signals

    def _check_feature_names(self, X: object) -> None:
        """Raise scikit-learn's error if the column names of X differ from the names in `fit`."""
        fitted = type(self.owner, (), {"feature_names_in_": self.feature_names})
        _check_feature_names(fitted(), X, reset=False)

    def _check_range(self, numbers: tuple[float, float], has_scale: bool) -> None:
        """Reject images if their scale differs from the scale of the training images.

        A warning is issued if values are only slightly outside the training range, or if the
        contrast is very low. `has_scale` is True if the scale of X is known, as for files, 8-bit
        arrays and 16-bit arrays.
        """
        assert self.value_range is not None
        (low, high), (smallest, largest) = self.value_range, numbers
        width = high - low
        if not (width > 0 and np.isfinite([smallest, largest]).all()):
            return
        message = (
            f"X has numbers from {smallest:.3g} to {largest:.3g}, but {self.owner} was fitted on "
            f"numbers from {low:.3g} to {high:.3g} (after 8-bit values are divided by 255 and "
            "16-bit values by 65535). Pass images of the same type and scale as in fit."
        )
        if has_scale:
            wrong_scale = high > 1 + width / MAX_EXCESS or low < -width / MAX_EXCESS
        else:
            excess = MAX_EXCESS * width
            wrong_scale = largest > high + excess or smallest < low - excess
        if wrong_scale:
            raise ValueError(message)
        outside = largest > high + width / 2 or smallest < low - width / 2
        faint = 0 < largest - smallest < width / MAX_EXCESS
        if not self.signals and (outside or faint):
            warn(message)


def learn_reader(
    X: object,
    owner: str,
    image_shape: Any = None,
    *,
    signals: bool = False,
    decoding: str = "as_seen",
    skip_unreadable: bool = False,
) -> Batch:
    """Validate the training data, and create the reader that validates later data.

    `image_shape` is the size to which files are resized, or the shape of the flattened images in a
    2-D X. If `image_shape` is None, the rows of a 2-D X are images one pixel high if `signals`, and
    table rows otherwise. :meth:`Reader.open` explains `skip_unreadable`.
    """
    declared = check_image_shape(image_shape)
    data = convert_input(X)
    shape: tuple[int, ...] | None = None
    skipped: dict[int, str] = {}
    if contains_images(data):
        check_not_empty(data)
        if skip_unreadable:
            data, skipped = drop_unreadable(data, decoding)
        try:
            shape = infer_image_shape(data, declared, decoding)
        except BadImage as error:
            unfinished = Reader(owner, declared, None, 0, decoding=decoding)
            found = Batch(unfinished, data).error_for_all(error)
            if contains_words(data):
                found = BadImage(f"{found}\nIf X does not contain paths: {STRINGS.format(0)}")
            raise found from error.__cause__
        has_names = hasattr(X, "columns")
        n_features = 1 if has_names or getattr(X, "ndim", None) == 2 else int(np.prod(shape))
    else:
        as_images, has_names = declared is not None or signals, True
        data = check_table(data, owner, numeric=as_images)
        n_features = data.shape[1]
        if as_images:
            shape = infer_image_shape(data, declared or (1, n_features))
    reader = Reader(
        owner,
        declared,
        shape,
        n_features,
        _get_feature_names(X) if has_names else None,
        signals,
        None if shape is None else value_range(data),
        decoding,
    )
    return Batch(reader, data, skipped)


def drop_unreadable(data: Any, decoding: str) -> tuple[ArrayOrLazy, dict[int, str]]:
    """Return the readable images, and the error messages of all unreadable images; warn."""
    skipped = unreadable_items(data, np.arange(len(data)), decoding)
    if skipped and len(skipped) == len(data):
        raise ValueError(f"None of the {len(data)} images can be read: {skipped[0]}")
    if skipped:
        warn(f"Skipping {len(skipped)} unreadable images: {shorten(list(skipped.values()))}")
        data = np.delete(data, list(skipped))
    return data, skipped


def check_table(
    X: object, owner: str, *, numeric: bool, allow_nan: bool = False
) -> np.ndarray | Mapped:
    """Validate a 2-D array of numbers; convert it to floats unless `numeric`."""
    dtype = "numeric" if numeric else [np.float64, np.float32]
    finite = "allow-nan" if allow_nan else True
    try:
        table = check_array(
            X, dtype=dtype, estimator=owner, input_name="X", ensure_all_finite=finite
        )
    except ValueError as exc:
        if columns := columns_of_strings(X):
            raise ValueError(f"{str(exc).rstrip('.')}. {STRINGS.format(shorten(columns))}") from exc
        raise
    return keep_mapped(table) if numeric else table


def contains_words(data: ArrayOrLazy) -> bool:
    """Return whether all items are strings, but none of them looks like the path of a file."""
    return is_items(data) and not any(
        not isinstance(x, str) or is_image_file(x) or os.path.exists(x) for x in data
    )


def columns_of_strings(X: Any) -> list[str]:
    """Return the names of the columns of a table that contain strings."""
    is_frame = hasattr(X, "columns") and hasattr(X, "to_numpy")
    table = np.asarray(X.to_numpy() if is_frame else X, dtype=object)
    if table.ndim != 2:
        return []
    names = list(X.columns) if is_frame else range(table.shape[1])
    return [
        repr(name)
        for name, column in zip(names, table.T, strict=True)
        if any(isinstance(value, str) for value in column)
    ]


def check_not_empty(data: ArrayOrLazy) -> None:
    """Reject empty batches, images without pixels, and dtypes other than real numbers."""
    if not len(data):
        check_array(data, allow_nd=True, ensure_all_finite=False)  # raises scikit-learn's error
    if isinstance(data, Lazy) and data.shape is not None:  # check zeros instead of loading rows
        data = np.broadcast_to(np.zeros((), data.dtype), data.shape)
    elif isinstance(data, Lazy):
        data = data.sample
    for array in [x for x in data if isinstance(x, np.ndarray)] if is_items(data) else [data]:
        if not array.size:
            raise ValueError(f"X has images of shape {array.shape}, which have no pixels.")
        if array.dtype.kind not in "buifO":
            raise ValueError(f"X has images of dtype {array.dtype}; real numbers are expected.")


def value_range(data: ArrayOrLazy) -> tuple[float, float]:
    """Return the smallest and largest value in images; assume 0 and 1 for files and PIL images."""
    if isinstance(data, Lazy):
        parts = [data.sample] if data.shape is None else data.parts()
        ranges = [value_range(part) for part in parts]
    elif is_items(data):
        items = map(as_array, data)
        ranges = [value_range(x) if isinstance(x, np.ndarray) else (0.0, 1.0) for x in items]
    else:
        if data.dtype == object:
            data = data.astype(np.float64)  # None becomes NaN
        scale = full_scale(data.dtype)
        return float(data.min()) / scale, float(data.max()) / scale
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def has_full_scale(data: ArrayOrLazy) -> bool:
    """Return whether the dtype of each image defines the value of white (255 or 65535)."""
    data = data.sample if isinstance(data, Lazy) else data
    if not is_items(data):
        return full_scale(data.dtype) > 1
    arrays = [x for x in map(as_array, data) if isinstance(x, np.ndarray)]
    return all(full_scale(x.dtype) > 1 for x in arrays)


# Tokens ------------------------------------------------------------------------------------------


def learn_tokens(X: object, owner: str) -> Batch:
    """Validate tokens, and infer the number of rows and columns from their shape."""
    codes = check_tokens(X)
    return Batch(token_reader(owner, codes.shape[-2:]), codes)


def token_reader(owner: str, grid: tuple[int, int]) -> Reader:
    rows, cols = int(grid[0]), int(grid[1])
    return Reader(owner, None, None, rows * cols, grid=(rows, cols))


def check_tokens(X: Any, grid: tuple[int, int] | None = None) -> Any:
    """Validate and return integer tokens of shape (n, rows, cols) or (n, n_crops, rows, cols)."""
    codes = X
    if not isinstance(X, Lazy):
        codes = keep_mapped(np.asarray(as_array(X)))
    axes = "rows, cols" if grid is None else f"{grid[0]}, {grid[1]}"
    if codes.ndim not in (3, 4) or (grid is not None and codes.shape[-2:] != tuple(grid)):
        hint = ""
        if grid is not None and codes.ndim > 1 and codes.shape[-1] == grid[0] * grid[1]:
            hint = f" Reshape flat tokens by X.reshape(len(X), -1, {axes})."
        raise ValueError(
            f"X is not tokens: it has shape {codes.shape}, but (n, {axes}) or "
            f"(n, n_crops, {axes}) is expected.{hint}"
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            f"X is not tokens: integers are expected, but it has dtype {codes.dtype}. If X "
            'contains images, do not pass tokenizer="precomputed".'
        )
    if len(codes) and not np.prod(codes.shape):
        raise ValueError(f"X is not tokens: it has shape {codes.shape}.")
    check_not_empty(codes)
    return codes

"""What `fit` saw of its data, and how the like is read ever after."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from warnings import warn

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import _check_feature_names, validate_data

from skaocls.images.advice import gathered
from skaocls.images.batch import Batch
from skaocls.images.crops import originals
from skaocls.images.decoding import decoded, full_scale, load_images
from skaocls.images.inputs import (
    SHOWN,
    BadImage,
    as_array,
    as_batch,
    check_image_shape,
    holds_images,
    image_shape_of,
    is_items,
    read,
)
from skaocls.images.lazy import Lazy, Mapped, is_mapped

FAR = 8  # spans of the numbers in `fit` that others may lie beyond them


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads data as those of `fit`, and refuses others.

    Attributes
    ----------
    owner : str
        Who reads: how messages call the estimator.
    declared_shape : tuple of int or None
        The `image_shape` that was asked for; files are resized to it, flat rows have it.
    image_shape : tuple of int or None
        Height, width and channels; None for tabular data.
    n_features : int
        Columns of a table, else numbers in one image.
    feature_names : ndarray or None
        Of a data frame whose columns all have names.
    signals : bool
        Whether rows of numbers are images one pixel high, not tables.
    value_range : tuple of float or None
        The least and the largest number in the images of `fit`.
    decoding : str
        How files and PIL images are read, see :func:`skaocls.images.to_pixels`.
    grid : tuple of int or None
        Rows and columns of tokens, if the data are tokens already.
    """

    owner: str
    declared_shape: tuple[int, ...] | None
    image_shape: tuple[int, ...] | None
    n_features: int
    feature_names: np.ndarray | None = None
    signals: bool = False
    value_range: tuple[float, float] | None = None
    decoding: str = "as_seen"
    grid: tuple[int, int] | None = None

    def open(self, X: Any, *, scale: bool = True) -> Batch:
        """Validate X against the data of `fit`.

        Tables become arrays; images are decoded later, by :meth:`images`. Without `scale`, numbers
        may lie anywhere.

        Raises
        ------
        ValueError
            If it does not.
        """
        if self.grid is not None:
            return Batch(self, as_tokens(X, self.grid))
        X = gathered(X, self.image_shape, rows=self.reads_rows)
        batch = as_batch(X)
        images = holds_images(batch)
        if images and self.image_shape is None:
            raise ValueError(
                f"X holds images, but {self.owner} was fitted on tabular data of "
                f"{self.n_features} features."
            )
        if not images and self.image_shape is not None and not self.reads_rows:
            raise ValueError(
                f"X holds no images, but {self.owner} was fitted on images of shape "
                f"{self.image_shape}. Pass images, or image_shape to read flat rows."
            )
        if images:
            check_not_empty(batch)
            if hasattr(X, "columns"):
                _check_feature_names(self.as_estimator(), X, reset=False)
        else:
            dtype = "numeric" if self.reads_rows else [np.float64, np.float32]
            batch = validate_data(self.as_estimator(), X, reset=False, dtype=dtype)
            batch = left_there(batch) if self.reads_rows else batch
        if scale and self.value_range is not None:
            self.check_range(batch)
        return Batch(self, batch)

    def images(self, batch: Any, part: Any = slice(None)) -> np.ndarray:
        """Decode batch[part]: float32 (n, height, width, channels)."""
        with all_bad_named(batch, self.decoding):
            return load_images(batch[part], **self.loading(part))

    def originals(self, batch: Any, part: Any = slice(None)) -> list[np.ndarray]:
        """Decode batch[part] to cut crops from it, see :mod:`skaocls.images.crops`."""
        with all_bad_named(batch, self.decoding):
            return originals(batch[part], **self.loading(part))

    def loading(self, part: Any) -> Any:
        """How to load batch[part]."""
        assert self.image_shape is not None
        start = (part.start or 0) if isinstance(part, slice) else 0
        size = {"shape": self.image_shape, "resize": self.declared_shape is not None}
        return {**size, "start": start, "decoding": self.decoding}

    @property
    def tabular(self) -> bool:
        """Whether X is a table, neither images nor tokens."""
        return self.image_shape is None and self.grid is None

    @property
    def reads_rows(self) -> bool:
        """Whether rows of numbers are images."""
        return self.declared_shape is not None or self.signals

    def check_range(self, batch: Any) -> None:
        """Refuse numbers that lie far from those of `fit`: on another scale, every answer is wrong.

        Files and numbers of 8 and 16 bits lie in 0 ... 1 by their type; of other numbers only the
        values can tell. Somewhat larger ones and faint images get a warning: they may be so indeed.
        """
        assert self.value_range is not None
        (low, high), (least, most) = self.value_range, value_range(batch)
        span = high - low
        if not (span > 0 and np.isfinite([least, most]).all()):
            return
        message = (
            f"X has numbers from {least:.3g} to {most:.3g}, but {self.owner} was fitted on numbers "
            f"from {low:.3g} to {high:.3g} (8-bit and 16-bit types are divided by their full "
            "scale). Pass images of the same type and scale as in fit."
        )
        if is_scaled(batch):
            far = high > 1 + span / FAR or low < -span / FAR
        else:
            far = most > high + FAR * span or least < low - FAR * span
        if far:
            raise ValueError(message)
        beyond = most > high + span / 2 or least < low - span / 2
        if not self.signals and (beyond or 0 < most - least < span / FAR):
            warn(message, UserWarning, stacklevel=4)

    def as_estimator(self) -> BaseEstimator:
        """An estimator of the owner's name that has seen the same data, for scikit-learn's checks.

        They take an estimator for its name and what it saw, and word their messages by it.
        """
        estimator = named_estimator(self.owner)
        estimator.n_features_in_ = self.n_features
        if self.feature_names is not None:
            estimator.feature_names_in_ = self.feature_names
        return estimator


def learn_reader(
    X: Any,
    owner: str,
    image_shape: Any = None,
    *,
    signals: bool = False,
    decoding: str = "as_seen",
) -> Batch:
    """Learn how data look.

    Parameters
    ----------
    X : array-like
        Images as :mod:`skaocls.images` reads them. Rows of numbers are tabular data; images if
        `image_shape` is given or, with `signals`, images one pixel high.
    owner : str
        How messages call the estimator.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
    signals : bool, default=False
    decoding : {"as_seen", "plain"}, default="as_seen"
        How files and PIL images are read, see :func:`skaocls.images.to_pixels`.

    Returns
    -------
    batch : Batch
        With the `reader` that was learned.

    Raises
    ------
    ValueError
        If X cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.images.reader import learn_reader
    >>> batch = learn_reader(np.zeros((5, 8, 6), np.uint8), "MyEstimator")
    >>> batch.reader.image_shape, batch.images(slice(0, 2)).shape
    ((8, 6, 1), (2, 8, 6, 1))
    """
    declared = check_image_shape(image_shape)
    X = gathered(X)
    batch = as_batch(X)
    seen = named_estimator(owner)
    shape: tuple[int, ...] | None
    if holds_images(batch):
        check_not_empty(batch)
        with all_bad_named(batch, decoding):
            shape = image_shape_of(batch, declared, decoding)
        table = getattr(X, "ndim", None) == 2 or hasattr(X, "columns")
        seen.n_features_in_ = 1 if table else int(np.prod(shape))
        if hasattr(X, "columns"):
            _check_feature_names(seen, X, reset=True)
    else:
        as_images = declared is not None or signals
        dtype = "numeric" if as_images else [np.float64, np.float32]
        batch = validate_data(seen, X, reset=True, dtype=dtype)
        batch = left_there(batch) if as_images else batch
        shape = image_shape_of(batch, declared or (1, batch.shape[1])) if as_images else None
    reader = Reader(
        owner,
        declared,
        shape,
        int(seen.n_features_in_),
        getattr(seen, "feature_names_in_", None),
        signals,
        None if shape is None else value_range(batch),
        decoding,
    )
    return Batch(reader, batch)


def find_unreadable(X: Any, decoding: str = "as_seen") -> dict[int, str]:
    """Images that cannot be read.

    Parameters
    ----------
    X : array-like
        Files, bytes and PIL images, as in :func:`skaocls.images.as_batch`; arrays are passed over.
    decoding : {"as_seen", "plain"}, default="as_seen"
        How they are to be read, see :func:`skaocls.images.to_pixels`.

    Returns
    -------
    reasons : dict of int to str
        By index in X.

    Examples
    --------
    >>> from skaocls.images import find_unreadable
    >>> list(find_unreadable(["missing.png"]))
    [0]
    """
    batch = as_batch(gathered(X))
    reasons = {}
    for i, item in enumerate(batch if is_items(batch) else []):
        try:
            read(item, i, lambda x: None if is_array(x) else decoded(x, decoding))
        except BadImage as exc:
            reasons[i] = str(exc)
    return reasons


@contextmanager
def all_bad_named(batch: Any, decoding: str) -> Iterator[None]:
    """Where one image cannot be read, look at all, and name them at once."""
    try:
        yield
    except BadImage as exc:
        reasons = list(find_unreadable(batch, decoding).values())
        if len(reasons) < 2:
            raise (BadImage(reasons[0]) if reasons else exc) from exc.__cause__
        more = "\n..." if len(reasons) > SHOWN else ""
        raise BadImage(
            f"{len(reasons)} of {len(batch)} images cannot be read:\n"
            + "\n".join(reasons[:SHOWN])
            + f"{more}\nskaocls.images.find_unreadable(X) gives the indices of all; "
            'on_bad_image="skip" has fit leave them out.'
        ) from exc.__cause__


def token_reader(owner: str, grid: Any) -> Reader:
    """A reader of tokens on that grid."""
    rows, cols = int(grid[0]), int(grid[1])
    return Reader(owner, None, None, rows * cols, grid=(rows, cols))


def learn_tokens(X: Any, owner: str) -> Batch:
    """Validate tokens and learn their grid."""
    codes = as_tokens(X)
    return Batch(token_reader(owner, codes.shape[-2:]), codes)


def as_tokens(X: Any, grid: Any = None) -> Any:
    """Tokens as an integer array of shape (n, rows, cols) or (n, n_crops, rows, cols).

    Those that are mapped from a file stay there: they come as :class:`skaocls.images.lazy.Lazy`.

    Raises
    ------
    ValueError
        If they are none, or not on the grid.
    """
    codes = X
    if not isinstance(X, Lazy):
        codes = left_there(as_array(X) if hasattr(X, "detach") else np.asarray(X))
    expected = "(n, rows, cols) or (n, n_crops, rows, cols)"
    if grid is not None:
        expected = expected.replace("rows, cols", f"{grid[0]}, {grid[1]}")
    if codes.ndim not in (3, 4) or (grid is not None and codes.shape[-2:] != tuple(grid)):
        flat = ""
        if grid is not None and codes.ndim > 1 and codes.shape[-1] == grid[0] * grid[1]:
            flat = f" Flat tokens become that by X.reshape(len(X), -1, {grid[0]}, {grid[1]})."
        raise ValueError(
            f"X holds no tokens: it has shape {codes.shape}, but {expected} is expected.{flat}"
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            f"X holds no tokens: integers are expected, but it has dtype {codes.dtype}. To read "
            'images, do not pass tokenizer="precomputed".'
        )
    if len(codes) and not np.prod(codes.shape):
        raise ValueError(f"X holds no tokens: it has shape {codes.shape}.")
    check_not_empty(codes)
    return codes


def value_range(batch: Any) -> tuple[float, float]:
    """The least and the largest number in images; files and PIL images are taken for 0 ... 1."""
    if isinstance(batch, Lazy):
        ranges = [value_range(part) for part in batch.for_range()]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    if not is_items(batch):
        if batch.dtype == object:
            batch = batch.astype(np.float64)  # None is NaN
        scale = full_scale(batch.dtype)
        return float(batch.min()) / scale, float(batch.max()) / scale
    ranges = [value_range(a) if is_array(a) else (0.0, 1.0) for a in map(as_array, batch)]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def is_scaled(batch: Any) -> bool:
    """Whether all images are of types whose numbers are divided by their full scale."""
    batch = batch.sample() if isinstance(batch, Lazy) else batch
    if not is_items(batch):
        return full_scale(batch.dtype) > 1
    return all(full_scale(a.dtype) > 1 for a in map(as_array, batch) if is_array(a))


def left_there(array: Any) -> Any:
    """An array; one that is mapped from a file is read a few rows at a time."""
    return Mapped(array) if is_mapped(array) else array


def is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray)


def named_estimator(name: str) -> BaseEstimator:
    estimator: BaseEstimator = type(name, (BaseEstimator,), {})()
    return estimator


def check_not_empty(batch: Any) -> None:
    """Refuse images of no numbers and of none at all."""
    if not len(batch):
        check_array(batch, allow_nd=True, ensure_all_finite=False)  # says so
    if isinstance(batch, Lazy) and batch.shape is not None:  # nothing is read
        batch = np.broadcast_to(np.zeros((), batch.dtype), batch.shape)
    elif isinstance(batch, Lazy):
        batch = batch.sample()
    for a in [x for x in batch if is_array(x)] if is_items(batch) else [batch]:
        if not a.size:
            raise ValueError(f"X has images of shape {a.shape}, which hold no pixels.")
        if a.dtype.kind not in "buifO":
            raise ValueError(f"X has images of dtype {a.dtype}, which are no real numbers.")

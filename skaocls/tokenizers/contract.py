"""Checks of tokenizers and of the codes that tokenizers return.

Classifiers check custom tokenizers after `fit` and `transform`. Users call `check_tokenizer`, which
also detects errors that appear only when results of several calls are compared.
"""

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from skaocls.warn import warn

MIN_SAMPLES = 4  # so that each half of X has at least two samples


def code_dtype(n_codes: int) -> np.dtype:
    """Return the dtype in which codes are stored in files."""
    return np.dtype(np.uint16 if n_codes <= 2**16 else np.uint32)


def check_codes(codes: ArrayLike, grid: Sequence[int], n_codes: int) -> np.ndarray:
    """Return codes as int64 of shape (n, rows, cols), or raise a ValueError if they are invalid."""
    codes = np.asarray(codes)
    if codes.ndim != 3 or codes.shape[1:] != tuple(grid):
        raise ValueError(
            f"codes have shape {codes.shape}, but (n, {grid[0]}, {grid[1]}) is expected."
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be integers, got dtype {codes.dtype}.")
    if codes.size and not 0 <= codes.min() <= codes.max() < n_codes:
        raise ValueError(
            f"codes must be in 0 ... {n_codes - 1}, got {codes.min()} ... {codes.max()}."
        )
    return codes.astype(np.int64, copy=False)


def check_fitted_tokenizer(tokenizer: Any, returned: Any) -> None:
    """Raise a ValueError if `fit` returned the wrong object or did not set all attributes."""
    name = type(tokenizer).__name__
    if returned is not tokenizer:
        raise ValueError(f"{name}.fit must return the tokenizer itself, got {returned!r:.80}.")
    for attribute, meaning in (
        ("grid_", "rows and columns of an image's tokens"),
        ("n_codes_", "the number of token values"),
    ):
        if not hasattr(tokenizer, attribute):
            raise ValueError(f"{name} has no attribute {attribute} after fit: {meaning}.")
    grid = np.asarray(tokenizer.grid_)
    if grid.shape != (2,) or grid.dtype.kind not in "iu" or grid.min() < 1:
        raise ValueError(
            f"{name}.grid_ must be (rows, cols), two integers, got {tokenizer.grid_!r:.80}."
        )
    if not (isinstance(tokenizer.n_codes_, Integral) and int(tokenizer.n_codes_) > 0):
        raise ValueError(f"{name}.n_codes_ must be an integer, got {tokenizer.n_codes_!r:.80}.")


def check_transformed(tokenizer: Any, codes: ArrayLike, n: int) -> np.ndarray:
    """Check the codes that `tokenizer.transform` returned for n images or table rows."""
    codes = np.asarray(codes)
    grid = tuple(map(int, tokenizer.grid_))
    flat = codes.reshape(-1, *codes.shape[2:]) if codes.ndim == 4 else codes  # several crops
    try:
        checked = check_codes(flat, grid, int(tokenizer.n_codes_))
        if len(codes) != n:
            raise ValueError(f"codes are of {len(codes)} images, but there are {n} images in X.")
    except ValueError as error:
        raise ValueError(f"{type(tokenizer).__name__}.transform: {error}") from None
    return checked.reshape(codes.shape)


def check_tokenizer(tokenizer: Any, X: ArrayLike, y: ArrayLike | None = None) -> None:
    """Check that classifiers can use a custom transformer as a tokenizer.

    The checks fit a clone, so the given tokenizer is not changed.

    Parameters
    ----------
    tokenizer : transformer
        Object with the methods `fit` and `transform`. :meth:`AnyOrderARClassifier.sample` and
        :meth:`AnyOrderARClassifier.inpaint` also need `inverse_transform`.
    X : float array of shape (n_images, height, width, channels), (n_images, height, width) or \
(n_samples, n_features)
        At least four images or table rows. A missing channel axis is added, because classifiers
        always pass images with a channel axis.
    y : array of shape (n_images,), default=None
        Labels that are passed to `fit`.

    Raises
    ------
    ValueError
        If the tokenizer breaks one of the following rules. `fit` returns the tokenizer, sets
        `grid_` and `n_codes_`, and keeps constructor parameters. `transform` returns integers from
        0 to ``n_codes_ - 1`` of shape (n_images, rows, cols). The codes of an image do not depend
        on the other images, and are equal in repeated calls. No method modifies X.
        `inverse_transform` returns an array of the same shape as X, but may omit the channel axis
        of grayscale images.

    Warns
    -----
    UserWarning
        If the image size is not a multiple of `grid_`, and the tokenizer has no attribute
        `patch_size_` (height and width of a token in pixels). In this case, evidence maps and
        `inpaint` assume that the tokens divide the image evenly. If the tokenizer pads images,
        this assumption is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import PatchTokenizer, check_tokenizer
    >>> X = np.random.RandomState(0).uniform(size=(20, 8, 8, 1))
    >>> check_tokenizer(PatchTokenizer(n_codes=4, random_state=0), X)
    """
    X = np.asarray(X)
    name = type(tokenizer).__name__
    if X.ndim not in (2, 3, 4) or X.dtype.kind not in "buif":
        raise ValueError(
            f"X has shape {X.shape} and dtype {X.dtype}, but numbers of shape (n_images, height, "
            "width, channels), (n_images, height, width) or (n_samples, n_features) are expected."
        )
    X = X[..., None] if X.ndim == 3 else X
    if len(X) < MIN_SAMPLES:
        raise ValueError(f"X has {len(X)} samples, but at least {MIN_SAMPLES} are needed.")
    tokenizer, original = clone(tokenizer), X.copy()
    params = {k: clone(v, safe=False) for k, v in tokenizer.get_params(deep=False).items()}
    check_fitted_tokenizer(tokenizer, tokenizer.fit(X) if y is None else tokenizer.fit(X, y))
    codes = check_transformed(tokenizer, tokenizer.transform(X), len(X))
    for key, value in tokenizer.get_params(deep=False).items():
        if repr(value) != repr(params[key]):
            raise ValueError(
                f"{name}.fit changed the parameter {key} from {params[key]!r:.80} to "
                f"{value!r:.80}. Store learned values in attributes whose names end with _."
            )
    check_reproducible(tokenizer, X, codes)
    if hasattr(tokenizer, "inverse_transform"):
        shape = np.shape(tokenizer.inverse_transform(codes))
        if shape != X.shape and shape != X.shape[: 3 if X.shape[-1] == 1 else None]:
            raise ValueError(
                f"{name}.inverse_transform returns an array of shape {shape} for the codes of X, "
                f"but the shape of X, {X.shape}, is expected."
            )
    if not np.array_equal(X, original):
        raise ValueError(f"{name} modifies the array X that the caller passes; copy X first.")
    has_patches = X.ndim == 2 or getattr(tokenizer, "patch_size_", None) is not None
    if not has_patches and any(np.mod(X.shape[1:3], tokenizer.grid_)):
        warn(
            f"{name} makes {tokenizer.grid_[0]} x {tokenizer.grid_[1]} tokens of images of "
            f"{X.shape[1]} x {X.shape[2]} pixels and has no patch_size_, so tokens are assumed to "
            "divide the image evenly. Otherwise, set patch_size_ = (height, width) in fit."
        )


def check_reproducible(tokenizer: Any, X: np.ndarray, codes: np.ndarray) -> None:
    """Raise a ValueError if codes of an image depend on other images or change between calls."""
    copied, middle = copy.deepcopy(tokenizer), len(X) // 2
    halves = [tokenizer.transform(part) for part in (X[:middle], X[middle:])]
    for condition, repeated in (
        ("a second time", tokenizer.transform(X)),
        ("in two halves", np.concatenate(halves)),
        ("from last to first", np.asarray(tokenizer.transform(X[::-1]))[::-1]),
        ("by a copy of it", copied.transform(X)),
    ):
        if not np.array_equal(codes, repeated):
            raise ValueError(
                f"{type(tokenizer).__name__}.transform returns other codes when the same images "
                f"are transformed {condition}. The codes of an image may depend only on the image "
                "and on what fit learned."
            )

"""Whether a transformer is a tokenizer: what it must have, and how its codes must be."""

import copy
import warnings
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone

from skaocls.tokenizers._codes import check_codes

ENOUGH = 4  # images, of which halves are read apart


def check_fitted(tokenizer: Any, fitted: Any) -> None:
    """Raise a ValueError unless `fitted`, which `tokenizer.fit` returned, has learned its codes."""
    name = type(tokenizer).__name__
    if fitted is not tokenizer:
        raise ValueError(f"{name}.fit must return the tokenizer itself, got {fitted!r:.80}.")
    for attribute, what in (
        ("grid_", "rows and columns of the tokens of an image"),
        ("n_codes_", "how many values a token can have"),
    ):
        if not hasattr(tokenizer, attribute):
            raise ValueError(f"{name} has no attribute {attribute} after fit: {what}.")
    grid = tokenizer.grid_
    try:
        good = len(grid) == 2 and all(isinstance(n, Integral) and int(n) > 0 for n in grid)
    except TypeError:
        good = False
    if not good:
        raise ValueError(f"{name}.grid_ must be (rows, cols), two integers, got {grid!r:.80}.")
    if not (isinstance(tokenizer.n_codes_, Integral) and int(tokenizer.n_codes_) > 0):
        raise ValueError(f"{name}.n_codes_ must be an integer, got {tokenizer.n_codes_!r:.80}.")


def check_made(tokenizer: Any, codes: Any, n: int) -> np.ndarray:
    """Codes that `tokenizer.transform` made of n images or rows, or a ValueError that names it."""
    codes = np.asarray(codes)
    grid = tuple(map(int, tokenizer.grid_))
    flat = codes.reshape(-1, *codes.shape[2:]) if codes.ndim == 4 else codes  # crops of an image
    try:
        checked = check_codes(flat, grid, int(tokenizer.n_codes_))
        if len(codes) != n:
            raise ValueError(f"codes are of {len(codes)} images, but there are {n}.")
    except ValueError as error:
        raise ValueError(f"{type(tokenizer).__name__}.transform: {error}") from None
    in_shape: np.ndarray = checked.reshape(codes.shape)
    return in_shape


def check_tokenizer(tokenizer: Any, X: Any, y: Any = None) -> None:
    """Check that a transformer of your own is a tokenizer that classifiers can use.

    In the spirit of :func:`sklearn.utils.estimator_checks.check_estimator`, on data of yours. The
    given tokenizer is cloned and stays as it is.

    Parameters
    ----------
    tokenizer : transformer
        With `fit`, `transform` and, for :meth:`AnyOrderARClassifier.sample` and
        :meth:`AnyOrderARClassifier.inpaint`, `inverse_transform`.
    X : float array of shape (n_images, height, width, channels) or (n_samples, n_features)
        At least four images as a classifier passes them: always with channels, also with one; or
        rows of a table.
    y : array of shape (n_images,), default=None
        Labels that `fit` gets, too.

    Raises
    ------
    ValueError
        If `fit` does not return the tokenizer or does not set `grid_` and `n_codes_`; if codes are
        no integers of shape (n_images, rows, cols) from 0 to `n_codes_` - 1; if they change when
        images are read again, apart from the others or by a copy; if X or a constructor
        parameter is changed; or if images made of codes have another shape than X (an axis of one
        channel may be left out).

    Warns
    -----
    UserWarning
        If `grid_` does not divide the images and there is no `patch_size_`, (height, width) in
        pixels of what a token stands for. Evidence maps and `inpaint` then take the tokens to share
        the image evenly, which those of padded images do not.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import PatchTokenizer, check_tokenizer
    >>> X = np.random.RandomState(0).uniform(size=(20, 8, 8, 1))
    >>> check_tokenizer(PatchTokenizer(n_codes=4, random_state=0), X)
    """
    X = np.asarray(X)
    name = type(tokenizer).__name__
    if len(X) < ENOUGH:
        raise ValueError(f"X has {len(X)} samples, but at least {ENOUGH} are needed.")
    tokenizer, before = clone(tokenizer), X.copy()
    params = {k: clone(v, safe=False) for k, v in tokenizer.get_params(deep=False).items()}
    fitted = tokenizer.fit(X) if y is None else tokenizer.fit(X, y)
    check_fitted(tokenizer, fitted)
    codes = check_made(tokenizer, tokenizer.transform(X), len(X))
    for key, value in tokenizer.get_params(deep=False).items():
        if repr(value) != repr(params[key]):
            raise ValueError(
                f"{name}.fit changed the parameter {key} from {params[key]!r:.80} to "
                f"{value!r:.80}; what is learned goes into attributes that end with _."
            )
    twin = copy.deepcopy(tokenizer)
    middle = len(X) // 2
    apart = [tokenizer.transform(some) for some in (X[:middle], X[middle:])]
    for what, again in (
        ("a second time", tokenizer.transform(X)),
        ("in two halves", np.concatenate(apart)),
        ("from last to first", np.asarray(tokenizer.transform(X[::-1]))[::-1]),
        ("by a copy of it", twin.transform(X)),
    ):
        if not np.array_equal(codes, again):
            raise ValueError(
                f"{name}.transform gives other codes when the same images are read {what}; the "
                "codes of an image may depend on nothing but the image and what fit learned."
            )
    if hasattr(tokenizer, "inverse_transform"):
        shape = np.shape(tokenizer.inverse_transform(codes))
        if shape != X.shape and shape != X.shape[: 3 if X.shape[-1] == 1 else None]:
            raise ValueError(
                f"{name}.inverse_transform makes an array of shape {shape} of the codes of X, but "
                f"that of X, {X.shape}, is expected."
            )
    if not np.array_equal(X, before):
        raise ValueError(f"{name} changes the X that it is given; copy it first.")
    patches = X.ndim == 2 or getattr(tokenizer, "patch_size_", None) is not None
    if not patches and any(np.mod(X.shape[1:3], tokenizer.grid_)):
        warnings.warn(
            f"{name} makes {tokenizer.grid_[0]} x {tokenizer.grid_[1]} tokens of images of "
            f"{X.shape[1]} x {X.shape[2]} pixels and has no patch_size_: they are taken to share "
            "the image evenly. If they do not, set patch_size_ = (height, width) in fit.",
            UserWarning,
            stacklevel=2,
        )

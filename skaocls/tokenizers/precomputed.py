"""Tokens that were made elsewhere."""

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from skaocls.images.lazy import Lazy, in_memory
from skaocls.images.reader import as_tokens
from skaocls.tokenizers._codes import check_codes


class PrecomputedTokenizer(TransformerMixin, BaseEstimator):
    """Take tokens as they are; what ``tokenizer="precomputed"`` stands for.

    Parameters
    ----------
    n_codes : int, default=None
        Number of token values. None is one more than the largest in `fit`, or what
        :func:`skaocls.load_tokens` knows: give the size of the codebook if data may come that have
        codes of their own.
    grid : tuple of int (rows, cols), default=None
        None is that of the tokens in `fit`.

    Attributes
    ----------
    n_codes_ : int
        Number of token values.
    grid_ : tuple of int
        Rows and columns of tokens.
    codebook_ : ndarray of shape (`n_codes_`, n_numbers)
        The vector of each code; only where X comes with them, as from :func:`skaocls.load_tokens`.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import PrecomputedTokenizer
    >>> tokens = np.array([[[0, 5], [3, 3]]])
    >>> PrecomputedTokenizer(n_codes=16).fit(tokens).transform(tokens)
    array([[[0, 5],
            [3, 3]]])
    """

    _parameter_constraints: dict[str, Any] = {
        "n_codes": [Interval(Integral, 1, None, closed="left"), None],
        "grid": [tuple, list, None],
    }

    def __init__(self, n_codes: int | None = None, grid: Any = None):
        self.n_codes = n_codes
        self.grid = grid

    def fit(self, X: Any = None, y: Any = None) -> "PrecomputedTokenizer":
        """Learn the grid and the number of token values.

        Parameters
        ----------
        X : int array-like of shape (n, rows, cols) or (n, n_crops, rows, cols), default=None
            Tokens. May be left out if `n_codes` and `grid` are given.
        y : None
            Ignored.

        Returns
        -------
        self : PrecomputedTokenizer
            The fitted tokenizer.
        """
        self._validate_params()
        n_codes: Any = self.n_codes
        grid = self.grid
        if X is None and (n_codes is None or grid is None):
            raise ValueError("Pass X, or n_codes and grid.")
        if X is not None:
            codes = as_tokens(X, grid)
            parts = codes.parts if isinstance(codes, Lazy) else lambda: [codes]
            grid, n_codes = codes.shape[-2:], n_codes or getattr(codes, "n_codes", None)
            n_codes = n_codes or max(int(part.max()) for part in parts()) + 1
            for part in parts():
                check_codes(part.reshape(-1, *grid), grid, n_codes)
        self.__dict__.pop("codebook_", None)
        self.__dict__.update(n_codes_=int(n_codes), grid_=(int(grid[0]), int(grid[1])))
        codebook = getattr(X, "codebook", None)
        if codebook is not None and len(codebook) == self.n_codes_:
            self.codebook_ = codebook
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Check tokens.

        Parameters
        ----------
        X : int array-like of shape (n, rows, cols) or (n, n_crops, rows, cols)
            Tokens.

        Returns
        -------
        codes : int64 array of the same shape
            The same tokens.

        Raises
        ------
        ValueError
            If they are no integers in ``0 ... n_codes_ - 1`` on the grid.
        """
        check_is_fitted(self)
        codes = in_memory(as_tokens(X, self.grid_))
        flat = check_codes(codes.reshape(-1, *self.grid_), self.grid_, self.n_codes_)
        checked: np.ndarray = flat.reshape(codes.shape)
        return checked

    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Codes as they are, checked: what they stand for is not known here.

        Parameters
        ----------
        codes : int array-like of shape (n, rows, cols)
            Tokens.

        Returns
        -------
        codes : int64 array of shape (n, rows, cols)
            The same tokens.
        """
        check_is_fitted(self)
        return check_codes(codes, self.grid_, self.n_codes_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags

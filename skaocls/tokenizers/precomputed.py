"""A tokenizer that accepts tokens which were computed elsewhere."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from skaocls.images.reader import learn_tokens, token_reader
from skaocls.tokenizers.contract import check_codes


class PrecomputedTokenizer(TransformerMixin, BaseEstimator):
    """Accept precomputed tokens as X; ``tokenizer="precomputed"`` uses the default parameters.

    Parameters
    ----------
    n_codes : int, default=None
        Number of token values. If None, and X comes from :func:`skaocls.load_tokens`, the size of
        the codebook is used. If None, and X is another array, the largest token of X plus 1 is
        used. Pass `n_codes` if later data may contain tokens that do not occur in `fit`.
    grid : tuple of int (rows, cols), default=None
        Rows and columns of tokens. If None, they are taken from the shape of X in `fit`.

    Attributes
    ----------
    n_codes_ : int
        Number of token values.
    grid_ : tuple of int
        Rows and columns of tokens.
    codebook_ : ndarray of shape (`n_codes_`, n_values)
        Vectors of the codes. This attribute exists only if X comes from
        :func:`skaocls.load_tokens` and has a codebook.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import PrecomputedTokenizer
    >>> tokens = np.array([[[0, 5], [3, 3]]])
    >>> PrecomputedTokenizer(n_codes=16).fit(tokens).transform(tokens)
    array([[[0, 5],
            [3, 3]]])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_codes": [Interval(Integral, 1, None, closed="left"), None],
        "grid": [tuple, list, None],
    }

    def __init__(self, n_codes: int | None = None, grid: Sequence[int] | None = None):
        self.n_codes = n_codes
        self.grid = grid

    def fit(self, X: object = None, y: object = None) -> "PrecomputedTokenizer":
        """Learn the grid and the number of token values.

        Parameters
        ----------
        X : int array-like of shape (n, rows, cols) or (n, n_crops, rows, cols), default=None
            Tokens. X may be None if `n_codes` and `grid` are given.
        y : None
            Ignored.

        Returns
        -------
        self : PrecomputedTokenizer
            The fitted tokenizer.
        """
        self._validate_params()
        n_codes, grid = self.n_codes, self.grid
        if X is None:
            if n_codes is None or grid is None:
                raise ValueError("Pass X, or n_codes and grid.")
        else:
            name = type(self).__name__
            reader = None if grid is None else token_reader(name, (grid[0], grid[1]))
            batch = learn_tokens(X, name) if reader is None else reader.open(X)
            assert batch.reader.grid is not None
            grid, n_codes = batch.reader.grid, n_codes or getattr(X, "n_codes", None)
            n_codes = n_codes or max(0, *(int(part.max()) for part in batch.parts())) + 1
            for part in batch.parts():
                check_codes(part.reshape(-1, *grid), grid, n_codes)
        self.__dict__.pop("codebook_", None)
        self.__dict__.update(n_codes_=int(n_codes), grid_=(int(grid[0]), int(grid[1])))
        codebook = getattr(X, "codebook", None)
        if codebook is not None and len(codebook) == self.n_codes_:
            self.codebook_ = codebook
        return self

    def transform(self, X: object) -> np.ndarray:
        """Validate tokens and return them.

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
            If the grid differs from `grid_`, or a value is not an integer from 0 to
            ``n_codes_ - 1``.
        """
        check_is_fitted(self)
        codes = token_reader(type(self).__name__, self.grid_).open(X).values()
        flat = check_codes(codes.reshape(-1, *self.grid_), self.grid_, self.n_codes_)
        return flat.reshape(codes.shape)

    def inverse_transform(self, codes: ArrayLike) -> np.ndarray:
        """Validate tokens and return them unchanged, because they cannot be decoded to images.

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

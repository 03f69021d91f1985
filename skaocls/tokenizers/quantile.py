"""Tokens of tabular data: the token of each feature is the quantile bin of the feature's value."""

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from skaocls.images.input_types import as_array
from skaocls.tokenizers.contract import check_codes

MAX_BINS = 64  # largest number with n_bins="auto" (chosen with benchmarks/quality/tables.py)
FLOATS = (np.float64, np.float32)


class QuantileTokenizer(TransformerMixin, BaseEstimator):
    """Tokenize tabular data: each feature gives one token, the quantile bin of the feature's value.

    Parameters
    ----------
    n_bins : int or "auto", default="auto"
        Largest number of bins per feature. ``"auto"`` uses the Rice rule, ``2 n_samples ** (1/3)``,
        but at least 2 and at most 64 bins. If a feature has at most `n_bins` distinct values, each
        value has its own bin.

    Attributes
    ----------
    thresholds_ : list of `n_features_in_` ndarrays
        For each feature, the largest training value of each bin except the last bin.
    bin_means_ : list of `n_features_in_` ndarrays
        For each feature, the mean training value of each bin.
    n_codes_ : int
        Number of token values, equal to the largest number of bins of a feature.
    grid_ : tuple of int
        Rows and columns of tokens: ``(1, n_features)``.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during fit, when X has feature names that are all strings.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import QuantileTokenizer
    >>> X = np.arange(8.0).reshape(8, 1)
    >>> tokenizer = QuantileTokenizer(n_bins=4).fit(X)
    >>> tokenizer.transform(X).ravel()
    array([0, 0, 1, 1, 2, 2, 3, 3])
    >>> tokenizer.inverse_transform([[[0]], [[3]]]).ravel()
    array([0.5, 6.5])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_bins": [Interval(Integral, 2, None, closed="left"), StrOptions({"auto"})]
    }

    def __init__(self, n_bins: int | str = "auto"):
        self.n_bins = n_bins

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def fit(self, X: ArrayLike, y: object = None) -> "QuantileTokenizer":
        """Compute the bins of each feature.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Tabular data.
        y : None
            Ignored.

        Returns
        -------
        self : QuantileTokenizer
            The fitted tokenizer.
        """
        self._validate_params()
        validated = clone(self)  # so that `self` does not change if validation fails
        values: np.ndarray = validate_data(validated, as_array(X), dtype=FLOATS)
        n_bins = self.n_bins
        if isinstance(n_bins, str):
            n_bins = int(np.clip(2 * len(values) ** (1 / 3), 2, MAX_BINS))
        thresholds = [find_thresholds(x, n_bins) for x in values.T]
        codes = find_bins(values, thresholds)
        self.__dict__.pop("feature_names_in_", None)
        self.__dict__.update(
            vars(validated),
            thresholds_=thresholds,
            bin_means_=[np.bincount(c, x) / np.bincount(c) for c, x in zip(codes.T, values.T)],
            n_codes_=int(codes.max()) + 1,
            grid_=(1, values.shape[1]),
        )
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Tokenize tabular data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Tabular data.

        Returns
        -------
        codes : int64 array of shape (n_samples, 1, n_features)
            Bin of each feature, counted from 0.
        """
        check_is_fitted(self)
        values = validate_data(self, as_array(X), dtype=FLOATS, reset=False)
        return find_bins(values, self.thresholds_)[:, None]

    def inverse_transform(self, codes: ArrayLike) -> np.ndarray:
        """Return the mean training value of each token's bin.

        Parameters
        ----------
        codes : int array-like of shape (n_samples, 1, n_features)
            Tokens. Codes above the last bin of a feature are replaced by the last bin.

        Returns
        -------
        X : float64 array of shape (n_samples, n_features)
            Tabular data.
        """
        check_is_fitted(self)
        codes = check_codes(codes, self.grid_, self.n_codes_)[:, 0]
        columns = zip(self.bin_means_, codes.T, strict=True)
        return np.stack([means[np.minimum(c, len(means) - 1)] for means, c in columns], axis=1)


def find_bins(X: np.ndarray, thresholds: list[np.ndarray]) -> np.ndarray:
    """Return the bin of each value of X, as an array of shape (n_samples, n_features)."""
    columns = zip(thresholds, X.T, strict=True)
    return np.stack([np.searchsorted(t, x) for t, x in columns], axis=1)


def find_thresholds(x: np.ndarray, n_bins: int) -> np.ndarray:
    """Return the largest value of each quantile bin of one feature, except the last bin."""
    values = np.unique(x)
    if len(values) > n_bins:
        quantiles = np.arange(1, n_bins) / n_bins
        inner = np.quantile(x, quantiles, method="inverted_cdf")
        values = np.unique(np.append(inner, values[-1]))
    return values[:-1]

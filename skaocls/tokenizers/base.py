"""Base class of the tokenizers of images."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from skaocls.attributes import read_from
from skaocls.images.batch import Batch
from skaocls.images.reader import Reader, learn_reader


class ImageTokenizer(TransformerMixin, BaseEstimator):
    """Validate images, and leave the rest to `_fit` and `_encode` of subclasses.

    A classifier, which has validated and decoded its images, calls these two directly.
    """

    _signals = False  # whether rows of a 2-D X are images one pixel high

    image_shape_ = read_from("reader_.image_shape")
    n_features_in_ = read_from("reader_.n_features")
    feature_names_in_ = read_from("reader_.feature_names", optional=True)

    def fit(self, X: object, y: object = None) -> "ImageTokenizer":
        """Learn the codebook.

        Parameters
        ----------
        X : array-like of images
            Arrays of shape (n, height, width) or (n, height, width, channels), files or PIL images;
            flat rows, if `image_shape` is given.
        y : array-like of shape (n,), default=None
            Class labels, by which ``"auto"`` parameters are chosen. Other targets are ignored.

        Returns
        -------
        self : object
            The fitted tokenizer.

        Raises
        ------
        ValueError
            If X is not images, or the images cannot be tokenized.
        """
        self._validate_params()
        name = type(self).__name__
        batch = learn_reader(X, name, self.image_shape, signals=self._signals)
        if batch.reader.image_shape is None:
            raise ValueError(
                f"{name} requires images, but X is a table. Pass image_shape if its rows are "
                "pixels."
            )
        return self._fit(batch, y)

    def transform(self, X: object) -> np.ndarray:
        """Tokenize images.

        Parameters
        ----------
        X : array-like of images
            Images of the shape seen during fit.

        Returns
        -------
        codes : int64 array of shape (n, rows, cols)
            Tokens, from 0 to ``n_codes_ - 1``.
        """
        blocks = self._open(X)
        return np.concatenate([self._encode(images) for _, images in blocks])

    def _fit(self, batch: Batch, y: object = None) -> "ImageTokenizer":
        """Learn from validated images."""
        raise NotImplementedError

    def _encode(self, images: np.ndarray) -> np.ndarray:
        """Tokenize decoded images, float32 (n, height, width, channels)."""
        raise NotImplementedError

    def _open(self, X: object) -> Iterator[tuple[slice, np.ndarray]]:
        """Validate images, and yield them decoded, block by block."""
        check_is_fitted(self)
        batch: Batch = self.reader_.open(X)
        return batch.image_blocks()

    def _own_reader(self, batch: Batch) -> Reader:
        """Return the reader of the images of fit, in this tokenizer's name."""
        return replace(batch.reader, owner=type(self).__name__, signals=self._signals)

    def __sklearn_tags__(self) -> Tags:
        tags: Any = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = self._signals
        tags.transformer_tags.preserves_dtype = []
        return tags

"""Base class of image tokenizers: it validates X, and subclasses implement `_fit` and `_encode`.

A classifier validates and decodes images itself, so it calls `_fit` and `_encode` directly.
"""

import copy
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from skaocls.attribute_alias import read_from
from skaocls.images.batch import Batch
from skaocls.images.reader import Reader, learn_reader

POSITIVE_INTEGER = Interval(Integral, 1, None, closed="left")
ROUNDING = 0.01  # pixel values may lie outside the range [0, 1] by at most this much


class ImageTokenizer(TransformerMixin, BaseEstimator):
    """Base class that validates images before the subclass learns from them or encodes them."""

    _signals = False  # whether each row of a 2-D X is an image one pixel high

    image_shape_ = read_from("reader_.image_shape")
    n_features_in_ = read_from("reader_.n_features")
    feature_names_in_ = read_from("reader_.feature_names", optional=True)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def fit(self, X: object, y: object = None) -> "ImageTokenizer":
        """Learn the codebook.

        Parameters
        ----------
        X : array-like of images
            Files, PIL images, or an array of shape (n, height, width) or (n, height, width,
            channels). If `image_shape` is given, X may also have one flattened image per row.
        y : array-like of shape (n,), default=None
            Class labels, used to choose the values of ``"auto"`` parameters. Regression targets are
            ignored.

        Returns
        -------
        self : object
            The fitted tokenizer.
        """
        self._validate_params()
        name = type(self).__name__
        batch = learn_reader(X, name, self.image_shape, signals=self._signals)
        if batch.reader.image_shape is None:
            raise ValueError(
                f"{name} requires images, but X is a table. If each row of X contains the pixels "
                "of an image, pass image_shape."
            )
        return self._fit(batch, y)

    def transform(self, X: object) -> np.ndarray:
        """Tokenize images.

        Parameters
        ----------
        X : array-like of images
            Images of the same shape as in `fit`.

        Returns
        -------
        codes : int64 array of shape (n, rows, cols)
            Tokens from 0 to ``n_codes_ - 1``.
        """
        check_is_fitted(self)
        blocks = self.reader_.open(X).image_blocks()
        return np.concatenate([self._encode(images) for _, images in blocks])

    def _fit(self, batch: Batch, y: object = None) -> "ImageTokenizer":
        """Learn the codebook from validated images."""
        raise NotImplementedError

    def _encode(self, images: np.ndarray) -> np.ndarray:
        """Tokenize decoded images of shape (n, height, width, channels) and dtype float32."""
        raise NotImplementedError

    def _own_reader(self, batch: Batch) -> Reader:
        """Return a copy of the batch's reader whose error messages name this tokenizer."""
        return replace(batch.reader, owner=type(self).__name__, signals=self._signals)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__().copy()
        for name, value in state.items():
            if name.endswith("_") and isinstance(value, torch.nn.Module):
                state[name] = copy.deepcopy(value).cpu()  # the pickle must load without a GPU
        return state


def check_unit_range(low: float, high: float) -> None:
    """Raise a ValueError if the smallest and largest value of images are not in [0, 1]."""
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            "The network of the tokenizer requires images with values in [0, 1] or of dtype uint8, "
            f"got values from {low:.3g} to {high:.3g}. Divide the images by the value of white."
        )


def pixels_in_batch(images: np.ndarray, batch_size: int) -> torch.Tensor:
    """Convert images in [0, 1] to a network input of shape (batch_size, channels, height, width).

    If there are fewer than `batch_size` images, copies of the last image fill the batch. Thus all
    batches have the same size, and the tokens of an image do not depend on the number of images.
    """
    check_unit_range(images.min(), images.max())
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return torch.cat([pixels, pixels[-1:].expand(batch_size - len(pixels), -1, -1, -1)])

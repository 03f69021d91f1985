"""Tokens of image patches: the token of each patch is the nearest codebook entry.

`fit` chooses a normalization and learns the codebook from patches of a subset of training images.
`transform` normalizes images, divides them into patches and finds the nearest code of each patch.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from skaocls.images.batch import Batch
from skaocls.tokenizers.base import POSITIVE_INTEGER, ImageTokenizer
from skaocls.tokenizers.codebook import (
    best_normalization,
    choose_codebook,
    class_labels,
    fit_components,
    nearest_codes,
)
from skaocls.tokenizers.contract import check_codes
from skaocls.tokenizers.normalization import (
    NORMALIZATIONS,
    extrapolate_statistics,
    image_statistics,
    limit_contrast,
    match_statistics,
    typical_statistics,
)
from skaocls.warn import warn

# Largest number of tokens with patch_size="auto". More tokens slow down the transformer.
MAX_TOKENS = 64
MAX_SIDE = 8  # pixels; k-means approximates patches with a longer side poorly
MAX_PATCHES = 2**17  # largest number of training patches; more patches hardly change the codebook


class PatchTokenizer(ImageTokenizer):
    """Tokenize images by patches: the token of a patch is the nearest k-means center.

    If the image size is not a multiple of the patch size, the image is padded on the right and at
    the bottom by repeating the last pixels. `inverse_transform` removes the padding.

    Parameters
    ----------
    patch_size : int, tuple of int (height, width) or "auto", default="auto"
        Size of a token in pixels. ``"auto"`` is the smallest square of at least 2 x 2 pixels that
        gives at most 64 tokens per image. Images larger than 64 x 64 pixels get patches larger than
        8 x 8 pixels and cause a warning. Patches with more than 192 values are clustered by their
        first 64 principal components.
    n_codes : int or "auto", default="auto"
        Size of the codebook, at most the number of distinct patches. ``"auto"`` tries powers of two
        from 16 to 1024. For each size, a naive Bayes classifier predicts the classes of held-out
        images from their tokens. ``"auto"`` then selects the largest size whose loss is at most 1.5
        times the smallest loss. Sizes above 256 are only used if no smaller size has a loss within
        5 % of the smallest loss. If labels are missing, or naive Bayes is no better than guessing,
        ``"auto"`` selects the largest of these sizes with at least 64 training patches per code.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        Shape of the images if each row of X is a flattened image. Files are resized to this shape.
        If it is ambiguous which axis of an array contains the channels, `image_shape` decides. If
        `image_shape` is None, rows of a 2-D X are images one pixel high.
    random_state : int, RandomState instance or None, default=None
        Seed for the choice of patches and for k-means.
    normalize : {"auto", "image", "image+polarity", "channel", "channel+polarity"} or None, \
default="auto"
        How each image is normalized before it is divided into patches. Normalization makes tokens
        independent of brightness and contrast. ``"image"`` normalizes the mean and standard
        deviation of all pixels together. ``"channel"`` normalizes each channel, which also removes
        color casts. ``"+polarity"`` also inverts images of dark objects on light backgrounds
        (negative skewness). ``"auto"`` tries None and the four options above, and computes the
        held-out loss of naive Bayes for each option. ``"auto"`` then selects the last option with
        a loss of at most ``1.1 * smallest_loss + 0.03 * loss_of_uniform_guessing``. If
        labels are missing, or naive Bayes is no better than guessing, ``"auto"`` selects None. To
        avoid amplifying noise, contrasts below 10 % of the typical contrast count as 10 %.

    Attributes
    ----------
    codebook_ : float32 ndarray of shape (`n_codes_`, patch height * patch width * channels)
        Flattened and normalized patch of each code.
    n_codes_ : int
        Size of the codebook.
    patch_size_ : tuple of int
        Height and width of a patch.
    normalize_ : str or None
        Normalization that is used.
    reference_statistics_ : float64 ndarray of shape (2, channels) or None
        Mean and contrast to which every image is normalized: the medians over the training images.
        None if `normalize_` is None.
    typical_patches_ : float32 ndarray of shape (2, n_tokens, n_values) or None
        Mean and standard deviation of each patch pixel over the normalized training images. None
        if `normalize_` is None.
    grid_ : tuple of int
        Rows and columns of tokens.
    image_shape_ : tuple of int
        Height, width and channels of the images.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skaocls import PatchTokenizer
    >>> images = load_digits().images
    >>> tokenizer = PatchTokenizer(patch_size=2, n_codes=64, random_state=0).fit(images)
    >>> codes = tokenizer.transform(images)
    >>> codes.shape
    (1797, 4, 4)
    >>> tokenizer.inverse_transform(codes).shape
    (1797, 8, 8)
    """

    _signals = True
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "patch_size": [POSITIVE_INTEGER, tuple, list, StrOptions({"auto"})],
        "n_codes": [POSITIVE_INTEGER, StrOptions({"auto"})],
        "image_shape": [tuple, list, None],
        "random_state": ["random_state"],
        "normalize": [StrOptions({"auto", *NORMALIZATIONS}), None],
    }

    def __init__(
        self,
        patch_size: int | Sequence[int] | str = "auto",
        n_codes: int | str = "auto",
        image_shape: Sequence[int] | None = None,
        random_state: int | np.random.RandomState | None = None,
        *,
        normalize: str | None = "auto",
    ):
        self.patch_size = patch_size
        self.n_codes = n_codes
        self.image_shape = image_shape
        self.random_state = random_state
        self.normalize = normalize

    def _fit(self, batch: Batch, y: object = None) -> "PatchTokenizer":
        rng = check_random_state(self.random_state)
        image_shape = batch.reader.image_shape
        assert image_shape is not None
        patch_size = resolve_patch_size(self.patch_size, image_shape)
        grid = -(-image_shape[0] // patch_size[0]), -(-image_shape[1] // patch_size[1])
        n_images = max(1, MAX_PATCHES // (grid[0] * grid[1]))
        rows = np.sort(rng.permutation(len(batch))[:n_images])
        labels = None
        if y is not None and "auto" in (self.n_codes, self.normalize):
            labels = class_labels(y, len(batch), rows)
        candidates: tuple[str | None, ...] = (self.normalize,)
        if self.normalize == "auto":
            candidates = (None,) if labels is None else (None, *NORMALIZATIONS)
            if image_shape[2] == 1:
                candidates = candidates[:3]  # "channel" equals "image" if there is one channel
        sample, statistics = read_sample(batch.take(rows), candidates)
        reference = {name: typical_statistics(s) for name, s in statistics.items()}

        def normalized_patches(name: str | None, index: np.ndarray | slice) -> np.ndarray:
            images = sample[index]
            if name is not None:
                own = limit_contrast(statistics[name][index], reference[name])
                images = match_statistics(images, own, reference[name])
            return split_patches(images, patch_size, grid)

        normalize = candidates[0]
        if labels is not None and len(candidates) > 1:
            normalize = best_normalization(normalized_patches, candidates, labels, rng)
        patches = normalized_patches(normalize, slice(None))
        typical = None
        if normalize is not None:
            by_image = patches.reshape(len(rows), -1, patches.shape[1])
            typical = np.stack([by_image.mean(0), by_image.std(0)])
        components = fit_components(patches, rng)
        codebook = choose_codebook(components.transform(patches), self.n_codes, labels, rng)
        codebook = components.inverse_transform(codebook)
        self.__dict__.update(
            reader_=self._own_reader(batch),
            patch_size_=patch_size,
            grid_=grid,
            n_codes_=len(codebook),
            codebook_=codebook.astype(np.float32),
            normalize_=normalize,
            reference_statistics_=reference.get(normalize),
            typical_patches_=typical,
        )
        if isinstance(self.patch_size, str) and max(patch_size) > MAX_SIDE:
            side = MAX_SIDE * round(MAX_TOKENS**0.5)
            warn(
                f"Images of {image_shape[0]} x {image_shape[1]} pixels are divided into patches of "
                f"{patch_size[0]} x {patch_size[1]} pixels. Patches of this size cannot be "
                f"approximated well by {len(codebook)} codes. Resize the images (if X has files, "
                f"pass image_shape=({side}, {side}) or less), use published weights such as "
                'prior="randar-l", or pass FeatureTokenizer with a pretrained network.'
            )
        return self

    def image_statistics(self, X: object, valid: ArrayLike | None = None) -> np.ndarray | None:
        """Compute the mean and contrast of images. Normalization makes tokens independent of both.

        Parameters
        ----------
        X : array-like of images
            Images of the same shape as in `fit`.
        valid : bool array-like of shape (n, height, width), default=None
            Mask of the known pixels. The statistics of the whole image are estimated from these
            pixels. If None, all pixels are known.

        Returns
        -------
        statistics : float64 array of shape (n, 2, channels) or None
            Mean and contrast of each image, for `inverse_transform`. None if `normalize_` is None.
        """
        check_is_fitted(self)
        batch = self.reader_.open(X, check_scale=False)
        if self.normalize_ is None:
            return None
        statistics = []
        for part, images in batch.image_blocks():
            known = None if valid is None else np.asarray(valid)[part]
            statistics.append(self._statistics(images, known))
        return np.concatenate(statistics)

    def _statistics(self, images: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """Compute statistics of decoded images; images without valid pixels get the reference."""
        assert self.normalize_ is not None
        reference = self.reference_statistics_
        if valid is None:
            return limit_contrast(image_statistics(images, self.normalize_), reference)
        has_valid = valid.any(axis=(1, 2), keepdims=True)
        valid = np.where(has_valid, valid, True)
        part = limit_contrast(image_statistics(images, self.normalize_, valid), reference)
        mean, std = (self._assemble(x[None])[0] for x in self.typical_patches_)
        whole = extrapolate_statistics(part, valid, (mean, std), reference, self.normalize_)
        return np.where(has_valid, whole, reference)

    def _assemble(self, patches: np.ndarray) -> np.ndarray:
        """Assemble images from patches of shape (n, n_tokens, n_values)."""
        (rows, cols), (ph, pw), (h, w, c) = self.grid_, self.patch_size_, self.image_shape_
        tiles = patches.reshape(-1, rows, cols, ph, pw, c).swapaxes(2, 3)
        images: np.ndarray = tiles.reshape(-1, rows * ph, cols * pw, c)[:, :h, :w]
        return images

    def _encode(self, images: np.ndarray, *, statistics: np.ndarray | None = None) -> np.ndarray:
        """Tokenize decoded images; compute their statistics unless `statistics` are given."""
        if self.normalize_ is not None:
            if statistics is None:
                statistics = self._statistics(images)
            images = match_statistics(images, statistics, self.reference_statistics_)
        patches = split_patches(images, self.patch_size_, self.grid_)
        return nearest_codes(patches, self.codebook_).reshape(-1, *self.grid_)

    def inverse_transform(
        self, codes: ArrayLike, *, statistics: np.ndarray | None = None
    ) -> np.ndarray:
        """Assemble images from the codebook entries of tokens.

        Parameters
        ----------
        codes : int array-like of shape (n, rows, cols)
            Tokens from `transform`.
        statistics : array of shape (n, 2, channels), default=None
            Mean and contrast of each image in the result, from :meth:`image_statistics`. If None,
            every image has the mean and contrast in `reference_statistics_`.

        Returns
        -------
        images : float32 array of shape (n, height, width[, channels])
            The images, without a channel axis if there is only one channel. If `fit` had 8-bit
            images, the values are in [0, 1].
        """
        check_is_fitted(self)
        codes = check_codes(codes, self.grid_, self.n_codes_)
        images = self._assemble(self.codebook_[codes])
        if self.normalize_ is not None and statistics is not None:
            images = match_statistics(images, self.reference_statistics_, statistics)
        if self.normalize_ is not None and self.reader_.value_range is not None:
            images = images.clip(*self.reader_.value_range)
        return images[..., 0] if self.image_shape_[2] == 1 else images


def read_sample(
    batch: Batch, normalizations: Sequence[str | None]
) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    """Return decoded images, and the statistics of these images for each normalization."""
    blocks = [images for _, images in batch.image_blocks()]
    statistics: dict[str | None, np.ndarray] = {
        name: np.concatenate([image_statistics(images, name) for images in blocks])
        for name in normalizations
        if name is not None
    }
    return np.concatenate(blocks), statistics


def resolve_patch_size(
    patch_size: int | Sequence[int] | str, image_shape: Sequence[int]
) -> tuple[int, int]:
    h, w, _ = image_shape
    if isinstance(patch_size, str):
        side = 2
        while -(-h // side) * -(-w // side) > MAX_TOKENS:
            side += 1
        return min(side, h), min(side, w)
    size = (patch_size, patch_size) if isinstance(patch_size, int | np.integer) else patch_size
    if len(size) != 2 or not all(isinstance(s, Integral) and int(s) >= 1 for s in size):
        raise ValueError(
            f"patch_size={patch_size!r} must be an int >= 1 or two of them: (height, width)."
        )
    return min(int(size[0]), h), min(int(size[1]), w)


def split_patches(images: np.ndarray, patch_size: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """Divide images row by row into flattened patches of shape (n * rows * cols, n_values)."""
    (rows, cols), (ph, pw), (h, w, c) = grid, patch_size, images.shape[1:]
    padding = ((0, 0), (0, rows * ph - h), (0, cols * pw - w), (0, 0))
    tiles = np.pad(images, padding, mode="edge").reshape(-1, rows, ph, cols, pw, c)
    patches: np.ndarray = tiles.swapaxes(2, 3).reshape(-1, ph * pw * c)
    return patches

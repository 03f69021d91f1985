"""Tokens for images: the nearest codebook entry of each patch."""

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skaocls.attributes import read_from
from skaocls.images.reader import learn_reader
from skaocls.tokenizers._codes import check_codes
from skaocls.tokenizers.codebook import (
    best_codebook,
    best_normalization,
    class_labels,
    components,
    learn_codebook,
)
from skaocls.tokenizers.normalization import (
    NORMALIZATIONS,
    light_of,
    light_of_the_whole,
    relit,
    steady,
    typical_light,
)

MAX_TOKENS = 64  # of an image, with patch_size="auto"
MAX_PATCHES = 2**17  # from which the codebook is learned
MAX_SIDE = 8  # of patches that a codebook describes well: 64 tokens are then 64 x 64 pixels
IMAGES_AT_ONCE = 1024


class PatchTokenizer(TransformerMixin, BaseEstimator):
    """Tokenize images: cut them into patches, name each by its nearest k-means centre.

    Images whose sides are no multiples of the patch are continued to the right and below by
    their last pixels; `inverse_transform` cuts that off again.

    Parameters
    ----------
    patch_size : int, two of them (height, width) or "auto", default="auto"
        Pixels that one token stands for. ``"auto"`` is the smallest square patch, from 2 x 2,
        that leaves at most 64 tokens; above 8 x 8, for images beyond 64 x 64, with a warning.
        Patches of more than 192 numbers are clustered by their first 64 principal components.
    n_codes : int or "auto", default="auto"
        Size of the codebook, at most the number of distinct patches. ``"auto"`` is a power of two
        from 16 to 1024. If `fit` is given labels, naive Bayes classifies images by the tokens of
        each size, in cross-validation, and the largest size is taken whose loss is at most half
        above the least. Without labels, or if it tells nothing apart, it is the size that leaves at
        least 64 training patches to each code. `n_codes_` says what it became.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        Shape of the images if X holds flat rows; size to which image files are resized; says where
        the channels of arrays are if they may be first or last. Without it, rows of a 2-D X are
        signals: images one pixel high.
    random_state : int, RandomState instance or None, default=None
        Seed of the choice of patches and of k-means.
    normalize : {"auto", "image", "image+polarity", "channel", "channel+polarity"} or None, \
default="auto"
        What of the light is taken off each image before it is cut into patches, so that tokens do
        not depend on it. ``"image"``: the mean and the standard deviation of its numbers;
        ``"channel"``: those of each channel, so colour casts too; with ``"+polarity"`` also
        whether it is dark on light or light on dark, by the sign of its skewness. None is nothing.
        ``"auto"`` compares them as `n_codes` compares sizes: it takes the last of None,
        ``"image"``, ``"image+polarity"``, ``"channel"``, ``"channel+polarity"`` whose held-out
        loss is at most a tenth, and 3 % of that of a guess, above the least; without labels, or if
        they tell nothing apart, None. `normalize_` says what it became. Images with less than a
        tenth of the typical contrast are taken to have that, which keeps noise in flat ones small.

    Attributes
    ----------
    codebook_ : float32 ndarray of shape (`n_codes_`, patch height * patch width * channels)
        The patch of each code, flattened; in typical light.
    n_codes_ : int
        Size of the codebook.
    patch_size_ : tuple of int
        Height and width of a patch.
    patch_std_ : float
        Standard deviation of the numbers in the training patches.
    normalize_ : str or None
        What is taken off each image.
    reference_light_ : float64 ndarray of shape (2, channels) or None
        Typical mean and contrast of training images, in which codes are described and
        `inverse_transform` gives images; None if `normalize_` is.
    typical_patches_ : float32 ndarray of shape (2, n_tokens, n_numbers) or None
        Mean and standard deviation of training images in that light, patch by patch.
    grid_ : tuple of int
        Rows and columns of tokens.
    reader_ : Reader
        What the images of `fit` looked like, and how others are read.
    image_shape_ : tuple of int
        Height, width and channels of the images.
    n_features_in_ : int
        Columns of a 2-D X seen during fit, else numbers in one image.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during fit, when X has feature names that are all strings.

    See Also
    --------
    FeatureTokenizer : Tokens of a network's feature map.
    QuantileTokenizer : Tokens for tabular data.

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

    _parameter_constraints: dict[str, Any] = {
        "patch_size": [
            Interval(Integral, 1, None, closed="left"),
            tuple,
            list,
            StrOptions({"auto"}),
        ],
        "n_codes": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "image_shape": [tuple, list, None],
        "random_state": ["random_state"],
        "normalize": [StrOptions({"auto", *NORMALIZATIONS}), None],
    }

    def __init__(
        self,
        patch_size: Any = "auto",
        n_codes: Any = "auto",
        image_shape: Any = None,
        random_state: Any = None,
        *,
        normalize: str | None = "auto",
    ):
        self.patch_size = patch_size
        self.n_codes = n_codes
        self.image_shape = image_shape
        self.random_state = random_state
        self.normalize = normalize

    image_shape_ = read_from("reader_.image_shape")
    n_features_in_ = read_from("reader_.n_features")
    feature_names_in_ = read_from("reader_.feature_names", optional=True)

    def fit(self, X: Any, y: Any = None) -> "PatchTokenizer":
        """Learn the codebook.

        Parameters
        ----------
        X : array-like of images
            Anything that :mod:`skaocls.images` reads: arrays of shape (n, height, width) or
            (n, height, width, channels), flat rows, files, PIL images.
        y : array-like of shape (n,), default=None
            Class labels, by which ``n_codes="auto"`` chooses the size of the codebook; labels of
            another kind than classes are ignored.

        Returns
        -------
        self : PatchTokenizer
            The fitted tokenizer.
        """
        self._validate_params()
        rng = check_random_state(self.random_state)
        owner = type(self).__name__
        batch = learn_reader(X, owner, self.image_shape, signals=True)
        reader = batch.reader
        assert reader.image_shape is not None
        patch = resolve_patch_size(self.patch_size, reader.image_shape)
        grid = tuple(-(-size // side) for size, side in zip(reader.image_shape, patch))
        n = max(1, MAX_PATCHES // (grid[0] * grid[1]))
        chosen = np.sort(rng.permutation(len(batch))[:n])
        labels = None
        if y is not None and "auto" in (self.n_codes, self.normalize):
            labels = class_labels(y, len(batch), chosen)
        candidates: tuple[Any, ...] = (self.normalize,)
        if self.normalize == "auto":
            candidates = (None,) if labels is None else (None, *NORMALIZATIONS)
            if reader.image_shape[2] == 1:
                candidates = candidates[:3]  # the only channel is the image
        lights: dict[str, list[np.ndarray]] = {how: [] for how in candidates if how is not None}
        cuts = []
        for part in gen_batches(len(chosen), IMAGES_AT_ONCE):
            images = batch.images(chosen[part])
            cuts.append(cut(images, patch, grid))
            for how in lights:
                lights[how].append(light_of(images, how))
        light = {how: np.concatenate(parts) for how, parts in lights.items()}
        reference = {how: typical_light(of_all) for how, of_all in light.items()}
        pixels = np.concatenate(cuts).reshape(len(chosen), -1, reader.image_shape[2])

        def normalized(how: Any, some: Any = slice(None)) -> np.ndarray:
            """Patches of some of the images."""
            x = pixels[some]
            if how is not None:
                x = relit(x, steady(light[how][some], reference[how]), reference[how])
            of_patches: np.ndarray = x.reshape(-1, patch[0] * patch[1] * pixels.shape[2])
            return of_patches

        normalize = candidates[0]
        if labels is not None and len(candidates) > 1:
            normalize = best_normalization(normalized, candidates, labels, rng)
        patches = normalized(normalize)
        patch_std = float(patches.std())
        typical = None
        if normalize is not None:
            by_image = patches.reshape(len(chosen), -1, patches.shape[1])
            typical = np.stack([by_image.mean(0), by_image.std(0)])
        pca = components(patches, rng)
        if pca is not None:
            patches = pca.transform(patches)
        if isinstance(self.n_codes, str):
            codebook = best_codebook(patches, labels, rng)
        else:
            codebook = learn_codebook(patches, self.n_codes, rng)
        n_codes = len(codebook)
        if pca is not None:
            codebook = pca.inverse_transform(codebook)
        if isinstance(self.patch_size, str) and max(patch) > MAX_SIDE:
            height, width = reader.image_shape[:2]
            side = MAX_SIDE * round(MAX_TOKENS**0.5)
            warnings.warn(
                f"Images of {height} x {width} pixels become patches of {patch[0]} x {patch[1]}, "
                f"which {n_codes} codes describe poorly: the default is for images up to "
                f"{side} x {side}. Resize them, files by image_shape=({side}, {side}) or less; "
                'take published weights, such as prior="randar-l"; or pass another tokenizer, '
                "FeatureTokenizer if you have a network that knows images.",
                UserWarning,
                stacklevel=2,
            )
        self.__dict__.update(
            reader_=reader,
            patch_size_=patch,
            grid_=grid,
            n_codes_=n_codes,
            codebook_=codebook.astype(np.float32),
            patch_std_=patch_std,
            normalize_=normalize,
            reference_light_=reference.get(normalize),
            typical_patches_=typical,
        )
        return self

    def light(self, X: Any, known: Any = None) -> np.ndarray | None:
        """Brightness and contrast of images, which their tokens do not tell.

        Parameters
        ----------
        X : array-like of images
            Of the shape seen during fit.
        known : bool array-like of shape (n, height, width), default=None
            Pixels that count, by which that of the whole is estimated; None is all.

        Returns
        -------
        light : float64 array of shape (n, 2, channels) or None
            Mean and contrast, for `transform` and `inverse_transform`. None if images are taken
            as they are.
        """
        check_is_fitted(self)
        X = self.reader_.open(X, scale=False)
        if self.normalize_ is None:
            return None
        lights = []
        for part in gen_batches(len(X), IMAGES_AT_ONCE):
            seen = None if known is None else np.asarray(known)[part]
            lights.append(self._light(X.images(part), seen))
        return np.concatenate(lights)

    def _light(self, images: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """:meth:`light` of decoded images; where nothing is known, the typical one."""
        assert self.normalize_ is not None
        if known is None:
            return steady(light_of(images, self.normalize_), self.reference_light_)
        some = known.any(axis=(1, 2), keepdims=True)
        light = light_of(images, self.normalize_, np.where(some, known, True))
        light = steady(light, self.reference_light_)
        training = (self._assembled(x[None])[0] for x in self.typical_patches_)
        of_whole = light_of_the_whole(
            light,
            np.where(some, known, True),
            tuple(training),
            self.reference_light_,
            self.normalize_,
        )
        return np.where(some, of_whole, self.reference_light_)

    def _assembled(self, patches: np.ndarray) -> np.ndarray:
        """Images of their patches (n, n_tokens, n_numbers)."""
        (rows, cols), (ph, pw), (h, w, c) = self.grid_, self.patch_size_, self.image_shape_
        tiles = patches.reshape(-1, rows, cols, ph, pw, c).swapaxes(2, 3)
        images: np.ndarray = tiles.reshape(-1, rows * ph, cols * pw, c)[:, :h, :w]
        return images

    def transform(
        self, X: Any, *, light: Any = None, latent_noise: float = 0.0, seed: int = 0
    ) -> np.ndarray:
        """Tokenize.

        Parameters
        ----------
        X : array-like of images
            Of the shape seen during fit.
        light : array of shape (n, 2, channels), default=None
            What :meth:`light` gives for other images or for parts of these; None is the light of
            each image itself.
        latent_noise : float, default=0.0
            t in ``(1 - t) patch + t noise``, before the nearest code is sought; the noise is as
            spread as the training patches.
        seed : int, default=0
            Of the noise, which is the same for every image.

        Returns
        -------
        codes : int64 array of shape (n, rows, cols)
            Tokens, from 0 to ``n_codes_ - 1``.
        """
        check_is_fitted(self)
        X = self.reader_.open(X)
        n_patches = self.grid_[0] * self.grid_[1]
        noise = np.random.RandomState(seed).randn(n_patches, self.codebook_.shape[1])
        noise = (latent_noise * self.patch_std_ * noise).astype(np.float32)
        codes = []
        for part in gen_batches(len(X), IMAGES_AT_ONCE):
            images = X.images(part)
            if self.normalize_ is not None:
                own = self._light(images) if light is None else light[part]
                images = relit(images, own, self.reference_light_)
            patches = cut(images, self.patch_size_, self.grid_)
            if latent_noise:
                patches = np.float32(1 - latent_noise) * patches
                patches = (patches.reshape(-1, *noise.shape) + noise).reshape(patches.shape)
            codes.append(pairwise_distances_argmin(patches, self.codebook_))
        return np.concatenate(codes).astype(np.int64).reshape(-1, *self.grid_)

    def inverse_transform(self, codes: Any, *, light: Any = None) -> np.ndarray:
        """Images in which each token is its codebook entry.

        Parameters
        ----------
        codes : int array-like of shape (n, rows, cols)
            Tokens, as `transform` gives them.
        light : array of shape (n, 2, channels), default=None
            What :meth:`light` gives: the images come back in it. None is the typical light of the
            training images, `reference_light_`.

        Returns
        -------
        images : float32 array of shape (n, height, width[, channels])
            Without the last axis if there is one channel; rows are images one pixel high. 8-bit
            images come back in [0, 1].
        """
        check_is_fitted(self)
        codes = check_codes(codes, self.grid_, self.n_codes_)
        images = self._assembled(self.codebook_[codes])
        if self.normalize_ is not None and light is not None:
            images = relit(images, self.reference_light_, light)
        if self.normalize_ is not None and self.reader_.value_range is not None:
            images = images.clip(*self.reader_.value_range)
        return images[..., 0] if self.image_shape_[2] == 1 else images

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def resolve_patch_size(patch_size: Any, image_shape: Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels that `patch_size` stands for."""
    h, w, _ = image_shape
    if isinstance(patch_size, str):
        side = 2
        while -(-h // side) * -(-w // side) > MAX_TOKENS:
            side += 1
        return min(side, h), min(side, w)
    size = (patch_size, patch_size) if isinstance(patch_size, Integral) else tuple(patch_size)
    if len(size) != 2 or not all(isinstance(s, Integral) and int(s) >= 1 for s in size):
        raise ValueError(f"patch_size={patch_size!r} must be an int >= 1 or two of them.")
    return min(int(size[0]), h), min(int(size[1]), w)


def cut(images: np.ndarray, patch: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """Flattened patches, image by image and row by row: (n * rows * cols, ph * pw * c)."""
    (rows, cols), (ph, pw), (h, w, c) = grid, patch, images.shape[1:]
    margin = ((0, 0), (0, rows * ph - h), (0, cols * pw - w), (0, 0))
    tiles = np.pad(images, margin, mode="edge").reshape(-1, rows, ph, cols, pw, c)
    patches: np.ndarray = tiles.swapaxes(2, 3).reshape(-1, ph * pw * c)
    return patches

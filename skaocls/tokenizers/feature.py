"""Tokens from a network in hand: the nearest codebook entry of each place of its feature map."""

import copy
import threading
import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch.nn import functional as F

from skaocls.attributes import read_from
from skaocls.devices import own_torch_state, resolve_device, to_device
from skaocls.images.reader import learn_reader
from skaocls.tokenizers.codebook import best_codebook, class_labels, learn_codebook

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its channels
MOST_NUMBERS = 2**25  # of all feature vectors from which components and codebook are learned
MANY_TOKENS = 256
BEYOND = 0.01  # 0 and 1 that numbers may lie by rounding


class FeatureTokenizer(TransformerMixin, BaseEstimator):
    """Tokenize images by a network: cluster the vectors of its feature map.

    Each place of the map becomes a token: principal components of its vector, then the nearest
    k-means centre. With a network that was trained on many images, tokens tell parts of things
    apart, not shades of patches. The network stays as it is; `fit` takes a copy of a module, in
    evaluation mode.

    Parameters
    ----------
    backbone : torch.nn.Module or callable
        Maps float32 images (n, 3, height, width) to a feature map (n, channels, rows, cols), or to
        (n, `n_prefix` + side * side, channels), as vision transformers do. `clone` copies a module.
    layer : str, default=None
        Name of a submodule (see ``backbone.named_modules()``) whose output is the feature map; None
        is that of the backbone.
    n_prefix : int, default=0
        Class and register tokens before those of the image, which are left out.
    grid : tuple of int (rows, cols), default=None
        To which the map is averaged. None is that of the map.
    input_size : int or tuple of int (height, width), default=None
        To which images are resized before the network sees them. None is their own size.
    mean, std : tuple of float or None, default=those of ImageNet
        Of channels in [0, 1], taken off and divided by. None takes images as they are.
    n_components : int or None, default=32
        Principal components that are clustered, at most the channels of the map. None clusters
        the vectors themselves.
    n_codes : int or "auto", default="auto"
        Size of the codebook, chosen as in :class:`PatchTokenizer`.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        As in :class:`PatchTokenizer`.
    batch_size : int, default=8
        Images that the network sees together, always as many (what is missing is made up), so that
        tokens do not depend on the batch.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA if there is a device, else the CPU. A callable gets its images there.
    random_state : int, RandomState instance or None, default=None
        Seed of the choice of images, of components and of k-means.

    Attributes
    ----------
    backbone_ : torch.nn.Module or callable
        The network: a copy, if it is a module.
    components_ : PCA or None
        Fitted principal components.
    codebook_ : float32 ndarray of shape (`n_codes_`, n_numbers)
        The centre of each code, in components.
    n_codes_ : int
        Size of the codebook.
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
    PatchTokenizer : Tokens without a network.

    Notes
    -----
    A feature map has no way back to pixels: `inverse_transform`, and with it ``sample`` and
    ``inpaint`` of a classifier, raises NotImplementedError. A network is code, which
    ``save_pretrained`` does not write: use joblib.dump, or train on ``tokenizer="precomputed"``.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skaocls import FeatureTokenizer
    >>> network = torch.nn.Conv2d(3, 12, 2, stride=2)  # better one that knows images
    >>> images = load_digits().images / 16
    >>> tokenizer = FeatureTokenizer(network, n_components=8, n_codes=32, random_state=0)
    >>> tokenizer.fit_transform(images).shape
    (1797, 4, 4)
    """

    _parameter_constraints: dict[str, Any] = {
        "backbone": [callable],
        "layer": [str, None],
        "n_prefix": [Interval(Integral, 0, None, closed="left")],
        "grid": [tuple, list, None],
        "input_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "mean": ["array-like", None],
        "std": ["array-like", None],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "n_codes": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "image_shape": [tuple, list, None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        backbone: Any,
        *,
        layer: str | None = None,
        n_prefix: int = 0,
        grid: Any = None,
        input_size: Any = None,
        mean: Any = IMAGENET[0],
        std: Any = IMAGENET[1],
        n_components: int | None = 32,
        n_codes: Any = "auto",
        image_shape: Any = None,
        batch_size: int = 8,
        device: Any = "auto",
        random_state: Any = None,
    ):
        self.backbone = backbone
        self.layer = layer
        self.n_prefix = n_prefix
        self.grid = grid
        self.input_size = input_size
        self.mean = mean
        self.std = std
        self.n_components = n_components
        self.n_codes = n_codes
        self.image_shape = image_shape
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    image_shape_ = read_from("reader_.image_shape")
    n_features_in_ = read_from("reader_.n_features")
    feature_names_in_ = read_from("reader_.feature_names", optional=True)

    def fit(self, X: Any, y: Any = None) -> "FeatureTokenizer":
        """Learn components and codebook.

        Parameters
        ----------
        X : array-like of images
            Anything that :mod:`skaocls.images` reads, with one channel or three; floats must lie
            in [0, 1].
        y : array-like of shape (n,), default=None
            Class labels, by which ``n_codes="auto"`` chooses the size of the codebook; labels of
            another kind than classes are ignored.

        Returns
        -------
        self : FeatureTokenizer
            The fitted tokenizer.

        Raises
        ------
        ValueError
            If images, or what the network makes of them, are none that can be tokenized.
        """
        self._validate_params()
        rng = check_random_state(self.random_state)
        batch = learn_reader(X, type(self).__name__, self.image_shape)
        reader = batch.reader
        if reader.image_shape is None:
            raise ValueError(
                f"{type(self).__name__} reads images, but X is a table. Pass image_shape if its "
                "rows are pixels."
            )
        backbone = self.backbone
        if isinstance(backbone, torch.nn.Module):
            if self.layer is not None and self.layer not in dict(backbone.named_modules()):
                names = [name for name, _ in backbone.named_modules() if name]
                raise ValueError(f"layer={self.layer!r} is none of the backbone's: {names}.")
            with own_torch_state(grad=True):
                backbone = copy.deepcopy(backbone).eval()
        elif self.layer is not None:
            raise ValueError("layer names a submodule, but the backbone is no torch.nn.Module.")
        chosen = rng.permutation(len(batch))
        probe = self._features(backbone, batch.images(chosen[:1]))
        rows, cols, channels = probe.shape[1:]
        if rows * cols > MANY_TOKENS:
            warnings.warn(
                f"The feature map makes {rows} x {cols} tokens of an image, which is slow: pass "
                "grid=(8, 8) to average it, a later layer, or a smaller input_size.",
                UserWarning,
                stacklevel=2,
            )
        n = max(1, MOST_NUMBERS // (rows * cols * channels))
        chosen = np.sort(chosen[:n])
        vectors = np.concatenate(
            [
                self._features(backbone, batch.images(chosen[part])).reshape(-1, channels)
                for part in gen_batches(len(chosen), self.batch_size)
            ]
        )
        components = None
        if self.n_components is not None:
            n_components = min(self.n_components, channels, len(vectors))
            seed = rng.randint(2**31 - 1)
            components = PCA(n_components, random_state=seed).fit(vectors)
            vectors = components.transform(vectors)
        if isinstance(self.n_codes, str):
            labels = None if y is None else class_labels(y, len(batch), chosen)
            codebook = best_codebook(vectors, labels, rng)
        else:
            codebook = learn_codebook(vectors, self.n_codes, rng)
        self.__dict__.update(
            backbone_=backbone,
            components_=components,
            codebook_=codebook.astype(np.float32),
            n_codes_=len(codebook),
            grid_=(rows, cols),
            reader_=reader,
        )
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Tokenize.

        Parameters
        ----------
        X : array-like of images
            Of the shape seen during fit.

        Returns
        -------
        codes : int64 array of shape (n, rows, cols)
            Tokens, from 0 to ``n_codes_ - 1``.
        """
        check_is_fitted(self)
        X = self.reader_.open(X)
        codes = []
        for part in gen_batches(len(X), self.batch_size):
            features = self._features(self.backbone_, X.images(part))
            vectors = features.reshape(-1, features.shape[-1])
            if self.components_ is not None:
                vectors = self.components_.transform(vectors)
            codes.append(pairwise_distances_argmin(vectors, self.codebook_))
        return np.concatenate(codes).astype(np.int64).reshape(-1, *self.grid_)

    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Not possible: a feature map has no way back to pixels.

        Parameters
        ----------
        codes : int array-like of shape (n, rows, cols)
            Tokens.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} cannot make images of tokens: its network goes from images to "
            "features alone. To draw images (sample, inpaint, ReconstructionDisplay), take a "
            "tokenizer that decodes, such as PatchTokenizer."
        )

    @own_torch_state()
    def _features(self, backbone: Any, images: np.ndarray) -> np.ndarray:
        """Feature map of at most `batch_size` images, (n, rows, cols, channels)."""
        device = resolve_device(self.device)
        if isinstance(backbone, torch.nn.Module):
            backbone = to_device(backbone, device)
        pixels = self._pixels(images).to(device)
        with torch.random.fork_rng([]):  # a callable may draw
            torch.default_generator.manual_seed(0)
            features = called(backbone, pixels, self.layer)
        if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
            what = tuple(features.shape) if hasattr(features, "shape") else type(features).__name__
            raise ValueError(
                "The backbone must give a feature map (n, channels, rows, cols), or tokens (n, "
                f"n_prefix + side * side, channels), but it gave {what}. layer= takes the map out "
                "of the middle of a network."
            )
        if features.ndim == 3:
            features = features[:, self.n_prefix :]
            side = round(features.shape[1] ** 0.5)
            if side**2 != features.shape[1]:
                raise ValueError(
                    f"{features.shape[1]} tokens of an image are no square: n_prefix="
                    f"{self.n_prefix} must be the number of class and register tokens before them."
                )
            features = features.transpose(1, 2).unflatten(2, (side, side))
        if self.grid is not None:
            features = F.adaptive_avg_pool2d(features, tuple(self.grid))
        if len(features) != len(pixels) or not features.isfinite().all():
            raise ValueError("The backbone must give finite numbers, one map for each image.")
        maps: np.ndarray = features[: len(images)].permute(0, 2, 3, 1).float().cpu().numpy()
        return maps

    def _pixels(self, images: np.ndarray) -> torch.Tensor:
        """What the network sees, (`batch_size`, 3, height, width)."""
        channels = images.shape[-1]
        if channels not in (1, 3):
            raise ValueError(f"Images must have one channel or three, not {channels}.")
        low, high = images.min(), images.max()
        if low < -BEYOND or high > 1 + BEYOND:
            raise ValueError(
                "Images must have values in [0, 1] or be of dtype uint8, got values from "
                f"{low:.3g} to {high:.3g}."
            )
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        pixels = pixels.expand(-1, 3, -1, -1)
        pixels = torch.cat([pixels, pixels[-1:].expand(self.batch_size - len(images), -1, -1, -1)])
        if self.input_size is not None:
            size = self.input_size
            size = (size, size) if isinstance(size, Integral) else tuple(size)
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        for numbers, change in ((self.mean, torch.sub), (self.std, torch.div)):
            if numbers is not None:
                of_channels = torch.as_tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1)
                pixels = change(pixels, of_channels)
        return pixels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__().copy()
        if isinstance(state.get("backbone_"), torch.nn.Module):  # must load without a GPU
            state["backbone_"] = copy.deepcopy(state["backbone_"]).cpu()
        return state


def called(backbone: Any, pixels: torch.Tensor, layer: str | None) -> Any:
    """What the backbone, or a submodule of it on the way, makes of the pixels."""
    if layer is None:
        return backbone(pixels)
    outputs: list[Any] = []
    thread = threading.get_ident()

    def keep(module: Any, inputs: Any, output: Any) -> None:
        if threading.get_ident() == thread:  # others may use the same module
            outputs.append(output)

    handle = backbone.get_submodule(layer).register_forward_hook(keep)
    try:
        backbone(pixels)
    finally:
        handle.remove()
    if not outputs:
        raise ValueError(f"The backbone does not use layer={layer!r} on its way.")
    return outputs[-1]

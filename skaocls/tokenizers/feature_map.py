"""Tokens of a feature map: each vector of the map is replaced by the nearest codebook entry."""

import copy
import threading
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from torch.nn import functional as F

from skaocls.devices import own_torch_state, resolve_device, to_device
from skaocls.images.batch import Batch
from skaocls.tokenizers.base import (
    POSITIVE_INTEGER,
    ImageTokenizer,
    check_unit_range,
    pixels_in_batch,
)
from skaocls.tokenizers.codebook import choose_codebook, class_labels, nearest_codes
from skaocls.warn import warn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_NUMBERS = 2**25  # largest number of feature values from which PCA and k-means learn
MANY_TOKENS = 256  # if there are more tokens per image, a warning says that training is slow

Backbone = torch.nn.Module | Callable[[torch.Tensor], torch.Tensor]


class FeatureTokenizer(ImageTokenizer):
    """Tokenize images with a network: cluster the vectors of a feature map.

    Each vector of the feature map is projected on principal components. The token of the vector is
    the index of the nearest k-means center. The tokens of a pretrained network distinguish
    parts of objects rather than brightness and color. `fit` does not train the network. If the
    network is a module, `fit` copies the module and sets the copy to evaluation mode.

    Parameters
    ----------
    backbone : torch.nn.Module or callable
        Network that maps float32 images (n, 3, height, width) to a feature map (n, channels, rows,
        cols). The network may also return tokens of shape (n, `n_prefix` + side * side, channels),
        as vision transformers do. ``sklearn.base.clone`` copies the network if it is a module.
    layer : str, default=None
        Name of the submodule (see ``backbone.named_modules()``) whose output is the feature map. If
        None, the output of the backbone is the feature map.
    n_prefix : int, default=0
        Number of class and register tokens, which precede the image tokens and are ignored.
    grid : tuple of int (rows, cols), default=None
        Size of the feature map after average pooling. If None, the feature map is not pooled.
    input_size : int or tuple of int (height, width), default=None
        Size to which images are resized for the network. If None, images are not resized.
    mean, std : tuple of float or None, default=those of ImageNet
        Mean and standard deviation of each channel, used to normalize images in [0, 1]. If `mean`
        is None, no mean is subtracted. If `std` is None, images are not divided.
    n_components : int or None, default=32
        Number of principal components that are kept for clustering, at most the number of channels.
        If None, the feature vectors are clustered without a PCA.
    n_codes : int or "auto", default="auto"
        Size of the codebook. ``"auto"`` chooses the size as in :class:`PatchTokenizer`.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        Shape of the images, as in :class:`PatchTokenizer`.
    batch_size : int, default=8
        Number of images that the network processes together. Incomplete batches are padded, so the
        tokens of an image do not depend on the other images.
    device : str or torch.device, default="auto"
        Device of the network and its input. ``"auto"`` is CUDA if available, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed for the choice of images, for PCA and for k-means.

    Attributes
    ----------
    backbone_ : torch.nn.Module or callable
        The network, or a copy of the network if `backbone` is a module.
    components_ : PCA or None
        Fitted PCA, or None if `n_components` is None.
    codebook_ : float32 ndarray of shape (`n_codes_`, n_values)
        Cluster center of each code, in the space of the principal components.
    n_codes_ : int
        Size of the codebook.
    grid_ : tuple of int
        Rows and columns of tokens.
    image_shape_ : tuple of int
        Height, width and channels of the images.

    Notes
    -----
    Feature maps cannot be decoded to images, so this tokenizer has no `inverse_transform`. If a
    classifier uses this tokenizer, ``sample`` and ``inpaint`` raise NotImplementedError.
    ``save_pretrained`` cannot save the classifier, because it does not store the code of networks.
    Save the classifier with joblib.dump, or train it on tokens with ``tokenizer="precomputed"``.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from skaocls import FeatureTokenizer
    >>> network = torch.nn.Conv2d(3, 12, 2, stride=2)  # use a pretrained network
    >>> images = load_digits().images / 16
    >>> tokenizer = FeatureTokenizer(network, n_components=8, n_codes=32, random_state=0)
    >>> tokenizer.fit_transform(images).shape
    (1797, 4, 4)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "backbone": [callable],
        "layer": [str, None],
        "n_prefix": [Interval(Integral, 0, None, closed="left")],
        "grid": [tuple, list, None],
        "input_size": [POSITIVE_INTEGER, tuple, list, None],
        "mean": ["array-like", None],
        "std": ["array-like", None],
        "n_components": [POSITIVE_INTEGER, None],
        "n_codes": [POSITIVE_INTEGER, StrOptions({"auto"})],
        "image_shape": [tuple, list, None],
        "batch_size": [POSITIVE_INTEGER],
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        layer: str | None = None,
        n_prefix: int = 0,
        grid: Sequence[int] | None = None,
        input_size: int | Sequence[int] | None = None,
        mean: ArrayLike | None = IMAGENET_MEAN,
        std: ArrayLike | None = IMAGENET_STD,
        n_components: int | None = 32,
        n_codes: int | str = "auto",
        image_shape: Sequence[int] | None = None,
        batch_size: int = 8,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
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

    def _fit(self, batch: Batch, y: object = None) -> "FeatureTokenizer":
        rng = check_random_state(self.random_state)
        if batch.reader.value_range is not None:
            check_unit_range(*batch.reader.value_range)
        backbone = self._copy_backbone()
        rows = rng.permutation(len(batch))
        n_rows, n_cols, channels = self._features(backbone, batch.images(rows[:1])).shape[1:]
        if n_rows * n_cols > MANY_TOKENS:
            warn(
                f"The feature map has {n_rows} x {n_cols} positions. Training on so many tokens "
                "per image is slow. Pass grid=(8, 8), a later layer, or a smaller input_size."
            )
        n_images = max(1, MAX_NUMBERS // (n_rows * n_cols * channels))
        rows = np.sort(rows[:n_images])
        choose = y is not None and isinstance(self.n_codes, str)
        labels = class_labels(y, len(batch), rows) if choose else None
        vectors = np.concatenate(
            [
                self._features(backbone, batch.images(rows[part])).reshape(-1, channels)
                for part in gen_batches(len(rows), self.batch_size)
            ]
        )
        components = None
        if self.n_components is not None:
            n_components = min(self.n_components, channels, len(vectors))
            seed = rng.randint(2**31 - 1)
            components = PCA(n_components, random_state=seed).fit(vectors)
            vectors = components.transform(vectors)
        codebook = choose_codebook(vectors, self.n_codes, labels, rng)
        self.__dict__.update(
            backbone_=backbone,
            components_=components,
            codebook_=codebook.astype(np.float32),
            n_codes_=len(codebook),
            grid_=(n_rows, n_cols),
            reader_=self._own_reader(batch),
        )
        return self

    def _encode(self, images: np.ndarray) -> np.ndarray:
        codes = []
        for part in gen_batches(len(images), self.batch_size):
            features = self._features(self.backbone_, images[part])
            vectors = features.reshape(-1, features.shape[-1])
            if self.components_ is not None:
                vectors = self.components_.transform(vectors)
            codes.append(nearest_codes(vectors, self.codebook_))
        return np.concatenate(codes).reshape(-1, *self.grid_)

    def _copy_backbone(self) -> Backbone:
        """Return a copy of a module in evaluation mode; return other callables unchanged."""
        backbone = self.backbone
        if isinstance(backbone, torch.nn.Module):
            if self.layer is not None and self.layer not in dict(backbone.named_modules()):
                names = [name for name, _ in backbone.named_modules() if name]
                raise ValueError(
                    f"layer={self.layer!r} is not a submodule of the backbone, which has {names}."
                )
            with own_torch_state(grad=True):
                return copy.deepcopy(backbone).eval()
        if self.layer is not None:
            raise ValueError("layer names a submodule, but the backbone is not a torch.nn.Module.")
        return backbone

    @own_torch_state()
    def _features(self, backbone: Backbone, images: np.ndarray) -> np.ndarray:
        """Return the feature maps (n, rows, cols, channels) of at most `batch_size` images."""
        device = resolve_device(self.device)
        if isinstance(backbone, torch.nn.Module):
            backbone = to_device(backbone, device)
        pixels = self._pixels(images).to(device)
        with torch.random.fork_rng([]):  # the backbone may draw random numbers
            torch.default_generator.manual_seed(0)
            features = call_backbone(backbone, pixels, self.layer)
        if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
            got = tuple(features.shape) if hasattr(features, "shape") else type(features).__name__
            raise ValueError(
                "The backbone must return a feature map (n, channels, rows, cols) or tokens (n, "
                f"n_prefix + side * side, channels), but it returned {got}. Pass layer= to use the "
                "output of a submodule."
            )
        if features.ndim == 3:
            features = features[:, self.n_prefix :]
            side = round(features.shape[1] ** 0.5)
            if side**2 != features.shape[1]:
                raise ValueError(
                    f"{features.shape[1]} tokens per image do not form a square: n_prefix="
                    f"{self.n_prefix} must be the number of class and register tokens before them."
                )
            features = features.transpose(1, 2).unflatten(2, (side, side))
        if self.grid is not None:
            features = F.adaptive_avg_pool2d(features, (self.grid[0], self.grid[1]))
        if len(features) != len(pixels) or not features.isfinite().all():
            raise ValueError("The backbone must return one map of finite numbers for each image.")
        maps: np.ndarray = features[: len(images)].permute(0, 2, 3, 1).float().cpu().numpy()
        return maps

    def _pixels(self, images: np.ndarray) -> torch.Tensor:
        """Return the normalized network input of shape (`batch_size`, 3, height, width)."""
        if images.shape[-1] not in (1, 3):
            raise ValueError(f"Images must have one channel or three, not {images.shape[-1]}.")
        images = images.repeat(3 // images.shape[-1], axis=-1)
        pixels = pixels_in_batch(images, self.batch_size)
        if self.input_size is not None:
            size = np.broadcast_to(self.input_size, 2).tolist()
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        for values, apply in ((self.mean, torch.sub), (self.std, torch.div)):
            if values is not None:
                channel_values = torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
                pixels = apply(pixels, channel_values)
        return pixels


def call_backbone(backbone: Backbone, pixels: torch.Tensor, layer: str | None) -> object:
    """Return the output of the backbone, or of the submodule named `layer`."""
    if layer is None:
        return run_backbone(backbone, pixels)
    assert isinstance(backbone, torch.nn.Module)
    outputs: list[object] = []
    thread = threading.get_ident()

    def keep(module: torch.nn.Module, inputs: object, output: object) -> None:
        if threading.get_ident() == thread:  # ignore calls of the same module in other threads
            outputs.append(output)

    handle = backbone.get_submodule(layer).register_forward_hook(keep)
    try:
        run_backbone(backbone, pixels)
    finally:
        handle.remove()
    if not outputs:
        raise ValueError(f"The backbone does not call its submodule layer={layer!r}.")
    return outputs[-1]


def run_backbone(backbone: Backbone, pixels: torch.Tensor) -> object:
    """Return backbone(pixels). If the backbone raises an error, name the input and the remedies."""
    try:
        return backbone(pixels)
    except torch.OutOfMemoryError:
        raise
    except Exception as exc:  # networks can raise errors of any type
        raise ValueError(
            f"The backbone failed for images of shape {tuple(pixels.shape)}: {exc}. If the "
            "backbone expects another height and width, pass input_size. FeatureTokenizer always "
            "passes three channels, which are equal if the images are gray. If the backbone "
            "expects one channel, wrap it in a module that calls backbone(x[:, :1])."
        ) from exc

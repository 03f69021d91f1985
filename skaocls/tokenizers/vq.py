"""The published image tokenizers as scikit-learn transformers."""

import copy
import os
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skaocls.attributes import read_from
from skaocls.devices import own_torch_state, resolve_device, resolve_precision, to_device
from skaocls.files import assign, find_file, read_state_dict
from skaocls.images.reader import Reader
from skaocls.tokenizers._codes import check_codes
from skaocls.tokenizers.vq_networks import LlamaGenVQ, MaskGITVQ

DOWNSAMPLING = 16
IGNORED = ("quantize.codebook_used",)  # a training statistic


PARAMETERS = """
    Parameters
    ----------
    source : str or path, default="auto"
        Hub repository, folder or file of the weights. ``"auto"`` is the published repository.
    filename : str, default=None
        File in the repository or folder.
    revision : str, default=None
        Branch, tag or commit of the repository.
    image_shape : tuple of int (height, width), default=(256, 256)
        Multiples of 16; files are resized to it, the shorter side first, and cropped.
    batch_size : int or "auto", default="auto"
        Images encoded together, always as many (what is missing is made up), so that tokens do
        not depend on the batch. ``"auto"`` is 1 on the CPU, 16 on CUDA.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA if there is a device, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="float32"
        Of the convolutions; a lower one changes some tokens.

    Attributes
    ----------
    model_ : torch.nn.Module
        The network.
    codebook_ : float32 ndarray of shape (`n_codes_`, n_numbers)
        The vector of each code.
    n_codes_ : int
        Size of the codebook.
    grid_ : tuple of int
        Rows and columns of tokens.
    reader_ : Reader
        How images are read.
    image_shape_ : tuple of int
        Height, width, channels.
"""


class _VQTokenizer(TransformerMixin, BaseEstimator):
    """What the two published tokenizers share."""

    _parameter_constraints: dict[str, Any] = {
        "source": [str, os.PathLike],
        "filename": [str, None],
        "revision": [str, None],
        "image_shape": [tuple, list],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
    }

    def __init__(
        self,
        source: Any = "auto",
        *,
        filename: str | None = None,
        revision: str | None = None,
        image_shape: Any = (256, 256),
        batch_size: Any = "auto",
        device: Any = "auto",
        precision: str = "float32",
    ):
        self.source = source
        self.filename = filename
        self.revision = revision
        self.image_shape = image_shape
        self.batch_size = batch_size
        self.device = device
        self.precision = precision

    image_shape_ = read_from("reader_.image_shape")

    @property
    def codebook_(self) -> np.ndarray:
        """The vector of each code."""
        codebook: np.ndarray = self.model_.codebook.detach().cpu().numpy()
        return codebook

    def fit(self, X: Any = None, y: Any = None) -> "_VQTokenizer":
        """Load the weights; nothing is learned from data.

        Parameters
        ----------
        X, y : object
            Ignored.

        Returns
        -------
        self : object
            The tokenizer, with its weights.

        Raises
        ------
        OSError
            If the weights cannot be found or fetched.
        ValueError
            If they are not those of this tokenizer, or `image_shape` is no multiple of 16.
        """
        self._validate_params()
        source, filename = self.source, self.filename
        if source == "auto":
            source, filename = self._published[0], filename or self._published[1]
        path = find_file(source, filename, revision=self.revision)
        return self._set_weights(read_state_dict(path), source=str(path))

    @own_torch_state(grad=True)
    def _set_weights(
        self, state: Mapping[str, torch.Tensor], source: str = "The state dict"
    ) -> "_VQTokenizer":
        height, width = self.image_shape
        if height % DOWNSAMPLING or width % DOWNSAMPLING:
            raise ValueError(
                f"image_shape={self.image_shape} must be multiples of {DOWNSAMPLING}, the pixels "
                "that one token stands for."
            )
        with torch.device("meta"):
            model = self._network()
        assign(model, state, ignore=IGNORED, source=source)
        shape = int(height), int(width), 3
        self.__dict__.update(
            model_=model.eval().requires_grad_(False),
            reader_=Reader(type(self).__name__, shape, shape, height * width * 3),
            grid_=(shape[0] // DOWNSAMPLING, shape[1] // DOWNSAMPLING),
            n_codes_=model.n_codes,
        )
        return self

    @own_torch_state()
    def transform(self, X: Any, *, latent_noise: float = 0.0, seed: int = 0) -> np.ndarray:
        """Tokenize.

        Parameters
        ----------
        X : array-like of images
            Files are resized and cropped to `image_shape`; arrays must have it. Floats must lie
            in [0, 1]; one channel is taken as gray.
        latent_noise : float, default=0.0
            t in ``(1 - t) latent + t noise``, before quantization.
        seed : int, default=0
            Of the noise, which is the same for every image.

        Returns
        -------
        codes : int64 array of shape (n, rows, cols)
            Tokens, from 0 to ``n_codes_ - 1``.
        """
        check_is_fitted(self)
        X = self.reader_.open(X)
        device, autocast, batch_size = self._resolve()
        model = to_device(self.model_, device)
        codes = []
        for part in gen_batches(len(X), batch_size):
            pixels = to_pixels(X.images(part), batch_size).to(device)
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                latents = model.encode(pixels).float()
            codes.append(model.nearest(noisy(latents, latent_noise, seed)).cpu().numpy())
        return np.concatenate(codes)[: len(X)]

    @own_torch_state()
    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Decode.

        Parameters
        ----------
        codes : int array-like of shape (n, rows, cols)
            Tokens, as `transform` gives them.

        Returns
        -------
        images : float32 array of shape (n, height, width, 3)
            In [0, 1].
        """
        check_is_fitted(self)
        codes = check_codes(codes, self.grid_, self.n_codes_)
        device, autocast, batch_size = self._resolve()
        model = to_device(self.model_, device)
        images = []
        for part in gen_batches(len(codes), batch_size):
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                decoded = model.decode(torch.from_numpy(codes[part]).to(device))
            images.append(model.to_unit(decoded.float()).permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(images)

    def _resolve(self) -> tuple[torch.device, torch.dtype | None, int]:
        device = resolve_device(self.device)
        batch_size = self.batch_size
        if batch_size == "auto":
            batch_size = 16 if device.type == "cuda" else 1
        return device, resolve_precision(self.precision, device), batch_size

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__().copy()
        if "model_" in state:  # what was used on a GPU must load without one
            state["model_"] = copy.deepcopy(state["model_"]).cpu()
        return state


def to_pixels(images: np.ndarray, n: int) -> torch.Tensor:
    """Images (n, height, width, 3) in [0, 1] as n pictures (n, 3, height, width)."""
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            "Images must have values in [0, 1] or be of dtype uint8, got values from "
            f"{images.min():.3g} to {images.max():.3g}."
        )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return torch.cat([pixels, pixels[-1:].expand(n - len(pixels), -1, -1, -1)])


def noisy(latents: torch.Tensor, t: float, seed: int) -> torch.Tensor:
    """``(1 - t) latents + t noise``, the same noise for every image."""
    if not t:
        return latents
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape[1:], generator=generator, dtype=torch.float32)
    return (1 - t) * latents + t * noise.to(latents.device)


class LlamaGenTokenizer(_VQTokenizer):
    __doc__ = f"""LlamaGen's VQ-16 tokenizer: 16384 codes, each for 16 x 16 pixels.

    The published weights are ``vq_ds16_c2i.pt`` of the repository ``FoundationVision/LlamaGen``.
{PARAMETERS}
    References
    ----------
    Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
    arXiv 2406.06525.

    Examples
    --------
    >>> from skaocls import LlamaGenTokenizer
    >>> LlamaGenTokenizer("vq_ds16_c2i.pt", image_shape=(384, 384))
    LlamaGenTokenizer(image_shape=(384, 384), source='vq_ds16_c2i.pt')
    """

    _network = LlamaGenVQ
    _published = ("FoundationVision/LlamaGen", "vq_ds16_c2i.pt")


class MaskGITTokenizer(_VQTokenizer):
    __doc__ = f"""MaskGIT's VQGAN tokenizer: 1024 codes, each for 16 x 16 pixels.

    The published weights are ``maskgit-vqgan-imagenet-f16-256.bin`` of the repository
    ``fun-research/TiTok``.
{PARAMETERS}
    References
    ----------
    Chang et al., "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200.

    Examples
    --------
    >>> from skaocls import MaskGITTokenizer
    >>> MaskGITTokenizer("maskgit-vqgan-imagenet-f16-256.bin")
    MaskGITTokenizer(source='maskgit-vqgan-imagenet-f16-256.bin')
    """

    _network = MaskGITVQ
    _published = ("fun-research/TiTok", "maskgit-vqgan-imagenet-f16-256.bin")

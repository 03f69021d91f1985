"""The published image tokenizers as scikit-learn transformers.

`fit` downloads the weights, or loads them from a file, and does not learn from data.
"""

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from skaocls.devices import own_torch_state, resolve_device, to_device
from skaocls.files import assign, find_file, read_state_dict
from skaocls.images.batch import Batch
from skaocls.images.reader import Reader
from skaocls.tokenizers.base import ImageTokenizer, check_unit_range, pixels_in_batch
from skaocls.tokenizers.contract import check_codes
from skaocls.tokenizers.vq_networks import LlamaGenVQ, MaskGITVQ

DOWNSAMPLING = 16  # height and width of a token in pixels
CUDA_BATCH_PIXELS = 2**20  # largest number of pixels in a batch; on the CPU, a batch is one image
UNUSED_WEIGHTS = ("quantize.codebook_used",)  # a statistic that is needed only for training

PARAMETERS = """
    Parameters
    ----------
    source : str or path, default="auto"
        File of the weights, a folder that contains the file, or a repository on the Hugging Face
        hub. ``"auto"`` is the published repository.
    filename : str, default=None
        Name of the file in the repository or folder.
    revision : str, default=None
        Branch, tag or commit of the repository.
    image_shape : tuple of int (height, width), default=(256, 256)
        Size of the images in pixels. Both sides must be multiples of 16. Image files are resized
        and cropped to this size.
    device : str or torch.device, default="auto"
        Device of the network. ``"auto"`` is CUDA if available, otherwise the CPU.
    latent_noise : float, default=0.0
        Weight t of Gaussian noise, between 0 and 1. When a classifier predicts, it replaces each
        latent by ``(1 - t) latent + t noise``. Each order uses new noise. Training and `transform`
        use no noise.

    Attributes
    ----------
    model_ : torch.nn.Module
        Network with the loaded weights.
    codebook_ : float32 ndarray of shape (`n_codes_`, n_values)
        Vector of each code.
    n_codes_ : int
        Size of the codebook.
    grid_ : tuple of int
        Rows and columns of tokens.
    image_shape_ : tuple of int
        Height, width and channels of the images.
"""


class VQTokenizer(ImageTokenizer):
    """Base class of the two published tokenizers."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "source": [str, os.PathLike],
        "filename": [str, None],
        "revision": [str, None],
        "image_shape": [tuple, list],
        "device": [str, torch.device],
        "latent_noise": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        source: str | os.PathLike[str] = "auto",
        *,
        filename: str | None = None,
        revision: str | None = None,
        image_shape: Sequence[int] = (256, 256),
        device: str | torch.device = "auto",
        latent_noise: float = 0.0,
    ):
        self.source = source
        self.filename = filename
        self.revision = revision
        self.image_shape = image_shape
        self.device = device
        self.latent_noise = latent_noise

    @property
    def codebook_(self) -> np.ndarray:
        """Vector of each code."""
        codebook: np.ndarray = self.model_.codebook.detach().cpu().numpy()
        return codebook

    def fit(self, X: object = None, y: object = None) -> "VQTokenizer":
        """Load the weights. This tokenizer does not learn from data.

        Parameters
        ----------
        X, y : object
            Ignored.

        Returns
        -------
        self : object
            The tokenizer with loaded weights.

        Raises
        ------
        OSError
            If the weights cannot be found or downloaded.
        ValueError
            If the weights belong to another network, or a side of `image_shape` is not a multiple
            of 16.
        """
        self._validate_params()
        path = self._weights_file()
        return self._set_weights(read_state_dict(path), source=str(path))

    def _weights_file(self) -> Path:
        """Return the path of the weights; download them if necessary."""
        source, filename = self.source, self.filename
        if source == "auto":
            source, filename = self._published[0], filename or self._published[1]
        return find_file(source, filename, revision=self.revision)

    def _fit(self, batch: Batch, y: object = None) -> "VQTokenizer":
        if batch.reader.value_range is not None:
            check_unit_range(*batch.reader.value_range)
        return self.fit()

    @own_torch_state(grad=True)
    def _set_weights(
        self, state: Mapping[str, torch.Tensor], source: str = "The state dict"
    ) -> "VQTokenizer":
        height, width = self.image_shape
        if height % DOWNSAMPLING or width % DOWNSAMPLING:
            raise ValueError(
                f"image_shape={self.image_shape} must be multiples of {DOWNSAMPLING}, because a "
                f"token covers {DOWNSAMPLING} x {DOWNSAMPLING} pixels."
            )
        with torch.device("meta"):
            model = self._network()
        assign(model, state, ignore=UNUSED_WEIGHTS, source=source)
        shape = int(height), int(width), 3
        self.__dict__.update(
            model_=model.eval().requires_grad_(False),
            reader_=Reader(type(self).__name__, shape, shape, height * width * 3),
            grid_=(shape[0] // DOWNSAMPLING, shape[1] // DOWNSAMPLING),
            n_codes_=model.n_codes,
        )
        return self

    @own_torch_state()
    def _encode(self, images: np.ndarray, *, seed: int | None = None) -> np.ndarray:
        """Tokenize decoded images; if a seed is given, add noise to the latents."""
        device, batch_size = self._resolve()
        model = to_device(self.model_, device)
        codes, t = [], self.latent_noise
        for part in gen_batches(len(images), batch_size):
            latents = model.encode(pixels_in_batch(images[part], batch_size).to(device))
            if t and seed is not None:  # every image gets the same noise
                generator = torch.Generator().manual_seed(seed)
                noise = torch.randn(latents.shape[1:], generator=generator, dtype=torch.float32)
                latents = (1 - t) * latents + t * noise.to(device)
            codes.append(model.nearest(latents).cpu().numpy())
        return np.concatenate(codes)[: len(images)]

    @own_torch_state()
    def inverse_transform(self, codes: ArrayLike) -> np.ndarray:
        """Decode tokens to images.

        Parameters
        ----------
        codes : int array-like of shape (n, rows, cols)
            Tokens from `transform`.

        Returns
        -------
        images : float32 array of shape (n, height, width, 3)
            Images with values in [0, 1].
        """
        check_is_fitted(self)
        codes = check_codes(codes, self.grid_, self.n_codes_)
        device, batch_size = self._resolve()
        model = to_device(self.model_, device)
        images = []
        for part in gen_batches(len(codes), batch_size):
            decoded = model.decode(torch.from_numpy(codes[part]).to(device))
            images.append(model.to_unit(decoded).permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(images)

    def _resolve(self) -> tuple[torch.device, int]:
        device, (height, width, _) = resolve_device(self.device), self.image_shape_
        is_cuda = device.type == "cuda"
        return device, max(1, CUDA_BATCH_PIXELS // (height * width)) if is_cuda else 1


class LlamaGenTokenizer(VQTokenizer):
    __doc__ = f"""Tokenize images by LlamaGen's VQ-16: 16384 codes, each for 16 x 16 pixels.

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


class MaskGITTokenizer(VQTokenizer):
    __doc__ = f"""Tokenize images by MaskGIT's VQGAN: 1024 codes, each for 16 x 16 pixels.

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

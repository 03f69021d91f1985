"""Networks of the two published tokenizers: convolutional encoders and decoders with a codebook.

Both networks have five levels of resolution. The latent has a sixteenth of the height and a
sixteenth of the width of the image. Submodules have the same names as in the published weights, so
no key is renamed.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = [128, 128, 256, 256, 512]  # number of channels at each level, finest level first
TOP = WIDTHS[-1]
LATENT = 256  # number of channels of the encoder's output


def named(**modules: nn.Module) -> nn.Sequential:
    """Return a sequential module whose submodules have the given names."""
    return nn.Sequential(OrderedDict(modules))


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def conv3(n_in: int, n_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)


class ResBlock(nn.Module):
    """Residual block, which applies normalization, swish and a 3x3 convolution twice.

    If the number of channels changes, the shortcut of LlamaGen projects the input of the block. The
    shortcut of MaskGIT (`project_output`) projects the output of the convolutions instead.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True, project_output: bool = False):
        super().__init__()
        self.project_output = project_output
        self.norm1 = group_norm(n_in)
        self.conv1 = conv3(n_in, n_out, bias)
        self.norm2 = group_norm(n_out)
        self.conv2 = conv3(n_out, n_out, bias)
        if n_in != n_out:
            self.nin_shortcut = nn.Conv2d(n_out if project_output else n_in, n_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(h if self.project_output else x)
        return torch.add(x, h)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = group_norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return torch.add(x, self.proj_out(h))


class LlamaGenLevel(nn.Module):
    """Residual blocks, each followed by attention if `attention`, then a change of resolution."""

    def __init__(self, n_in: int, n_out: int, depth: int, attention: bool, **resample: nn.Module):
        super().__init__()
        widths = [n_in, *[n_out] * (depth - 1)]
        self.res = nn.ModuleList(ResBlock(width, n_out) for width in widths)
        self.attn = nn.ModuleList(AttnBlock(n_out) if attention else nn.Identity() for _ in widths)
        self.resample = list(resample)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for res, attn in zip(self.res, self.attn, strict=True):
            x = attn(res(x))
        for name in self.resample:
            x = self.get_submodule(name)(x)
        return x


def llamagen_middle() -> nn.Sequential:
    return nn.Sequential(ResBlock(TOP, TOP), AttnBlock(TOP), ResBlock(TOP, TOP))


def llamagen_encoder() -> nn.Sequential:
    levels = nn.Sequential()
    for n_in, n_out in pairwise([WIDTHS[0], *WIDTHS[:-1]]):
        down = named(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(n_out, n_out, 3, stride=2))
        levels.append(LlamaGenLevel(n_in, n_out, 2, attention=False, downsample=down))
    levels.append(LlamaGenLevel(WIDTHS[-2], TOP, 2, attention=True))
    return named(
        conv_in=conv3(3, WIDTHS[0]),
        conv_blocks=levels,
        mid=llamagen_middle(),
        norm_out=group_norm(TOP),
        swish=nn.SiLU(),
        conv_out=conv3(TOP, LATENT),
    )


def llamagen_decoder() -> nn.Sequential:
    levels, n_in = nn.Sequential(), TOP
    for n_out in WIDTHS[:0:-1]:
        up = named(enlarge=nn.Upsample(scale_factor=2.0), conv=conv3(n_out, n_out))
        levels.append(LlamaGenLevel(n_in, n_out, 3, attention=not len(levels), upsample=up))
        n_in = n_out
    levels.append(LlamaGenLevel(n_in, WIDTHS[0], 3, attention=False))
    return named(
        conv_in=conv3(LATENT, TOP),
        mid=llamagen_middle(),
        conv_blocks=levels,
        norm_out=group_norm(WIDTHS[0]),
        swish=nn.SiLU(),
        conv_out=conv3(WIDTHS[0], 3),
    )


class Codebook(nn.Module):
    def __init__(self, n_codes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(n_codes, dim)


class VQNetwork(nn.Module):
    """Encoder, decoder and codebook. `to_unit` converts the output of `decode` to [0, 1]."""

    n_codes: int
    code_dim: int
    unit_codes: bool  # whether latents and codes are scaled to unit length
    signed_pixels: bool  # whether encoder and decoder expect pixels in [-1, 1] instead of [0, 1]

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.quantize = Codebook(self.n_codes, self.code_dim)
        self.quant_conv: nn.Module = nn.Identity()
        self.post_quant_conv: nn.Module = nn.Identity()

    @property
    def codebook(self) -> Tensor:
        weight = self.quantize.embedding.weight
        return F.normalize(weight, dim=-1) if self.unit_codes else weight

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (n, 3, height, width) in [0, 1] to latents (n, code_dim, rows, cols)."""
        pixels = 2 * pixels - 1 if self.signed_pixels else pixels
        latents: Tensor = self.quant_conv(self.encoder(pixels))
        return latents

    def nearest(self, latents: Tensor) -> Tensor:
        """Return the nearest codes (n, rows, cols); distances are computed in float32."""
        latents = F.normalize(latents, dim=1) if self.unit_codes else latents
        flat, book = latents.permute(0, 2, 3, 1).float(), self.codebook.float()
        # squared distance ||z - e||^2 without the term ||z||^2, which is the same for all codes
        distance = torch.addmm(book.square().sum(1), flat.flatten(0, 2), book.T, alpha=-2.0)
        return distance.argmin(1).view(flat.shape[:3])

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (n, rows, cols) to pixels (n, 3, height, width) in the decoder's range."""
        latents = self.post_quant_conv(self.codebook[codes].permute(0, 3, 1, 2))
        pixels: Tensor = self.decoder(latents)
        return pixels

    def to_unit(self, decoded: Tensor) -> Tensor:
        """Convert the output of `decode` to the range [0, 1]."""
        return (decoded / 2 + 0.5 if self.signed_pixels else decoded).clamp(0, 1)


class LlamaGenVQ(VQNetwork):
    """LlamaGen's VQ-16 (Sun et al., arXiv 2406.06525)."""

    n_codes, code_dim, unit_codes, signed_pixels = 16384, 8, True, True

    def __init__(self) -> None:
        super().__init__(llamagen_encoder(), llamagen_decoder())
        self.quant_conv = nn.Conv2d(LATENT, self.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(self.code_dim, LATENT, 1)


def maskgit_blocks(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        *(ResBlock(n, n_out, bias=False, project_output=True) for n in (n_in, n_out))
    )


def maskgit_encoder() -> nn.Sequential:
    levels = nn.Sequential(named(block=maskgit_blocks(WIDTHS[0], WIDTHS[0])))
    for n_in, n_out in pairwise(WIDTHS):
        levels.append(named(halve=nn.AvgPool2d(2), block=maskgit_blocks(n_in, n_out)))
    return named(
        conv_in=conv3(3, WIDTHS[0], bias=False),
        down=levels,
        mid=maskgit_blocks(TOP, TOP),
        norm_out=group_norm(TOP),
        swish=nn.SiLU(),
        conv_out=nn.Conv2d(TOP, LATENT, 1),
    )


def maskgit_decoder() -> nn.Sequential:
    levels: dict[str, nn.Module] = {}  # coarsest level first; level "0" is the finest
    n_in = TOP
    for i in reversed(range(len(WIDTHS))):
        n_out = WIDTHS[i]
        up = {"enlarge": nn.Upsample(scale_factor=2.0), "upsample_conv": conv3(n_out, n_out)}
        levels[str(i)] = named(block=maskgit_blocks(n_in, n_out), **(up if i else {}))
        n_in = n_out
    return named(
        conv_in=conv3(LATENT, TOP),
        mid=maskgit_blocks(TOP, TOP),
        up=named(**levels),
        norm_out=group_norm(WIDTHS[0]),
        swish=nn.SiLU(),
        conv_out=conv3(WIDTHS[0], 3),
    )


class MaskGITVQ(VQNetwork):
    """MaskGIT's VQGAN (Chang et al., arXiv 2202.04200)."""

    n_codes, code_dim, unit_codes, signed_pixels = 1024, LATENT, False, False

    def __init__(self) -> None:
        super().__init__(maskgit_encoder(), maskgit_decoder())

"""Networks of the two published tokenizers; modules have the names of the published weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 128
MULTIPLIERS = (1, 1, 2, 2, 4)
LATENT = 256  # channels of the latent


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0)


def conv3(n_in: int, n_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)


def level_widths() -> list[tuple[int, int]]:
    """Return input and output width of each encoder level, finest first."""
    outs = [WIDTH * m for m in MULTIPLIERS]
    return list(zip([WIDTH, *outs[:-1]], outs, strict=True))


class ResBlock(nn.Module):
    """Residual block: twice norm, swish and a 3x3 convolution.

    If the width changes, LlamaGen's shortcut projects the input of the block, and MaskGIT's
    (`project_output`) the output of the convolutions.
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
        out: Tensor = x + h
        return out


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
        out: Tensor = x + self.proj_out(h)
        return out


class Downsample(nn.Module):
    """3x3 convolution with stride 2, padded on the right and at the bottom."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Upsampling by two, then a 3x3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(double(x))
        return out


class LlamaGenLevel(nn.Module):
    def __init__(self, n_in: int, n_out: int, depth: int, attention: bool, resample: str | None):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(n_in if i == 0 else n_out, n_out) for i in range(depth))
        self.attn = nn.ModuleList(AttnBlock(n_out) for _ in range(depth if attention else 0))
        if resample == "down":
            self.downsample = Downsample(n_out)
        elif resample == "up":
            self.upsample = Upsample(n_out)

    def forward(self, x: Tensor) -> Tensor:
        for i, res in enumerate(self.res):
            x = res(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class LlamaGenEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        last = len(MULTIPLIERS) - 1
        self.conv_in = conv3(3, WIDTH)
        self.conv_blocks = nn.ModuleList(
            LlamaGenLevel(n_in, n_out, 2, i == last, None if i == last else "down")
            for i, (n_in, n_out) in enumerate(level_widths())
        )
        top = level_widths()[-1][1]
        self.mid = nn.Sequential(ResBlock(top, top), AttnBlock(top), ResBlock(top, top))
        self.norm_out = group_norm(top)
        self.conv_out = conv3(top, LATENT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class LlamaGenDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        outs = [WIDTH * m for m in reversed(MULTIPLIERS)]
        top, last = outs[0], len(outs) - 1
        self.conv_in = conv3(LATENT, top)
        self.mid = nn.Sequential(ResBlock(top, top), AttnBlock(top), ResBlock(top, top))
        self.conv_blocks = nn.ModuleList(
            LlamaGenLevel(n_in, n_out, 3, i == 0, None if i == last else "up")
            for i, (n_in, n_out) in enumerate(zip([top, *outs[:-1]], outs, strict=True))
        )
        self.norm_out = group_norm(outs[-1])
        self.conv_out = conv3(outs[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in self.conv_blocks:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class Codebook(nn.Module):
    def __init__(self, n_codes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(n_codes, dim)


class LlamaGenVQ(nn.Module):
    """LlamaGen's VQ-16 (Sun et al., arXiv 2406.06525) with 16384 codes of 8 dimensions."""

    n_codes, code_dim = 16384, 8

    def __init__(self) -> None:
        super().__init__()
        self.encoder = LlamaGenEncoder()
        self.decoder = LlamaGenDecoder()
        self.quantize = Codebook(self.n_codes, self.code_dim)
        self.quant_conv = nn.Conv2d(LATENT, self.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(self.code_dim, LATENT, 1)

    @property
    def codebook(self) -> Tensor:
        return F.normalize(self.quantize.embedding.weight, dim=-1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents (n, 8, rows, cols) of pixels (n, 3, height, width) in [0, 1]."""
        latents: Tensor = self.quant_conv(self.encoder(2 * pixels - 1))
        return latents

    def nearest(self, latents: Tensor) -> Tensor:
        """Return codes (n, rows, cols), nearest after normalization to unit length."""
        return nearest_code(F.normalize(latents, dim=1), self.codebook)

    def decode(self, codes: Tensor) -> Tensor:
        """Return pixels (n, 3, height, width), about [-1, 1], of codes (n, rows, cols)."""
        pixels: Tensor = self.decoder(
            self.post_quant_conv(self.codebook[codes].permute(0, 3, 1, 2))
        )
        return pixels

    def to_unit(self, decoded: Tensor) -> Tensor:
        return (decoded / 2 + 0.5).clamp(0, 1)


class MaskGITLevel(nn.Module):
    def __init__(self, n_in: int, n_out: int, up: bool):
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(n, n_out, bias=False, project_output=True) for n in (n_in, n_out)
        )
        if up:
            self.upsample_conv = conv3(n_out, n_out)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample_conv(double(x)) if hasattr(self, "upsample_conv") else x


def maskgit_middle(width: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(width, width, False, True) for _ in range(2)))


class MaskGITEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = conv3(3, WIDTH, bias=False)
        self.down = nn.ModuleList(MaskGITLevel(a, b, up=False) for a, b in level_widths())
        top = level_widths()[-1][1]
        self.mid = maskgit_middle(top)
        self.norm_out = group_norm(top)
        self.conv_out = nn.Conv2d(top, LATENT, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if i else x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class MaskGITDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        outs = [WIDTH * m for m in MULTIPLIERS]
        self.conv_in = conv3(LATENT, outs[-1])
        self.mid = maskgit_middle(outs[-1])
        # up[i] has the width of down[i]; forward runs them from coarse to fine
        self.up = nn.ModuleList(
            MaskGITLevel(n_in, n_out, up=i > 0)
            for i, (n_in, n_out) in enumerate(zip([*outs[1:], outs[-1]], outs, strict=True))
        )
        self.norm_out = group_norm(WIDTH)
        self.conv_out = conv3(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class MaskGITVQ(nn.Module):
    """MaskGIT's VQGAN (Chang et al., arXiv 2202.04200) with 1024 codes of 256 dimensions."""

    n_codes, code_dim = 1024, LATENT

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MaskGITEncoder()
        self.decoder = MaskGITDecoder()
        self.quantize = Codebook(self.n_codes, self.code_dim)

    @property
    def codebook(self) -> Tensor:
        return self.quantize.embedding.weight

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents (n, 256, rows, cols) of pixels (n, 3, height, width) in [0, 1]."""
        latents: Tensor = self.encoder(pixels)
        return latents

    def nearest(self, latents: Tensor) -> Tensor:
        """Return codes (n, rows, cols)."""
        return nearest_code(latents, self.codebook)

    def decode(self, codes: Tensor) -> Tensor:
        """Return pixels (n, 3, height, width), about [0, 1], of codes (n, rows, cols)."""
        pixels: Tensor = self.decoder(self.codebook[codes].permute(0, 3, 1, 2))
        return pixels

    def to_unit(self, decoded: Tensor) -> Tensor:
        return decoded.clamp(0, 1)


def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest code for latents (n, dim, rows, cols), in float32."""
    flat, book = latents.permute(0, 2, 3, 1).float(), codebook.float()
    # ||z - e||^2, without the term ||z||^2, which all codes share
    distance = torch.addmm(book.square().sum(1), flat.flatten(0, 2), book.T, alpha=-2.0)
    return distance.argmin(1).view(flat.shape[:3])

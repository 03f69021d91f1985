"""Layers of the transformer. The parameter names match the published RandAR checkpoints."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-5
ROPE_BASE = 10000.0


class RMSNorm(nn.Module):
    """Root-mean-square normalization, always computed in float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        apply: Callable[[Tensor, Tensor], Tensor] = Normalization.apply
        return apply(x.float(), self.weight.float()).type_as(x)


class Normalization(torch.autograd.Function):
    """The formula of :class:`RMSNorm`, with a faster gradient than torch's on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        normed, scale, weight = ctx.saved_tensors
        product = (grad * normed).flatten(0, -2)
        mean = (product @ weight).view(scale.shape) / len(weight)
        return (grad * weight).addcmul_(normed, mean, value=-1).mul_(scale), product.sum(0)


class Dropout(nn.Module):
    """Dropout that draws its mask with a given generator, or with torch's global generator."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        if not (self.training and self.p):
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=generator)
        return x * kept.div_(1 - self.p)


class Attention(nn.Module):
    """Causal self-attention over the class token and all other tokens.

    The class token is the first token. The rotary embedding multiplies its query and its key by
    zero. Therefore, every other token attends to the class token with score 0.
    """

    def __init__(self, dim: int, n_head: int, dropout: float):
        super().__init__()
        self.n_head = n_head
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.dropout = Dropout(dropout)

    def class_value(self, x: Tensor) -> Tensor:
        dim = x.shape[-1]
        return F.linear(x, self.wqkv.weight[2 * dim :])

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        instructions_only: bool = False,
        generator: Generator | None = None,
    ) -> Tensor:
        n_head, mask = self.n_head, None
        if instructions_only:
            wq, wkv = self.wqkv.weight.tensor_split([x.shape[-1]])
            q = rotate(self._heads(F.linear(x[:, 1::2], wq)), rope[:, 1::2])
            k, v = self._heads(F.linear(x, wkv)).chunk(2, 2)
            k = rotate(k, rope)
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            mask = mask.tril_()[1::2]
        else:
            qk, v = self._heads(self.wqkv(x)).split([2 * n_head, n_head], 2)
            q, k = rotate(qk, rope).chunk(2, 2)
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        out: Tensor = self.dropout(self.wo(y.transpose(1, 2).flatten(2)), generator)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.wo.weight.shape[1] // self.n_head))
        return heads


class FeedForward(nn.Module):
    """SwiGLU: ``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        out: Tensor = self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)), generator)
        return out


class Block(nn.Module):
    def __init__(self, dim: int, n_head: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = Attention(dim, n_head, dropout)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.attention_norm = RMSNorm(dim)
        self.ffn_norm = RMSNorm(dim)

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        instructions_only: bool = False,
        generator: Generator | None = None,
    ) -> Tensor:
        """Process the class token and the interleaved instructions and tokens (items, 2 n, dim).

        If `instructions_only`, return only the results of the instructions (items, n, dim).
        """
        y = self.attention(self.attention_norm(x), rope, instructions_only, generator)
        x = (x[:, 1::2] if instructions_only else x) + y
        out: Tensor = x + self.feed_forward(self.ffn_norm(x), generator)
        return out

    def read_class(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Process the class token x (..., dim). Return its attention value and block output."""
        v = self.attention.class_value(self.attention_norm(x))
        x = x + self.attention.wo(v)
        return v, x + self.feed_forward(self.ffn_norm(x))


def rope_table(grid: tuple[int, int], head_dim: int) -> Tensor:
    """Return the cosines and sines of the 2D rotary embedding, (n_tokens, head_dim / 2, 2).

    The angles of the first half of the channel pairs depend on the row of the token. The angles of
    the second half depend on the column.
    """
    rows, cols = grid
    freqs = ROPE_BASE ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    by_row = torch.outer(torch.arange(rows).float(), freqs).repeat_interleave(cols, 0)
    by_col = torch.outer(torch.arange(cols).float(), freqs).repeat(rows, 1)
    angles = torch.cat([by_row, by_col], 1)
    return torch.stack([angles.cos(), angles.sin()], -1)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the interleaved channel pairs of x (..., head_dim) by rope (..., head_dim / 2, 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rope)).flatten(-2).type_as(x)

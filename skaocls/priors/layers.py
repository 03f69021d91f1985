"""Layers of the transformer. The parameter names match the published RandAR checkpoints."""

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
        return F.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPS).type_as(x) * self.weight


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
    """Causal self-attention, in which all tokens also attend to the class token.

    The rotary embedding multiplies the query and the key of the class token by zero. The class
    token attends only to itself. Every other token attends to the class token with score 0. The
    argument `class_value` is the value vector of the class token. It depends only on the class.
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
        class_value: Tensor,
        rope: Tensor,
        mask: Tensor,
        step: int = 1,
        generator: Generator | None = None,
    ) -> Tensor:
        dim = x.shape[-1]
        if step == 1:
            q, k, v = self.wqkv(x).chunk(3, -1)
        else:
            q = F.linear(x[:, ::step], self.wqkv.weight[:dim])
            k, v = F.linear(x, self.wqkv.weight[dim:]).chunk(2, -1)
        q = rotate(self._heads(q), rope[:, :, ::step])
        k = F.pad(rotate(self._heads(k), rope), (0, 0, 1, 0))
        v = torch.cat([self._heads(class_value.unsqueeze(-2)), self._heads(v)], -2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.dropout(self.wo(y.transpose(1, 2).flatten(2)), generator)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.n_head, -1)).transpose(-2, -3)
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
        class_value: Tensor,
        rope: Tensor,
        mask: Tensor,
        step: int = 1,
        generator: Generator | None = None,
    ) -> Tensor:
        y = self.attention(self.attention_norm(x), class_value, rope, mask, step, generator)
        x = x[:, ::step] + y
        out: Tensor = x + self.feed_forward(self.ffn_norm(x), generator)
        return out

    def read_class(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Process the class token x (..., dim). Return its attention value and block output."""
        v = self.attention.class_value(self.attention_norm(x))
        x = x + self.attention.dropout(self.attention.wo(v), generator)
        return v, x + self.feed_forward(self.ffn_norm(x), generator)


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

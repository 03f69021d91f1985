"""The autoregressive prior: a decoder-only transformer that reads tokens in any order.

The architecture and the parameter names are those of the published RandAR checkpoints (Pang et al.,
arXiv 2412.01827). A *position-instruction* token precedes each image token and encodes its
position. One model therefore computes log p(tokens | class, order) for every order.
"""

from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from skaocls.priors.interface import Prior

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
    """Dropout that can draw its mask from a given generator."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        if not (self.training and self.p):
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=generator)
        return x * kept.div_(1 - self.p)


class Attention(nn.Module):
    """Causal self-attention of the tokens, which also attend to the class token.

    The rotation of the class token is all zeros, so its query and key are zero. The class token
    attends only to itself, and every other token attends to it with score 0. Its value depends only
    on the class and is passed in as `class_value`.
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
        """Return the attention value of the class token x (..., dim), and the block's output."""
        v = self.attention.class_value(self.attention_norm(x))
        x = x + self.attention.dropout(self.attention.wo(v), generator)
        return v, x + self.feed_forward(self.ffn_norm(x), generator)


class AnyOrderPrior(Prior):
    """Class-conditional any-order autoregressive transformer over a grid of tokens.

    It models log p(tokens | class, order) as a sum over steps, one per position of the grid.
    State-dict keys and shapes are those of the published RandAR checkpoints.

    Parameters
    ----------
    vocab_size : int
        Number of token values (the size of the tokenizer's codebook).
    grid : tuple of int (rows, cols)
        Arrangement of the tokens of one image.
    num_classes : int
        Number of classes. Label `num_classes` is the null class (unconditional).
    dim : int, default=128
        Width; a multiple of ``4 * n_head``.
    n_layer : int, default=3
        Number of transformer blocks.
    n_head : int, default=4
        Number of attention heads.
    multiple_of : int, default=256
        The feed-forward width is ``8 / 3 * dim`` rounded up to a multiple of this.
    dropout : float, default=0.0
        Dropout during training, on image-token embeddings, attention outputs and feed-forward
        outputs. Class and position embeddings are never dropped, as in the published recipe.
    generator : torch.Generator, default=None
        Draws the initial float32 weights; None uses torch's global generator.

    References
    ----------
    Pang et al., "RandAR: Decoder-only Autoregressive Visual Generation in Random Orders",
    arXiv 2412.01827, section 3.

    Examples
    --------
    >>> import torch
    >>> from skaocls import AnyOrderPrior
    >>> prior = AnyOrderPrior(vocab_size=16, grid=(2, 3), num_classes=4, dim=32, n_layer=2)
    >>> codes = torch.randint(16, (5, 6))
    >>> orders = torch.stack([torch.randperm(6) for _ in range(5)])
    >>> prior(codes, orders, torch.tensor([0, 1, 2, 3, 4])).shape  # label 4: no class
    torch.Size([5, 6, 16])
    """

    rope: Tensor

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        num_classes: int,
        dim: int = 128,
        n_layer: int = 3,
        n_head: int = 4,
        multiple_of: int = 256,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ):
        super().__init__()
        vocab_size, num_classes, n_head = int(vocab_size), int(num_classes), int(n_head)
        if dim % (4 * n_head):
            raise ValueError(
                f"dim={dim} must be a multiple of 4 * n_head = {4 * n_head}: the rotary embedding "
                "rotates pairs of channels in each head, half of them by row and half by column."
            )
        self.vocab_size = vocab_size
        self.grid = (int(grid[0]), int(grid[1]))
        self.num_classes = num_classes
        self.n_head = n_head
        hidden = -(-int(8 * dim / 3) // multiple_of) * multiple_of
        device = torch.get_default_device()
        with torch.device("meta"):  # avoids torch's own initialization
            table = nn.Embedding(num_classes + 1, dim)
            self.cls_embedding = nn.ModuleDict({"embedding_table": table})
            self.tok_embeddings = nn.Embedding(vocab_size, dim)
            self.pos_instruct_embeddings = nn.Parameter(torch.empty(1, dim))
            self.tok_dropout = Dropout(dropout)
            self.layers = nn.ModuleList(Block(dim, n_head, hidden, dropout) for _ in range(n_layer))
            self.norm = RMSNorm(dim)
            self.output = nn.Linear(dim, vocab_size, bias=False)
        self.float().to_empty(device=device)
        self.register_buffer("rope", rope_table(self.grid, dim // n_head), persistent=False)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights.

        Standard deviations decrease with the width, and in layers that write to the residual stream
        also with the depth. The initial predictions are uniform. Small priors learn much faster
        with this initialization than with the same standard deviation for all weights.
        """
        for name, p in self.named_parameters():
            if p.ndim == 1:
                nn.init.ones_(p)
            elif "embed" in name:
                nn.init.normal_(p, std=0.3, generator=generator)
            elif name == "output.weight":
                nn.init.zeros_(p)
            else:
                residual = name.endswith(("wo.weight", "w2.weight"))
                depth = (2 * len(self.layers)) ** -0.5 if residual else 1.0
                nn.init.normal_(p, std=0.5 * p.shape[1] ** -0.5 * depth, generator=generator)

    @property
    def transformer(self) -> "AnyOrderPrior":
        return self

    @property
    def class_table(self) -> Tensor:
        """One vector per class, null class last."""
        return cast(Tensor, self.cls_embedding["embedding_table"].weight)

    @property
    def sizes(self) -> dict[str, object]:
        return {"architecture": "randar"} | super().sizes

    def readings(self, n_classes: int) -> int:
        return n_classes

    def replace_class_table(self, table: Tensor) -> None:
        self.num_classes = len(table) - 1
        self.cls_embedding["embedding_table"] = nn.Embedding.from_pretrained(table, freeze=False)

    def set_dropout(self, p: float) -> None:
        """Set the dropout probability."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.p = p

    @property
    def blocks(self) -> list[Block]:
        return cast(list[Block], list(self.layers))

    def class_values(self, labels: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """Return the attention value of the class token in each layer.

        Parameters
        ----------
        labels : int tensor of shape (...)
        generator : torch.Generator, default=None
            Draws dropout masks.

        Returns
        -------
        values : list of n_layer tensors of shape (..., dim)
        """
        x = F.embedding(labels, self.class_table)
        values = []
        for block in self.blocks:
            v, x = block.read_class(x, generator)
            values.append(v)
        return values

    def interleave(
        self, tokens: Tensor, orders: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the embeddings of p1 t1 p2 t2 ... pn, position instructions and tokens in turn.

        The last token is left out because nothing is predicted from it.

        Parameters
        ----------
        tokens, orders : int tensors of shape (items, n_tokens)
            Tokens and positions (raster indices) in the sequence of reading.
        generator : torch.Generator, default=None
            Draws dropout masks.

        Returns
        -------
        x : tensor of shape (items, 2 n_tokens - 1, dim)
        rope : tensor of shape (items, 1, 2 n_tokens - 1, head_dim / 2, 2)
            Rotation of each embedding, see :func:`rope_table`.
        """
        rope = self.rope[orders]
        head = self.pos_instruct_embeddings.view(self.n_head, 1, -1)
        instructions = rotate(head, rope.unsqueeze(1)).transpose(1, 2).flatten(2)
        embedded = self.tok_dropout(self.tok_embeddings(tokens), generator)
        x = torch.stack([instructions, embedded], 2).flatten(1, 2)
        return x[:, :-1], rope.repeat_interleave(2, 1)[:, None, :-1]

    def forward(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute the logits of every step.

        Parameters
        ----------
        codes : int tensor of shape (items, n_tokens)
            Tokens in raster order.
        orders : int tensor of shape (items, n_tokens) or (1, n_tokens)
            Position (raster index) read at each step.
        labels : int tensor of shape (items,)
            Class of each item; `num_classes` is the null class.
        generator : torch.Generator, default=None
            Draws dropout masks during training; None uses torch's global generator.

        Returns
        -------
        logits : float32 tensor of shape (items, n_tokens, vocab_size)
            Entry ``[i, s]`` predicts the token at position ``orders[i, s]``.
        """
        values = self.class_values(labels, generator)
        return self.predict(self.hidden(codes, orders.expand_as(codes), values, generator), labels)

    def log_prob(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute the log-probability of each token.

        Parameters
        ----------
        codes, orders, labels, generator
            As in :meth:`forward`.

        Returns
        -------
        log_prob : float32 tensor of shape (items, n_tokens)
            In the sequence of reading.
        """
        logits = self(codes, orders, labels, generator).flatten(0, 1)
        targets = codes.gather(1, orders.expand_as(codes)).flatten()
        return -F.cross_entropy(logits, targets, reduction="none").view(codes.shape)

    def predict(self, hidden: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = self.output(self.norm(hidden))
        return logits.float()

    def hidden(
        self,
        codes: Tensor,
        orders: Tensor,
        class_values: list[Tensor],
        generator: Generator | None = None,
    ) -> Tensor:
        """Return hidden states (items, n_tokens, dim) before each token."""
        x, rope = self.interleave(codes.gather(1, orders), orders, generator)
        steps = x.shape[1]
        mask = torch.ones(steps, steps + 1, dtype=torch.bool, device=x.device).tril(1)
        for block, value in zip(self.blocks[:-1], class_values):
            x = block(x, value, rope, mask, 1, generator)
        # the last layer needs queries at the predicting positions only
        states: Tensor = self.blocks[-1](x, class_values[-1], rope, mask[::2], 2, generator)
        return states


def rope_table(grid: tuple[int, int], head_dim: int) -> Tensor:
    """Return cosines and sines of the 2D rotary embedding, (n_tokens, head_dim / 2, 2).

    The first half of the channel pairs rotates with the row, the second half with the column.
    """
    rows, cols = grid
    freqs = ROPE_BASE ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    by_row = torch.outer(torch.arange(rows).float(), freqs).repeat_interleave(cols, 0)
    by_col = torch.outer(torch.arange(cols).float(), freqs).repeat(rows, 1)
    angles = torch.cat([by_row, by_col], 1)
    return torch.stack([angles.cos(), angles.sin()], -1)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate interleaved channel pairs of x (..., head_dim) by rope (..., head_dim / 2, 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rope)).flatten(-2).type_as(x)

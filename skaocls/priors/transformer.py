"""Priors: the interface of all priors, and the published RandAR architecture.

The architecture and the parameter names match the published RandAR checkpoints (Pang et al., arXiv
2412.01827). A *position-instruction* token precedes each image token and encodes the position
of the image token. One model can therefore compute log p(tokens | class, order) for every order.
"""

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from skaocls.priors.layers import Block, Dropout, RMSNorm, rope_table, rotate


class Prior(nn.Module, ABC):
    """Base class of priors: models of log p(tokens | class, order).

    `grid` is (rows, cols). The label `num_classes` is the null class, which stands for no class.
    """

    vocab_size: int
    grid: tuple[int, int]
    num_classes: int

    @property
    @abstractmethod
    def transformer(self) -> "AnyOrderPrior":
        """The transformer that processes the tokens."""

    @property
    @abstractmethod
    def class_table(self) -> Tensor:
        """Class parameters (num_classes + 1, n_parameters). The last row is the null class."""

    @abstractmethod
    def replace_class_table(self, table: Tensor) -> None:
        """Replace :attr:`class_table` by another table, which may have more or fewer classes."""

    @abstractmethod
    def class_values(self, labels: Tensor) -> list[Tensor]:
        """For labels (...), return the class token's value vectors (..., dim), one per layer."""

    @abstractmethod
    def predict(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return float32 logits (items, steps, vocab_size) for hidden states and classes."""

    @abstractmethod
    def readings(self, n_classes: int) -> int:
        """Return the number of forward passes needed to score `n_classes` classes in one order."""

    def hidden(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Return the hidden states (items, n_tokens, dim) from which the tokens are predicted."""
        return self.transformer.states(codes, orders, labels, generator)

    def forward(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute the logits of the tokens at every step.

        Parameters
        ----------
        codes : int tensor of shape (items, n_tokens)
            Tokens in raster order.
        orders : int tensor of shape (items, n_tokens) or (1, n_tokens)
            At each step, the position (raster index) of the token that is predicted.
        labels : int tensor of shape (items,)
            Class of each item. The value `num_classes` is the null class.
        generator : torch.Generator, default=None
            Generator for dropout masks during training. If None, torch's global generator is used.

        Returns
        -------
        logits : float32 tensor of shape (items, n_tokens, vocab_size)
            Entry ``[i, s]`` predicts the token at position ``orders[i, s]``.
        """
        return self.predict(self.hidden(codes, orders.expand_as(codes), labels, generator), labels)

    def log_prob(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute the log-probability of each token.

        Parameters
        ----------
        codes, orders, labels, generator : tensors and torch.Generator
            See :meth:`forward`.

        Returns
        -------
        log_prob : float32 tensor of shape (items, n_tokens)
            For each step of the order, the log-probability of the token at this step.
        """
        return self.log_prob_by_class(codes, orders, labels[:, None], generator)[..., 0]

    def log_prob_by_class(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Compute :meth:`log_prob` under several classes for each item.

        `labels` has shape (items, n_classes). The result has shape (items, n_tokens, n_classes).
        """
        n_classes = labels.shape[1]
        orders = orders.expand_as(codes)
        codes, orders = (a.repeat_interleave(n_classes, 0) for a in (codes, orders))
        logits = self(codes, orders, labels.flatten(), generator).flatten(0, 1)
        targets = codes.gather(1, orders).flatten()
        log_prob = -F.cross_entropy(logits, targets, reduction="none")
        return log_prob.view(-1, n_classes, codes.shape[1]).mT

    def hidden_weights(self) -> dict[Tensor, int]:
        """Return a dict from each hidden weight to the number of matrices stacked in it."""
        layers = self.transformer.layers
        found: dict[Tensor, int] = {p: 1 for p in layers.parameters() if p.ndim == 2}
        return found | {block.attention.wqkv.weight: 3 for block in self.transformer.blocks}

    @property
    def sizes(self) -> dict[str, object]:
        """The value of the classifier's parameter `prior` that creates a prior of this size."""
        body = self.transformer
        hidden = body.blocks[0].feed_forward.w1.weight.shape[0]
        return {
            "dim": self.dim,
            "n_layer": len(body.blocks),
            "n_head": body.n_head,
            "multiple_of": hidden,
            "dropout": body.tok_dropout.p,
        }

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.transformer.output.weight.shape[1]

    @property
    def n_tokens(self) -> int:
        """Number of tokens of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.transformer.output.weight.device


class AnyOrderPrior(Prior):
    """Class-conditional any-order autoregressive transformer over a grid of tokens.

    The prior computes log p(tokens | class, order) as a sum over steps. Each step predicts the
    token at one position of the grid. State-dict keys and shapes match the published RandAR
    checkpoints.

    Parameters
    ----------
    vocab_size : int
        Number of token values (the size of the tokenizer's codebook).
    grid : tuple of int (rows, cols)
        Arrangement of the tokens of one image.
    num_classes : int
        Number of classes. The label `num_classes` is the null class, which stands for no class.
    dim : int, default=128
        Width of the transformer. It must be a multiple of ``4 * n_head``.
    n_layer : int, default=3
        Number of transformer blocks.
    n_head : int, default=4
        Number of attention heads.
    multiple_of : int, default=256
        The feed-forward width is ``8 / 3 * dim``, rounded up to a multiple of `multiple_of`.
    dropout : float, default=0.0
        Dropout probability during training. As in the published recipe, dropout applies to
        image-token embeddings, attention outputs and feed-forward outputs, but not to class
        embeddings and position embeddings.
    generator : torch.Generator, default=None
        Generator for the initial float32 weights. If None, torch's global generator is used.

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
        with torch.device("meta"):  # skip torch's own initialization
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
        """Draw random initial values for all weights.

        A wider transformer gets smaller standard deviations. In layers that write to the residual
        stream, a deeper transformer also gets smaller standard deviations. The initial predictions
        are uniform. Small priors learn much faster with this initialization than with one standard
        deviation for all weights.
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
        for module in self.modules():
            if isinstance(module, Dropout):
                module.p = p

    @property
    def blocks(self) -> list[Block]:
        return cast(list[Block], list(self.layers))

    def class_values(self, labels: Tensor) -> list[Tensor]:
        x = F.embedding(labels, self.class_table)
        values = []
        for block in self.blocks:
            v, x = block.read_class(x)
            values.append(v)
        return values

    def interleave(
        self, tokens: Tensor, orders: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the embeddings of p1 t1 p2 t2 ... pn, and the rotations (:func:`rope_table`).

        Position instructions p and tokens t alternate. The last token is left out, because it has
        no successor to predict. `tokens` and `orders` have shape (items, n_tokens). `tokens` must
        already be sorted by the order.
        """
        rope = self.rope[orders]
        head = self.pos_instruct_embeddings.view(self.n_head, 1, -1)
        instructions = rotate(head, rope.unsqueeze(1)).transpose(1, 2).flatten(2)
        embedded = self.tok_dropout(self.tok_embeddings(tokens), generator)
        x = torch.stack([instructions, embedded], 2).flatten(1, 2)
        return x[:, :-1], rope.repeat_interleave(2, 1)[:, None, :-1]

    def predict(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return F.linear(self.norm(hidden), self.output.weight).float()

    def states(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Return hidden states (items, n_tokens, dim) from which the tokens are predicted."""
        x, rope = self.interleave(codes.gather(1, orders), orders, generator)
        x = torch.cat([F.embedding(labels, self.class_table)[:, None], x], 1)
        # the class token comes first, and its query and key are multiplied by zero
        rope = F.pad(rope.transpose(1, 2), (0, 0, 0, 0, 0, 0, 1, 0))
        for block in self.blocks[:-1]:
            x = block(x, rope, False, generator)
        # the last layer needs queries only at positions that predict a token
        states: Tensor = self.blocks[-1](x, rope, True, generator)
        return states

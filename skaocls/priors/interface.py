"""What training, scoring and drawing ask of a prior."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from skaocls.priors.transformer import AnyOrderPrior


class Prior(nn.Module):
    """What a prior offers to training, scoring and drawing, and nothing else.

    Attributes
    ----------
    vocab_size, grid, num_classes : int, tuple of int, int
        Of the tokens, and how many classes. Label `num_classes` is the null class.
    """

    vocab_size: int
    grid: tuple[int, int]
    num_classes: int

    @property
    def transformer(self) -> "AnyOrderPrior":
        """What reads the tokens."""
        raise NotImplementedError

    @property
    def class_table(self) -> Tensor:
        """What is known of each class, (num_classes + 1, any); the null class comes last."""
        raise NotImplementedError

    def replace_class_table(self, table: Tensor) -> None:
        """Take over other classes, as a table like :attr:`class_table`."""
        raise NotImplementedError

    def class_values(self, labels: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """What each layer's attention sees of classes (...), (..., dim) each."""
        raise NotImplementedError

    def predict(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Float32 logits (items, steps, vocab_size) of states of the transformer, for classes."""
        raise NotImplementedError

    def forward(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Float32 logits (items, n_tokens, vocab_size), in the order of reading."""
        raise NotImplementedError

    def log_prob(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Float32 log-probabilities (items, n_tokens) of the tokens, in the order of reading."""
        raise NotImplementedError

    def log_prob_beside(
        self,
        codes: Tensor,
        orders: Tensor,
        labels: Tensor,
        some: Tensor,
        others: Tensor,
        steps: slice,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all items; and of some, at some steps, under other labels, too.

        Here by reading an item once for each label; priors that can do with less do.

        Parameters
        ----------
        codes, orders, labels, generator
            As in :meth:`log_prob`.
        some : int tensor of shape (n_some,)
            Which items.
        others : int tensor of shape (n_some, n_others)
        steps : slice
            Of the tokens in the order of reading.

        Returns
        -------
        own : float32 tensor of shape (items, n_tokens)
        of_others : float32 tensor of shape (n_some, n_steps, n_others)
        """
        n_others = others.shape[1]
        orders = orders.expand_as(codes)
        repeated = torch.cat([torch.arange(len(codes), device=codes.device), some.repeat(n_others)])
        labels = torch.cat([labels, others.T.flatten()])
        log_prob = self.log_prob(codes[repeated], orders[repeated], labels, generator)
        own, of_others = log_prob.tensor_split([len(codes)])
        return own, of_others.view(n_others, len(some), -1)[..., steps].permute(1, 2, 0)

    def matrices(self) -> dict[Tensor, int]:
        """Those that lead from hidden states to hidden states, and of how many each is a stack."""
        layers = self.transformer.layers
        found: dict[Tensor, int] = {p: 1 for p in layers.parameters() if p.ndim == 2}
        return found | {block.attention.wqkv.weight: 3 for block in self.transformer.blocks}

    @property
    def sizes(self) -> dict[str, Any]:
        """What the classifier's parameter `prior` takes to make a new one like this."""
        body = self.transformer
        hidden = body.blocks[0].feed_forward.w1.weight.shape[0]
        shape = {"dim": self.dim, "n_layer": len(body.blocks), "n_head": body.n_head}
        return shape | {"multiple_of": hidden, "dropout": body.tok_dropout.p}

    def readings(self, n_classes: int) -> int:
        """How often the transformer reads an image, in each order, for so many classes."""
        raise NotImplementedError

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.transformer.output.weight.shape[1]

    @property
    def n_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        return self.transformer.output.weight.device

"""The interface of priors for training, scoring and sampling."""

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from skaocls.priors.transformer import AnyOrderPrior


class Prior(nn.Module):
    """Base class of priors: models of log p(tokens | class, order).

    Attributes
    ----------
    vocab_size : int
        Number of token values.
    grid : tuple of int (rows, cols)
        Arrangement of the tokens of one image.
    num_classes : int
        Number of classes. Label `num_classes` is the null class (unconditional).
    """

    vocab_size: int
    grid: tuple[int, int]
    num_classes: int

    @property
    def transformer(self) -> "AnyOrderPrior":
        """The transformer that reads the tokens."""
        raise NotImplementedError

    @property
    def class_table(self) -> Tensor:
        """The parameters of each class, (num_classes + 1, n_parameters), null class last."""
        raise NotImplementedError

    def replace_class_table(self, table: Tensor) -> None:
        """Replace all classes by those of a table like :attr:`class_table`."""
        raise NotImplementedError

    def class_values(self, labels: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """Return the class token's value in each layer, (..., dim), for labels (...)."""
        raise NotImplementedError

    def predict(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return float32 logits (items, steps, vocab_size) for hidden states and classes."""
        raise NotImplementedError

    def forward(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Return float32 logits (items, n_tokens, vocab_size), in the sequence of reading."""
        raise NotImplementedError

    def log_prob(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Return float32 log-probabilities (items, n_tokens), in the sequence of reading."""
        raise NotImplementedError

    def log_prob_with_rivals(
        self,
        codes: Tensor,
        orders: Tensor,
        labels: Tensor,
        selected: Tensor,
        rivals: Tensor,
        steps: slice,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities of all items, and of selected items under rival classes.

        This implementation reads an item once per class.

        Parameters
        ----------
        codes, orders, labels, generator
            As in :meth:`log_prob`.
        selected : int tensor of shape (n_selected,)
            Indices of the items to score under rival classes.
        rivals : int tensor of shape (n_selected, n_rivals)
            Their rival classes.
        steps : slice
            Steps of the order at which to score rivals.

        Returns
        -------
        log_prob : float32 tensor of shape (items, n_tokens)
            Log-probabilities under `labels`.
        rival_log_prob : float32 tensor of shape (n_selected, n_steps, n_rivals)
        """
        n_items, n_rivals = len(codes), rivals.shape[1]
        orders = orders.expand_as(codes)
        items = torch.cat([torch.arange(n_items, device=codes.device), selected.repeat(n_rivals)])
        labels = torch.cat([labels, rivals.T.flatten()])
        log_prob = self.log_prob(codes[items], orders[items], labels, generator)
        log_prob, rival_log_prob = log_prob.tensor_split([n_items])
        rival_log_prob = rival_log_prob.view(n_rivals, len(selected), -1)
        return log_prob, rival_log_prob[..., steps].permute(1, 2, 0)

    def hidden_weights(self) -> dict[Tensor, int]:
        """Return hidden weight matrices, mapped to the number of matrices stacked in each."""
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

    def readings(self, n_classes: int) -> int:
        """Return how many passes of the transformer score one order under `n_classes` classes."""
        raise NotImplementedError

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
        return self.transformer.output.weight.device

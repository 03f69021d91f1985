"""Fine-tuning: which weights of a prior are trained, and vectors for new classes."""

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from skaocls.priors.transformer import Prior
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders

# Search for the old classes that are nearest to a new one (benchmarks/quality/finetuning.py)
PROBE_IMAGES = 8  # images of each new class
PROBE_ORDERS = 2
N_NEAREST = 3  # old classes whose vectors are averaged


class LowRank(nn.Module):
    """W + (alpha / rank) B A with trainable A and B (Hu et al., arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: Generator | None):
        super().__init__()
        a = torch.empty(rank, weight.shape[1], dtype=torch.float32)
        nn.init.normal_(a, std=weight.shape[1] ** -0.5, generator=generator)
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.b @ self.a


def prepare_finetuning(
    prior: Prior,
    mode: str,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    generator: Generator | None = None,
) -> None:
    """Choose, in place, which weights of a prior are trained.

    ``"full"`` trains all weights. ``"lora"`` trains class vectors and low-rank updates of the
    attention and feed-forward matrices, which are multiplied by ``alpha / rank``.
    ``"class_embedding"`` trains class vectors alone. ``"head"`` trains all weights outside the
    transformer. The generator draws the initial low-rank updates, on the CPU.
    """
    prior.requires_grad_(mode in ("full", "head"))
    if mode == "head":
        prior.transformer.requires_grad_(False)
    if mode in ("full", "head"):
        return
    prior.class_table.requires_grad_(True)
    if mode == "lora":
        for layer in [m for m in prior.transformer.layers.modules() if isinstance(m, nn.Linear)]:
            low_rank = LowRank(layer.weight, rank, alpha, generator)
            parametrize.register_parametrization(layer, "weight", low_rank)


def merge_finetuning(prior: Prior) -> None:
    """Add low-rank updates to the matrices, in place, so that they do not slow down scoring."""
    for layer in [m for m in prior.modules() if parametrize.is_parametrized(m)]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    prior.requires_grad_(True)


def set_classes(
    prior: Prior,
    codes: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    initial: str,
    seed: int = 0,
    *,
    keep_old: bool = False,
) -> None:
    """Give a prior new classes, in place. With `keep_old`, the old classes stay before them.

    With ``initial="nearest"``, the vector of a new class is the mean of those of the three old
    classes under which a few of its images, `codes` (n_images, n_tokens), are most likely. With
    ``"null"``, it is the vector of the null class. The seed draws the orders of the likelihoods.
    """
    table = prior.class_table.detach()
    null = table[-1:]
    if initial == "null":
        vectors = null.repeat(n_classes, 1)
    else:
        orders = draw_orders(PROBE_ORDERS, prior.n_tokens, seed)
        means = []
        for label in range(n_classes):
            images = codes[np.flatnonzero(labels == label)[:PROBE_IMAGES]]
            ll = log_likelihoods(prior, images, orders, np.arange(prior.num_classes))
            nearest = ll.mean((0, 1)).argsort()[-N_NEAREST:].copy()
            means.append(table[torch.from_numpy(nearest).to(table.device)].mean(0))
        vectors = torch.stack(means)
    old = table[:-1] if keep_old else table[:0]
    prior.replace_class_table(torch.cat([old, vectors, null]))

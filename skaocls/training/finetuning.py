"""Fine-tuning: choose the weights to train, and create vectors for new classes."""

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from skaocls.priors.transformer import Prior
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders

# Constants for finding the old classes that are most similar to a new class
# (benchmarks/quality/finetuning.py)
PROBE_IMAGES = 8  # number of images of each new class that are scored under the old classes
PROBE_ORDERS = 2
N_NEAREST = 3  # number of old classes whose vectors are averaged


class LowRank(nn.Module):
    """The matrix W + (alpha / rank) B A with trainable A and B (Hu et al., arXiv 2106.09685)."""

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
    """Modify a prior in place: make the weights that the fine-tuning mode trains trainable.

    ``"full"`` trains all weights. ``"class_embedding"`` trains only the class vectors. ``"lora"``
    trains the class vectors and low-rank updates of the attention and feed-forward matrices. These
    updates are multiplied by ``alpha / rank``. ``"head"`` trains all weights outside the
    transformer. `generator` is a CPU generator that draws the initial low-rank updates.
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
    """Add the low-rank updates to the weight matrices, to make scoring as fast as before."""
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
    """Replace the classes of a prior in place. If `keep_old`, add the new after the old classes.

    If `initial` is ``"null"``, each new class gets the vector of the null class. If `initial` is
    ``"nearest"``, a few images of each new class are scored under all old classes. The new class
    gets the mean vector of the three old classes with the highest likelihoods. `codes` (n_images,
    n_tokens) are tokens of images of the new classes. `seed` seeds the orders for scoring.
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

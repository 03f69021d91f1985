"""Adapting a trained prior to other classes: new class vectors, low-rank updates, frozen bodies."""

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from skaocls.priors.interface import Prior
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders

PROBE_IMAGES = 8  # of each new class, for its nearest old classes
PROBE_ORDERS = 2
NEAREST = 3  # old classes whose vectors are averaged


class LowRank(nn.Module):
    """W + (alpha / rank) B A, of which A and B are trained (Hu et al., arXiv 2106.09685)."""

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
    """Choose, in place, what training changes.

    Parameters
    ----------
    prior : Prior
    mode : {"full", "lora", "class_embedding", "head"}
        All weights; class vectors and low-rank updates of the attention and feed-forward matrices;
        class vectors alone; what a prior has beside its transformer.
    rank, alpha : int, float
        Of the low-rank updates, which are multiplied by ``alpha / rank``.
    generator : torch.Generator, default=None
        Draws where the low-rank updates start, on the CPU; None is torch's global one.
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
    """Add low-rank updates to the matrices they belong to, so that scoring costs nothing more."""
    for layer in [m for m in prior.modules() if parametrize.is_parametrized(m)]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    prior.requires_grad_(True)


def set_classes(
    prior: Prior,
    codes: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    start: str,
    seed: int = 0,
    *,
    keep: bool = False,
) -> None:
    """Give a prior new classes, in place.

    Parameters
    ----------
    prior : Prior
    codes : int array of shape (n_images, n_tokens)
        Tokens of images of the new classes.
    labels : int array of shape (n_images,)
        New classes 0 ... n_classes - 1.
    n_classes : int
        Number of new classes.
    start : {"nearest", "null"}
        Each new class begins as the mean vector of the three old classes that make a few of its
        images most likely, or as the null class.
    seed : int, default=0
        Of the orders in which those likelihoods are measured.
    keep : bool, default=False
        Whether the old classes stay, before the new ones, or go.
    """
    table = prior.class_table.detach()
    null = table[-1:]
    if start == "null":
        vectors = null.repeat(n_classes, 1)
    else:
        orders = draw_orders(PROBE_ORDERS, prior.n_tokens, seed)
        nearest = []
        for label in range(n_classes):
            images = codes[np.flatnonzero(labels == label)[:PROBE_IMAGES]]
            ll = log_likelihoods(prior, images, orders, np.arange(prior.num_classes))
            best = ll.mean((0, 1)).argsort()[-NEAREST:].copy()
            nearest.append(table[torch.from_numpy(best).to(table.device)].mean(0))
        vectors = torch.stack(nearest)
    old = table[:-1] if keep else table[:0]
    prior.replace_class_table(torch.cat([old, vectors, null]))

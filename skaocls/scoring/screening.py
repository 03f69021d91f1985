"""A first-order screen: all classes ranked by a few gradients.

The tokens see nothing of the class but its value in each layer's attention, so log p(tokens |
class, order) is a function of those values. Linearized at an anchor it gives, from one forward and
one backward pass, an estimate for every class at once. Anchors are the centres of a few clusters of
classes; each class is estimated from its own cluster's.
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from skaocls.priors.transformer import AnyOrderPrior
from skaocls.scoring.exhaustive import lanes_at_once

N_ANCHORS = 4
COST = 3  # of a forward and a backward pass, in forward passes
ACTIVATIONS = 8  # times the memory of a lane that is only read


class Anchors(NamedTuple):
    """Where to linearize.

    Attributes
    ----------
    values : list of n_layer tensors of shape (n_anchors, dim)
        Values of the anchors in each layer.
    moves : list of n_layer tensors of shape (n_classes, dim)
        Values of each class less those of its anchor.
    nearest : int tensor of shape (n_classes,)
        The anchor of each class.
    """

    values: list[Tensor]
    moves: list[Tensor]
    nearest: Tensor


@torch.no_grad()
def find_anchors(prior: AnyOrderPrior, labels: Tensor, n_anchors: int = N_ANCHORS) -> Anchors:
    """Cluster the classes by their values in all layers."""
    values = prior.eval().class_values(labels)
    n_anchors = min(n_anchors, len(labels))
    together = torch.cat(values, 1).float().cpu().numpy()
    means = KMeans(n_anchors, n_init=4, random_state=0).fit(together)
    nearest = torch.as_tensor(means.labels_, dtype=torch.long, device=labels.device)
    centres = torch.as_tensor(means.cluster_centers_, dtype=values[0].dtype, device=labels.device)
    at = list(centres.split([v.shape[1] for v in values], 1))
    moves = [v - a[nearest] for v, a in zip(values, at)]
    return Anchors(at, moves, nearest)


def first_order(prior: AnyOrderPrior, codes: Tensor, order: Tensor, anchors: Anchors) -> Tensor:
    """Estimates of log p(tokens | class, order) for all classes.

    Parameters
    ----------
    prior : AnyOrderPrior
    codes : int tensor of shape (n_images, n_tokens)
        Tokens in raster order.
    order : int tensor of shape (n_tokens,)
    anchors : Anchors
        From :func:`find_anchors`.

    Returns
    -------
    log_likelihood : float32 tensor of shape (n_images, n_classes)
        Exact for a class that is its own anchor.

    Examples
    --------
    >>> import torch
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.scoring.screening import find_anchors, first_order
    >>> prior = AnyOrderPrior(vocab_size=8, grid=(2, 2), num_classes=30, dim=32, n_layer=1)
    >>> anchors = find_anchors(prior, torch.arange(30))
    >>> codes, order = torch.tensor([[1, 5, 0, 7]]), torch.tensor([3, 1, 0, 2])
    >>> first_order(prior, codes, order, anchors).shape
    torch.Size([1, 30])
    """
    prior.eval()
    n = len(codes), len(anchors.nearest)
    out = torch.empty(n, dtype=torch.float32, device=codes.device)
    few = max(1, lanes_at_once(prior) // ACTIVATIONS)
    for start in range(0, len(codes), few):
        some = codes[start : start + few]
        orders = order.expand_as(some)
        targets = some.gather(1, orders).unsqueeze(-1)
        for anchor in range(len(anchors.values[0])):
            mine = anchors.nearest == anchor
            with torch.enable_grad():
                here = [v[anchor].repeat(len(some), 1).requires_grad_() for v in anchors.values]
                log_prob = prior.predict(prior.hidden(some, orders, here), orders).log_softmax(-1)
                ll = log_prob.gather(-1, targets).sum((1, 2))
                slopes = torch.autograd.grad(ll.sum(), here)
            rise = sum(g @ move[mine].T for g, move in zip(slopes, anchors.moves))
            out[start : start + few, mine] = ll.detach()[:, None] + rise
    return out


def survivors(
    prior: AnyOrderPrior,
    codes: np.ndarray,
    order: np.ndarray,
    labels: np.ndarray,
    log_prior: np.ndarray,
    n_kept: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The classes of each image that a screen lets pass.

    Parameters
    ----------
    prior : AnyOrderPrior
    codes : int array of shape (n_images, n_tokens)
        Tokens in raster order.
    order : int array of shape (n_tokens,)
    labels : int array of shape (n_classes,)
    log_prior : float array of shape (n_classes,)
    n_kept : int
        How many pass.

    Returns
    -------
    kept : bool array of shape (n_images, n_classes)
    score : float64 array of shape (n_images, n_classes)
        Estimated log-likelihoods and `log_prior`.
    """
    device = prior.output.weight.device
    anchors = find_anchors(prior, torch.as_tensor(labels, device=device))
    estimate = first_order(
        prior,
        torch.as_tensor(codes, dtype=torch.long, device=device),
        torch.as_tensor(order, dtype=torch.long, device=device),
        anchors,
    )
    score = estimate.double().cpu().numpy() + log_prior
    best = np.argsort(-score, axis=1, kind="stable")[:, :n_kept]
    kept = np.zeros(score.shape, dtype=bool)
    np.put_along_axis(kept, best, True, axis=1)
    return kept, score

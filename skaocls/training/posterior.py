"""What training asks for beside likelihood: that the posterior of an image's class is high.

It is asked for by every second token that is read, these ones or those, each given all tokens read
before it: that takes half the time, and what is decided by fewer tokens leaves more to learn.
"""

import math

import numpy as np
import torch
from torch import Generator, Tensor

from skaocls.priors.interface import Prior

MOST_RIVALS = 9  # of each image in each step; the sum over more classes is estimated by so many
EVERY = 2  # tokens


def rivals_of(prior: Prior) -> int:
    """How many classes each image is told apart from."""
    return min(prior.num_classes - 1, MOST_RIVALS)


def draw_rivals(labels: Tensor, n_classes: int, generator: Generator) -> Tensor:
    """Classes that images are told apart from, (items, n_rivals): all others, or some of them.

    Of more than `MOST_RIVALS` others so many are drawn for each image, with replacement.
    """
    n_others = n_classes - 1
    if n_others <= MOST_RIVALS:
        ahead = torch.arange(1, n_classes).expand(len(labels), -1)
    else:
        ahead = torch.randint(1, n_classes, (len(labels), MOST_RIVALS), generator=generator)
    return (labels[:, None] + ahead) % n_classes


def class_log_frequencies(labels: np.ndarray, weights: np.ndarray | None, n_classes: int) -> Tensor:
    """Log of each class's share of the training images, or of their weight."""
    counts = np.bincount(labels, weights, minlength=n_classes)
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(counts / counts.sum())).float()


def posterior_loss(
    log_likelihood: Tensor, labels: Tensor, rivals: Tensor, log_share: Tensor
) -> Tensor:
    """-log p(class | tokens) of each image, (items,).

    Parameters
    ----------
    log_likelihood : float tensor of shape (items, 1 + n_rivals)
        log p(tokens | class) of its own class, then of its rivals.
    labels : int tensor of shape (items,)
    rivals : int tensor of shape (items, n_rivals)
        From :func:`draw_rivals`; where they are some of all, they stand for the others, too.
    log_share : float tensor of shape (n_classes,)
        Log probability of each class.

    Examples
    --------
    >>> import torch
    >>> from skaocls.training.posterior import surprise
    >>> log_share = torch.tensor([0.5, 0.25, 0.25]).log()
    >>> likelihood = torch.tensor([[0.2, 0.2, 0.2]])  # Bayes' rule: 1/2
    >>> surprise(likelihood.log(), torch.tensor([0]), torch.tensor([[1, 2]]), log_share).exp()
    tensor([2.])
    """
    n_others, n_rivals = len(log_share) - 1, rivals.shape[1]
    share = log_share[torch.cat([labels[:, None], rivals], 1)]
    joint = log_likelihood + share
    joint[:, 1:] += math.log(n_others / n_rivals)
    return -joint.log_softmax(1)[:, 0]

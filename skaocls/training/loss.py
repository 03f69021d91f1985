"""The training loss: negative log-likelihood, optionally plus the negative log posterior.

Bayes' rule gives the posterior probability of an image's class. The rule needs the likelihoods of
the image under its own class and under other classes, the *rivals*.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skaocls.distributed import broadcast_tensor, cpu_group, world_size
from skaocls.priors.transformer import Prior

# Rivals per image and step. If an image has more rivals, nine are drawn at random.
MAX_RIVALS = 9


class TrainingBatch(NamedTuple):
    """Tensors for one training step. Each tensor has one row per image."""

    codes: Tensor  # int64 (n, n_tokens), in raster order
    orders: Tensor  # int64 (n, n_tokens), one token order for each image
    labels: Tensor  # int64 (n,); the value `num_classes` is the null class
    weights: Tensor | None = None  # float32 (n,); if None, all images have the same weight
    rivals: Tensor | None = None  # int64 (n, n_rivals); if None, the loss omits the posterior

    def map(self, function: Callable[[Tensor], Tensor]) -> "TrainingBatch":
        return TrainingBatch(*(None if t is None else function(t) for t in self))  # type: ignore[arg-type]

    def rows(self, rows: Tensor | slice) -> "TrainingBatch":
        return self.map(lambda tensor: tensor[rows])


class TrainingLoss(nn.Module):
    """The training loss of a prior, as a module that `DistributedDataParallel` can wrap.

    The posterior is included only if `class_log_prior` is given and the batch contains rivals.
    `class_log_prior` (num_classes,) contains the logs of the class frequencies.
    """

    def __init__(
        self, prior: Prior, posterior_weight: float = 0.0, class_log_prior: Tensor | None = None
    ):
        super().__init__()
        self.prior = prior
        self.posterior_weight, self.class_log_prior = posterior_weight, class_log_prior

    def forward(self, batch: TrainingBatch, generator: Generator | None = None) -> Tensor:
        """Compute the weighted mean loss, in nats per token. `generator` draws dropout masks."""
        codes, orders, labels, weights, rivals = batch
        if rivals is None or self.class_log_prior is None:
            loss = -self.prior.log_prob(codes, orders, labels, generator).mean(1)
        else:
            classes = torch.cat([labels[:, None], rivals], 1)
            ll = self.prior.log_prob_by_class(codes, orders, classes, generator).sum(1)
            is_null = labels == self.prior.num_classes
            own = labels.masked_fill(is_null, 0)
            nlp = posterior_loss(ll, own, rivals, self.class_log_prior).masked_fill(is_null, 0)
            loss = (self.posterior_weight * nlp - ll[:, 0]) / codes.shape[1]
        return loss.mean() if weights is None else (weights * loss).mean()


def number_of_rivals(num_classes: int) -> int:
    return min(num_classes - 1, MAX_RIVALS)


def draw_rivals(labels: Tensor, num_classes: int, generator: Generator) -> Tensor:
    """Return the rival classes of each image, with shape (n_images, n_rivals).

    If at most `MAX_RIVALS` other classes exist, all of them are rivals. Otherwise, `MAX_RIVALS`
    classes are drawn from the other classes with replacement.
    """
    if num_classes - 1 <= MAX_RIVALS:
        offsets = torch.arange(1, num_classes).expand(len(labels), -1)
    else:
        offsets = torch.randint(1, num_classes, (len(labels), MAX_RIVALS), generator=generator)
    return (labels[:, None] + offsets) % num_classes


def class_log_frequencies(labels: np.ndarray, weights: np.ndarray | None, n_classes: int) -> Tensor:
    """Return the log of each class frequency. Each image counts with its sample weight."""
    counts = np.bincount(labels, weights, minlength=n_classes)
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(counts / counts.sum())).float()


def posterior_loss(
    log_likelihood: Tensor, labels: Tensor, rivals: Tensor, class_log_prior: Tensor
) -> Tensor:
    """Compute -log p(own class of the image | tokens) for each image, with shape (n,).

    The first column of `log_likelihood` (n, 1 + n_rivals) is for the own class of each image, the
    other columns are for the rivals. If the rivals are a random sample of the other classes,
    the joint probabilities of the rivals are scaled up. The sum over the rivals then estimates the
    sum over all other classes.

    Examples
    --------
    >>> import torch
    >>> from skaocls.training.loss import posterior_loss
    >>> class_log_prior = torch.tensor([0.5, 0.25, 0.25]).log()
    >>> log_likelihood = torch.tensor([[0.2, 0.2, 0.2]]).log()  # equal under all classes
    >>> posterior_loss(log_likelihood, torch.tensor([0]), torch.tensor([[1, 2]]), class_log_prior)
    tensor([0.6931])
    """
    n_others, n_rivals = len(class_log_prior) - 1, rivals.shape[1]
    joint = log_likelihood + class_log_prior[torch.cat([labels[:, None], rivals], 1)]
    joint[:, 1:] += math.log(n_others / n_rivals)
    return -joint.log_softmax(1)[:, 0]


def distribute(loss: TrainingLoss) -> nn.Module:
    """Wrap a loss so that backward passes average the gradients over all ranks.

    This function also copies the weights of the main rank to all other ranks. If only one process
    exists, return the loss unchanged.
    """
    if world_size() == 1:
        return loss
    for tensor in [*loss.prior.parameters(), *loss.prior.buffers()]:
        tensor.data.copy_(broadcast_tensor(tensor.data, tensor.shape, tensor.dtype))
    group = cpu_group() if loss.prior.device.type == "cpu" else None
    with warnings.catch_warnings():
        # torch up to version 2.9 calls one of its own functions by a deprecated name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            loss, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def average_over_ranks(loss: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """Return a context for a backward pass. Average gradients over ranks only if `enabled`."""
    if enabled or not isinstance(loss, DistributedDataParallel):
        return nullcontext()
    return loss.no_sync()

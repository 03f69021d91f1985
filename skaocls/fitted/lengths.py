"""How long a new prior is trained, and on how many images at a time, if nobody says."""

import numpy as np

from skaocls.priors.interface import Prior
from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.training.posterior import EVERY

OVERHEAD = 3.5  # of a head's class beyond its products: it is small, and memory takes the time
EPOCHS, FEWEST_EPOCHS = 120, 10
EPOCHS_OF_TABLES = 30  # they have no views, and are soon overfitted
# Operations of a whole training for so many images, a minute on two cores; for more they grow by
# this power of their number, so that 10,000 take eight minutes at most
OPERATIONS, IMAGES, GROWTH = 3.3e12, 1000, 0.9
# A batch has about so many tokens: more steps with fewer tokens each learn more in the same time,
# down to where the gradient is mostly noise
TOKENS = 1024
BATCH = 16, 64
SHARE, SHARE_OF_TABLES = 8, 32  # nor is a batch a larger share of the samples than one of these


def batch_of(n_samples: int, n_tokens: int, tabular: bool = False) -> int:
    """Samples of a training step.

    Examples
    --------
    >>> from skaocls.fitted.lengths import batch_of
    >>> batch_of(1000, n_tokens=16), batch_of(1000, n_tokens=49), batch_of(200, n_tokens=16)
    (64, 20, 25)
    """
    least, most = BATCH
    share = SHARE_OF_TABLES if tabular else SHARE
    return int(np.clip(min(n_samples // share, TOKENS // n_tokens), least, most))


def epochs_of(n_samples: int, prior: Prior, rivals: int = 0, tabular: bool = False) -> int:
    """Epochs that are worth their time.

    On images 120, or as many as a budget of operations pays for, but 10 at least. The budget is
    that of a minute for up to 1000 images and grows no faster than their number, so the time to
    wait is known before. Of tables they are 30 at most.
    """
    budget = OPERATIONS * max(1.0, n_samples / IMAGES) ** GROWTH
    epochs = budget / (n_samples * training_operations(prior, rivals))
    return int(np.clip(epochs, FEWEST_EPOCHS, EPOCHS_OF_TABLES if tabular else EPOCHS))


def training_operations(prior: Prior, rivals: int = 0) -> float:
    """Floating-point operations, about, of one image in one epoch: forward and backward.

    `rivals` are the other classes under which it is read (:mod:`skaocls.training.posterior`).
    """
    n, body = prior.n_tokens, prior.transformer
    in_blocks = sum(p.numel() for p in body.layers.parameters())
    in_head = sum(p.numel() for p in prior.parameters()) - in_blocks
    tables = (prior.class_table, body.tok_embeddings.weight)  # of which rows are looked up
    in_head -= sum(table.numel() for table in tables)
    # each token is read twice, with the instruction that names its place
    attention = 4 * (2 * n) ** 2 * prior.dim * len(body.layers)
    reading = float(3 * (2 * (2 * n * in_blocks + n * in_head) + attention))
    if not isinstance(prior, SharedTrunkPrior):
        return reading * (1 + rivals)
    of_class = 3 * 2 * prior.head.project.weight.numel()
    return reading + rivals * n / EVERY * OVERHEAD * of_class

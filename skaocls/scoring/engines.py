"""The engine that a prior is read with."""

from typing import Any

import torch
from torch import Tensor

from skaocls.priors.interface import Prior
from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.scoring.engine import Engine
from skaocls.scoring.heads import HeadEngine


def make_engine(
    prior: Prior, labels: Tensor, dtype: torch.dtype = torch.float32, pack: bool = True
) -> Any:
    """A prior and the classes to score, ready for inference.

    Both engines read alike: `pairs` what no class has a part in, and with that `read` some
    lanes, or `score` all classes.
    """
    if isinstance(prior, SharedTrunkPrior):
        return HeadEngine(prior, labels, dtype, pack)
    return Engine(prior.transformer, labels, dtype, pack)

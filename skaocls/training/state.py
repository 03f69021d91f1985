"""All that changes while a prior is trained, and what happened."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skaocls.distributed import (
    all_ranks_true,
    all_reduce_sum,
    broadcast,
    broadcast_tensor,
    is_main,
    rank,
    world_size,
)
from skaocls.priors.interface import Prior
from skaocls.training.parallel import as_piece, cut, kept_by_main, piece_of

TRIES = 3  # how often the learning rate is lowered before training that diverges is given up
LOWERED = 0.1  # what it is multiplied by


@dataclass
class History:
    """What happened while training.

    Attributes
    ----------
    loss_curve : list of float
        Mean training loss of each epoch, in nats per token.
    validation_curve : list of float
        Mean held-out log-likelihood after each epoch, in nats per token; empty without
        validation data.
    n_iter : int
        Epochs run.
    best_iter : int
        Epoch, from 1, whose weights were kept.
    converged : bool
        Whether the curve was flat at the end.
    interrupted : bool
        Whether Ctrl-C ended it.
    settings : dict
        `max_iter`, `batch_size` and `learning_rate_init`, as they were used.
    """

    loss_curve: list[float] = field(default_factory=list)
    validation_curve: list[float] = field(default_factory=list)
    n_iter: int = 0
    best_iter: int = 0
    converged: bool = False
    interrupted: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


class TrainingState:
    """Weights, their running mean, optimizer, generators and place in the data of one training.

    Attributes
    ----------
    trained : list of Parameter
        What is trained of the prior.
    own, mean, good : list of Tensor
        Their weights, a running mean of these, and those after the last epoch; of weights in
        pieces those of this process.
    best : list of Tensor or None
        Those of the best epoch, with validation data.
    optimizer : AdamW
    random, dropping : torch.Generator
        Of batches, orders and labels, and of dropout. Of several processes, all draw the same
        batches, and each its own dropout.
    step : int
        Steps done of this epoch.
    shuffled : int tensor of shape (n_images,)
        Order of the images in this epoch.
    losses : float tensor
        Sum of this epoch's losses, of this process's share.
    lowered : int
        How often the learning rate was lowered because training diverged.
    history : History
    """

    def __init__(self, prior: Prior, optimizer: torch.optim.AdamW, seed: int):
        self.trained: list[Tensor] = [p for p in prior.parameters() if p.requires_grad]
        self.own = [piece_of(p.data) for p in self.trained]
        self.mean, self.good = copies(self.own), copies(self.own)
        self.best: list[Tensor] | None = None
        self.optimizer = optimizer
        self.seed, device = seed, prior.device
        self.random = torch.Generator().manual_seed(seed)
        self.dropping = self.random
        if device.type != "cpu" or world_size() > 1:
            self.dropping = torch.Generator(device).manual_seed(seed)
        self.step, self.lowered = 0, 0
        self.shuffled = torch.empty(0, dtype=torch.int64)
        self.losses = torch.zeros((), dtype=torch.float32, device=device)
        self.history = History()

    def is_finite(self) -> bool:
        """Whether losses and weights are numbers."""
        return all_ranks_true(are_finite([self.losses, *self.own]))

    def begin_step(self, step: int) -> None:
        """Let dropout of one of several processes follow from the step, so as to be resumed."""
        drawn = np.random.SeedSequence([self.seed, step, rank()]).generate_state(1, np.uint64)
        self.dropping.manual_seed(int(drawn[0] >> 1))

    def go_back(self) -> None:
        """Begin the epoch again with the last good weights at a lower rate.

        Raises
        ------
        ValueError
            If that was done too often.
        """
        epoch = self.history.n_iter + 1
        self.lowered += 1
        if self.lowered > TRIES:
            raise ValueError(
                f"Training diverged in epoch {epoch}, and again {TRIES} times at lower learning "
                "rates: loss or weights are no finite numbers. Pass a lower learning_rate_init, "
                "and look for huge values in X, sample_weight and the weights of a given prior."
            )
        warnings.warn(
            f"Training diverged in epoch {epoch}: loss or weights are no finite numbers. The epoch "
            f"begins again with the weights before it, at {LOWERED**self.lowered:.3g} of the "
            "learning rate. Consider a lower learning_rate_init.",
            ConvergenceWarning,
            stacklevel=2,
        )
        with torch.no_grad():
            torch._foreach_copy_(self.own, self.good)
            torch._foreach_copy_(self.mean, self.good)
        self.optimizer.state.clear()
        self.step = 0

    def tensors(self) -> dict[str, Tensor]:
        """All of it that is tensors, by name, in the main process; all take part.

        :meth:`restore` takes them back, by as many processes or by others.
        """
        named = {"shuffled": self.shuffled, "losses": all_reduce_sum(self.losses)}
        named["generator.0"] = self.random.get_state()
        named["generator.1"] = self.dropping.get_state()
        weights = {"own": self.own, "mean": self.mean, "good": self.good, "best": self.best or []}
        for name, several in weights.items():
            for i, (p, t) in enumerate(zip(self.trained, several)):
                named[f"{name}.{i}"] = kept_by_main(as_piece(p, t))
        for i, of_one in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{i}.{name}": kept_by_main(t) for name, t in of_one.items()}
        return named

    def facts(self) -> dict[str, Any]:
        """The rest, in JSON's terms."""
        return {"step": self.step, "lowered": self.lowered, "history": vars(self.history)}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Become what :meth:`tensors` and :meth:`facts` told the main process.

        `history` stays the same object.
        """
        told = {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
        told, facts = broadcast((told, facts))

        def whole(key: str) -> Tensor:
            return broadcast_tensor(tensors.get(key), *told[key])

        if "best.0" in told:
            self.best = copies(self.own)
        weights = {"own": self.own, "mean": self.mean, "good": self.good, "best": self.best or []}
        with torch.no_grad():
            for name, several in weights.items():
                for i, (p, t) in enumerate(zip(self.trained, several)):
                    t.copy_(cut(p, whole(f"{name}.{i}")))
            losses = whole("losses")
            self.losses.copy_(losses if is_main() else torch.zeros_like(losses))
        moments: dict[int, dict[str, Tensor]] = {}
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        for key in told:
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                number, _, name = rest.partition(".")
                p, moment = params[int(number)], whole(key).clone()
                if told[key][0] == tuple(p.shape):
                    moment = as_piece(p, cut(p, moment))
                moments.setdefault(int(number), {})[name] = moment
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        dropping = whole("generator.1")
        if world_size() == 1:  # else each step begins anew
            self.dropping.set_state(dropping)
        self.random.set_state(whole("generator.0"))
        self.shuffled = whole("shuffled").clone()
        self.step, self.lowered = facts["step"], facts["lowered"]
        vars(self.history).update(facts["history"])


def are_finite(tensors: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]

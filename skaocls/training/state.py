"""The state and the history of a training run. Checkpoints save and restore both."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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
from skaocls.priors.transformer import Prior
from skaocls.warn import warn

Metadata: TypeAlias = dict[str, Any]  # all values have JSON types

# Constants for training runs that diverge. In the benchmarks, no training run has diverged.
MAX_RESTARTS = 3
RESTART_RATE_FACTOR = 0.1  # each restart multiplies the learning rate by this factor


@dataclass
class History:
    """History of a training run. Losses and log-likelihoods are in nats per token."""

    loss_curve: list[float] = field(default_factory=list)  # mean training loss of each epoch
    # mean validation log-likelihood after each epoch; empty if no validation data are used
    validation_curve: list[float] = field(default_factory=list)
    n_iter: int = 0  # number of epochs
    best_iter: int = 0  # epoch whose weights were kept; the first epoch has the number 1
    # whether the validation curve was flat at the end; if it is empty, the loss curve is examined
    converged: bool = False
    interrupted: bool = False  # whether Ctrl-C ended the training
    # values that training used for `max_iter`, `batch_size` and `learning_rate_init`
    settings: dict[str, int | float] = field(default_factory=dict)


class TrainingState:
    """The weights, the optimizer, the random generators and the position in the data.

    Attributes
    ----------
    weights, average, last_good : list of Tensor
        Three versions of the trainable weights: the current weights, their running average, and the
        weights at the end of the last completed epoch.
    best : list of Tensor or None
        Running average after the epoch with the highest validation log-likelihood. If no validation
        data are used, `best` is None.
    generator, dropout_generator : torch.Generator
        `generator` draws batches, orders and dropped labels, which are the same on all ranks.
        `dropout_generator` draws dropout masks, which differ between ranks.
    step : int
        Number of completed training steps in the current epoch.
    permutation : int tensor of shape (n_images,)
        Shuffled indices of the images in the current epoch.
    loss_sum : float tensor
        Sum of the losses of all steps in the current epoch on this rank.
    n_restarts : int
        Number of times that training diverged and restarted at a lower learning rate.
    """

    def __init__(self, prior: Prior, optimizer: torch.optim.AdamW, seed: int):
        self.parameters: list[Tensor] = [p for p in prior.parameters() if p.requires_grad]
        self.weights = [p.data for p in self.parameters]
        self.average, self.last_good = copies(self.weights), copies(self.weights)
        self.best: list[Tensor] | None = None
        self.optimizer = optimizer
        self.seed, device = seed, prior.device
        self.generator = torch.Generator().manual_seed(seed)
        self.dropout_generator = self.generator
        if device.type != "cpu" or world_size() > 1:
            self.dropout_generator = torch.Generator(device).manual_seed(seed)
        self.step, self.n_restarts = 0, 0
        self.permutation = torch.empty(0, dtype=torch.int64)
        self.loss_sum = torch.zeros((), dtype=torch.float32, device=device)
        self.history = History()

    def is_finite(self) -> bool:
        """Return whether the loss and all weights are finite on all ranks."""
        return all_ranks_true(are_finite([self.loss_sum, *self.weights]))

    def seed_dropout(self, step: int) -> None:
        """Seed dropout by rank and step. After a restore, the same masks are drawn."""
        seed = np.random.SeedSequence([self.seed, step, rank()]).generate_state(1, np.uint64)
        self.dropout_generator.manual_seed(int(seed[0] >> 1))

    def restart_epoch(self) -> None:
        """Undo all steps of the current epoch, and lower the learning rate."""
        epoch = self.history.n_iter + 1
        self.n_restarts += 1
        if self.n_restarts > MAX_RESTARTS:
            raise ValueError(
                f"Training diverged in epoch {epoch}, and again {MAX_RESTARTS} times at lower "
                "learning rates: the loss or a weight is not finite. Pass a lower "
                "learning_rate_init. Check whether X, sample_weight or the weights of a pretrained "
                "prior contain huge values."
            )
        warn(
            f"Training diverged in epoch {epoch}: the loss or a weight is not finite. The epoch "
            "restarts with the weights from before this epoch, at "
            f"{RESTART_RATE_FACTOR**self.n_restarts:.3g} of the learning rate. Consider a lower "
            "learning_rate_init.",
            ConvergenceWarning,
        )
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.last_good)
            torch._foreach_copy_(self.average, self.last_good)
        self.optimizer.state.clear()
        self.step = 0

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Return a context in which the prior uses the averaged weights.

        The context swaps tensors and copies no numbers. Ctrl-C at any point therefore leaves all
        weights intact.
        """
        try:
            assign(self.parameters, self.average)
            yield
        finally:
            assign(self.parameters, self.weights)

    def keep_best_weights(self) -> None:
        """Copy the best average into the prior. If the average is not finite, copy `last_good`."""
        assign(self.parameters, self.weights)  # Ctrl-C may have stopped `averaged_weights` early
        kept = self.average if self.best is None else self.best
        with torch.no_grad():
            finite = all_ranks_true(are_finite(kept))
            torch._foreach_copy_(self.weights, kept if finite else self.last_good)

    def named_weights(self) -> dict[str, list[Tensor]]:
        names = {"weights": self.weights, "average": self.average, "last_good": self.last_good}
        return names | {"best": self.best or []}

    def tensors(self) -> dict[str, Tensor]:
        """Return a dict with all tensors of the state, on the CPU.

        All ranks must call this method. The dict is empty on all ranks except the main rank.
        """
        named = {"permutation": self.permutation, "loss_sum": all_reduce_sum(self.loss_sum)}
        if not is_main():
            return {}
        named["generator"] = self.generator.get_state()
        named["dropout_generator"] = self.dropout_generator.get_state()
        for name, tensors in self.named_weights().items():
            named |= {f"{name}.{i}": t for i, t in enumerate(tensors)}
        for i, moments in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{i}.{name}": t for name, t in moments.items()}
        return {name: t.detach().cpu() for name, t in named.items()}

    def metadata(self) -> Metadata:
        """Return all parts of the state that are not tensors, as types that JSON supports."""
        return {"step": self.step, "n_restarts": self.n_restarts, "history": vars(self.history)}

    def restore(self, tensors: dict[str, Tensor], metadata: Metadata) -> None:
        """Restore a state from the results of :meth:`tensors` and :meth:`metadata`.

        All ranks must call this method, but only the arguments of the main rank are used. The
        object `history` is updated in place.
        """
        shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        shapes, metadata = broadcast((shapes, metadata))
        if "best.0" in shapes:
            self.best = copies(self.weights)
        weights = self.named_weights()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, (shape, dtype) in shapes.items():
            tensor = broadcast_tensor(tensors.get(name), shape, dtype)
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                i, _, moment = rest.partition(".")
                moments.setdefault(int(i), {})[moment] = tensor.clone()
            elif kind in weights:
                with torch.no_grad():
                    weights[kind][int(rest)].copy_(tensor)
            else:
                self.restore_tensor(name, tensor)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step, self.n_restarts = metadata["step"], metadata["n_restarts"]
        vars(self.history).update(metadata["history"])

    def restore_tensor(self, name: str, tensor: Tensor) -> None:
        """Restore one tensor that is neither a weight nor a moment of the optimizer."""
        if name == "permutation":
            self.permutation = tensor.clone()
        elif name == "loss_sum":
            self.loss_sum.copy_(tensor if is_main() else torch.zeros_like(tensor))
        elif name == "generator":
            self.generator.set_state(tensor)
        elif world_size() == 1:  # several ranks call `seed_dropout` instead
            self.dropout_generator.set_state(tensor)


def assign(parameters: list[Tensor], weights: list[Tensor]) -> None:
    """Make the parameters use the given tensors as their weights, without a copy."""
    for p, weight in zip(parameters, weights, strict=True):
        p.data = weight


def are_finite(tensors: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]

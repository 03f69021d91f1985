"""The state of a training, which checkpoints save and restore, and its history."""

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

Metadata: TypeAlias = dict[str, Any]  # of JSON types

# What happens when a training diverges. These are safeguards; no benchmark reaches them.
MAX_RESTARTS = 3
RESTART_RATE_FACTOR = 0.1  # by which each restart multiplies the learning rate


@dataclass
class History:
    """Course of a training.

    Attributes
    ----------
    loss_curve : list of float
        Mean training loss of each epoch, in nats per token.
    validation_curve : list of float
        Mean validation log-likelihood after each epoch, in nats per token. Empty without
        validation data.
    n_iter : int
        Number of epochs.
    best_iter : int
        Epoch, counted from 1, whose weights were kept.
    converged : bool
        Whether the curve was flat at the end.
    interrupted : bool
        Whether Ctrl-C ended the training.
    settings : dict
        Values used for `max_iter`, `batch_size` and `learning_rate_init`.
    """

    loss_curve: list[float] = field(default_factory=list)
    validation_curve: list[float] = field(default_factory=list)
    n_iter: int = 0
    best_iter: int = 0
    converged: bool = False
    interrupted: bool = False
    settings: dict[str, int | float] = field(default_factory=dict)


class TrainingState:
    """Weights, optimizer, random generators and position in the data.

    Attributes
    ----------
    parameters : list of Parameter
        Trainable parameters of the prior.
    weights, average, last_good : list of Tensor
        Weights of these parameters: current ones, their running average, and those after the last
        epoch.
    best : list of Tensor or None
        Averaged weights of the best epoch. None without validation data.
    optimizer : torch.optim.AdamW
    generator, dropout_generator : torch.Generator
        Source of batches, orders and labels, which all ranks draw alike, and of dropout, which each
        rank draws on its own.
    step : int
        Number of steps done in this epoch.
    permutation : int tensor of shape (n_images,)
        Order of the images in this epoch.
    loss_sum : float tensor
        Sum of the losses of this epoch on this rank.
    n_restarts : int
        How often training diverged and restarted at a lower learning rate.
    history : History
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
        """Return whether losses and weights are finite on all ranks."""
        return all_ranks_true(are_finite([self.loss_sum, *self.weights]))

    def seed_dropout(self, step: int) -> None:
        """Seed this rank's dropout by the step, so that a restored training continues alike."""
        seed = np.random.SeedSequence([self.seed, step, rank()]).generate_state(1, np.uint64)
        self.dropout_generator.manual_seed(int(seed[0] >> 1))

    def restart_epoch(self) -> None:
        """Return to the weights before the epoch and lower the learning rate."""
        epoch = self.history.n_iter + 1
        self.n_restarts += 1
        if self.n_restarts > MAX_RESTARTS:
            raise ValueError(
                f"Training diverged in epoch {epoch}, and again {MAX_RESTARTS} times at lower "
                "learning rates: loss or weights are not finite. Pass a lower learning_rate_init, "
                "and check X, sample_weight and the weights of a pretrained prior for huge values."
            )
        warn(
            f"Training diverged in epoch {epoch}: loss or weights are not finite. The epoch "
            "restarts from the weights before it, at "
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
        """Let the prior use the averaged weights for the duration of a context.

        No numbers are copied, so Ctrl-C at any point leaves all weights intact.
        """
        try:
            assign(self.parameters, self.average)
            yield
        finally:
            assign(self.parameters, self.weights)

    def keep_best_weights(self) -> None:
        """Set the prior to the best averaged weights, or to the last good ones if not finite."""
        assign(self.parameters, self.weights)  # Ctrl-C may have ended `averaged_weights` early
        kept = self.average if self.best is None else self.best
        with torch.no_grad():
            finite = all_ranks_true(are_finite(kept))
            torch._foreach_copy_(self.weights, kept if finite else self.last_good)

    def named_weights(self) -> dict[str, list[Tensor]]:
        """Return all lists of weights by name."""
        names = {"weights": self.weights, "average": self.average, "last_good": self.last_good}
        return names | {"best": self.best or []}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, on the CPU of the main rank. All ranks call this."""
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
        """Return the rest of the state, as JSON types."""
        return {"step": self.step, "n_restarts": self.n_restarts, "history": vars(self.history)}

    def restore(self, tensors: dict[str, Tensor], metadata: Metadata) -> None:
        """Restore what :meth:`tensors` and :meth:`metadata` of the main rank returned.

        All ranks call this; only the main rank's arguments count. `history` stays the same object.
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
        """Restore one tensor that is not a weight or a moment of the optimizer."""
        if name == "permutation":
            self.permutation = tensor.clone()
        elif name == "loss_sum":
            self.loss_sum.copy_(tensor if is_main() else torch.zeros_like(tensor))
        elif name == "generator":
            self.generator.set_state(tensor)
        elif world_size() == 1:  # several ranks seed dropout by the step
            self.dropout_generator.set_state(tensor)


def assign(parameters: list[Tensor], weights: list[Tensor]) -> None:
    """Let parameters use other tensors as their weights."""
    for p, weight in zip(parameters, weights, strict=True):
        p.data = weight


def are_finite(tensors: list[Tensor]) -> bool:
    """Return whether all numbers are finite."""
    return all(bool(t.isfinite().all()) for t in tensors)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    """Return detached copies."""
    return [t.detach().clone() for t in tensors]

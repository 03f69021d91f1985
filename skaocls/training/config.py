"""Training parameters: the values that the user sets, and the values that the loop uses."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from skaocls.devices import resolve_device, resolve_precision
from skaocls.parameter_objects import FineTuning
from skaocls.priors.transformer import Prior
from skaocls.scoring.orders import DRAWN, resolve_orders
from skaocls.training.defaults import (
    MAX_EPOCHS,
    default_batch_size,
    default_learning_rate,
    default_max_iter,
    default_posterior_weight,
    uses_muon,
)

# Fine-tuning modes that train the class vectors, but not the vector of the null class
FROZEN_NULL_MODES = ("lora", "class_embedding")


@dataclass(frozen=True)
class ResolvedConfig:
    """Parameters of the training loop. Every "auto" has been replaced by a value.

    Attributes that are not listed here are documented as parameters of the classifier.

    Attributes
    ----------
    keep_null_class : bool
        Whether training leaves the vector of the null class unchanged. If True, training uses
        neither class dropout nor weight decay.
    muon : bool
        Whether Muon optimizes the weight matrices (:mod:`skaocls.training.optimizer`).
    orders : int array of shape (n_orders, n_tokens) or None
        Orders from which training draws. If None, training draws from all permutations.
    autocast : torch.dtype or None
        Data type of the matrix products. If None, float32 is used.
    seed : int
        Seed for drawing batches, views, orders, dropped labels and dropout masks.
    """

    max_iter: int
    batch_size: int
    learning_rate_init: float
    posterior_weight: float = 0.0
    keep_null_class: bool = False
    muon: bool = False
    orders: np.ndarray | None = None
    n_iter_no_change: int = 10
    tol: float = 1e-3
    autocast: torch.dtype | None = None
    seed: int = 0
    verbose: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """Parameters of the classifier that concern training. Their values may be "auto".

    Attributes that are not listed here are documented as parameters of the classifier.

    Attributes
    ----------
    architecture : str
        Architecture of a newly created prior.
    sizes : dict or None
        Sizes of a newly created prior. If None, the sizes are chosen to suit the data.
    keep_classes : bool
        Whether a pretrained prior with as many classes as the data keeps its class vectors.
    hold_out : bool
        Whether validation data are held out even if `early_stopping` is False.
    tabular : bool
        Whether the samples are rows of a table instead of images.
    """

    architecture: str
    sizes: dict[str, Any] | None
    keep_classes: bool
    hold_out: bool
    order: str | ArrayLike
    n_orders: int
    augmentation: int | str | None
    max_iter: int | str
    batch_size: int | str
    learning_rate_init: float | str
    posterior_weight: float | str
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    device: str | torch.device
    precision: str
    verbose: int
    finetune: FineTuning = field(default_factory=FineTuning)
    tabular: bool = False

    @property
    def draws_orders(self) -> bool:
        """Whether training draws token orders at random from all permutations."""
        return isinstance(self.order, str) and self.order in DRAWN

    def identity(self) -> dict[str, object]:
        """Return the parameters that influence the trained weights. Callers hash the result."""
        values = dict(vars(self))
        values["device"] = resolve_device(self.device).type
        values["finetune"] = self.finetune.get_params()
        values["sizes"] = None if self.sizes is None else sorted(self.sizes.items())
        del values["verbose"]
        if isinstance(self.order, str):
            del values["n_orders"]
        if self.draws_orders:
            values["order"] = "random"
        return values

    def resolve(
        self,
        prior: Prior,
        mode: str | None,
        n_samples: int,
        n_views: int,
        order_seed: int,
        seed: int,
    ) -> ResolvedConfig:
        """Replace every "auto" by a value that suits the prior and the training data.

        `mode` is the fine-tuning mode. If `mode` is None, all weights are trained at the learning
        rate of a new prior.
        """
        rate, weight = self.learning_rate_init, self.posterior_weight
        batch_size, max_iter = self.batch_size, self.max_iter
        if isinstance(weight, str):
            weight = default_posterior_weight(prior, mode, self.tabular)
        if isinstance(batch_size, str):
            batch_size = default_batch_size(n_samples, prior.n_tokens, self.tabular)
        if isinstance(max_iter, str) and (mode is None or self.tabular):
            max_iter = default_max_iter(n_samples, prior, weight, self.tabular)
        elif isinstance(max_iter, str):  # BUDGET_OPERATIONS does not apply
            max_iter = MAX_EPOCHS
        muon = uses_muon(prior, mode, max_iter, n_views, self.tabular)
        if isinstance(rate, str):
            rate = default_learning_rate(prior.dim, mode, muon, self.tabular)
        orders = None
        if not self.draws_orders:
            orders = resolve_orders(self.order, self.n_orders, prior.n_tokens, order_seed)
        return ResolvedConfig(
            max_iter=max_iter,
            batch_size=batch_size,
            learning_rate_init=rate,
            posterior_weight=weight,
            keep_null_class=mode in FROZEN_NULL_MODES,
            muon=muon,
            orders=orders,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
            autocast=resolve_precision(self.precision, prior.device),
            seed=seed,
            verbose=self.verbose,
        )

"""How to train."""

from dataclasses import dataclass
from typing import Any

from skaocls.devices import resolve_device
from skaocls.parameters import FineTuning
from skaocls.scoring.orders import DRAWN


@dataclass(frozen=True)
class TrainingConfig:
    """How to train: parameters of the classifier, under their names and with their meaning.

    Beside these, `architecture` and `sizes` are those of a new prior (None follows the data),
    `keep_classes` says whether class vectors of a given prior stay where they are if their number
    is right, `hold_out` whether data are held out for another purpose than early stopping, and
    `tabular` whether they are a table.
    """

    architecture: str
    sizes: dict[str, Any] | None
    keep_classes: bool
    hold_out: bool
    order: Any
    n_orders: int
    augmentation: int | str | None
    max_iter: int | str
    batch_size: int | str
    learning_rate_init: float | str
    finetune: FineTuning
    posterior_weight: float | str
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    device: Any
    precision: str
    verbose: int
    tabular: bool = False
    micro_batch_size: int | None = None
    checkpointing: bool = False
    parallel: str = "ddp"
    weight_decay: float = 0.05
    class_dropout: float = 0.1

    @property
    def any_order(self) -> bool:
        """Whether training is for all permutations."""
        return isinstance(self.order, str) and self.order in DRAWN

    def of_results(self) -> dict[str, Any]:
        """All that what is learned depends on, to be hashed."""
        about = dict(vars(self)) | {
            "finetune": self.finetune.get_params(),
            "device": resolve_device(self.device).type,
        }
        del about["verbose"], about["parallel"]
        if isinstance(self.order, str):
            del about["n_orders"]
        return about | ({"order": "random"} if self.any_order else {})

"""How to train."""

from dataclasses import dataclass
from typing import Any

from skaocls.devices import resolve_device
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
    micro_batch_size: int | None
    checkpointing: bool
    parallel: str
    finetune: str
    lora_rank: int
    lora_alpha: float
    finetune_dropout: float | str
    new_classes: str
    weight_decay: float
    class_dropout: float
    posterior_weight: float | str
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    device: Any
    precision: str
    verbose: int
    tabular: bool = False

    @property
    def any_order(self) -> bool:
        """Whether training is for all permutations."""
        return isinstance(self.order, str) and self.order in DRAWN

    def of_results(self) -> dict[str, Any]:
        """All that what is learned depends on, to be hashed."""
        about = dict(vars(self)) | {"device": resolve_device(self.device).type}
        del about["verbose"], about["parallel"]
        if isinstance(self.order, str):
            del about["n_orders"]
        return about | ({"order": "random"} if self.any_order else {})

"""The fitted model: an immutable object with the reader, tokenizer, priors and classes."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import TransformerMixin
from sklearn.utils import check_consistent_length

from skaocls.devices import to_device
from skaocls.fitted.labels import class_columns, compare_own_labels, label_array, merge_classes
from skaocls.images.batch import Batch
from skaocls.images.input_types import as_array
from skaocls.images.reader import Reader
from skaocls.priors.transformer import Prior
from skaocls.scoring.orders import resolve_orders

# Names of the fields that, like `classes`, have one entry per class
CLASS_ARRAYS = ("sources", "rows", "class_count", "class_names", "wordnet_ids")


@dataclass(frozen=True, eq=False)
class FittedModel:
    """All objects that are needed to compute log p(image | class).

    A model is immutable, except that its networks can move to another device. To continue training,
    create a new model. In this library, *columns* are indices into `classes`.
    """

    reader: Reader  # validates X and decodes images
    tokenizer: TransformerMixin  # turns decoded images, tables or tokens into codes
    priors: tuple[Prior, ...]  # the first prior, and the priors of classes that were added later
    classes: np.ndarray  # sorted labels; each array below has one entry per class
    sources: np.ndarray  # index of the prior of each class
    rows: np.ndarray  # row of each class in the class table of its prior
    class_count: np.ndarray  # sum of the sample weights of the class (float64)
    order_seed: int  # seed of the orders, and of the crop, view and noise in each order
    views: bool = False  # whether training of the first prior used random views
    class_names: np.ndarray | None = None  # names of ImageNet classes
    wordnet_ids: np.ndarray | None = None  # WordNet IDs of ImageNet classes
    statistics: np.ndarray | None = None  # see :mod:`skaocls.fitted.class_statistics`

    @property
    def prior(self) -> Prior:
        return self.priors[0]

    @property
    def readings(self) -> int:
        """Number of transformer forward passes per image and order, for all classes together."""
        counts = np.bincount(self.sources, minlength=len(self.priors))
        return sum(p.readings(int(n)) for p, n in zip(self.priors, counts, strict=True) if n)

    def orders(self, order: str | ArrayLike, n_orders: int) -> np.ndarray:
        """Return the orders that :mod:`skaocls.scoring.orders` defines for these parameters."""
        return resolve_orders(order, n_orders, self.prior.n_tokens, self.order_seed)

    def by_prior(
        self, columns: np.ndarray, device: torch.device
    ) -> Iterator[tuple[Prior, np.ndarray]]:
        """Move each prior to the device; yield pairs of a prior and positions in `columns`.

        The prior scores the classes at these positions. In the class table of the prior, they
        have the rows ``rows[columns[positions]]``.
        """
        for source, prior in enumerate(self.priors):
            positions = np.flatnonzero(self.sources[columns] == source)
            if len(positions):
                yield to_device(prior, device), positions

    def columns(self, y: Any, n: int, name: str = "y") -> np.ndarray:
        """Return the columns of n labels, which error messages call `name`.

        A single label is repeated n times.
        """
        labels = label_array(np.ravel(as_array(y)) if np.ndim(y) == 0 else y, name)
        columns = class_columns(self.classes, labels)
        if (columns < 0).any():
            unknown = np.unique(labels[columns < 0])
            raise ValueError(f"{name} has classes that fit has not seen: {unknown}.")
        if np.ndim(y) and len(columns) != n:
            raise ValueError(
                f"{name} has {len(columns)} labels, but {n} are expected. Pass one label for each "
                "image, or a single label for all images."
            )
        return np.broadcast_to(columns, n)

    def true_labels(self, batch: Batch, y: Any) -> np.ndarray:
        """Validate the labels of test data. Their dtype is that of the classes, if possible."""
        labels = label_array(y)
        check_consistent_length(batch, labels)
        compare_own_labels(batch, labels)
        known = merge_classes(self.classes, labels)
        aligned: np.ndarray = known[class_columns(known, labels)]
        return aligned

    def restricted(self, columns: Sequence[int]) -> "FittedModel":
        """Return a model with only the classes in these columns."""
        arrays = {name: getattr(self, name) for name in ("classes", "statistics", *CLASS_ARRAYS)}
        subset: dict[str, Any] = {k: a if a is None else a[columns] for k, a in arrays.items()}
        return replace(self, **subset)

    def with_classes(self, classes: np.ndarray) -> "FittedModel":
        """Return a model with additional classes. No prior has been trained for them yet."""
        merged = merge_classes(self.classes, classes)
        positions = class_columns(merged, self.classes)
        names = merged.astype(str)
        defaults: list[ArrayLike] = [0, self.prior.num_classes, 0.0, names, names]
        changes: dict[str, Any] = {"classes": merged}
        for name, default in zip(CLASS_ARRAYS, defaults, strict=True):
            values = getattr(self, name)
            if values is not None:
                extended = np.empty(len(merged), dtype=np.result_type(values, default))
                extended[:] = default
                extended[positions] = values
                changes[name] = extended
        if self.statistics is not None:
            changes["statistics"] = np.zeros((len(merged), *self.statistics.shape[1:]))
            changes["statistics"][positions] = self.statistics
        return replace(self, **changes)

    def chosen_sizes(self) -> dict[str, object]:
        """Return the sizes of the prior, and the values that the tokenizer chose for parameters."""
        tokenizer = self.tokenizer
        names = tokenizer.get_params(deep=False) if hasattr(tokenizer, "get_params") else ()
        values = {name: getattr(tokenizer, f"{name}_", NotImplemented) for name in names}
        plain = (int, str, tuple, NoneType)
        chosen = {name: value for name, value in values.items() if isinstance(value, plain)}
        return {"prior": self.prior.sizes, "tokenizer": chosen}

    def __getstate__(self) -> dict[str, object]:
        """Return the state with all networks on the CPU. Pickles then load without a GPU."""
        priors = tuple(
            prior if prior.device.type == "cpu" else copy.deepcopy(prior).cpu()
            for prior in self.priors
        )
        return vars(self) | {"priors": priors}

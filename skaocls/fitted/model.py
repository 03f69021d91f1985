"""The fitted model: tokenizer, priors and classes as one immutable value."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import TransformerMixin
from sklearn.utils import column_or_1d

from skaocls.devices import to_device
from skaocls.images.reader import Reader
from skaocls.priors.transformer import Prior
from skaocls.scoring.orders import resolve_orders


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Everything that turns images into log-likelihoods of classes.

    A model is immutable: training it further returns a new model. Only the device of its networks
    may change.

    Attributes
    ----------
    reader : Reader
        Validates X and decodes images.
    tokenizer : transformer
        Turns decoded images, tables or tokens into codes.
    priors : tuple of Prior
        The first prior, and the priors of classes that were added later.
    classes : ndarray of shape (n_classes,)
        Sorted labels. *Columns* are indices into this array.
    sources : int ndarray of shape (n_classes,)
        Index of the prior of each class.
    rows : int ndarray of shape (n_classes,)
        Row of each class in the class table of its prior.
    class_count : float64 ndarray of shape (n_classes,)
        Number of training images of each class, or the sum of their weights.
    order_seed : int
        Seed of the orders, and of the crops, views and noise of each order.
    views : bool
        Whether the first prior was trained on random views, so that each order may read another
        view.
    class_names, wordnet_ids : ndarray of shape (n_classes,) or None
        Names and WordNet IDs of ImageNet classes.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skaocls import AnyOrderARClassifier
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> clf = AnyOrderARClassifier(image_shape=(8, 8), max_iter=5, random_state=0).fit(X, y)
    >>> model = clf.model_
    >>> batch = model.reader.open(X[:5])
    >>> codes = model.tokenizer.transform(batch.images()).reshape(5, -1)
    >>> from skaocls.fitted.prediction import log_likelihoods
    >>> log_likelihoods(model, codes, model.orders("random", 3)).shape
    (5, 3, 2)
    """

    reader: Reader
    tokenizer: TransformerMixin
    priors: tuple[Prior, ...]
    classes: np.ndarray
    sources: np.ndarray
    rows: np.ndarray
    class_count: np.ndarray
    order_seed: int
    views: bool = False
    class_names: np.ndarray | None = None
    wordnet_ids: np.ndarray | None = None

    @property
    def prior(self) -> Prior:
        """The first prior."""
        return self.priors[0]

    @property
    def added_priors(self) -> list[Prior]:
        """Priors of classes that were added later."""
        return list(self.priors[1:])

    @property
    def readings(self) -> int:
        """Number of transformer passes over an image, per order, to score all classes."""
        counts = np.bincount(self.sources, minlength=len(self.priors))
        return sum(p.readings(int(n)) for p, n in zip(self.priors, counts, strict=True) if n)

    def orders(self, order: str | ArrayLike, n_orders: int) -> np.ndarray:
        """Return the orders of these parameters, see :mod:`skaocls.scoring.orders`."""
        return resolve_orders(order, n_orders, self.prior.n_tokens, self.order_seed)

    def by_prior(
        self, columns: np.ndarray, device: torch.device
    ) -> Iterator[tuple[Prior, np.ndarray]]:
        """Yield each prior, on the device, and the positions of its classes in `columns`.

        Rows in the class table of the prior are ``rows[columns[positions]]``.
        """
        for source, prior in enumerate(self.priors):
            positions = np.flatnonzero(self.sources[columns] == source)
            if len(positions):
                yield to_device(prior, device), positions

    def columns(self, y: ArrayLike, name: str = "y") -> np.ndarray:
        """Return the columns of labels. `name` is the argument named in errors."""
        labels: np.ndarray = column_or_1d(y)
        columns: np.ndarray = np.searchsorted(self.classes, labels).clip(max=len(self.classes) - 1)
        unknown = np.unique(labels[self.classes[columns] != labels])
        if len(unknown):
            raise ValueError(f"{name} has classes that fit has not seen: {unknown}.")
        return columns

    def restricted(self, columns: Sequence[int]) -> "FittedModel":
        """Return the model of a subset of its classes."""
        kept = np.asarray(columns)
        names = ("classes", "sources", "rows", "class_count", "class_names", "wordnet_ids")
        arrays = {name: getattr(self, name) for name in names}
        subset: dict[str, Any] = {k: a if a is None else a[kept] for k, a in arrays.items()}
        return replace(self, **subset)

    def with_classes(self, classes: np.ndarray) -> "FittedModel":
        """Return the model with additional classes, which do not have a prior yet."""
        old = self.classes
        kinds = {"i" if a.dtype.kind == "u" else a.dtype.kind for a in (old, classes)}
        if len(kinds) > 1:
            raise ValueError(
                f"y has labels of type {classes.dtype}, but earlier calls had labels of type "
                f"{old.dtype}. Pass labels of one type."
            )
        merged = np.union1d(old, classes)
        positions = np.searchsorted(merged, old)

        def extended(values: np.ndarray, default: float) -> np.ndarray:
            out = np.full(len(merged), default, dtype=values.dtype)
            out[positions] = values
            return out

        def extended_names(values: np.ndarray | None) -> np.ndarray | None:
            if values is None:
                return None
            names = merged.astype(str).astype(object)
            names[positions] = values
            return names.astype(str)

        return replace(
            self,
            classes=merged,
            class_count=extended(self.class_count, 0.0),
            sources=extended(self.sources, 0),
            rows=extended(self.rows, self.prior.num_classes),
            class_names=extended_names(self.class_names),
            wordnet_ids=extended_names(self.wordnet_ids),
        )

    def chosen_sizes(self) -> dict[str, object]:
        """Return the sizes of the prior, and the values that the tokenizer chose in `fit`."""
        tokenizer = self.tokenizer
        names = tokenizer.get_params(deep=False) if hasattr(tokenizer, "get_params") else ()
        values = {name: getattr(tokenizer, f"{name}_", NotImplemented) for name in names}
        plain = (int, str, tuple, NoneType)
        chosen = {name: value for name, value in values.items() if isinstance(value, plain)}
        return {"prior": self.prior.sizes, "tokenizer": chosen}

    def __getstate__(self) -> dict[str, object]:
        """Return a state with networks on the CPU, so that it can be loaded without a GPU."""
        priors = tuple(
            prior if prior.device.type == "cpu" else copy.deepcopy(prior).cpu()
            for prior in self.priors
        )
        return vars(self) | {"priors": priors}

"""What `fit` learns, as one value."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.utils import column_or_1d

from skaocls.devices import to_device
from skaocls.images.reader import Reader
from skaocls.priors.interface import Prior
from skaocls.scoring.orders import resolve_orders


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Everything between an image and the log-likelihoods of its classes.

    It is never changed: learning more makes another one. Only the devices on which its networks
    lie follow what was asked for last.

    Attributes
    ----------
    reader : Reader
        From X to images or tables.
    tokenizer : transformer
        From those to codes.
    priors : tuple of Prior
        The first prior, and those of classes that came later.
    classes : ndarray of shape (n_classes,)
        Labels, sorted. Arrays of that length belong to them, and *columns* are indices into it.
    sources : int ndarray of shape (n_classes,)
        Which prior reads each class.
    rows : int ndarray of shape (n_classes,)
        Row of each class in that prior's class table.
    class_count : float64 ndarray of shape (n_classes,)
        Training images of each class, or the sum of their weights.
    order_seed : int
        Seed of the orders, and of the crops, views and noise that go with them.
    views : bool
        Whether the first prior learned from random views of images, so that each order may read
        another one.
    class_names, wordnet_ids : ndarray of shape (n_classes,) or None
        What ImageNet calls its classes.

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
    tokenizer: Any
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
        """The priors of classes that came later."""
        return list(self.priors[1:])

    @property
    def readings(self) -> int:
        """How often transformers read an image, in each order, for all classes."""
        counts = np.bincount(self.sources, minlength=len(self.priors))
        return sum(p.readings(int(n)) for p, n in zip(self.priors, counts, strict=True) if n)

    def orders(self, order: Any, n_orders: int) -> np.ndarray:
        """The orders that `order` and `n_orders` stand for, see :mod:`skaocls.scoring.orders`."""
        return resolve_orders(order, n_orders, self.prior.n_tokens, self.order_seed)

    def by_prior(
        self, columns: np.ndarray, device: torch.device
    ) -> Iterator[tuple[Prior, np.ndarray]]:
        """Yield each prior, on the device, and where in `columns` are its classes.

        Rows in the prior's class table are ``rows[columns[where]]``.
        """
        for source, prior in enumerate(self.priors):
            where = np.flatnonzero(self.sources[columns] == source)
            if len(where):
                yield to_device(prior, device), where

    def columns(self, y: Any, name: str = "y") -> np.ndarray:
        """Columns of labels; `name` is what errors call them."""
        y = column_or_1d(y)
        columns: np.ndarray = np.searchsorted(self.classes, y).clip(max=len(self.classes) - 1)
        if (unknown := self.classes[columns] != y).any():
            raise ValueError(f"{name} has classes that fit has not seen: {np.unique(y[unknown])}.")
        return columns

    def restricted(self, columns: Sequence[int]) -> "FittedModel":
        """The model of these of its classes alone: others are not read and cost nothing."""
        kept = np.asarray(columns)
        each = ("classes", "sources", "rows", "class_count", "class_names", "wordnet_ids")
        values = {name: getattr(self, name) for name in each}
        restricted: dict[str, Any] = {k: v if v is None else v[kept] for k, v in values.items()}
        return replace(self, **restricted)

    def with_classes(self, classes: np.ndarray) -> "FittedModel":
        """The model with room for classes that it does not have yet."""
        old = self.classes
        kinds = {"i" if a.dtype.kind == "u" else a.dtype.kind for a in (old, classes)}
        if len(kinds) > 1:
            raise ValueError(
                f"Labels were of type {old.dtype} in earlier calls, but are of type "
                f"{classes.dtype} now: {classes}."
            )
        together = np.union1d(old, classes)
        was = np.searchsorted(together, old)

        def grown(values: np.ndarray, filling: Any) -> np.ndarray:
            out = np.full(len(together), filling)
            out[was] = values
            return out

        def named(values: np.ndarray | None) -> np.ndarray | None:
            if values is None:
                return None
            names = together.astype(str).astype(object)
            names[was] = values
            return names.astype(str)

        return replace(
            self,
            classes=together,
            class_count=grown(self.class_count, 0.0),
            sources=grown(self.sources, 0),
            rows=grown(self.rows, self.prior.num_classes),
            class_names=named(self.class_names),
            wordnet_ids=named(self.wordnet_ids),
        )

    def __getstate__(self) -> dict[str, Any]:
        """What was trained on a GPU loads without one."""
        state = vars(self).copy()
        on_cpu = [prior.device.type == "cpu" for prior in self.priors]
        state["priors"] = tuple(
            prior if there else copy.deepcopy(prior).cpu()
            for prior, there in zip(self.priors, on_cpu, strict=True)
        )
        return state

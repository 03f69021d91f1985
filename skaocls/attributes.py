"""Fitted attributes that are read from another object."""

from operator import attrgetter
from typing import Any


class read_from:
    """Read-only attribute of an estimator that is read from one of its fitted attributes.

    Before `fit`, ``hasattr`` is False.

    Parameters
    ----------
    path : str
        Names with dots; the first is a fitted attribute of the estimator.
    optional : bool, default=False
        Whether a value of None means that the estimator does not have the attribute.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from skaocls.attributes import read_from
    >>> class Estimator:
    ...     classes_ = read_from("model_.classes")
    >>> estimator = Estimator()
    >>> hasattr(estimator, "classes_")
    False
    >>> estimator.model_ = SimpleNamespace(classes=[0, 1])
    >>> estimator.classes_
    [0, 1]
    """

    def __init__(self, path: str, *, optional: bool = False):
        self.find = attrgetter(path)
        self.optional = optional

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, obj: object, owner: type) -> Any:
        if obj is None:
            return self
        try:
            value = self.find(obj)
        except AttributeError:
            reason = "it is not fitted yet"
        else:
            if not (self.optional and value is None):
                return value
            reason = "the data of fit did not define it"
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}: {reason}")

    def __set__(self, obj: object, value: object) -> None:
        raise AttributeError(f"{self.name!r} is set by fit and cannot be changed")

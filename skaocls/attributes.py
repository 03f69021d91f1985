"""Fitted attributes that are kept in one object."""

from operator import attrgetter
from typing import Any


class kept_in:
    """A read-only attribute of an estimator: what lies at a path in it.

    Parameters
    ----------
    path : str
        Names with dots, the first of them a fitted attribute. Before `fit` there is none, and
        ``hasattr`` says so.
    optional : bool, default=False
        Whether None there means that the estimator has no such attribute.
    """

    def __init__(self, path: str, *, optional: bool = False):
        self.find = attrgetter(path)
        self.optional = optional

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, obj: Any, owner: type) -> Any:
        if obj is None:
            return self
        try:
            value = self.find(obj)
        except AttributeError:
            value, fitted = None, False
        else:
            fitted = True
        if fitted and not (self.optional and value is None):
            return value
        why = "it has none after this fit" if fitted else "it is not fitted yet"
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}: {why}")

    def __set__(self, obj: Any, value: Any) -> None:
        raise AttributeError(f"{self.name!r} is what fit has learned, and cannot be set")

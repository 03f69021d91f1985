"""Fitted attributes whose values are stored in another object."""

from operator import attrgetter
from typing import Any


class read_from:
    """Read-only attribute whose value is a nested attribute, such as ``"model_.classes"``.

    Before `fit`, ``hasattr`` returns False. If `optional`, ``hasattr`` also returns False when the
    value is None.
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
            reason = "the data passed to fit do not define this attribute"
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}: {reason}")

    def __set__(self, obj: object, value: object) -> None:
        raise AttributeError(f"{self.name!r} is set by fit and cannot be changed")

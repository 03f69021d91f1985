"""Fitted attributes that are kept in one object."""

from operator import attrgetter
from typing import Any


def kept_in(path: str, doc: str = "", *, optional: bool = False) -> Any:
    """A read-only attribute of an estimator: what lies at `path` in it.

    Parameters
    ----------
    path : str
        Names with dots, the first of them a fitted attribute. Before `fit` there is none, and
        ``hasattr`` says so.
    doc : str, default=""
    optional : bool, default=False
        Whether None there means that the estimator has no such attribute.
    """
    find = attrgetter(path)

    def get(self: Any) -> Any:
        value = find(self)
        if optional and value is None:
            raise AttributeError(f"{type(self).__name__} has no such attribute after this fit.")
        return value

    return property(get, doc=doc)

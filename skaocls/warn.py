"""Warnings whose location is a line of the user's code."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

# Stack frames of these packages are skipped. Frames of contextlib come from context managers.
INTERNAL_PACKAGES = {"skaocls", "sklearn", "joblib", "contextlib"}


@dataclass
class Errors:
    """Errors into which filters have turned warnings."""

    holding: bool = False
    held: list[Warning] = field(default_factory=list)


_errors: ContextVar[Errors | None] = ContextVar("errors", default=None)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning whose location is the first caller outside `INTERNAL_PACKAGES`.

    If a filter turns the warning into an error, the error is raised at once, or after
    :func:`hold_errors` at the end of :func:`result_first`.
    """
    frame, level = sys._getframe(1), 2
    while (
        frame.f_back is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL_PACKAGES
    ):
        frame, level = frame.f_back, level + 1
    try:
        warnings.warn(message, category, stacklevel=level)
    except Warning as error:
        errors = _errors.get()
        if errors is None or not errors.holding:
            raise
        errors.held.append(error)


@contextmanager
def result_first() -> Iterator[None]:
    """Raise the errors that :func:`hold_errors` holds back at the end of this context.

    Store the result inside the context. A warning then cannot discard the result of a long
    computation.
    """
    errors = Errors()
    token = _errors.set(errors)
    try:
        yield
    finally:
        _errors.reset(token)
    if errors.held:
        raise errors.held[0]


def hold_errors() -> None:
    """From now on, hold back warnings that are errors; do nothing outside of `result_first`."""
    if (errors := _errors.get()) is not None:
        errors.holding = True

"""Warnings whose location is a line of the user's code."""

import sys
import warnings

# Stack frames of these packages are skipped. Frames of contextlib come from context managers.
INTERNAL_PACKAGES = {"skaocls", "sklearn", "joblib", "contextlib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning whose location is the first caller outside `INTERNAL_PACKAGES`."""
    frame, level = sys._getframe(1), 2
    while (
        frame.f_back is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL_PACKAGES
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)

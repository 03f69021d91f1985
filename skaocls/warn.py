"""Warnings that point at the user's code."""

import sys
import warnings

# Frames of these packages are skipped. contextlib runs decorated functions and contexts.
INTERNAL_PACKAGES = {"skaocls", "sklearn", "joblib", "contextlib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning whose location is the first caller outside this library.

    Frames of scikit-learn and joblib are skipped as well, so that a warning issued in a pipeline or
    a grid search points at the script that started it.

    Parameters
    ----------
    message : str
        Text of the warning.
    category : type of Warning, default=UserWarning
        Class of the warning.

    Examples
    --------
    >>> import warnings
    >>> from skaocls.warn import warn
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn("Training did not converge.")
    >>> str(caught[0].message)
    'Training did not converge.'
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and package_of(frame.f_globals) in INTERNAL_PACKAGES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def package_of(module_globals: dict[str, object]) -> str:
    """Return the top-level package of a module."""
    return str(module_globals.get("__name__", "")).partition(".")[0]

"""Progress of long calls: a bar in terminals and notebooks, or occasional lines in log files."""

import sys
import warnings
from contextlib import suppress
from typing import Any

from tqdm.std import tqdm

with warnings.catch_warnings():  # tqdm warns in a notebook without widgets
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm as environment_tqdm

LOG_INTERVAL = 5  # smallest number of seconds between two lines of a log


class SafeStderr:
    """Standard error; failures to write are ignored, because they must not end a long call.

    In services and windowed applications, ``sys.stderr`` can be None, closed, or an object that
    only has the method `write`.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(Exception):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(Exception):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with suppress(Exception):
            return sys.stderr.isatty()
        return False


STDERR = SafeStderr()


class LogProgress(tqdm):
    """A progress bar that writes a new line each time it is updated."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None:
            self.fp.write(f"{self}\n")
        return msg is None

    def close(self) -> None:
        if not self.disable and self.n:
            self.display()
        super().close()


def progress(total: int, description: str, unit: str, verbose: int, initial: int = 0) -> tqdm:
    """Return a progress bar that starts at `initial` units and ends at `total` units.

    Use the bar as a context manager. If `verbose` is 0, the bar is hidden.
    """
    options = {
        "total": total,
        "desc": description,
        "unit": unit,
        "disable": not verbose,
        "initial": initial,
    }
    in_notebook = any(base.__name__ == "tqdm_notebook" for base in environment_tqdm.__mro__)
    if in_notebook or STDERR.isatty():
        return environment_tqdm(**options)
    # with leave=False, only `close` writes the last line
    interval = {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, "delay": LOG_INTERVAL}
    return LogProgress(**options, **interval, leave=False, file=STDERR)


def say(verbose: int, message: str, level: int = 1) -> None:
    """Write a line to standard error if `verbose` is at least `level`."""
    if verbose >= level:
        STDERR.write(f"skaocls: {message}\n")
        STDERR.flush()

"""How far a long call is: a bar in terminals and notebooks, a line now and then in logs."""

import sys
import warnings
from typing import Any

from tqdm.std import tqdm

with warnings.catch_warnings():  # a notebook without widgets gets lines
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm as bar_of_this_place

SECONDS = 5  # at least, between two lines of a log


class Lines(tqdm):
    """A bar whose every state is a line of its own."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None:
            self.fp.write(f"{self}\n")
        return msg is None

    def close(self) -> None:
        if not self.disable and self.n:
            self.display()
        super().close()


def progress(total: int, what: str, unit: str, verbose: int, initial: int = 0) -> Any:
    """A bar of tqdm, to be used as a context; without `verbose` it shows nothing.

    Parameters
    ----------
    total : int
        Of what it counts.
    what, unit : str
        What is going on, and what is counted.
    verbose : int
    initial : int, default=0
        What is done already.

    Returns
    -------
    bar : tqdm
    """
    widget = any(base.__name__ == "tqdm_notebook" for base in bar_of_this_place.__mro__)
    how = {"total": total, "desc": what, "unit": unit, "disable": not verbose, "initial": initial}
    if widget or sys.stderr.isatty():
        return bar_of_this_place(**how)
    # the last line is written by `close`
    return Lines(**how, mininterval=SECONDS, maxinterval=SECONDS, delay=SECONDS, leave=False)


def say(verbose: int, message: str, level: int = 1) -> None:
    """Write a line if `verbose` is at least that level."""
    if verbose >= level:
        print(f"skaocls: {message}", file=sys.stderr, flush=True)

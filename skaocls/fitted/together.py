"""What processes do together before and after training: tokens, results kept, predictions."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from sklearn.utils import gen_batches

from skaocls.distributed import (
    collective_call,
    is_main,
    map_ranks,
    rank,
    world_size,
)
from skaocls.fitted.model import FittedModel
from skaocls.fitted.prediction import at_once, score_batches
from skaocls.progress import progress
from skaocls.scoring.exhaustive import ScoringResult


def score_batches_on_ranks(
    model: FittedModel, batch: Any, orders: np.ndarray, *, verbose: int = 0, **how: Any
) -> Iterator[ScoringResult]:
    """As :func:`skaocls.fitted.prediction.score_batches`; each process scores a share.

    All yield all of it, in order. As many images are scored together as by one process, or fewer
    where there are too few for all processes.
    """
    if world_size() == 1:
        yield from score_batches(model, batch, orders, verbose=verbose, **how)
        return
    n = len(batch)
    each = min(at_once(model), -(-n // world_size()))
    with progress(n, "scoring", "image", verbose if is_main() else 0) as bar:
        for lot in gen_batches(n, each * world_size()):
            with collective_call("A prediction"):
                start = min(lot.start + rank() * each, lot.stop)
                mine = batch.take(slice(start, min(start + each, lot.stop)))
                read = partial(score_batches, model, mine, orders, **how)
                found = map_ranks(lambda: list(read()) if len(mine) else [])  # noqa: B023
            for some in found:
                yield from some
            bar.update(lot.stop - lot.start)

"""What processes do together before and after training: tokens, results kept, predictions."""

from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils import gen_batches

from skaocls.distributed import map_ranks, rank_slice, run_on_main, world_size
from skaocls.fitted.tokenization import (
    drawn,
    encoded_at_once,
    fit_tokenizer,
    kept,
    training_tokens,
    views_wanted,
)
from skaocls.images.lazy import in_memory

OF_A_VIEW = 5  # numbers that `random_views` draws for each image


def fit_tokenizer_on_ranks(
    tokenizer: Any,
    batch: Any,
    y: np.ndarray,
    rng: np.random.RandomState,
    verbose: int = 0,
) -> Any:
    """As :func:`skaocls.fitted.tokenization.fit_tokenizer`, done by the main process for all."""
    if world_size() == 1 or isinstance(tokenizer, FrozenEstimator):
        return fit_tokenizer(tokenizer, batch, y, rng, verbose)

    def fit() -> tuple[Any, Any]:
        return fit_tokenizer(tokenizer, batch, y, rng, verbose), rng.get_state()

    fitted, after = run_on_main(fit)
    rng.set_state(after)
    return fitted


def training_tokens_on_ranks(
    tokenizer: Any,
    batch: Any,
    augmentation: int | str | None,
    rng: np.random.RandomState,
    verbose: int = 0,
) -> Any:
    """As :func:`skaocls.fitted.tokenization.training_tokens`, of which each process makes a part.

    Bit for bit the same: a part is whole lots of images, as one process makes them, and what is
    drawn for other parts is drawn here too.
    """
    shape = batch.reader.image_shape
    if world_size() == 1 or (shape is None and batch.lazy):  # whose tokens are there
        return training_tokens(tokenizer, batch, augmentation, rng, verbose)
    lot_size = len(batch) if shape is None else encoded_at_once(shape)
    part = rank_slice(len(batch), lot_size)
    n_drawn = 0 if shape is None else len(drawn(views_wanted(tokenizer, augmentation)))
    each = OF_A_VIEW * n_drawn

    def skip(n: int) -> None:
        for lot in gen_batches(n, lot_size) if n else []:
            rng.uniform(size=each * (lot.stop - lot.start))

    def make() -> np.ndarray | None:
        skip(part.start)
        if part.start == part.stop:
            return None
        known: Any = rng.get_state()
        skip(part.stop - part.start)
        after: Any = rng.get_state()
        rng.set_state(known)
        images = batch.take(part)
        mine = training_tokens(tokenizer, images, augmentation, rng, verbose)
        now: Any = rng.get_state()
        assert np.array_equal(now[1], after[1]) and now[2] == after[2], "views draw other numbers"
        codes: np.ndarray = in_memory(mine)  # what is sent; it comes together as one process has it
        return codes

    parts = [codes for codes in map_ranks(make) if codes is not None]
    skip(len(batch) - part.stop)
    return kept(iter(parts), (len(batch), *parts[0].shape[1:]), tokenizer.n_codes_)

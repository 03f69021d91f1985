"""How the scoring of images is shared out."""

from typing import NamedTuple

from sklearn.utils import gen_batches

from skaocls.fitted.model import FittedModel
from skaocls.scoring.exhaustive import lanes_at_once

EACH = 4  # pieces for each worker, so that none waits long for the last one


class Piece(NamedTuple):
    """A share of the work: some images, in some orders, under some classes."""

    images: slice
    orders: slice
    classes: slice


def pieces_of(
    model: FittedModel,
    n_images: int,
    n_orders: int,
    n_workers: int,
    most: int,
    *,
    racing: bool = False,
    whole: bool = False,
) -> list[Piece]:
    """Share work out: over images, then orders, then classes, as far as each worker gets a few.

    No piece is less than a tile of :func:`skaocls.scoring.exhaustive.log_likelihoods`, and classes
    are parted between tiles, so that pieces take no more work than the whole. A race is parted
    between images alone.

    Parameters
    ----------
    model : FittedModel
    n_images, n_orders, n_workers : int
    most : int
        Images that one process has together.
    racing : bool, default=False
        Whether classes race.
    whole : bool, default=False
        Whether images are to be together as one process has them, and all classes, so that what
        is kept in a store is found again.

    Returns
    -------
    pieces : list of Piece
        Those of the same images one after another.
    """
    n_classes, wanted = len(model.classes), EACH * n_workers
    n_lanes, readings = lanes_at_once(model.prior), model.prior.readings(n_classes)
    pairs = max(1, n_lanes // readings)  # of images and orders, in a tile
    fewest = 1 if racing else share(pairs, n_orders)
    images = most if whole else min(most, max(fewest, share(n_images, wanted)))
    n_pieces, some_orders, classes = share(n_images, images), n_orders, n_classes
    if not racing:
        few = max(share(pairs, min(images, n_images)), share(n_orders * n_pieces, wanted))
        some_orders = min(n_orders, few)
        n_pieces *= share(n_orders, some_orders)
    if not (racing or whole) and readings > 1:
        tile = share(n_classes, share(n_classes, n_lanes))
        classes = min(n_classes, tile * share(n_classes * n_pieces, tile * wanted))
    return [
        Piece(i, o, c)
        for i in gen_batches(n_images, images)
        for o in gen_batches(n_orders, some_orders)
        for c in gen_batches(n_classes, classes)
    ]


def share(total: int, parts: int) -> int:
    """The largest of so many equal parts."""
    return -(-total // parts)

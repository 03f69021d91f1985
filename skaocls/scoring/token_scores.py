"""Functions of early stopping that score pairs and lanes in tiles, to limit the memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from skaocls.priors.shared_trunk import HeadInputs
from skaocls.scoring.engine import Cache, Engine, Pairs
from skaocls.scoring.exhaustive import lanes_at_once
from skaocls.scoring.orders import Views
from skaocls.scoring.shared_trunk_engine import HeadEngine

T = TypeVar("T")

# Largest size of the cached keys and values: in bytes on the CPU, in bytes on a CUDA device, and as
# a fraction of the memory of the CUDA device
CACHE_BYTES, CACHE_BYTES_CUDA = 2**28, 2**33
CACHE_FRACTION_CUDA = 1 / 8


class TokenReader:
    """The tokens of a group of images, which are the rows `rows` of `codes`.

    `codes` are (n_images, n_tokens) or, if each order uses its own view, (n_images, n_orders,
    n_tokens) or `Views`. Views are tokenized when an order is first scored.
    """

    def __init__(self, codes: np.ndarray | Views, rows: slice, device: torch.device):
        self.rows, self.source = np.arange(rows.start, rows.stop), codes
        self.n_read = 0  # number of orders whose views are tokenized
        if isinstance(codes, Views):
            self.views, self.codes = True, torch.empty(0, device=device)
        else:
            self.views = codes.ndim == 3
            self.codes = torch.as_tensor(codes[rows], dtype=torch.long, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, image: Tensor, order: Tensor, needed: Tensor) -> Tensor:
        """Return tokens (n, n_tokens). `needed` marks the images that later calls may request."""
        if not self.views:
            return self.codes[image]
        while isinstance(self.source, Views) and self.n_read <= int(order.max()):
            rows = torch.where(needed)[0]
            codes = self.source.encode(self.rows[rows.cpu().numpy()], self.n_read)
            if not self.n_read:
                shape = len(self), self.source.n_orders, codes.shape[1]
                self.codes = rows.new_empty(shape)
            self.codes[rows, self.n_read] = torch.as_tensor(codes, device=rows.device).long()
            self.n_read += 1
        return self.codes[image, order]


def open_tile(
    engine: Engine | HeadEngine, codes: Tensor, orders: Tensor, active: Tensor
) -> Callable[[Tensor, Tensor, int, int], Tensor]:
    """Score a tile of pairs. Return a function that looks up log p(token | class).

    `codes` and `orders` have shape (n_pairs, n_tokens). `active` (n_pairs, n_classes) marks the
    classes to score. The returned function has four arguments: rows of the tile, the active classes
    of these rows (a subset of `active`), the first step, and the step after the last. The function
    returns shape (n_rows, n_steps, n_classes), with arbitrary values for classes that are not
    active.
    """
    n, n_tokens = orders.shape
    if isinstance(engine, HeadEngine):

        def read(rows: Tensor) -> HeadInputs:
            return engine.pairs(codes[rows], orders[rows])

        tiles = in_tiles(read, n, lanes_at_once(engine.prior), codes.device, fixed=True)
        parts = [[a[: n - at] for a in tile] for at, tile in tiles]
        head_pairs = HeadInputs(*(torch.cat(a) for a in zip(*parts, strict=True)))

        def look_up(rows: Tensor, active: Tensor, start: int, stop: int) -> Tensor:
            row, label = torch.where(active)
            out = torch.empty(*active.shape, stop - start, dtype=torch.float32, device=codes.device)
            out[row, label], _ = engine.read(head_pairs, rows[row], label, start, stop)
            return out.transpose(1, 2)

        return look_up
    row, label = torch.where(active)
    out = torch.empty(*active.shape, n_tokens, dtype=torch.float32, device=codes.device)
    pairs = read_pairs(engine, codes, orders)
    out[row, label], _ = read_lanes(engine, pairs, row, label, 0, n_tokens)
    return lambda rows, active, start, stop: out[rows, :, start:stop].transpose(1, 2)


def read_pairs(engine: Engine, codes: Tensor, orders: Tensor) -> Pairs:
    """Call :meth:`Engine.pairs` for one tile of pairs at a time."""
    tile = lanes_at_once(engine.prior)
    tiles = map(engine.pairs, codes.split(tile), orders.split(tile))
    return Pairs(*(torch.cat(a) for a in zip(*tiles, strict=True)))


def read_lanes(
    engine: Engine,
    pairs: Pairs,
    pair: Tensor,
    label: Tensor,
    start: int,
    stop: int,
    cache: Cache | None = None,
) -> tuple[Tensor, Cache | None]:
    """Call :meth:`Engine.read` for one tile of lanes at a time.

    The second result is a cache for the next call, or None if no cache is needed or the cache would
    be too large. If `cache` is None, tokens before `start` are processed again.
    """
    n, begin = len(pair), 0 if cache is None else start
    keep = stop < engine.n_tokens and n * engine.cache_bytes(stop) <= cache_limit(engine)

    def read(rows: Tensor) -> tuple[Tensor, Cache]:
        before = [(keys[rows], values[rows]) for keys, values in cache or []]
        return engine.read(pairs, pair[rows], label[rows], begin, stop, before or None, keep)

    tile = lanes_at_once(engine.prior) * (engine.n_tokens // (stop - begin))
    parts = [
        (log_prob[: n - at], [(keys[: n - at], values[: n - at]) for keys, values in kept])
        for at, (log_prob, kept) in in_tiles(read, n, tile, pair.device)
    ]
    log_prob = torch.cat([a for a, _ in parts])[:, start - begin :]
    if not keep:
        return log_prob, None
    layers = zip(*(kept for _, kept in parts), strict=True)
    return log_prob, [
        (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers
    ]


def in_tiles(
    read: Callable[[Tensor], T], n: int, tile: int, device: torch.device, fixed: bool = False
) -> Iterator[tuple[int, T]]:
    """Call `read` for one tile of rows at a time. Yield the first row and the result.

    Copies of the last row fill up the last tile, so that tiles have few different shapes. If
    `fixed` is True, the last tile gets the full size. Otherwise, the size of the last tile becomes
    a power of two. If memory runs out, the size of the tiles is halved.
    """
    at = 0
    while at < n:
        size = tile if fixed else min(tile, 1 << (n - at - 1).bit_length())
        rows = torch.arange(at, at + size, device=device).clamp_(max=n - 1)
        try:
            part = read(rows)
        except torch.OutOfMemoryError:
            if tile == 1:
                raise
            tile //= 2
            continue
        yield at, part
        at += size


def cache_limit(engine: Engine) -> int:
    """Return how many bytes of keys and values may be cached."""
    if not engine.output.is_cuda:
        return CACHE_BYTES
    total = torch.cuda.get_device_properties(engine.output.device).total_memory
    return int(min(CACHE_BYTES_CUDA, total * CACHE_FRACTION_CUDA))

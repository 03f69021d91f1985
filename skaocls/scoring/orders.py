"""Token orders: permutations of the positions of a grid. Each order may use its own view."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

DRAWN = ("random", "antithetic")  # values of the parameter `order` for random orders


@dataclass(frozen=True)
class Views:
    """The tokens of images of which each order uses its own view, computed when they are needed.

    ``encode(rows, order)`` returns the tokens (len(rows), n_tokens) of the images `rows`.
    """

    n_images: int
    n_orders: int
    encode: Callable[[np.ndarray, int], np.ndarray]

    def __len__(self) -> int:
        return self.n_images

    def codes(self, rows: np.ndarray, orders: range) -> np.ndarray:
        """Return tokens (len(rows), len(orders), n_tokens)."""
        return np.stack([self.encode(rows, order) for order in orders], axis=1)

    def all_codes(self) -> np.ndarray:
        return self.codes(np.arange(self.n_images), range(self.n_orders))


def draw_orders(n_orders: int, n_tokens: int, seed: int, antithetic: bool = False) -> np.ndarray:
    """Draw random orders: int64 permutations of raster indices, (n_orders, n_tokens).

    All permutations have the same probability. If `n_orders` increases and the seed stays the same,
    new orders are added after the old orders. If `antithetic` is True, the reverse of each random
    order follows the random order. A token that has few preceding tokens in an order then has many
    preceding tokens in the reverse order.
    """
    if antithetic:
        half = draw_orders(-(-n_orders // 2), n_tokens, seed)
        return np.stack([half, half[:, ::-1]], 1).reshape(-1, n_tokens)[:n_orders]
    rng = np.random.RandomState(seed)
    return np.stack([rng.permutation(n_tokens) for _ in range(n_orders)])


def resolve_orders(order: str | ArrayLike, n_orders: int, n_tokens: int, seed: int) -> np.ndarray:
    """Return the orders that the classifier's parameters `order` and `n_orders` specify."""
    if isinstance(order, str):
        if order in DRAWN:
            return draw_orders(n_orders, n_tokens, seed, order == "antithetic")
        if order == "raster":
            return np.arange(n_tokens)[None]
        raise ValueError(
            f"order={order!r} is unknown; pass 'random', 'antithetic', 'raster' or an array of "
            "permutations."
        )
    return check_orders(order, n_tokens)[:n_orders]


def check_orders(order: ArrayLike, n_tokens: int | None = None) -> np.ndarray:
    """Return an array of orders; raise a ValueError unless each row is a permutation.

    If `n_tokens` is None, each row may be a permutation of any number of tokens.
    """
    orders = np.asarray(order)
    if orders.ndim != 2 or not len(orders) or n_tokens not in (None, orders.shape[1]):
        expected = "n_tokens" if n_tokens is None else n_tokens
        raise ValueError(
            f"order has shape {orders.shape}, but (n, {expected}) is expected. Each row must be a "
            f"permutation of the {'' if n_tokens is None else f'{n_tokens} '}tokens of an image."
        )
    wrong = (np.sort(orders, 1) != np.arange(orders.shape[1])).any(1)
    if wrong.any():
        raise ValueError(
            f"order[{wrong.argmax()}] is not a permutation of 0 ... {orders.shape[1] - 1}. "
            "Each token must appear exactly once."
        )
    return orders.astype(np.int64)

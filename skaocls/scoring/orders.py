"""Token orders: permutations of the positions of a grid."""

import numpy as np
from numpy.typing import ArrayLike

DRAWN = ("random", "antithetic")  # values of the parameter `order` that draw random orders


def draw_orders(n_orders: int, n_tokens: int, seed: int, antithetic: bool = False) -> np.ndarray:
    """Draw random orders: int64 permutations of raster indices, (n_orders, n_tokens).

    All permutations have the same probability. Orders are nested: for a given seed, the orders for
    ``n_orders=k`` are the first k of the orders for ``n_orders=20``. If `antithetic` is True, each
    random order is followed by its reverse. A token that has few preceding tokens in an order then
    has many preceding tokens in the reverse order.
    """
    if antithetic:
        half = draw_orders(-(-n_orders // 2), n_tokens, seed)
        return np.stack([half, half[:, ::-1]], 1).reshape(-1, n_tokens)[:n_orders]
    rng = np.random.RandomState(seed)
    return np.stack([rng.permutation(n_tokens) for _ in range(n_orders)])


def resolve_orders(order: str | ArrayLike, n_orders: int, n_tokens: int, seed: int) -> np.ndarray:
    """Return the array of orders for the classifier's parameters `order` and `n_orders`."""
    if isinstance(order, str):
        if order in DRAWN:
            return draw_orders(n_orders, n_tokens, seed, order == "antithetic")
        if order == "raster":
            return np.arange(n_tokens)[None]
        raise ValueError(
            f"order={order!r} is unknown; pass 'random', 'antithetic', 'raster' or an array of "
            "permutations."
        )
    orders = np.asarray(order)
    if orders.ndim != 2 or not len(orders) or orders.shape[1] != n_tokens:
        raise ValueError(
            f"order has shape {orders.shape}, but (n, {n_tokens}) is expected. Each row must be a "
            f"permutation of the {n_tokens} tokens of an image."
        )
    wrong = (np.sort(orders, 1) != np.arange(n_tokens)).any(1)
    if wrong.any():
        raise ValueError(
            f"order[{wrong.argmax()}] is not a permutation of 0 ... {n_tokens - 1}. "
            "Each token must appear exactly once."
        )
    return orders[:n_orders].astype(np.int64)

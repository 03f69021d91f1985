"""Token orders: permutations of the places of a grid, in the sequence in which they are read."""

from typing import Any

import numpy as np

DRAWN = ("random", "antithetic")  # names of orders that are drawn, of which there are any number


def draw_orders(n_orders: int, n_tokens: int, seed: int, antithetic: bool = False) -> np.ndarray:
    """Draw uniform random orders, nested in `n_orders`.

    Parameters
    ----------
    n_orders : int
        Number of orders.
    n_tokens : int
        Number of places (raster indices 0 ... n_tokens - 1).
    seed : int
        The same seed gives the same orders, and more of them when more are asked for: the first
        k of 20 are the orders of ``n_orders=k``.
    antithetic : bool, default=False
        Draw every other order only, and follow each by the same one backwards: what one reads
        early, knowing little, the other reads late.

    Returns
    -------
    orders : int64 array of shape (n_orders, n_tokens)

    Examples
    --------
    >>> from skaocls.scoring.orders import draw_orders
    >>> bool((draw_orders(2, 6, seed=0) == draw_orders(5, 6, seed=0)[:2]).all())
    True
    """
    if antithetic:
        half = draw_orders(-(-n_orders // 2), n_tokens, seed)
        return np.stack([half, half[:, ::-1]], 1).reshape(-1, n_tokens)[:n_orders]
    rng = np.random.RandomState(seed)
    return np.stack([rng.permutation(n_tokens) for _ in range(n_orders)])


def resolve_orders(order: Any, n_orders: int, n_tokens: int, seed: int) -> np.ndarray:
    """The orders that an estimator's `order` and `n_orders` stand for.

    Parameters
    ----------
    order : {"random", "antithetic", "raster"} or array-like of shape (n, n_tokens)
        ``"random"`` draws `n_orders` permutations from `seed`, ``"antithetic"`` half of them, each
        followed by the same one backwards; ``"raster"`` is the one order row
        by row; of explicit permutations the first `n_orders` are used.
    n_orders : int
        Number of orders, an upper bound unless they are drawn.
    n_tokens : int
        Number of places.
    seed : int
        Seed of the random orders.

    Returns
    -------
    orders : int64 array of shape (at most n_orders, n_tokens)

    Raises
    ------
    ValueError
        If `order` is an unknown name or not made of permutations.

    Examples
    --------
    >>> from skaocls.scoring.orders import resolve_orders
    >>> resolve_orders("raster", 20, 4, seed=0)
    array([[0, 1, 2, 3]])
    >>> resolve_orders([[3, 2, 1, 0]], 20, 4, seed=0)
    array([[3, 2, 1, 0]])
    """
    if isinstance(order, str):
        if order in DRAWN:
            return draw_orders(n_orders, n_tokens, seed, order == "antithetic")
        if order == "raster":
            return np.arange(n_tokens)[None]
        raise ValueError(
            f"order={order!r} is not known: pass 'random', 'antithetic', 'raster' or an array of "
            "permutations."
        )
    orders = np.asarray(order)
    if orders.ndim != 2 or not len(orders) or orders.shape[1] != n_tokens:
        raise ValueError(
            f"order has shape {orders.shape}, but (n, {n_tokens}) is expected: each row a "
            f"permutation of the {n_tokens} tokens of an image."
        )
    wrong = (np.sort(orders, 1) != np.arange(n_tokens)).any(1)
    if wrong.any():
        raise ValueError(
            f"order[{wrong.argmax()}] is not a permutation of 0 ... {n_tokens - 1}: "
            "every token must be visited exactly once."
        )
    return orders[:n_orders].astype(np.int64)

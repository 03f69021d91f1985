"""Token orders: permutations of the positions of a grid."""

import numpy as np
from numpy.typing import ArrayLike

DRAWN = ("random", "antithetic")  # kinds of orders that are drawn at random


def draw_orders(n_orders: int, n_tokens: int, seed: int, antithetic: bool = False) -> np.ndarray:
    """Draw uniform random orders.

    Parameters
    ----------
    n_orders : int
        Number of orders.
    n_tokens : int
        Number of tokens of an image.
    seed : int
        Random seed. Orders are nested: with the same seed, the first k of 20 orders are the orders
        of ``n_orders=k``.
    antithetic : bool, default=False
        Follow each random order by its reverse. Tokens that one of them reads early, with little
        context, are read late by the other.

    Returns
    -------
    orders : int64 array of shape (n_orders, n_tokens)
        Each row is a permutation of the raster indices 0 ... n_tokens - 1.

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


def resolve_orders(order: str | ArrayLike, n_orders: int, n_tokens: int, seed: int) -> np.ndarray:
    """Resolve the parameters `order` and `n_orders` of an estimator to an array of orders.

    Parameters
    ----------
    order : {"random", "antithetic", "raster"} or array-like of shape (n, n_tokens)
        ``"random"`` draws `n_orders` permutations. ``"antithetic"`` draws half of them and follows
        each by its reverse. ``"raster"`` is a single order, row by row. An array contains explicit
        permutations, of which the first `n_orders` are used.
    n_orders : int
        Number of random orders, or the largest number of explicit ones.
    n_tokens : int
        Number of tokens of an image.
    seed : int
        Seed of the random orders.

    Returns
    -------
    orders : int64 array of shape (at most n_orders, n_tokens)

    Raises
    ------
    ValueError
        If `order` is an unknown name or contains rows that are not permutations.

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

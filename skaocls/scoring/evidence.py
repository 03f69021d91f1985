"""Evidence: how strongly each token supports one class over another."""

from typing import NamedTuple

import numpy as np
import torch

from skaocls.devices import own_torch_state
from skaocls.priors.transformer import Prior
from skaocls.scoring.exhaustive import lanes_at_once
from skaocls.scoring.heads import make_engine


class Evidence(NamedTuple):
    """Evidence for a class over a rival, for each token of each image.

    Attributes
    ----------
    tokens : float64 array of shape (n_images, rows, cols)
        Log-likelihood ratio of each token, log p(token | previous tokens, class) minus
        log p(token | previous tokens, rival), in nats, averaged over the orders. The sum over the
        grid is the difference of the two mean log-likelihoods.
    standard_error : float64 array of shape (n_images, rows, cols)
        Standard error of the average over orders. NaN with a single order.
    maps, maps_standard_error : float64 arrays of shape (n_images, height, width) or None
        The same values for each pixel, taken from its token. None for tabular data.
    """

    tokens: np.ndarray
    standard_error: np.ndarray
    maps: np.ndarray | None = None
    maps_standard_error: np.ndarray | None = None


@own_torch_state()
def token_log_likelihoods(
    prior: Prior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Compute the log-likelihood of every token under a few classes, chosen for each image.

    Parameters
    ----------
    prior : Prior
    codes : int array of shape (n_images, n_tokens) or (n_images, n_orders, n_tokens)
        Tokens in raster order.
    orders : int array of shape (n_orders, n_tokens)
    labels : int array of shape (n_images, n_labels)
        Rows of the class table. ``prior.num_classes`` is the null class.
    dtype : torch.dtype, default=torch.float32
        Type of the matrix products.

    Returns
    -------
    log_prob : float64 array of shape (n_images, n_orders, n_labels, n_tokens)
        log p(token | previous tokens, class) in nats. Tokens are in raster order.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.scoring.evidence import token_log_likelihoods
    >>> prior = AnyOrderPrior(vocab_size=8, grid=(2, 2), num_classes=3, dim=32, n_layer=1)
    >>> codes, orders = np.array([[1, 5, 0, 7]]), np.array([[0, 1, 2, 3], [3, 1, 0, 2]])
    >>> token_log_likelihoods(prior, codes, orders, np.array([[2, 3]])).shape
    (1, 2, 2, 4)
    """
    prior.eval()
    device = prior.device
    engine = make_engine(prior, torch.arange(prior.num_classes + 1, device=device), dtype)
    n_labels, n_tokens, n_orders = labels.shape[1], prior.n_tokens, len(orders)
    all_codes, all_orders, all_labels = (
        torch.as_tensor(a, dtype=torch.long, device=device) for a in (codes, orders, labels)
    )
    tile = max(1, lanes_at_once(prior) // n_labels)  # pairs of image and order
    pair_of_lane = torch.arange(tile, device=device).repeat_interleave(n_labels)
    n_pairs = len(codes) * n_orders
    out = torch.empty(n_pairs, n_labels, n_tokens, dtype=torch.float64, device=device)
    for start in range(0, n_pairs, tile):
        # the last tile is filled up with its last pair
        pair = torch.arange(start, start + tile, device=device).clamp_(max=n_pairs - 1)
        image, order = pair // n_orders, all_orders[pair % n_orders]
        tokens = all_codes[image] if all_codes.ndim == 2 else all_codes[image, pair % n_orders]
        log_prob, _ = engine.read(
            engine.pairs(tokens, order), pair_of_lane, all_labels[image].flatten(), 0, n_tokens
        )
        by_step = log_prob.double().view(tile, n_labels, n_tokens)
        in_raster_order = torch.empty_like(by_step).scatter_(
            2, order.unsqueeze(1).expand_as(by_step), by_step
        )
        out[start : start + tile] = in_raster_order[: n_pairs - start]
    return out.view(len(codes), n_orders, n_labels, n_tokens).cpu().numpy()


def evidence_over_rival(
    log_prob: np.ndarray, rival_log_prob: np.ndarray, grid: tuple[int, int]
) -> Evidence:
    """Compute the evidence for a class over a rival from the log-likelihoods of tokens.

    Parameters
    ----------
    log_prob, rival_log_prob : arrays of shape (n_images, n_orders, n_tokens)
        Log-likelihoods under the class and under its rival, in raster order.
    grid : tuple of int (rows, cols)

    Returns
    -------
    evidence : Evidence
        Without maps.
    """
    ratio = (log_prob - rival_log_prob).reshape(*log_prob.shape[:2], *grid)
    n_orders = ratio.shape[1]
    error = np.full_like(ratio[:, 0], np.nan)
    if n_orders > 1:
        error = ratio.std(1, ddof=1) / n_orders**0.5
    return Evidence(ratio.mean(1), error)


def spread_to_pixels(values: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Give each pixel the value of its token.

    `values` is (n, token rows, token cols). `rows` (height,) and `cols` (width,) are the token row
    of each pixel row and the token column of each pixel column.
    """
    pixels: np.ndarray = values[:, rows][:, :, cols]
    return pixels

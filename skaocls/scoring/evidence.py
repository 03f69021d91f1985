"""Evidence: what each token says for a class."""

from typing import NamedTuple

import numpy as np
import torch

from skaocls.devices import own_torch_state
from skaocls.priors.interface import Prior
from skaocls.scoring.exhaustive import lanes_at_once
from skaocls.scoring.heads import make_engine


class Evidence(NamedTuple):
    """For each token of each image, how much it speaks for a class.

    Attributes
    ----------
    tokens : float64 array of shape (n_images, rows, cols)
        log p(token | tokens read before, class) less the same under the rival, in nats, averaged
        over the orders. Over the grid they sum to the difference of the mean log-likelihoods.
    standard_error : float64 array of shape (n_images, rows, cols)
        Of that average; nan with one order.
    maps, maps_standard_error : float64 arrays of shape (n_images, height, width) or None
        The same for each pixel: its token's value. None for tabular data.
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
    """Log-likelihood of every token under a few classes of each image's own.

    Parameters
    ----------
    prior : Prior
    codes : int array of shape (n_images, n_tokens) or (n_images, n_orders, n_tokens)
        Tokens in raster order.
    orders : int array of shape (n_orders, n_tokens)
    labels : int array of shape (n_images, n_labels)
        Rows of the class table; the null class is among them.
    dtype : torch.dtype, default=torch.float32
        Type of the matrix products.

    Returns
    -------
    log_prob : float64 array of shape (n_images, n_orders, n_labels, n_tokens)
        log p(token | tokens read before, class), by place, in raster order.

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
    n_pairs = max(1, lanes_at_once(prior) // n_labels)
    at = torch.arange(n_pairs, device=device).repeat_interleave(n_labels)
    total = len(codes) * n_orders
    out = torch.empty(total, n_labels, n_tokens, dtype=torch.float64, device=device)
    for start in range(0, total, n_pairs):
        pair = torch.arange(start, start + n_pairs, device=device).clamp_(max=total - 1)
        image, order = pair // n_orders, all_orders[pair % n_orders]
        tokens = all_codes[image] if all_codes.ndim == 2 else all_codes[image, pair % n_orders]
        log_prob, _ = engine.read(
            engine.pairs(tokens, order), at, all_labels[image].flatten(), 0, n_tokens
        )
        by_step = log_prob.double().view(n_pairs, n_labels, n_tokens)
        by_place = torch.empty_like(by_step).scatter_(
            2, order.unsqueeze(1).expand_as(by_step), by_step
        )
        out[start : start + n_pairs] = by_place[: total - start]
    return out.view(len(codes), n_orders, n_labels, n_tokens).cpu().numpy()


def weigh(log_prob: np.ndarray, grid: tuple[int, int]) -> Evidence:
    """Evidence for the first of two classes over the second.

    Parameters
    ----------
    log_prob : array of shape (n_images, n_orders, 2, n_tokens)
        From :func:`token_log_likelihoods`.
    grid : tuple of int (rows, cols)

    Returns
    -------
    evidence : Evidence
        Without maps.
    """
    difference = (log_prob[:, :, 0] - log_prob[:, :, 1]).reshape(*log_prob.shape[:2], *grid)
    n_orders = difference.shape[1]
    error = np.full_like(difference[:, 0], np.nan)
    if n_orders > 1:
        error = difference.std(1, ddof=1) / n_orders**0.5
    return Evidence(difference.mean(1), error)


def spread(tokens: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Values of tokens (n, rows, cols) for each pixel, by the row and column of its token."""
    pixels: np.ndarray = tokens[:, rows][:, :, cols]
    return pixels

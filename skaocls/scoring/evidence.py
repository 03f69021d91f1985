"""Evidence: how strongly each token supports one class over another."""

from typing import NamedTuple

import numpy as np
import torch

from skaocls.devices import own_torch_state
from skaocls.priors.transformer import Prior
from skaocls.scoring.exhaustive import lanes_at_once
from skaocls.scoring.shared_trunk_engine import make_engine


class Evidence(NamedTuple):
    """Evidence for one class against a rival class, for each token of each image.

    Attributes
    ----------
    tokens : float64 array of shape (n_images, rows, cols)
        Log-likelihood ratio of each token in nats, averaged over the orders. The ratio is log
        p(token | previous tokens, class) minus log p(token | previous tokens, rival). The sum over
        all tokens of an image is log p(image | class) minus log p(image | rival), averaged over
        the orders.
    standard_error : float64 array of shape (n_images, rows, cols)
        Standard error of the average over the orders. If only one order is used, this is NaN.
    maps, maps_standard_error : float64 arrays of shape (n_images, height, width) or None
        `tokens` and `standard_error` as images. Every pixel has the value of the token that covers
        the pixel. For tabular data, both arrays are None.
    """

    tokens: np.ndarray
    standard_error: np.ndarray
    maps: np.ndarray | None = None
    maps_standard_error: np.ndarray | None = None

    def __repr__(self) -> str:
        """Return the shapes of the arrays, because the arrays are long."""
        shapes = [f"{k} of shape {v.shape}" for k, v in self._asdict().items() if v is not None]
        return f"Evidence({', '.join(shapes)})"


@own_torch_state()
def token_log_likelihoods(
    prior: Prior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Compute the log-likelihood of every token. For each image, one class is given.

    `codes` has shape (n_images, n_tokens), or (n_images, n_orders, n_tokens) if each order uses its
    own view. `orders` has shape (n_orders, n_tokens), and `labels` has shape (n_images,). The
    result has shape (n_images, n_orders, n_tokens). The tokens in the result are in raster order.
    """
    prior.eval()
    device = prior.device
    engine = make_engine(prior, torch.arange(prior.num_classes + 1, device=device), dtype)
    n_orders, n_pairs = len(orders), len(codes) * len(orders)
    all_codes, all_orders, all_labels = (
        torch.as_tensor(a, dtype=torch.long, device=device) for a in (codes, orders, labels)
    )
    tile = lanes_at_once(prior)
    lanes = torch.arange(tile, device=device)
    out = torch.empty(n_pairs, prior.n_tokens, dtype=torch.float64, device=device)
    for start in range(0, n_pairs, tile):
        pair = (start + lanes).clamp_(max=n_pairs - 1)  # copies of the last pair fill the last tile
        image, order = pair // n_orders, all_orders[pair % n_orders]
        tokens = all_codes[image] if all_codes.ndim == 2 else all_codes[image, pair % n_orders]
        pairs = engine.pairs(tokens, order)
        log_prob, _ = engine.read(pairs, lanes, all_labels[image], 0, prior.n_tokens)
        in_raster_order = torch.empty_like(log_prob).scatter_(1, order, log_prob)
        out[start : start + tile] = in_raster_order[: n_pairs - start]
    return out.view(len(codes), n_orders, prior.n_tokens).cpu().numpy()

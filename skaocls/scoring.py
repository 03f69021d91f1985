"""The scoring engine: log p(tokens | class, order) for all images, orders and classes.

Work is the table of (image, order) pairs times classes, cut into tiles of one fixed shape, so
that memory is bounded and an image's numbers do not depend on what else is scored with it.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skaocls.prior import AnyOrderPrior

# Numbers in the residual stream of one tile: enough to keep matrix products busy, small enough for
# caches (CPU) and memory (CUDA)
STREAM_CPU = 2**20
STREAM_CUDA = 2**27
LOGITS_AT_ONCE = 2**22


def tile_shape(prior: AnyOrderPrior, n_classes: int) -> tuple[int, int]:
    """How many (image, order) pairs and how many classes make one tile.

    A property of the model alone: no matter how little there is to score, shapes stay the same.
    """
    dim, device = prior.output.weight.shape[1], prior.output.weight.device
    stream = STREAM_CUDA if device.type == "cuda" else STREAM_CPU
    rows = max(1, stream // (2 * prior.n_tokens * dim))
    classes = min(n_classes, rows)
    return max(1, rows // classes), classes


@torch.inference_mode()
def log_likelihoods(
    prior: AnyOrderPrior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    *,
    autocast: torch.dtype | None = None,
) -> np.ndarray:
    """Log-likelihood of every image under every order and class.

    Parameters
    ----------
    prior : AnyOrderPrior
        Where its weights are, there it runs.
    codes : int array of shape (n_images, n_tokens) or (n_images, n_orders, n_tokens)
        Tokens in raster order; different ones for each order if crops or noise differ.
    orders : int array of shape (n_orders, n_tokens)
        The same orders are used for all images and classes.
    labels : int array of shape (n_classes,)
        Classes to score.
    autocast : torch.dtype or None, default=None
        Type of the matrix products, e.g. ``torch.bfloat16``; None is the weights' own.
        Log-softmax and sums are in float32 and float64 in any case.

    Returns
    -------
    log_likelihood : float64 array of shape (n_images, n_orders, n_classes)
        Natural log of p(tokens | class, order): the sum over the tokens.

    References
    ----------
    Sudakov, Babenko, Baranchuk, arXiv 2603.19122, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.scoring import log_likelihoods
    >>> prior = AnyOrderPrior(vocab_size=8, grid=(2, 2), num_classes=3, dim=32, n_layer=1)
    >>> codes, orders = np.array([[1, 5, 0, 7]]), np.array([[0, 1, 2, 3], [3, 1, 0, 2]])
    >>> log_likelihoods(prior, codes, orders, np.arange(3)).shape
    (1, 2, 3)
    """
    prior.eval()
    device = prior.output.weight.device
    n_images, n_orders, n_classes = len(codes), len(orders), len(labels)
    tile_pairs, tile_classes = tile_shape(prior, n_classes)
    all_codes = torch.as_tensor(codes, dtype=torch.long, device=device)
    all_orders = torch.as_tensor(orders, dtype=torch.long, device=device)
    out = torch.empty(n_images * n_orders, n_classes, dtype=torch.float64, device=device)
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for c in range(0, n_classes, tile_classes):
            here = torch.as_tensor(_padded(labels[c : c + tile_classes], tile_classes))
            values = [v.unsqueeze(0) for v in prior.class_values(here.to(device))]
            for i in range(0, len(out), tile_pairs):
                n = min(tile_pairs, len(out) - i)
                pair = torch.arange(i, i + tile_pairs, device=device).clamp_(max=len(out) - 1)
                image, order = pair // n_orders, pair % n_orders
                read = all_codes[image] if all_codes.ndim == 2 else all_codes[image, order]
                ll = _score_tile(prior, read, all_orders[order], values)
                out[i : i + n, c : c + tile_classes] = ll[:n, : n_classes - c]
    return out.view(n_images, n_orders, n_classes).cpu().numpy()


def _score_tile(prior: AnyOrderPrior, codes: Tensor, orders: Tensor, values: list[Tensor]):
    hidden = prior.hidden_states(codes, orders, values)
    targets = codes.gather(1, orders).unsqueeze(1).expand(hidden.shape[:-1])
    log_prob = token_log_prob(hidden.flatten(0, 2), prior.output.weight, targets.flatten())
    return log_prob.view(targets.shape).double().sum(-1)


def token_log_prob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token (n,), from hidden states (n, dim).

    The logits exist for a few rows at a time, never as a whole.
    """
    rows = max(1, LOGITS_AT_ONCE // len(weight))
    return torch.cat(
        [
            -F.cross_entropy(F.linear(h, weight).float(), t, reduction="none")
            for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
    )


def _padded(a: np.ndarray, length: int) -> np.ndarray:
    return np.pad(np.asarray(a), (0, length - len(a)), mode="edge")

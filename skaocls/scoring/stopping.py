"""As many orders as decide an image, with every class read in each: exact in all that is read.

Where the trunk reads an order once for all classes, classes cost next to nothing and orders are
what can be saved. Images are read in tiles of a fixed shape, as by exhaustive scoring, so what is
read of an image is what exhaustive scoring reads, bit for bit, whatever else is in the batch; and
after how many orders it stops depends on nothing but these numbers.

An image is decided once every class but the leader lags by more than the bound that racing has
(:mod:`skaocls.scoring.racing`): Wald's in the first order, then Student's; where each order reads a
view of its own, after three of them at the earliest.
"""

import numpy as np
import torch
from torch import Tensor

from skaocls.devices import own_torch_state
from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.scoring.exhaustive import checked, lanes_at_once
from skaocls.scoring.heads import HeadEngine
from skaocls.scoring.racing import (
    IMPOSSIBLE,
    ScoringResult,
    bound_of,
    fewest_tokens,
    standard_error,
)

NUMBERS_KEPT = 2**26  # log-probabilities of tokens, over the images that are read together


@own_torch_state()
def stop_early(
    prior: SharedTrunkPrior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    class_log_prior: np.ndarray,
    *,
    error: float = 1e-3,
    dtype: torch.dtype = torch.float32,
) -> ScoringResult:
    """Log-likelihoods of all classes in as many orders as each image needs.

    Parameters
    ----------
    prior : SharedTrunkPrior
        Where its weights are, there it runs.
    codes : int array of shape (n_images, n_tokens) or (n_images, n_orders, n_tokens)
        Tokens in raster order.
    orders : int array of shape (n_orders, n_tokens)
        The orders that exhaustive scoring would average over.
    labels : int array of shape (n_classes,)
        Classes to score.
    class_log_prior : float array of shape (n_classes,)
        Log probability of each class.
    error : float, default=1e-3
        Allowed probability of another class than exhaustive scoring ranks first by the mean
        log-likelihood; a scale for that risk, as in :func:`skaocls.scoring.racing.race`.
    dtype : torch.dtype, default=torch.float32
        Type of the trunk's products.

    Returns
    -------
    race : Race
        Log-likelihoods, of orders that an image did not need the mean of the others, and the tokens
        of the orders that it needed.

    References
    ----------
    Wald, "Sequential tests of statistical hypotheses", Annals of Mathematical Statistics 16, 1945.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import SharedTrunkPrior
    >>> from skaocls.scoring.stopping import stop_early
    >>> prior = SharedTrunkPrior(vocab_size=8, grid=(2, 2), num_classes=3, dim=32, n_layer=1)
    >>> codes, orders = np.array([[1, 5, 0, 7]]), np.array([[0, 1, 2, 3], [3, 1, 0, 2]])
    >>> stop_early(prior, codes, orders, np.arange(3), np.log(np.full(3, 1 / 3))).evaluations
    array([8])
    """
    prior.eval()
    device = prior.device
    n_orders, n_tokens = orders.shape
    with torch.inference_mode():
        engine = HeadEngine(prior, torch.as_tensor(labels, device=device), dtype)
        all_codes = torch.as_tensor(codes, dtype=torch.long, device=device)
        all_orders = torch.as_tensor(orders, dtype=torch.long, device=device)
        weighs = torch.as_tensor(np.maximum(class_log_prior, IMPOSSIBLE), device=device)
        few = max(1, NUMBERS_KEPT // (n_orders * n_tokens * len(labels)))
        parts = [
            stop_some(engine, some, all_orders, weighs.double(), error)
            for some in all_codes.split(few)
        ]
    ll = torch.cat([part[0] for part in parts]).cpu().numpy()
    needed = torch.cat([part[1] for part in parts]).cpu().numpy()
    return ScoringResult(checked(ll), needed * n_tokens)


def stop_some(
    engine: HeadEngine, codes: Tensor, orders: Tensor, log_prior: Tensor, error: float
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods (n_images, n_orders, n_classes), and the orders that each image needed."""
    n_orders, n_classes, device = len(orders), engine.n_classes, codes.device
    differ = codes.ndim == 3
    kept = torch.empty(
        len(codes), n_orders, orders.shape[1], n_classes, dtype=torch.float32, device=device
    )
    needed = torch.full((len(codes),), n_orders, device=device)
    racing, read = torch.arange(len(codes), device=device), 0
    tile = engine.pairs_at_once(lanes_at_once(engine.prior))
    while len(racing) and read < n_orders:
        # tiles are filled up with orders that may be needed next
        end = min(n_orders, read + max(1, tile // len(racing)))
        image = racing.repeat_interleave(end - read)
        order = torch.arange(read, end, device=device).repeat(len(racing))
        for at in range(0, len(image), tile):
            rows = torch.arange(at, at + tile, device=device).clamp_(max=len(image) - 1)
            i, along = image[rows], order[rows]
            tokens = codes[i, along] if differ else codes[i]
            kept[i, along] = engine.tokens(engine.pairs(tokens, orders[along]))
        for k in range(read + 1, min(end, n_orders - 1) + 1):
            if not len(racing):
                break
            decided = are_decided(kept[racing, :k], log_prior, n_orders, error, differ)
            needed[racing[decided]] = k
            racing = racing[~decided]
        read = end
    ll = kept.sum(2, dtype=torch.float64)
    unread = torch.arange(n_orders, device=device) >= needed[:, None]
    ll[unread] = torch.nan
    return torch.where(unread[..., None], ll.nanmean(1, keepdim=True), ll), needed


def are_decided(
    log_prob: Tensor, log_prior: Tensor, n_orders: int, error: float, differ: bool
) -> Tensor:
    """Whether all classes lag the leader beyond the bound, (n_images,).

    `log_prob` (n_images, n_read, n_tokens, n_classes) is of the orders read so far, which read
    the same tokens or `differ`.
    """
    n_read, n_tokens, n_classes = log_prob.shape[1:]
    if n_classes == 1:
        return torch.ones(len(log_prob), dtype=torch.bool, device=log_prob.device)
    flat = log_prob.flatten(1, 2)
    m = n_read * n_tokens
    if m < fewest_tokens(n_tokens, differ):
        return torch.zeros(len(log_prob), dtype=torch.bool, device=log_prob.device)
    score = flat.sum(1, dtype=torch.float64) / n_read + log_prior
    best, leader = score.max(1)
    own = flat.gather(2, leader[:, None, None].expand(-1, m, 1))
    difference = (own - flat).movedim(1, 2)
    error_of_lag = standard_error(difference, n_tokens, n_orders * n_tokens, differ)
    lags = best[:, None] - score > bound_of(error_of_lag, m, n_tokens, n_classes, error)
    return lags.sum(1) == n_classes - 1

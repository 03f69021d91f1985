"""Generation: tokens drawn from a prior, any of them given.

Tokens are drawn along an order, one at a time or several per step. Keys and values of what was
read are kept, so a step costs what its new positions cost.
"""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, validate_params
from torch import Tensor
from torch.nn import functional as F

from skaocls.devices import own_torch_state
from skaocls.priors.interface import Prior
from skaocls.priors.transformer import rotate
from skaocls.scoring.engine import tile_shape
from skaocls.scoring.exhaustive import lanes_at_once
from skaocls.scoring.heads import make_engine

# For each layer: keys and values (lanes, n_head, 1 + 2 n_tokens, head_dim) of the class token and
# of p1 t1 p2 t2 ...
Cache = list[tuple[Tensor, Tensor]]

HOW = {
    "n_steps": [Interval(Integral, 1, None, closed="left"), None],
    "temperature": [Interval(Real, 0, None, closed="neither")],
    "top_k": [Interval(Integral, 1, None, closed="left"), None],
    "top_p": [Interval(Real, 0, 1, closed="right"), None],
    "guidance": [Interval(Real, 0, None, closed="left")],
}


@own_torch_state()
@validate_params(HOW, prefer_skip_nested_validation=True)
def generate(
    prior: Prior,
    labels: np.ndarray,
    orders: np.ndarray,
    codes: np.ndarray | None = None,
    n_known: int | np.ndarray = 0,
    *,
    n_steps: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 1.0,
    seed: int,
) -> np.ndarray:
    """Draw tokens, each image along its own order.

    Parameters
    ----------
    prior : Prior
        Where its weights are, there it runs, in their type.
    labels : int array of shape (n_images,)
        Rows of the class table; the null class is among them.
    orders : int array of shape (n_images, n_tokens)
        For each step, the place (raster index) of the token drawn.
    codes : int array of shape (n_images, n_tokens), default=None
        Known tokens, in raster order; what stands in the other places is not looked at. None if
        nothing is known.
    n_known : int or int array of shape (n_images,), default=0
        How many places at the start of an image's order are known. They stay as they are.
    n_steps : int, default=None
        Steps in which the unknown tokens are drawn. None draws one at a time, which is exact.
        With fewer steps the tokens of one step do not see each other; the first steps draw few and
        the last ones many, see :func:`step_ends`.
    temperature : float, default=1.0
        Logits are divided by it: below 1, draws are likelier ones. Above 0; for the most likely
        token itself take ``top_k=1``.
    top_k : int, default=None
        Draw among this many most likely tokens.
    top_p : float, default=None
        Draw among the fewest most likely tokens whose probabilities reach this sum, after
        `temperature` and `top_k`.
    guidance : float, default=1.0
        g in ``null + g (class - null)``, the logits under the class and under no class. Above 1,
        draws are more typical of the class; other values than 1 take twice the work.
    seed : int
        Image i sees the same random numbers whatever comes after it.

    Returns
    -------
    codes : int64 array of shape (n_images, n_tokens)
        Tokens in raster order.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    References
    ----------
    Pang et al., "RandAR", arXiv 2412.01827, section 3 (parallel decoding); Ho and Salimans,
    "Classifier-Free Diffusion Guidance", arXiv 2207.12598; Holtzman et al., "The Curious Case of
    Neural Text Degeneration", arXiv 1904.09751, section 3.1 (`top_p`).

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.scoring.sampling import generate
    >>> prior = AnyOrderPrior(vocab_size=8, grid=(2, 2), num_classes=3, dim=32, n_layer=1)
    >>> orders, codes = np.array([[0, 1, 2, 3], [3, 1, 0, 2]]), np.array([[1, 5, 0, 0]] * 2)
    >>> drawn = generate(prior, np.array([0, 2]), orders, codes, n_known=[2, 0], seed=0)
    >>> drawn.shape, drawn[0, :2]
    ((2, 4), array([1, 5]))
    """
    prior.eval()
    device = prior.device
    n_known = np.broadcast_to(n_known, len(orders))
    draws = np.random.RandomState(seed).uniform(size=np.shape(orders))
    out = np.zeros(draws.shape, np.int64) if codes is None else np.array(codes, np.int64)
    lanes = lanes_at_once(prior)
    if guidance != 1:
        lanes = max(1, lanes // 2)
    for known in np.unique(n_known):
        ends = [int(known), *(known + step_ends(prior.n_tokens - known, n_steps)).tolist()]
        rows = np.flatnonzero(n_known == known)
        while len(rows):
            few = rows[:lanes]
            inputs = [
                torch.as_tensor(np.asarray(a)[few], device=device)
                for a in (labels, orders, out, draws)
            ]
            try:
                drawn = _draw(prior, inputs, ends, guidance, (temperature, top_k, top_p))
            except torch.OutOfMemoryError:
                if lanes == 1:
                    raise
                lanes //= 2
                continue
            out[few] = drawn.cpu().numpy()
            rows = rows[lanes:]
    return out


def step_ends(n: int, n_steps: int | None = None) -> np.ndarray:
    """How many of n tokens are drawn after each step, at least one more each time.

    Of all tokens the share ``cos(pi / 2 * step / n_steps)`` is left: when little is known, tokens
    depend on each other most, so fewer are drawn at once.

    Parameters
    ----------
    n : int
        Tokens to draw.
    n_steps : int, default=None
        Steps; None and more than n are n.

    Returns
    -------
    ends : int array of shape (min(n, n_steps),)
        The last is n.

    References
    ----------
    Chang et al., "MaskGIT", arXiv 2202.04200, section 3.3.

    Examples
    --------
    >>> from skaocls.scoring.sampling import step_ends
    >>> step_ends(16, 5)
    array([ 1,  4,  7, 12, 16])
    """
    n_steps = n if n_steps is None else min(n, n_steps)
    step = np.arange(1, n_steps + 1)
    ends: np.ndarray = np.maximum(
        step, n - np.floor(n * np.cos(np.pi / 2 * (step / n_steps))).astype(int)
    )
    return ends


def _draw(
    prior: Prior,
    inputs: Sequence[Tensor],
    ends: Sequence[int],
    guidance: float,
    how: tuple[float, int | None, float | None],
) -> Tensor:
    """Tokens of a few images; `ends` begins with the number of known tokens."""
    labels, orders, codes, draws = inputs
    guided = guidance != 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, prior.num_classes)])
    cache = start_cache(prior, labels)
    tokens = codes.gather(1, orders)
    read = 0  # positions of p1 t1 p2 t2 ... in the cache
    for start, stop in pairwise(ends):
        # what was drawn last, read as in training; then the places to draw, blind to each other
        first, places = read // 2, 2 * start
        at = torch.tensor([*range(read, places), *range(places, 2 * stop, 2)], device=tokens.device)
        x, rope = prior.transformer.interleave(tokens[:, first:stop], orders[:, first:stop])
        x, rope = x[:, at - 2 * first], rope[:, :, at - 2 * first]
        if guided:
            x, rope = torch.cat([x, x]), torch.cat([rope, rope])
        seen = torch.cat([torch.arange(-1, read, device=at.device), at])
        itself = seen == at[:, None]
        mask = itself | (seen <= at[:, None]) & (seen < places)
        x = advance(prior, cache, x, rope, mask)[:, start - stop :]
        logits = prior.predict(x, labels)
        if guided:
            given, null = logits.chunk(2)
            logits = null + guidance * (given - null)
        tokens[:, start:stop] = choose(logits, draws[:, start:stop], *how)
        # the first place saw what it sees in training, the others are read again
        read = places + 1
    return codes.scatter(1, orders, tokens)


def start_cache(prior: Prior, labels: Tensor) -> Cache:
    """Room for keys and values of everything, and the class token's: its key is zero."""
    cache = []
    for value in prior.class_values(labels):
        value = value.unflatten(-1, (prior.transformer.n_head, -1))
        k = value.new_zeros(*value.shape[:2], 1 + 2 * prior.n_tokens, value.shape[2])
        v = torch.zeros_like(k)
        v[:, :, 0] = value
        cache.append((k, v))
    return cache


def advance(prior: Prior, cache: Cache, x: Tensor, rope: Tensor, mask: Tensor) -> Tensor:
    """Read positions x (lanes, new, dim) after what is cached, and cache them too.

    `mask` is (new, cached + new): cached are the first of the cache's positions, the rest of it
    may hold anything and is written over.
    """
    end = mask.shape[1]
    new = slice(end - x.shape[1], end)
    n_head = prior.transformer.n_head
    for block, (k, v) in zip(prior.transformer.blocks, cache):
        attention = block.attention
        qkv = attention.wqkv(block.attention_norm(x)).unflatten(-1, (3, n_head, -1))
        q, k[:, :, new], v[:, :, new] = qkv.permute(2, 0, 3, 1, 4)
        q, k[:, :, new] = rotate(q, rope), rotate(k[:, :, new], rope)
        y = F.scaled_dot_product_attention(q, k[:, :, :end], v[:, :, :end], attn_mask=mask)
        x = x + attention.wo(y.transpose(1, 2).flatten(2))
        x = x + block.feed_forward(block.ffn_norm(x))
    return x


def choose(
    logits: Tensor,
    draws: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Tokens (...,) by inverse distribution function: logits (..., vocab_size), draws in [0, 1)."""
    logits = logits.double()
    p = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)  # however cold
    if top_k is not None or top_p is not None:
        ranked, code = p.sort(-1, descending=True)
        if top_k is not None:
            ranked[..., top_k:] = 0
        if top_p is not None:
            before = ranked.cumsum(-1) - ranked
            ranked[before >= top_p * ranked.sum(-1, keepdim=True)] = 0
        # in the order of codes, where rounding moves nothing but the bounds
        p = torch.zeros_like(p).scatter_(-1, code, ranked)
    total = p.cumsum(-1)
    return (total <= draws.unsqueeze(-1) * total[..., -1:]).sum(-1)


@own_torch_state()
def known_log_likelihoods(
    prior: Prior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    n_known: np.ndarray,
    *,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Log-likelihood of the tokens at the start of each image's orders.

    Parameters
    ----------
    prior : Prior
    codes : int array of shape (n_images, n_tokens)
        Tokens in raster order.
    orders : int array of shape (n_images, n_orders, n_tokens)
        Of each image, known places first.
    labels : int array of shape (n_classes,)
        Rows of the class table.
    n_known : int array of shape (n_images,)
        How many tokens are known.
    dtype : torch.dtype, default=torch.float32
        Type of the matrix products.

    Returns
    -------
    log_likelihood : float64 array of shape (n_images, n_orders, n_classes)
        log p(known tokens | class, order), in nats; 0 where nothing is known.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.scoring.sampling import known_log_likelihoods
    >>> prior = AnyOrderPrior(vocab_size=8, grid=(2, 2), num_classes=3, dim=32, n_layer=1)
    >>> codes, orders = np.array([[1, 5, 0, 7]]), np.array([[[1, 3, 0, 2], [3, 1, 2, 0]]])
    >>> known_log_likelihoods(prior, codes, orders, np.arange(3), np.array([2])).shape
    (1, 2, 3)
    """
    prior.eval()
    device = prior.device
    n_orders, n_classes = orders.shape[1], len(labels)
    engine = make_engine(prior, torch.as_tensor(labels, device=device), dtype)
    n_pairs, few = tile_shape(lanes_at_once(prior), n_classes)
    out = np.zeros((len(codes) * n_orders, n_classes))
    for known in np.unique(n_known[n_known > 0]):
        rows = np.flatnonzero(np.repeat(n_known == known, n_orders))
        for at in range(0, len(rows), n_pairs):
            these = rows[at : at + n_pairs]
            read = orders.reshape(len(out), -1)[these, :known]
            pairs = engine.pairs(
                *(
                    torch.as_tensor(a, dtype=torch.long, device=device)
                    for a in (codes[these // n_orders], read)
                )
            )
            for c in range(0, n_classes, few):
                label = torch.arange(c, min(c + few, n_classes), device=device)
                pair = torch.arange(len(these), device=device).repeat_interleave(len(label))
                log_prob, _ = engine.read(pairs, pair, label.repeat(len(these)), 0, int(known))
                ll = log_prob.double().sum(1).view(len(these), -1)
                out[these, c : c + few] = ll.cpu().numpy()
    return out.reshape(len(codes), n_orders, n_classes)


def known_first(orders: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Orders (..., n_tokens) in which places that are not `unknown` (bool, by place) come first.

    Among themselves, known and unknown places keep their order.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.scoring.sampling import known_first
    >>> known_first(np.array([[3, 1, 0, 2]]), np.array([[False, True, False, True]]))
    array([[0, 2, 3, 1]])
    """
    late = np.take_along_axis(unknown, orders, -1)
    return np.take_along_axis(orders, late.argsort(-1, kind="stable"), -1)


def touched(
    mask: np.ndarray, rows: np.ndarray, cols: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """Which tokens (n, rows * cols) have a pixel in the bool mask (n, height, width).

    `rows` (height,) and `cols` (width,) are of the token that a pixel belongs to.
    """
    for axis, (of_pixels, n) in enumerate(zip((rows, cols), grid, strict=True), start=1):
        starts = of_pixels.searchsorted(np.arange(n)).clip(max=len(of_pixels) - 1)
        mask = np.logical_or.reduceat(mask, starts, axis)
    return mask.reshape(len(mask), -1)

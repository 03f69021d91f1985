"""Sampling tokens from a prior, with any subset of the tokens given.

Tokens are sampled along an order, one or several per step. Keys and values of earlier positions
are cached, so that each step only computes its new positions.
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

# For each layer: keys and values (sequences, n_head, 1 + 2 n_tokens, head_dim) of the class token
# and of the positions p1 t1 p2 t2 ... (position instruction, token)
Cache = list[tuple[Tensor, Tensor]]

SAMPLING_CONSTRAINTS = {
    "n_steps": [Interval(Integral, 1, None, closed="left"), None],
    "temperature": [Interval(Real, 0, None, closed="neither")],
    "top_k": [Interval(Integral, 1, None, closed="left"), None],
    "top_p": [Interval(Real, 0, 1, closed="right"), None],
    "guidance": [Interval(Real, 0, None, closed="left")],
}


@own_torch_state()
@validate_params(SAMPLING_CONSTRAINTS, prefer_skip_nested_validation=True)
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
    """Sample the tokens of images, each along its own order.

    Parameters
    ----------
    prior : Prior
        Sampling runs on its device and in its type.
    labels : int array of shape (n_images,)
        Rows of the class table. ``prior.num_classes`` is the null class.
    orders : int array of shape (n_images, n_tokens)
        Raster index of the token sampled at each step.
    codes : int array of shape (n_images, n_tokens), default=None
        Known tokens in raster order. Values at unknown positions are ignored. None if no token is
        known.
    n_known : int or int array of shape (n_images,), default=0
        Number of known tokens. They come first in the image's order and are not changed.
    n_steps : int, default=None
        Number of steps in which the unknown tokens are sampled. None samples one token per step,
        which is exact. With fewer steps, the tokens of one step are sampled independently of each
        other; see :func:`step_ends` for their number.
    temperature : float, default=1.0
        Logits are divided by it. Values below 1 favour likely tokens. It must be positive; use
        ``top_k=1`` for the most likely token.
    top_k : int, default=None
        Sample from the `top_k` most likely tokens.
    top_p : float, default=None
        Sample from the smallest set of most likely tokens whose total probability reaches `top_p`,
        after `temperature` and `top_k`.
    guidance : float, default=1.0
        Scale g of classifier-free guidance: logits are ``null + g * (class - null)``. Values above
        1 make samples more typical of the class. Any value other than 1 doubles the work.
    seed : int
        The random numbers of an image do not depend on the images after it.

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
    >>> sampled = generate(prior, np.array([0, 2]), orders, codes, n_known=[2, 0], seed=0)
    >>> sampled.shape, sampled[0, :2]
    ((2, 4), array([1, 5]))
    """
    prior.eval()
    device = prior.device
    n_known = np.broadcast_to(n_known, len(orders))
    uniforms = np.random.RandomState(seed).uniform(size=np.shape(orders))
    out = np.zeros(uniforms.shape, np.int64) if codes is None else np.array(codes, np.int64)
    batch_size = lanes_at_once(prior)
    if guidance != 1:
        batch_size = max(1, batch_size // 2)
    for known in np.unique(n_known):
        ends = [int(known), *(known + step_ends(prior.n_tokens - known, n_steps)).tolist()]
        rows = np.flatnonzero(n_known == known)
        while len(rows):
            batch = rows[:batch_size]
            inputs = [
                torch.as_tensor(np.asarray(a)[batch], device=device)
                for a in (labels, orders, out, uniforms)
            ]
            try:
                tokens = generate_batch(prior, inputs, ends, guidance, temperature, top_k, top_p)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            out[batch] = tokens.cpu().numpy()
            rows = rows[batch_size:]
    return out


def step_ends(n: int, n_steps: int | None = None) -> np.ndarray:
    """Return the number of tokens that are sampled by the end of each step.

    After a step, a share of ``cos(pi / 2 * step / n_steps)`` of the tokens is left. Early steps
    sample fewer tokens, because tokens depend on each other most when few are known. Every step
    samples at least one token.

    Parameters
    ----------
    n : int
        Number of tokens to sample.
    n_steps : int, default=None
        Number of steps, at most `n`. None is `n`.

    Returns
    -------
    ends : int array of shape (min(n, n_steps),)
        The last value is `n`.

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


def generate_batch(
    prior: Prior,
    inputs: Sequence[Tensor],
    ends: Sequence[int],
    guidance: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    """Sample the tokens of one batch.

    `inputs` are labels, orders, codes and uniform random numbers. ``ends[0]`` is the number of
    known tokens, ``ends[i]`` the number of tokens after step i.
    """
    labels, orders, codes, uniforms = inputs
    guided = guidance != 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, prior.num_classes)])
    cache = start_cache(prior, labels)
    tokens = codes.gather(1, orders)
    n_cached = 0  # positions of p1 t1 p2 t2 ... in the cache
    for start, stop in pairwise(ends):
        # The new positions are those sampled last, read as in training, and then the position
        # instructions of this step, which do not see each other.
        first, instructions = n_cached // 2, 2 * start
        new = torch.tensor(
            [*range(n_cached, instructions), *range(instructions, 2 * stop, 2)],
            device=tokens.device,
        )
        x, rope = prior.transformer.interleave(tokens[:, first:stop], orders[:, first:stop])
        x, rope = x[:, new - 2 * first], rope[:, :, new - 2 * first]
        if guided:
            x, rope = torch.cat([x, x]), torch.cat([rope, rope])
        keys = torch.cat([torch.arange(-1, n_cached, device=new.device), new])
        itself = keys == new[:, None]
        mask = itself | (keys <= new[:, None]) & (keys < instructions)
        x = read_positions(prior, cache, x, rope, mask)[:, start - stop :]
        logits = prior.predict(x, labels)
        if guided:
            given, null = logits.chunk(2)
            logits = null + guidance * (given - null)
        tokens[:, start:stop] = sample_tokens(
            logits, uniforms[:, start:stop], temperature, top_k, top_p
        )
        # Only the first instruction was read with the same mask as in training. The others are
        # read again in the next step.
        n_cached = instructions + 1
    return codes.scatter(1, orders, tokens)


def start_cache(prior: Prior, labels: Tensor) -> Cache:
    """Allocate keys and values of all positions, and fill in those of the class token.

    The class token has a key of zero.
    """
    cache = []
    for value in prior.class_values(labels):
        value = value.unflatten(-1, (prior.transformer.n_head, -1))
        k = value.new_zeros(*value.shape[:2], 1 + 2 * prior.n_tokens, value.shape[2])
        v = torch.zeros_like(k)
        v[:, :, 0] = value
        cache.append((k, v))
    return cache


def read_positions(prior: Prior, cache: Cache, x: Tensor, rope: Tensor, mask: Tensor) -> Tensor:
    """Run the transformer on new positions x (sequences, n_new, dim), and cache them.

    `mask` is (n_new, n_cached + n_new). New keys and values are written after the first `n_cached`
    positions of the cache, and replace what is there.
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


def sample_tokens(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Sample tokens (...,) from logits (..., vocab_size) by inverse transform sampling."""
    logits = logits.double()
    # subtract the maximum first, so that very low temperatures do not overflow
    p = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if top_k is not None or top_p is not None:
        ranked, code = p.sort(-1, descending=True)
        if top_k is not None:
            ranked[..., top_k:] = 0
        if top_p is not None:
            before = ranked.cumsum(-1) - ranked
            ranked[before >= top_p * ranked.sum(-1, keepdim=True)] = 0
        # Back to the order of codes, so that rounding errors of the logits move the bounds of the
        # intervals a little and never exchange them.
        p = torch.zeros_like(p).scatter_(-1, code, ranked)
    cumulative = p.cumsum(-1)
    return (cumulative <= uniforms.unsqueeze(-1) * cumulative[..., -1:]).sum(-1)


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
    """Compute the log-likelihood of the first tokens in each order.

    Parameters
    ----------
    prior : Prior
    codes : int array of shape (n_images, n_tokens)
        Tokens in raster order.
    orders : int array of shape (n_images, n_orders, n_tokens)
        Orders of each image, which begin with its known positions.
    labels : int array of shape (n_classes,)
        Rows of the class table.
    n_known : int array of shape (n_images,)
        Number of known tokens.
    dtype : torch.dtype, default=torch.float32
        Type of the matrix products.

    Returns
    -------
    log_likelihood : float64 array of shape (n_images, n_orders, n_classes)
        log p(known tokens | class, order), in nats; 0 where no token is known.

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
    tile_pairs, tile_classes = tile_shape(lanes_at_once(prior), n_classes)
    out = np.zeros((len(codes) * n_orders, n_classes))
    for known in np.unique(n_known[n_known > 0]):
        all_pairs = np.flatnonzero(np.repeat(n_known == known, n_orders))
        for start in range(0, len(all_pairs), tile_pairs):
            rows = all_pairs[start : start + tile_pairs]
            order = orders.reshape(len(out), -1)[rows, :known]
            pairs = engine.pairs(
                *(
                    torch.as_tensor(a, dtype=torch.long, device=device)
                    for a in (codes[rows // n_orders], order)
                )
            )
            for c in range(0, n_classes, tile_classes):
                label = torch.arange(c, min(c + tile_classes, n_classes), device=device)
                pair = torch.arange(len(rows), device=device).repeat_interleave(len(label))
                log_prob, _ = engine.read(pairs, pair, label.repeat(len(rows)), 0, int(known))
                ll = log_prob.double().sum(1).view(len(rows), -1)
                out[rows, c : c + tile_classes] = ll.cpu().numpy()
    return out.reshape(len(codes), n_orders, n_classes)


def known_first(orders: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Move known positions to the start of orders (..., n_tokens).

    `unknown` is a bool array of the same shape, in raster order. Known and unknown positions each
    keep their relative order.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.scoring.sampling import known_first
    >>> known_first(np.array([[3, 1, 0, 2]]), np.array([[False, True, False, True]]))
    array([[0, 2, 3, 1]])
    """
    last = np.take_along_axis(unknown, orders, -1)
    return np.take_along_axis(orders, last.argsort(-1, kind="stable"), -1)


def tokens_in_mask(
    mask: np.ndarray, rows: np.ndarray, cols: np.ndarray, grid: tuple[int, int]
) -> np.ndarray:
    """Find the tokens (n, n_tokens) that have at least one pixel in a mask (n, height, width).

    `rows` (height,) and `cols` (width,) are the token row of each pixel row and the token column of
    each pixel column.
    """
    for axis, (token_of_pixel, n) in enumerate(zip((rows, cols), grid, strict=True), start=1):
        starts = token_of_pixel.searchsorted(np.arange(n)).clip(max=len(token_of_pixel) - 1)
        mask = np.logical_or.reduceat(mask, starts, axis)
    return mask.reshape(len(mask), -1)

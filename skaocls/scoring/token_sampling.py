"""Sample the tokens of images from a prior. Any subset of the tokens can be given in advance.

Tokens are sampled in a given order, one or several tokens per step (Pang et al., "RandAR", arXiv
2412.01827, section 3). Keys and values of earlier positions are cached, so that each step processes
only new positions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor
from torch.nn import functional as F

from skaocls.devices import own_torch_state
from skaocls.priors.layers import rotate
from skaocls.priors.transformer import Prior
from skaocls.scoring.engine import tile_shape
from skaocls.scoring.exhaustive import lanes_at_once
from skaocls.scoring.shared_trunk_engine import make_engine

# Keys and values (sequences, n_head, 1 + 2 n_tokens, head_dim) in each layer, for the class token
# and for the positions p1 t1 p2 t2 ..., where p are position instructions and t are tokens
Cache = list[tuple[Tensor, Tensor]]

SAMPLING_CONSTRAINTS = {
    "n_steps": [Interval(Integral, 1, None, closed="left"), None],
    "temperature": [Interval(Real, 0, None, closed="neither")],
    "top_k": [Interval(Integral, 1, None, closed="left"), None],
    "top_p": [Interval(Real, 0, 1, closed="right"), None],
    "guidance": [Interval(Real, 0, None, closed="left")],
}


@own_torch_state()
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
    """Sample the tokens (n_images, n_tokens) of images. Each image has its own order.

    For each image, the first `n_known` tokens of the order are copied from `codes`. `codes` are in
    raster order. `labels` are row indices of the class table. The last row is the null class. The
    other arguments are documented and validated by :meth:`skaocls.AnyOrderARClassifier.sample`.
    `temperature` and `top_k` are applied before `top_p` (Holtzman et al., arXiv 1904.09751, section
    3.1). With guidance g (Ho and Salimans, arXiv 2207.12598), logits are
    ``null + g * (class - null)``. Appending images does not change the random numbers of the
    earlier images.
    """
    prior.eval()
    n_known = np.broadcast_to(n_known, len(orders))
    uniforms = np.random.RandomState(seed).uniform(size=np.shape(orders))
    out = np.zeros(uniforms.shape, np.int64) if codes is None else np.array(codes, np.int64)
    sample = partial(sample_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    batch_size = lanes_at_once(prior)
    if guidance != 1:
        batch_size = max(1, batch_size // 2)
    for known in np.unique(n_known):
        ends = [int(known), *(known + step_ends(prior.n_tokens - known, n_steps)).tolist()]
        rows = np.flatnonzero(n_known == known)
        while len(rows):
            batch = rows[:batch_size]
            inputs = [
                torch.as_tensor(np.asarray(a)[batch], device=prior.device)
                for a in (labels, orders, out, uniforms)
            ]
            try:
                tokens = generate_batch(prior, inputs, ends, guidance, sample)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            out[batch] = tokens.cpu().numpy()
            rows = rows[batch_size:]
    return out


def step_ends(n: int, n_steps: int | None = None) -> np.ndarray:
    """For each step, return how many of n tokens have been sampled at the end of the step.

    After each step, the fraction ``cos(pi / 2 * step / n_steps)`` of the tokens is not yet sampled
    (Chang et al., "MaskGIT", arXiv 2202.04200, section 3.3). Early steps sample fewer tokens than
    late steps, because tokens depend on each other most when few are known. Every step samples at
    least one token.
    """
    n_steps = n if n_steps is None else min(n, n_steps)
    step = np.arange(1, n_steps + 1)
    n_left = np.floor(n * np.cos(np.pi / 2 * (step / n_steps))).astype(int)
    ends: np.ndarray = np.maximum(step, n - n_left)
    return ends


def generate_batch(
    prior: Prior,
    inputs: Sequence[Tensor],
    ends: Sequence[int],
    guidance: float,
    sample: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Sample the tokens of one batch.

    `inputs` are labels, orders, codes and uniform random numbers. `sample` maps logits and random
    numbers to tokens. ``ends[0]`` is the number of known tokens. ``ends[i]`` is the total number of
    tokens after step i.
    """
    labels, orders, codes, uniforms = inputs
    guided = guidance != 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, prior.num_classes)])
    cache = start_cache(prior, labels)
    tokens = codes.gather(1, orders)
    n_cached = 0  # number of positions of p1 t1 p2 t2 ... that are in the cache
    for start, stop in pairwise(ends):
        # First, process the tokens and instructions of the previous step as in training. Then
        # process the position instructions of this step, which do not attend to each other.
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
        tokens[:, start:stop] = sample(logits, uniforms[:, start:stop])
        # Of the instructions of this step, only the first had the same mask as in training. The
        # next step processes the other instructions again.
        n_cached = instructions + 1
    return codes.scatter(1, orders, tokens)


def start_cache(prior: Prior, labels: Tensor) -> Cache:
    """Allocate the cache for all positions, and fill in the key and value of the class token.

    The key of the class token is zero.
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
    """Run the transformer on new positions x (sequences, n_new, dim), and update the cache.

    `mask` has shape (n_new, n_cached + n_new). New keys and values overwrite the cache,
    beginning at the index n_cached.
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
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Sample tokens (...,) from logits (..., vocab_size) by inverse transform sampling."""
    logits = logits.double()
    # subtract the maximum first, to avoid an overflow at very low temperatures
    p = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if top_k is not None or top_p is not None:
        ranked, code = p.sort(-1, descending=True)
        if top_k is not None:
            ranked[..., top_k:] = 0
        if top_p is not None:
            before = ranked.cumsum(-1) - ranked
            ranked[before >= top_p * ranked.sum(-1, keepdim=True)] = 0
        # Sort the probabilities by code again, so that the sequence of the intervals is fixed. A
        # rounding error of the logits then only moves the bounds of the intervals slightly.
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
    """Compute log p(known tokens | class, order), with shape (n_images, n_orders, n_classes).

    `codes` has shape (n_images, n_tokens). `orders` has shape (n_images, n_orders, n_tokens).
    Every order of an image begins with the known positions of the image. `n_known` (n_images,) is
    the number of these positions.
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
            inputs = codes[rows // n_orders], orders.reshape(len(out), -1)[rows, :known]
            pairs = engine.pairs(
                *(torch.as_tensor(a, dtype=torch.long, device=device) for a in inputs)
            )
            for c in range(0, n_classes, tile_classes):
                label = torch.arange(c, min(c + tile_classes, n_classes), device=device)
                pair = torch.arange(len(rows), device=device).repeat_interleave(len(label))
                log_prob, _ = engine.read(pairs, pair, label.repeat(len(rows)), 0, int(known))
                ll = log_prob.double().sum(1).view(len(rows), -1)
                out[rows, c : c + tile_classes] = ll.cpu().numpy()
    return out.reshape(len(codes), n_orders, n_classes)


def known_first(orders: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Move the known positions of each order (..., n_tokens) to the start, by a stable sort.

    `unknown` is a bool array of the same shape as `orders`. Its last axis is in raster order.
    """
    last = np.take_along_axis(unknown, orders, -1)
    return np.take_along_axis(orders, last.argsort(-1, kind="stable"), -1)

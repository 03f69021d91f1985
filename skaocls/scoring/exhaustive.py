"""Exhaustive scoring: log p(tokens | class, order) for all images, orders and classes.

Every (image, order) pair is scored under all classes. The pairs are processed in tiles of one fixed
shape. Tiles limit the memory. Because the shape is fixed, the result of an image does not depend on
the other images in a batch. Tiles are independent, so several machines can process different tiles.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from skaocls.devices import own_torch_state
from skaocls.priors.transformer import Prior
from skaocls.scoring.shared_trunk_engine import make_engine

# Number of values in the residual stream of one tile (benchmarks/speed/cuda_tiles.py). A tile on
# the CPU is so small that it fits into the caches, and so large that a matrix product takes longer
# than loading the weights. A tile on CUDA is the smallest tile that keeps a large device busy.
STREAM_CPU, MIN_ROWS_CPU = 2**18, 2**11
STREAM_CUDA = 2**24
# Compiling takes about a minute. Therefore, the engine is compiled only if scoring needs at least
# this many floating-point operations. On CPUs, compiling saves no time
# (benchmarks/speed/scoring.py).
COMPILE_FROM = {"cuda": 1e17}
# Smallest width at which bfloat16 is faster than float32 on CPUs (benchmarks/speed/scoring.py)
BFLOAT16_MIN_DIM = 512
# Largest allowed rounding error of bfloat16, relative to the differences between classes
# (benchmarks/speed/scoring.py)
MAX_ROUNDING_ERROR = 0.05
_bfloat16_safe: WeakKeyDictionary[Prior, tuple[object, bool]] = WeakKeyDictionary()


class ScoringResult(NamedTuple):
    """The result of scoring images under each class in each order.

    `log_likelihood` is the result of :func:`log_likelihoods`. If early stopping is used, some of
    these values are estimates or NaN. `evaluations` (n_images,) is the number of tokens that the
    transformer processed for each image, summed over all orders and classes.
    """

    log_likelihood: np.ndarray
    evaluations: np.ndarray


@own_torch_state()
def log_likelihoods(
    prior: Prior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: torch.dtype = torch.float32,
    per_token: bool = False,
) -> np.ndarray:
    """Compute log p(tokens | class, order) in nats.

    The result is float64 and has shape (n_images, n_orders, n_classes). `codes` has shape
    (n_images, n_tokens) and is in raster order. If `codes` has shape (n_images, n_orders,
    n_tokens), each order uses its own view. `orders` has shape (n_orders, n_tokens). `labels` are
    row indices of the class table. `dtype` is the type of the matrix products. The residual stream
    and the log-softmax are always in float32. Sums over tokens are always in float64.

    If `per_token` is True, the result contains log p(token | previous tokens, class) of each token
    instead of the sum over the tokens. It is float32 and has shape (n_images, n_orders, n_tokens,
    n_classes). The tokens are in raster order.
    """
    prior.eval()
    device = prior.device
    n_orders, n_classes = len(orders), len(labels)
    n_sequences = len(codes) * n_orders * prior.readings(n_classes)
    compiled = operations_per_sequence(prior) * n_sequences >= COMPILE_FROM.get(device.type, np.inf)
    engine = make_engine(prior, torch.as_tensor(labels, device=device), dtype, compiled)
    all_codes = torch.as_tensor(codes, dtype=torch.long, device=device)
    all_orders = torch.as_tensor(orders, dtype=torch.long, device=device)
    shape = (prior.n_tokens, n_classes) if per_token else (n_classes,)
    kind = torch.float32 if per_token else torch.float64
    out = torch.empty(len(codes) * n_orders, *shape, dtype=kind, device=device)
    lanes = lanes_at_once(prior)
    start = 0
    while start < len(out):
        n_pairs = engine.pairs_at_once(lanes)
        try:
            pair = torch.arange(start, start + n_pairs, device=device).clamp_(max=len(out) - 1)
            image, order = pair // n_orders, pair % n_orders
            tokens = all_codes[image] if all_codes.ndim == 2 else all_codes[image, order]
            ll = engine.score(engine.pairs(tokens, all_orders[order]), lanes)
            if per_token:
                step = all_orders[order][..., None].expand_as(ll)
                ll = torch.empty_like(ll).scatter_(1, step, ll)
            else:
                ll = ll.sum(1, dtype=torch.float64)
            out[start : start + n_pairs] = ll[: len(out) - start]
            start += n_pairs
        except torch.OutOfMemoryError:
            if lanes == 1:
                raise
            lanes //= 2
    return check_not_nan(out).view(len(codes), n_orders, *shape).cpu().numpy()


def check_not_nan(log_likelihood: torch.Tensor) -> torch.Tensor:
    """Return the log-likelihoods unchanged. Raise a ValueError if any of them is NaN."""
    if log_likelihood.isnan().any():
        raise ValueError(
            "The prior computes log-likelihoods that are NaN: its weights are too large for the "
            "floating-point type. Pass precision='float32' or use another prior."
        )
    return log_likelihood


def lanes_at_once(prior: Prior) -> int:
    """Return the number of sequences per tile, which depends only on the prior and the device."""
    dim = prior.dim
    cuda = prior.device.type == "cuda"
    rows = STREAM_CUDA // dim if cuda else max(MIN_ROWS_CPU, STREAM_CPU // dim)
    return max(1, rows // (2 * prior.n_tokens))


def operations_per_sequence(prior: Prior) -> float:
    """Return the number of floating-point operations per sequence: two per weight and position."""
    weights = sum(p.numel() for p in prior.transformer.layers.parameters())
    output = prior.transformer.output.weight.numel()
    return 2.0 * weights * 2 * prior.n_tokens + 2.0 * output * prior.n_tokens


def scoring_dtype(prior: Prior, precision: str) -> torch.dtype:
    """Return the type of the matrix products for a value of the parameter `precision`.

    ``"auto"`` selects bfloat16 if three conditions hold. The device has instructions for bfloat16,
    the prior is so wide that bfloat16 is faster than float32, and bfloat16 preserves the
    differences between classes. Otherwise ``"auto"`` selects float32.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    weight = prior.transformer.output.weight
    if weight.is_cuda:
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        faster = prior.dim >= BFLOAT16_MIN_DIM and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if faster and bfloat16_is_safe(prior) else torch.float32


def bfloat16_is_safe(prior: Prior) -> bool:
    """Return whether bfloat16 preserves the differences between classes.

    The test scores random tokens under a few classes, in float32 and in bfloat16. In both types, it
    computes the differences between the log-likelihoods of the classes. The root mean square error
    of the bfloat16 differences must be at most `MAX_ROUNDING_ERROR` times the root mean square of
    the float32 differences. The result is cached until the weights change.
    """
    sums = [tensor.sum(dtype=torch.float64) for tensor in prior.state_dict().values()]
    weights = prior.device, torch.stack(sums).tolist()
    if _bfloat16_safe.get(prior, (None, False))[0] != weights:
        rng = np.random.RandomState(0)
        codes = rng.randint(prior.vocab_size, size=(2, prior.n_tokens))
        orders = rng.permutation(prior.n_tokens)[None]
        labels = np.unique(np.linspace(0, prior.num_classes - 1, 4).astype(int))
        exact, rounded = (
            log_likelihoods(prior, codes, orders, labels, dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
        exact, rounded = (ll - ll.mean(-1, keepdims=True) for ll in (exact, rounded))
        safe = np.std(rounded - exact) <= MAX_ROUNDING_ERROR * np.std(exact)
        _bfloat16_safe[prior] = weights, bool(safe)
    return _bfloat16_safe[prior][1]

"""Exhaustive scoring: log p(tokens | class, order) for all images, orders and classes.

Work is a flat list of (image, order) pairs times classes, cut into tiles of one fixed shape, so
that memory is bounded and an image's numbers do not depend on what else is scored with it. Tiles
know nothing of each other: to spread them over devices or machines, share out the pairs.
"""

from weakref import WeakKeyDictionary

import numpy as np
import torch

from skaocls.devices import own_torch_state
from skaocls.priors.interface import Prior
from skaocls.scoring.engines import make_engine

# Numbers in the residual stream of one tile, which is filled up if there is less to read: on the
# CPU small enough for caches, but of so many rows that reading wide matrices does not cost more
# than multiplying; on CUDA as few as keep a large device busy, see benchmarks/tiles.py
STREAM_CPU, ROWS_CPU = 2**18, 2**11
STREAM_CUDA = 2**24
# Operations from which compiling is worth the minute that it takes; on CPUs it gains nothing that
# matters, see benchmarks/scoring.py
COMPILE_FROM = {"cuda": 1e17}
BFLOAT16_FROM_DIM = 512  # on the CPU; narrower products do not gain
SAFE_ERROR = 0.05  # of the spread between classes
_safe: WeakKeyDictionary[Prior, tuple[int, bool]] = WeakKeyDictionary()


@own_torch_state()
def log_likelihoods(
    prior: Prior,
    codes: np.ndarray,
    orders: np.ndarray,
    labels: np.ndarray,
    *,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Log-likelihood of every image under every order and class.

    Parameters
    ----------
    prior : Prior
        Where its weights are, there it runs.
    codes : int array of shape (n_images, n_tokens) or (n_images, n_orders, n_tokens)
        Tokens in raster order; different ones for each order if crops or noise differ.
    orders : int array of shape (n_orders, n_tokens)
        The same orders are used for all images and classes.
    labels : int array of shape (n_classes,)
        Classes to score.
    dtype : torch.dtype, default=torch.float32
        Type of the matrix products, e.g. ``torch.bfloat16``. Log-softmax and the residual stream
        are in float32, sums over tokens in float64 in any case.

    Returns
    -------
    log_likelihood : float64 array of shape (n_images, n_orders, n_classes)
        Natural log of p(tokens | class, order): the sum over the tokens.

    Raises
    ------
    ValueError
        If they are no numbers, of weights that are out of all bounds.

    References
    ----------
    Sudakov, Babenko, Baranchuk, arXiv 2603.19122, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.scoring.exhaustive import log_likelihoods
    >>> prior = AnyOrderPrior(vocab_size=8, grid=(2, 2), num_classes=3, dim=32, n_layer=1)
    >>> codes, orders = np.array([[1, 5, 0, 7]]), np.array([[0, 1, 2, 3], [3, 1, 0, 2]])
    >>> log_likelihoods(prior, codes, orders, np.arange(3)).shape
    (1, 2, 3)
    """
    prior.eval()
    device = prior.device
    n_orders, n_classes = len(orders), len(labels)
    n_read = len(codes) * n_orders * prior.readings(n_classes)
    compiling = operations(prior) * n_read >= COMPILE_FROM.get(device.type, np.inf)
    engine = make_engine(prior, torch.as_tensor(labels, device=device), dtype, pack=not compiling)
    if compiling:
        engine.compile()
    all_codes = torch.as_tensor(codes, dtype=torch.long, device=device)
    all_orders = torch.as_tensor(orders, dtype=torch.long, device=device)
    out = torch.empty(len(codes) * n_orders, n_classes, dtype=torch.float64, device=device)
    lanes = lanes_at_once(prior)
    start = 0
    while start < len(out):
        n_pairs = engine.pairs_at_once(lanes)
        try:
            pair = torch.arange(start, start + n_pairs, device=device).clamp_(max=len(out) - 1)
            image, order = pair // n_orders, pair % n_orders
            tokens = all_codes[image] if all_codes.ndim == 2 else all_codes[image, order]
            ll = engine.score(engine.pairs(tokens, all_orders[order]), lanes)
            out[start : start + n_pairs] = ll[: len(out) - start]
            start += n_pairs
        except torch.OutOfMemoryError:
            if lanes == 1:
                raise
            lanes //= 2
    return checked(out.view(len(codes), n_orders, n_classes).cpu().numpy())


def checked(log_likelihood: np.ndarray) -> np.ndarray:
    """Log-likelihoods, if they are numbers; -inf is one."""
    if np.isnan(log_likelihood).any():
        raise ValueError(
            "The prior gives log-likelihoods that are no numbers: its weights are too large for "
            "its type of numbers. Load or train others, or pass precision='float32'."
        )
    return log_likelihood


def lanes_at_once(prior: Prior) -> int:
    """How many sequences to read together: a property of model and device alone."""
    dim = prior.dim
    cuda = prior.device.type == "cuda"
    rows = STREAM_CUDA // dim if cuda else max(ROWS_CPU, STREAM_CPU // dim)
    return max(1, rows // (2 * prior.n_tokens))


def operations(prior: Prior) -> float:
    """Of one sequence: two for each weight and position."""
    weights = sum(p.numel() for p in prior.transformer.layers.parameters())
    output = prior.transformer.output.weight.numel()
    return 2.0 * weights * 2 * prior.n_tokens + 2.0 * output * prior.n_tokens


def scoring_dtype(prior: Prior, precision: str) -> torch.dtype:
    """Type of the matrix products that `precision` stands for.

    ``"auto"`` is bfloat16 where the device has instructions for it, the prior is wide enough to
    gain from them, and a probe shows that classes keep their distances; else float32.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    weight = prior.transformer.output.weight
    if weight.is_cuda:
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        wide = weight.shape[1] >= BFLOAT16_FROM_DIM
        good = wide and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if good and bfloat16_is_safe(prior) else torch.float32


def bfloat16_is_safe(prior: Prior) -> bool:
    """Whether bfloat16 moves log-likelihoods by far less than classes differ.

    Measured once for a prior's weights, on made-up tokens and a few classes: the root mean square
    error of the differences between classes is at most a 20th of their root mean square.
    """
    version = prior.transformer.output.weight._version
    if _safe.get(prior, (None, False))[0] != version:
        rng = np.random.RandomState(0)
        codes = rng.randint(prior.vocab_size, size=(2, prior.n_tokens))
        orders = rng.permutation(prior.n_tokens)[None]
        labels = np.unique(np.linspace(0, prior.num_classes - 1, 4).astype(int))
        exact, rounded = (
            log_likelihoods(prior, codes, orders, labels, dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
        exact, rounded = (ll - ll.mean(-1, keepdims=True) for ll in (exact, rounded))
        error, spread = np.std(rounded - exact), np.std(exact)
        _safe[prior] = version, bool(error <= SAFE_ERROR * spread)
    return _safe[prior][1]

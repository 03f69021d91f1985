"""Inference for many classes at once: the prior's forward pass, arranged for scoring.

The unit of work is a *lane*: one class read along one (image, order) pair. Class and tokens meet
late. The class token's query and key are zero, so tokens see nothing of it but its value in each
layer, which is computed once per class; and in the first layer, how much of it they see depends on
the tokens alone, so that layer's attention is computed once per pair. Lanes begin after it.

A lane can be read in pieces: keys and values of what was read are handed back, and taken again to
go on. Sums and the residual stream are in float32, matrix products in the type asked for.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from skaocls.priors.transformer import NORM_EPS, AnyOrderPrior, rotate

T = TypeVar("T")
LOGITS_AT_ONCE = 2**22
QUERIES_AT_ONCE = 128
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
PACKING = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()

# For each layer but the first: keys and values (lanes, n_head, 1 + steps, head_dim) of the class
# token and of what was read
Cache = list[tuple[Tensor, Tensor]]


class Layer(NamedTuple):
    wq: Tensor
    wkv: Tensor
    wo: Tensor
    w1: Tensor
    w3: Tensor
    w2: Tensor
    attention_norm: Tensor
    ffn_norm: Tensor


class Pairs(NamedTuple):
    """(image, order) pairs after the first layer's attention, still without a class.

    Attributes
    ----------
    stream : float32 tensor of shape (n_pairs, 2 n_tokens - 1, dim)
        Residual stream, the class's part of the attention missing.
    seen : tensor of shape (n_pairs, 2 n_tokens - 1, n_head)
        Attention weight of the class token.
    rope : tensor of shape (n_pairs, 1, 2 n_tokens - 1, head_dim / 2, 2)
        Rotation of each step.
    targets : int tensor of shape (n_pairs, n_tokens)
        Tokens in the order of reading.
    """

    stream: Tensor
    seen: Tensor
    rope: Tensor
    targets: Tensor


class Engine:
    """A prior and the classes to score, ready for inference.

    Parameters
    ----------
    prior : AnyOrderPrior
        Its weights are used as they are, or copied into `dtype`.
    labels : int tensor of shape (n_classes,)
        Rows of the class table to score.
    dtype : torch.dtype, default=torch.float32
        Type of the matrix products.
    pack : bool, default=True
        Whether bfloat16 weights are copied into the layout that products on CPUs are made in.
        What is to be compiled needs them as they are.
    """

    def __init__(
        self,
        prior: AnyOrderPrior,
        labels: Tensor,
        dtype: torch.dtype = torch.float32,
        pack: bool = True,
    ):
        self.prior, self.dtype = prior, dtype
        self.n_head, self.n_tokens, self.n_classes = prior.n_head, prior.n_tokens, len(labels)
        self.compiled: Callable[..., tuple[Tensor, Cache]] | None = None
        self.layers = []
        for block in prior.blocks:
            attention, ffn = block.attention, block.feed_forward
            wq, wkv = attention.wqkv.weight.tensor_split([prior.output.weight.shape[1]])
            weights = [wq, wkv, attention.wo.weight, ffn.w1.weight, ffn.w3.weight, ffn.w2.weight]
            norms = [block.attention_norm.weight, block.ffn_norm.weight]
            self.layers.append(
                Layer(*(prepared(w, dtype, pack) for w in weights), *(w.to(dtype) for w in norms))
            )
        self.norm, self.output = prior.norm.weight.to(dtype), prior.output.weight.to(dtype)
        first, *rest = prior.class_values(labels)
        self.class_values = [v.to(dtype) for v in rest]
        wo = prior.blocks[0].attention.wo.weight
        # what each head adds to the stream where it sees nothing but the class
        heads = (a.unflatten(-1, (self.n_head, -1)) for a in (first, wo))
        self.class_heads = torch.einsum("chk,dhk->chd", *heads)

    def pairs(self, codes: Tensor, orders: Tensor) -> Pairs:
        """Read tokens (n_pairs, n_tokens) along orders (n_pairs, n_tokens), without a class."""
        prior, layer = self.prior, self.layers[0]
        targets = codes.gather(1, orders)
        x, rope = prior.interleave(targets, orders)
        q, k, v = self._project(x, layer)
        q, k = rotated(q, rope), rotated(k, rope)
        score = (q @ k.transpose(-1, -2)).float() * k.shape[-1] ** -0.5
        steps = score.shape[-1]
        future = torch.ones(steps, steps, dtype=torch.bool, device=x.device).triu(1)
        weight = F.pad(score.masked_fill_(future, -torch.inf), (1, 0)).softmax(-1)
        y = (weight[..., 1:].to(self.dtype) @ v).transpose(1, 2).flatten(2)
        return Pairs(x + linear(y, layer.wo), weight[..., 0].transpose(1, 2), rope, targets)

    def read(
        self,
        pairs: Pairs,
        pair: Tensor,
        label: Tensor,
        start: int,
        stop: int,
        cache: Cache | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Cache]:
        """Read tokens ``start`` to ``stop`` of some lanes.

        Parameters
        ----------
        pairs : Pairs
        pair, label : int tensors of shape (n_lanes,)
            The lanes: which pair, and which of the engine's classes.
        start, stop : int
            Tokens to read; `start` is 0, or where the cache ends.
        cache : list, default=None
            What reading up to `start` gave.
        keep : bool, default=False
            Whether a cache for going on is wanted.

        Returns
        -------
        log_prob : float32 tensor of shape (n_lanes, stop - start)
            log p(token | tokens before it, class).
        cache : list
            Empty unless `keep`.
        """
        x, kept = self.states(pairs, pair, label, start, stop, cache, keep)
        h = self.normed(x)
        targets = pairs.targets[pair, start:stop]
        log_prob = token_log_prob(h.flatten(0, 1), self.output, targets.flatten())
        return log_prob.view(targets.shape), kept

    def states(
        self,
        pairs: Pairs,
        pair: Tensor,
        label: Tensor,
        start: int,
        stop: int,
        cache: Cache | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Cache]:
        """As :meth:`read`, but the stream (n_lanes, stop - start, dim) before each token."""
        # p1 t1 p2 t2 ...: the last token read waits until there is more to predict from it
        begin, end = max(0, 2 * start - 1), 2 * stop - 1
        predicting = slice(2 * start - begin, None, 2)
        stream, seen = pairs.stream[pair, begin:end], pairs.seen[pair, begin:end]
        x = torch.baddbmm(stream, seen, self.class_heads[label])
        rope = pairs.rope[pair, :, begin:end]
        kept: Cache = []
        for n, layer in enumerate(self.layers):
            last = n == len(self.layers) - 1
            if n:
                values = self.class_values[n - 1][label]
                before = cache[n - 1] if cache else None
                asking = predicting if last else slice(None)
                q, k, v = self._attend(x, layer, values, rope, before, asking)
                x = x[:, asking]
                y = attention(q, k, v, range(begin, end)[asking])
                x += linear(y, layer.wo)
                if keep:
                    kept.append((k, v))
            elif last:
                x = x[:, predicting]
            y = self._norm(x, layer.ffn_norm)
            gate = F.silu(linear(y, layer.w1), inplace=True).mul_(linear(y, layer.w3))
            x += linear(gate, layer.w2)
        return x, kept

    def score(self, pairs: Pairs, lanes: int) -> Tensor:
        """log p(tokens | class) of all classes, (n_pairs, n_classes), float64.

        They are read in tiles of a shape that follows from `lanes`, the sequences read together.
        """
        n_pairs, few = len(pairs.targets), tile_shape(lanes, self.n_classes)[1]
        device = pairs.targets.device
        at = torch.arange(n_pairs, device=device).repeat_interleave(few)
        parts = []
        for c in range(0, self.n_classes, few):
            label = torch.arange(c, c + few, device=device).clamp_(max=self.n_classes - 1)
            read = self.compiled or self.read
            log_prob, _ = read(pairs, at, label.repeat(n_pairs), 0, self.n_tokens)
            parts.append(log_prob.double().sum(1).view(n_pairs, few))
        return torch.cat(parts, 1)[:, : self.n_classes]

    def cache_bytes(self, n_tokens: int) -> int:
        """What the keys and values of one lane take after so many tokens."""
        each = self.output.shape[1] * self.output.element_size()
        return (len(self.layers) - 1) * 2 * (2 * n_tokens) * each

    def pairs_at_once(self, lanes: int) -> int:
        """How many pairs make one tile, if `lanes` sequences do."""
        return tile_shape(lanes, self.n_classes)[0]

    def compile(self) -> None:
        """Let torch compile what takes the time."""
        self.compiled = compiled(self.read)

    def normed(self, x: Tensor) -> Tensor:
        """The stream as the output layer takes it."""
        return self._norm(x, self.norm)

    def _attend(
        self,
        x: Tensor,
        layer: Layer,
        values: Tensor,
        rope: Tensor,
        before: tuple[Tensor, Tensor] | None,
        asking: slice,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # beyond the last layer's keys and values only the predicting positions matter
        q, k, v = self._project(x, layer, asking)
        q = rotated(q, rope[:, :, asking])
        k = rotated(k, rope)
        if before is None:
            return q, F.pad(k, (0, 0, 1, 0)), torch.cat([self._heads(values[:, None]), v], 2)
        return q, torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)

    def _project(self, x: Tensor, layer: Layer, asking: slice = slice(None)) -> tuple[Tensor, ...]:
        """Queries of the positions that ask, all keys and values, (lanes, n_head, n, head_dim)."""
        y = self._norm(x, layer.attention_norm)
        q, kv = linear(y[:, asking], layer.wq), linear(y, layer.wkv)
        return tuple(self._heads(a) for a in (q, *kv.chunk(2, -1)))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.is_cuda:
            return F.rms_norm(x, x.shape[-1:], None, NORM_EPS).to(self.dtype) * weight
        # on the CPU torch takes three times as long for its own
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(NORM_EPS).rsqrt_()
        return (x * scale).to(self.dtype).mul_(weight)

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.n_head, -1)).transpose(-2, -3)
        return heads


def prepared(weight: Tensor, dtype: torch.dtype, pack: bool) -> Tensor:
    """A weight for :func:`linear`, of type `dtype`."""
    weight = weight.detach().to(dtype)
    if pack and PACKING and dtype == torch.bfloat16 and not weight.is_cuda:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return packed
    return weight


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x times weight transposed; the weight may be packed."""
    plain = x.is_cuda or x.dtype != torch.float32 or torch.compiler.is_compiling() or not ONEDNN
    if plain and not weight.is_mkldnn:
        return F.linear(x, weight)
    # in float32 torch calls another library, which is slower on some CPUs and no faster on others
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """Turn interleaved channel pairs of x (..., head_dim) by rope (..., head_dim / 2, 2)."""
    if not torch.compiler.is_compiling():
        return rotate(x, rope)
    # complex numbers are not compiled
    (a, b), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), rope.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).type_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor, steps: range) -> Tensor:
    """Attention of the queries of `steps` to the class token and to all steps up to their own.

    On the CPU a few queries at a time, so that less is computed only to be masked.
    """
    if q.is_cuda and steps.step == 1:
        # here, because it takes torch's compiler along, half as long to import as torch itself
        from torch.nn.attention.bias import causal_lower_right

        causal = causal_lower_right(q.shape[2], k.shape[2])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=causal)
        return y.transpose(1, 2).flatten(2)
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention
    if not q.is_cuda and q.dtype == torch.bfloat16:
        q, attend = q.contiguous(), bfloat16_attention
    few = len(steps) if q.is_cuda else QUERIES_AT_ONCE
    out = q.new_empty(q.shape[0], len(steps), q.shape[1], q.shape[3])
    for at in range(0, len(steps), few):
        rows = steps[at : at + few]
        seen = rows[-1] + 2
        last = torch.arange(rows[0], rows[-1] + 1, rows.step, device=q.device)
        mask = torch.arange(-1, seen - 1, device=q.device) <= last[:, None]
        y = attend(q[:, :, at : at + few], k[:, :, :seen], v[:, :, :seen], mask)
        out[:, at : at + few] = y.transpose(1, 2)
    return out.flatten(2)


def bfloat16_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention by plain products, which on CPUs take half of the time of torch's own."""
    unseen = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    q, k, v, batch = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), q.shape[:2]
    score = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    y: Tensor = torch.bmm(score.softmax(-1), v).unflatten(0, batch)
    return y


def token_log_prob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token (n,), from hidden states (n, dim).

    The logits exist for a few rows at a time, never as a whole. The target's own is summed in
    float32: a logit rounded to bfloat16 is off by as much as classes differ. The fused
    functions of torch and of Liger-Kernel round it.
    """
    rows = max(1, LOGITS_AT_ONCE // len(weight))
    out = hidden.new_empty(len(hidden), dtype=torch.float32)
    for at in range(0, len(hidden), rows):
        h, t = hidden[at : at + rows], targets[at : at + rows]
        logits = linear(h, weight)
        rounded = logits.gather(1, t[:, None])[:, 0]
        out[at : at + rows] = logits.log_softmax(1, dtype=torch.float32).gather(1, t[:, None])[:, 0]
        if weight.dtype != torch.float32:
            out[at : at + rows] += (h.float() * weight[t].float()).sum(1) - rounded
    return out


def tile_shape(lanes: int, n_classes: int) -> tuple[int, int]:
    """How many (image, order) pairs and how many classes make one tile.

    It does not follow how much there is to score: shapes stay the same.
    """
    n_tiles = -(-n_classes // lanes)  # of one pair
    return max(1, lanes // n_classes), -(-n_classes // n_tiles)


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """The function compiled by torch, or as it is, with a warning, where that fails."""
    try_first = torch.compile(function, dynamic=False)
    failed = False

    def call(*args: Any) -> T:
        nonlocal failed
        if not failed:
            try:
                return try_first(*args)
            except torch.OutOfMemoryError:
                raise
            except Exception as exc:  # whatever compilers do
                failed = True
                warnings.warn(
                    f"torch.compile failed ({type(exc).__name__}); scoring goes on without it.",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return function(*args)

    return call

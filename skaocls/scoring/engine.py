"""Inference for many classes at once: the prior's forward pass, arranged for scoring.

The unit of work is a *lane*: one (image, order) pair under one class. Many computations do not
depend on the class. The query and the key of the class token are zero. The class token therefore
affects image tokens only by its value vector in each layer. These vectors are computed once per
class. In the first layer, the attention weight of the class token does not depend on the class. The
attention of the first layer is therefore computed once per pair. Only the remaining computations
are repeated for each lane.

The tokens of a lane can be scored in several parts. `Engine.read` returns a cache of keys and
values. Pass this cache to the call that scores the next part. Sums and the residual stream have
type float32. Matrix products have the requested type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from skaocls.priors.layers import NORM_EPS, rotate
from skaocls.priors.transformer import AnyOrderPrior
from skaocls.warn import warn

T = TypeVar("T")
LOGITS_AT_ONCE = 2**22  # limits the memory for logits (benchmarks/speed/scoring.py)
QUERIES_AT_ONCE = 128  # queries per attention call on the CPU (benchmarks/speed/scoring.py)
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
PACKING = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()

# Keys and values (lanes, n_head, 1 + steps, head_dim) in each layer except the first. These keys
# and values belong to the class token and to the steps that were processed so far.
Cache = list[tuple[Tensor, Tensor]]


class Layer(NamedTuple):
    """Weights of a transformer block, in the format that :func:`linear` expects."""

    wq: Tensor
    wkv: Tensor
    wo: Tensor
    w1: Tensor
    w3: Tensor
    w2: Tensor
    attention_norm: Tensor
    ffn_norm: Tensor


class Pairs(NamedTuple):
    """State of (image, order) pairs after the attention of the first layer, for all classes.

    `stream` (n_pairs, 2 n_tokens - 1, dim) is the float32 residual stream without the contribution
    of the class token. `seen` (n_pairs, 2 n_tokens - 1, n_head) is the attention
    weight of the class token. `rope` (n_pairs, 1, 2 n_tokens - 1, head_dim / 2, 2) is the rotation
    of each step. `targets` (n_pairs, n_tokens) are the tokens, in the sequence of the order.
    """

    stream: Tensor
    seen: Tensor
    rope: Tensor
    targets: Tensor


class Engine:
    """A prior that is prepared for scoring a list of classes.

    `labels` are row indices of the class table. Matrix products have type `dtype`, and weights of
    another type are converted. Unless the engine is compiled, bfloat16 weights on the CPU also get
    the memory layout that matrix products on the CPU use.
    """

    def __init__(
        self,
        prior: AnyOrderPrior,
        labels: Tensor,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ):
        self.prior, self.dtype = prior, dtype
        self.n_head, self.n_tokens, self.n_classes = prior.n_head, prior.n_tokens, len(labels)
        self.compiled_read = compile_or_warn(self.read) if compiled else None
        self.layers = []
        for block in prior.blocks:
            attention, ffn = block.attention, block.feed_forward
            wq, wkv = attention.wqkv.weight.tensor_split([prior.output.weight.shape[1]])
            weights = [wq, wkv, attention.wo.weight, ffn.w1.weight, ffn.w3.weight, ffn.w2.weight]
            norms = [block.attention_norm.weight, block.ffn_norm.weight]
            self.layers.append(
                Layer(
                    *(prepared(w, dtype, not compiled) for w in weights),
                    *(w.to(dtype) for w in norms),
                )
            )
        self.norm, self.output = prior.norm.weight.to(dtype), prior.output.weight.to(dtype)
        first, *rest = prior.class_values(labels)
        self.class_values = [v.to(dtype) for v in rest]
        wo = prior.blocks[0].attention.wo.weight
        # contribution of each head to the stream if the head attends only to the class token
        heads = (a.unflatten(-1, (self.n_head, -1)) for a in (first, wo))
        self.class_heads = torch.einsum("chk,dhk->chd", *heads)

    def pairs(self, codes: Tensor, orders: Tensor) -> Pairs:
        """Compute what does not depend on the class. Arguments have shape (n_pairs, n_tokens)."""
        prior, layer = self.prior, self.layers[0]
        targets = codes.gather(1, orders)
        x, rope = prior.interleave(targets, orders)
        q, k, v = self._project(x, layer)
        q, k = rotated(q, rope), rotated(k, rope)
        # here, the key and the value of the class token are zero, so its score is zero, too
        q, k, v = q.flatten(0, 1), *(F.pad(a, (0, 0, 1, 0)).flatten(0, 1) for a in (k, v))
        unseen = q.new_full((q.shape[1], k.shape[1]), -torch.inf).triu_(2)
        score = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=k.shape[-1] ** -0.5)
        weight = score.softmax(-1, dtype=torch.float32)
        y = (weight.to(v.dtype) @ v).unflatten(0, (len(x), -1)).transpose(1, 2).flatten(2)
        seen = weight[..., 0].unflatten(0, (len(x), -1)).transpose(1, 2)
        return Pairs(x + linear(y, layer.wo), seen, rope, targets)

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
        """Return log p(token | previous tokens, class) of the given lanes and steps, and a cache.

        The log-probabilities are float32 and have shape (n_lanes, stop - start). For each lane,
        `pair` (n_lanes,) is a row of `pairs`, and `label` (n_lanes,) is the index of the class.
        `cache` was returned by an earlier call that ended at `start`. If `cache` is None, `start`
        must be 0. The returned cache is empty unless `keep` is True.
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
        """Return the stream (n_lanes, stop - start, dim) that predicts each token, and a cache."""
        # The sequence is p1 t1 p2 t2 ... The last token of this part is processed in the next part,
        # because it is not needed to predict the tokens of this part.
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
                # the last layer needs queries only at positions that predict a token
                queries = predicting if last else slice(None)
                q, k, v = self._attention_inputs(x, layer, values, rope, before, queries)
                x = x[:, queries]
                y = attention(q, k, v, range(begin, end)[queries])
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
        """Return log p(token | previous tokens, class) of all classes and tokens, as float32.

        The shape is (n_pairs, n_tokens, n_classes). For each pair, at most `lanes` classes are
        scored together.
        """
        n_pairs, width = len(pairs.targets), tile_shape(lanes, self.n_classes)[1]
        device = pairs.targets.device
        pair = torch.arange(n_pairs, device=device).repeat_interleave(width)
        read = self.compiled_read or self.read
        parts = []
        for start in range(0, self.n_classes, width):
            label = torch.arange(start, start + width, device=device)
            label = label.clamp_(max=self.n_classes - 1).repeat(n_pairs)
            log_prob, _ = read(pairs, pair, label, 0, self.n_tokens)
            parts.append(log_prob.view(n_pairs, width, self.n_tokens).transpose(1, 2))
        return torch.cat(parts, 2)[..., : self.n_classes]

    def cache_bytes(self, n_tokens: int) -> int:
        """Return the size in bytes of the cache of one lane after `n_tokens` tokens."""
        vector_bytes = self.output.shape[1] * self.output.element_size()
        return (len(self.layers) - 1) * 2 * (2 * n_tokens) * vector_bytes

    def pairs_at_once(self, lanes: int) -> int:
        """Return the number of (image, order) pairs in one tile of `lanes` sequences."""
        return tile_shape(lanes, self.n_classes)[0]

    def normed(self, x: Tensor) -> Tensor:
        """Normalize the residual stream for the output layer."""
        return self._norm(x, self.norm)

    def _attention_inputs(
        self,
        x: Tensor,
        layer: Layer,
        values: Tensor,
        rope: Tensor,
        before: tuple[Tensor, Tensor] | None,
        queries: slice,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values. The last two include the class token and the cache."""
        q, k, v = self._project(x, layer, queries)
        q = rotated(q, rope[:, :, queries])
        k = rotated(k, rope)
        if before is None:
            return q, F.pad(k, (0, 0, 1, 0)), torch.cat([self._heads(values[:, None]), v], 2)
        return q, torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)

    def _project(self, x: Tensor, layer: Layer, queries: slice = slice(None)) -> tuple[Tensor, ...]:
        """Return the selected queries, all keys, and all values: (lanes, n_head, n, head_dim)."""
        y = self._norm(x, layer.attention_norm)
        q, kv = linear(y[:, queries], layer.wq), linear(y, layer.wkv)
        return tuple(self._heads(a) for a in (q, *kv.chunk(2, -1)))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.is_cuda:
            return F.rms_norm(x, x.shape[-1:], None, NORM_EPS).to(self.dtype) * weight
        # on the CPU, F.rms_norm takes three times as long as the following lines
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(NORM_EPS).rsqrt_()
        return (x * scale).to(self.dtype).mul_(weight)

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.n_head, -1)).transpose(-2, -3)
        return heads


def prepared(weight: Tensor, dtype: torch.dtype, pack: bool) -> Tensor:
    """Convert a weight to `dtype`. If `pack`, also change the memory layout for the CPU."""
    weight = weight.detach().to(dtype)
    if pack and PACKING and dtype == torch.bfloat16 and not weight.is_cuda:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return packed
    return weight


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x by the transposed weight. The weight may be packed by :func:`prepared`."""
    plain = x.is_cuda or x.dtype != torch.float32 or torch.compiler.is_compiling() or not ONEDNN
    if plain and not weight.is_mkldnn:
        return F.linear(x, weight)
    # for float32, F.linear calls another library, which is slower than oneDNN on some CPUs
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """Compute :func:`rotate`, also in compiled functions."""
    if not torch.compiler.is_compiling():
        return rotate(x, rope)
    # torch.compile does not support complex numbers
    (a, b), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), rope.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).type_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor, steps: range) -> Tensor:
    """Compute causal attention: a query attends to the class token and to steps up to its own.

    On the CPU, a few queries are processed at a time. Most attention scores that the mask would
    remove are then not computed.
    """
    if q.is_cuda and steps.step == 1:
        # imported only here, because this import takes half as long as importing torch itself
        from torch.nn.attention.bias import causal_lower_right

        causal = causal_lower_right(q.shape[2], k.shape[2])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=causal)
        return y.transpose(1, 2).flatten(2)
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention
    if not q.is_cuda and q.dtype == torch.bfloat16:
        q, attend = q.contiguous(), bfloat16_attention
    n_queries = len(steps) if q.is_cuda else QUERIES_AT_ONCE
    out = q.new_empty(q.shape[0], len(steps), q.shape[1], q.shape[3])
    for start in range(0, len(steps), n_queries):
        part = slice(start, start + n_queries)
        rows = steps[part]
        seen = rows[-1] + 2
        last = torch.arange(rows[0], rows[-1] + 1, rows.step, device=q.device)
        mask = torch.arange(-1, seen - 1, device=q.device) <= last[:, None]
        y = attend(q[:, :, part], k[:, :, :seen], v[:, :, :seen], mask)
        out[:, part] = y.transpose(1, 2)
    return out.flatten(2)


def bfloat16_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Compute attention by matrix products. On CPUs, torch's function takes twice as long."""
    unseen = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    q, k, v, batch = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), q.shape[:2]
    score = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    y: Tensor = torch.bmm(score.softmax(-1), v).unflatten(0, batch)
    return y


def token_log_prob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target token (n,), from hidden states (n, dim).

    Logits are computed for a few rows at a time to limit the memory. The logit of the target is
    computed in float32. In bfloat16, the rounding error of this logit would be as large as the
    differences between classes. The fused functions of torch and Liger-Kernel are not used, because
    they round this logit.
    """
    rows = max(1, LOGITS_AT_ONCE // len(weight))
    out = hidden.new_empty(len(hidden), dtype=torch.float32)
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        h, t = hidden[part], targets[part]
        logits = linear(h, weight)
        rounded = logits.gather(1, t[:, None])[:, 0]
        out[part] = logits.log_softmax(1, dtype=torch.float32).gather(1, t[:, None])[:, 0]
        if weight.dtype != torch.float32:
            out[part] += (h.float() * weight[t].float()).sum(1) - rounded
    return out


def tile_shape(lanes: int, n_classes: int) -> tuple[int, int]:
    """Return the number of (image, order) pairs and the number of classes in one tile."""
    n_tiles = -(-n_classes // lanes)  # number of tiles for all classes of one pair
    return max(1, lanes // n_classes), -(-n_classes // n_tiles)


def compile_or_warn(function: Callable[..., T]) -> Callable[..., T]:
    """Compile a function with torch.compile. If this fails, warn and use the plain function."""
    compiled_function = torch.compile(function, dynamic=False)
    failed = False

    def call(*args: Any) -> T:
        nonlocal failed
        if not failed:
            try:
                return compiled_function(*args)
            except torch.OutOfMemoryError:
                raise
            except Exception as exc:  # compilers raise many kinds of errors
                failed = True
                warn(
                    f"torch.compile failed ({type(exc).__name__}); scoring continues without it.",
                    RuntimeWarning,
                )
        return function(*args)

    return call

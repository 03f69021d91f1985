"""Inference with a shared trunk: the trunk runs once for all classes, the head once per class.

For each (image, order) pair, the trunk first computes what all classes need: the features u and v,
one logit per group of codes, and one logit per code in the group of the target. For each class, the
head then applies a scale, a shift and a small projection. The head multiplies the result with the
weights of all groups and of the codes in one group, but not with the full codebook.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from skaocls.priors.shared_trunk import HeadInputs, SharedTrunkPrior
from skaocls.priors.transformer import Prior
from skaocls.scoring.engine import LOGITS_AT_ONCE, Cache, Engine, compile_or_warn, linear

# The head processes blocks, each with some tokens and some classes. The constants are the number of
# tokens per block, and the number of values that are computed per block. On the CPU, a block has
# about ten classes: blocks of fewer classes repeat the computations that all classes share. A CUDA
# block keeps the device busy (benchmarks/speed/early_stopping.py).
ROWS_PER_BLOCK, ROWS_PER_BLOCK_CUDA = 2**9, 2**13
NUMBERS_PER_BLOCK, NUMBERS_PER_BLOCK_CUDA = 2**22, 2**28


def make_engine(
    prior: Prior, labels: Tensor, dtype: torch.dtype = torch.float32, compiled: bool = False
) -> Any:
    """Return the inference engine for a prior and the classes to score.

    Both engine classes have the same methods. `pairs` computes everything that does not depend on
    the class. `read` computes the scores of given lanes; a lane combines one (image, order) pair
    with one class. `score` computes the scores of all classes.
    """
    if isinstance(prior, SharedTrunkPrior):
        return HeadEngine(prior, labels, dtype, compiled)
    return Engine(prior.transformer, labels, dtype, compiled)


class HeadEngine:
    """A prior with a shared trunk that is prepared for scoring a list of classes.

    For the arguments, see :class:`skaocls.scoring.engine.Engine`. The head always uses float32.
    """

    def __init__(
        self,
        prior: SharedTrunkPrior,
        labels: Tensor,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ):
        head = prior.head
        self.prior, self.n_tokens, self.n_classes = prior, prior.n_tokens, len(labels)
        self.trunk = Engine(prior.body, torch.zeros_like(labels[:1]), dtype, compiled)
        self.output = self.trunk.output
        self.head = head
        self.scale, self.shift = (a.detach() for a in head.vectors(labels))
        code, empty = head.layout()
        self.empty = empty if empty.any() else None
        self.grouped_output = self.output[code]
        self.states = compile_or_warn(self.trunk.states) if compiled else self.trunk.states

    def pairs_at_once(self, lanes: int) -> int:
        return lanes

    def pairs(self, codes: Tensor, orders: Tensor) -> HeadInputs:
        """Run the trunk on tokens (n_pairs, n_tokens) in given orders (n_pairs, n_steps)."""
        head, n_steps = self.head, orders.shape[1]
        pairs = self.trunk.pairs(codes, orders)
        rows = torch.arange(len(codes), device=codes.device)
        x, _ = self.states(pairs, rows, torch.zeros_like(rows), 0, n_steps)
        u, v = F.linear(head.norm(x), head.features.weight).chunk(2, -1)
        group, member = head.place(pairs.targets)
        flat = x.flatten(0, 1)
        group_logits = flat.new_empty(len(flat), head.n_groups)
        member_logits = flat.new_empty(len(flat), head.group_size)
        n_rows = max(1, LOGITS_AT_ONCE // len(self.grouped_output))
        for start in range(0, len(flat), n_rows):
            part = slice(start, start + n_rows)
            logits = linear(self.trunk.normed(flat[part]), self.grouped_output).float()
            if self.empty is not None:
                logits.masked_fill_(self.empty, -torch.inf)
            grouped = logits.view(-1, head.n_groups, head.group_size)
            group_logits[part] = grouped.logsumexp(2)
            own = group.flatten()[part, None, None].expand(-1, 1, head.group_size)
            member_logits[part] = grouped.gather(1, own)[:, 0]
        shape = *x.shape[:2], -1
        return HeadInputs(u, v, group_logits.view(shape), member_logits.view(shape), group, member)

    def read(
        self,
        pairs: HeadInputs,
        pair: Tensor,
        label: Tensor,
        start: int,
        stop: int,
        cache: Cache | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Cache]:
        """Return log p(token | class) of the given lanes, see :meth:`.engine.Engine.read`.

        The returned cache is always empty. Blocks of classes have the same shape as in
        :meth:`score`, so the log-probabilities of both methods are equal bit for bit.
        """
        lanes = pair.argsort(stable=True)
        count = torch.bincount(pair, minlength=len(pairs.group))
        by_count = count.argsort(descending=True, stable=True)
        first = count.cumsum(0) - count
        log_prob = pairs.u.new_empty(len(pair), stop - start)
        width = self._block_width()
        # process pairs with a similar number of classes together
        for rows in by_count.split(self._pairs_per_block()):
            n_blocks = -(-int(count[rows[0]]) // width)
            if not n_blocks:
                break
            column = torch.arange(n_blocks * width, device=pair.device)
            valid = column < count[rows, None]
            lane = lanes[(first[rows, None] + column).clamp_(max=len(pair) - 1)]
            part = HeadInputs(*(a[rows, start:stop] for a in pairs))
            scored = self._log_prob(part, label[lane])
            log_prob[lane[valid]] = scored.transpose(1, 2)[valid]
        return log_prob, []

    def score(self, pairs: HeadInputs, lanes: int) -> Tensor:
        """Return log p(token | previous tokens, class), see :meth:`.engine.Engine.score`."""
        width = self._block_width()
        label = torch.arange(-(-self.n_classes // width) * width, device=pairs.u.device)
        label = label.clamp_(max=self.n_classes - 1)[None]
        parts = [
            self._log_prob(HeadInputs(*part), label)
            for part in zip(*(a.split(self._pairs_per_block()) for a in pairs), strict=True)
        ]
        return torch.cat(parts)[..., : self.n_classes]

    def _pairs_per_block(self) -> int:
        n_rows = ROWS_PER_BLOCK_CUDA if self.output.is_cuda else ROWS_PER_BLOCK
        return max(1, n_rows // self.n_tokens)

    def _block_width(self) -> int:
        """Return the number of classes per block. All blocks have the same number."""
        limit = NUMBERS_PER_BLOCK_CUDA if self.output.is_cuda else NUMBERS_PER_BLOCK
        n_rows = self._pairs_per_block() * self.n_tokens
        per_row = 3 * self.scale.shape[1] + 2 * (self.head.n_groups + self.head.group_size)
        most = max(1, limit // (n_rows * per_row))
        return -(-self.n_classes // -(-self.n_classes // most))

    def _log_prob(self, pairs: HeadInputs, label: Tensor) -> Tensor:
        """Return log p(token | class), with shape (n_pairs, n_steps, n_labels).

        `label` has shape (1 or n_pairs, n_labels) and is processed in blocks. The number n_labels
        must be a multiple of the block width.
        """
        # head weights of the codes in the group of each target, (n_rows, rank, group_size)
        members = self.head.tokens[pairs.group.flatten()].transpose(1, 2)
        blocks = [
            self._block(pairs, members, self.scale[part][:, None], self.shift[part][:, None])
            for part in label.split(self._block_width(), 1)
        ]
        return torch.cat(blocks, 2)

    def _block(self, pairs: HeadInputs, members: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return log p(token | class) of one block of classes.

        `scale` and `shift` have shape (1 or n_pairs, 1, n_classes, width).
        """
        head = self.head
        z = torch.addcmul(shift, pairs.u[:, :, None], scale)
        z = F.silu(z, inplace=True).mul_(pairs.v[:, :, None])
        z = F.linear(z, head.project.weight)
        shape = z.shape[:3]
        z = z.flatten(0, 1)
        _, _, group_logits, member_logits, group, member = (a.flatten(0, 1)[:, None] for a in pairs)
        # multiply z (n_rows, n_classes, rank) with `members` (n_rows, rank, group_size)
        within = torch.baddbmm(member_logits, z, members)
        among = F.linear(z, head.groups.weight).add_(group_logits)
        member, group = (a[..., None].expand(*z.shape[:2], 1) for a in (member, group))
        own = within.gather(2, member) + among.gather(2, group)
        return (own[..., 0] - within.logsumexp(2) - among.logsumexp(2)).view(shape)

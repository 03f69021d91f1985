"""Inference with a prior whose trunk knows no class: the trunk once per pair, a head per class.

What a pair needs for any class is made once: features u and v, the trunk's logits of each group of
codes, and of the codes in the group of each target. A class then costs its scale and shift, a small
projection, and the groups and the codes of one group; the codebook as a whole does not come in.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.scoring.engine import LOGITS_AT_ONCE, Cache, Engine, compiled, linear

NUMBERS_AT_ONCE, NUMBERS_AT_ONCE_CUDA = 2**20, 2**28  # that heads of a tile of classes make


class HeadPairs(NamedTuple):
    """(image, order) pairs as the trunk read them; n_steps tokens in the order of reading.

    Attributes
    ----------
    u, v : float32 tensors of shape (n_pairs, n_steps, width)
    of_groups : float32 tensor of shape (n_pairs, n_steps, n_groups)
        Logits of the groups.
    of_members : float32 tensor of shape (n_pairs, n_steps, group_size)
        Logits of the codes in the target's group.
    group, member : int tensors of shape (n_pairs, n_steps)
        Group of each target, and which of its codes it is.
    """

    u: Tensor
    v: Tensor
    of_groups: Tensor
    of_members: Tensor
    group: Tensor
    member: Tensor


class HeadEngine:
    """A prior with a shared trunk and the classes to score, ready for inference.

    Parameters
    ----------
    prior : SharedTrunkPrior
    labels : int tensor of shape (n_classes,)
        Rows of the class table to score.
    dtype : torch.dtype, default=torch.float32
        Type of the trunk's products; the head's are in float32.
    pack : bool, default=True
        As in :class:`skaocls.scoring.engine.Engine`.
    """

    def __init__(
        self,
        prior: SharedTrunkPrior,
        labels: Tensor,
        dtype: torch.dtype = torch.float32,
        pack: bool = True,
    ):
        head = prior.head
        self.prior, self.n_tokens, self.n_classes = prior, prior.n_tokens, len(labels)
        self.trunk = Engine(prior.body, torch.zeros_like(labels[:1]), dtype, pack)
        self.output = self.trunk.output
        self.head = head
        self.scale, self.shift = (a.detach() for a in head.vectors(labels))
        code_at, self.gap = head.layout()
        self.placed = self.output[code_at]

        self.states = self.trunk.states

    def compile(self) -> None:
        """Let torch compile the trunk."""
        self.states = compiled(self.trunk.states)

    def cache_bytes(self, n_tokens: int) -> int:
        """Lanes keep nothing: the trunk has read the order as a whole."""
        return 0

    def pairs_at_once(self, lanes: int) -> int:
        """How many pairs make one tile, if `lanes` sequences do."""
        return lanes

    def pairs(self, codes: Tensor, orders: Tensor) -> HeadPairs:
        """Read tokens (n_pairs, n_tokens) along orders (n_pairs, n_steps)."""
        head, n_steps = self.head, orders.shape[1]
        pairs = self.trunk.pairs(codes, orders)
        every = torch.arange(len(codes), device=codes.device)
        x, _ = self.states(pairs, every, torch.zeros_like(every), 0, n_steps)
        features = F.linear(head.norm(x), head.features.weight)
        group, member = head.place(pairs.targets)
        rows = x.flatten(0, 1)
        of_groups = rows.new_empty(len(rows), head.n_groups)
        of_members = rows.new_empty(len(rows), head.group_size)
        few = max(1, LOGITS_AT_ONCE // len(self.placed))
        for at in range(0, len(rows), few):
            here = slice(at, at + few)
            logits = linear(self.trunk.normed(rows[here]), self.placed).float()
            placed = logits.masked_fill_(self.gap, -torch.inf)
            placed = placed.view(-1, head.n_groups, head.group_size)
            of_groups[here] = placed.logsumexp(2)
            own = group.flatten()[here, None, None].expand(-1, 1, head.group_size)
            of_members[here] = placed.gather(1, own)[:, 0]
        shape = x.shape[:2]
        u, v = features.chunk(2, -1)
        return HeadPairs(
            u, v, of_groups.view(*shape, -1), of_members.view(*shape, -1), group, member
        )

    def read(
        self,
        pairs: HeadPairs,
        pair: Tensor,
        label: Tensor,
        start: int,
        stop: int,
        cache: Cache | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Cache]:
        """As :meth:`skaocls.scoring.engine.Engine.read`, in tiles; there is nothing to keep."""
        log_prob = pairs.u.new_empty(len(pair), stop - start)
        lanes = pair.argsort(stable=True)
        some, count = pair[lanes].unique_consecutive(return_counts=True)
        # a pair's lanes side by side, together with pairs that have about as many
        real = torch.arange(int(count.max()), device=count.device) < count[:, None]
        lane = torch.zeros_like(real, dtype=torch.long).masked_scatter_(real, lanes)
        by_count = count.argsort(descending=True)
        at = 0
        while at < len(some):
            widest = int(count[by_count[at]])
            n_pairs = max(1, self.numbers_at_once // self.numbers(widest * (stop - start)))
            few = by_count[at : at + n_pairs]
            these = HeadPairs(*(a[some[few], start:stop] for a in pairs))
            mine, taken = lane[few, :widest], real[few, :widest]
            vectors = (a[label[mine]][:, None] for a in (self.scale, self.shift))
            found = self._log_prob(these, self._members(these), *vectors)
            log_prob[mine[taken]] = found.transpose(1, 2)[taken]
            at += n_pairs
        return log_prob, []

    def score(self, pairs: HeadPairs, lanes: int) -> Tensor:
        """log p(tokens | class) of all classes, (n_pairs, n_classes), float64."""
        of_classes = self._of_classes(pairs)
        return torch.cat([some.sum(1, dtype=torch.float64) for some in of_classes], 1)

    def tokens(self, pairs: HeadPairs) -> Tensor:
        """log p(token | class) of all classes, (n_pairs, n_steps, n_classes)."""
        return torch.cat(list(self._of_classes(pairs)), 2)

    def _of_classes(self, pairs: HeadPairs) -> Iterator[Tensor]:
        """The same for a few classes at a time."""
        members, each = self._members(pairs), self.numbers(pairs.group.numel())
        few = max(1, self.numbers_at_once // each)
        for at in range(0, self.n_classes, few):
            here = slice(at, at + few)
            yield self._log_prob(pairs, members, self.scale[here], self.shift[here])

    def numbers(self, rows: int) -> int:
        """How many numbers a class makes of so many tokens."""
        return rows * (3 * self.scale.shape[1] + 2 * (self.head.n_groups + self.head.group_size))

    @property
    def numbers_at_once(self) -> int:
        return NUMBERS_AT_ONCE_CUDA if self.output.is_cuda else NUMBERS_AT_ONCE

    def _members(self, pairs: HeadPairs) -> Tensor:
        """Tilts of the codes in each target's group, (n_pairs * n_steps, rank, group_size)."""
        return self.head.tokens[pairs.group.flatten()].transpose(1, 2)

    def _log_prob(self, pairs: HeadPairs, members: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """(n_pairs, n_steps, n_classes).

        Scales and shifts are (n_classes, width), or (n_pairs, 1, n_classes, width).
        """
        head = self.head
        z = torch.addcmul(shift, pairs.u[:, :, None], scale)
        z = F.silu(z, inplace=True).mul_(pairs.v[:, :, None])
        z = F.linear(z, head.project.weight)
        shape = z.shape[:3]
        z = z.flatten(0, 1)
        _, _, of_groups, of_members, group, member = (a.flatten(0, 1)[:, None] for a in pairs)
        # z (rows, classes, rank) with the codes of each row's group (rows, rank, group_size)
        within = torch.baddbmm(of_members, z, members)
        among = F.linear(z, head.groups.weight).add_(of_groups)
        member, group = (a[..., None].expand(*z.shape[:2], 1) for a in (member, group))
        own = within.gather(2, member) + among.gather(2, group)
        return (own[..., 0] - within.logsumexp(2) - among.logsumexp(2)).view(shape)

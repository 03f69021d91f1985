"""A prior that scores all classes with one forward pass: a shared trunk and a small head.

The trunk is the transformer of :mod:`skaocls.priors.transformer`, used with the null class. From
the hidden state h, the trunk predicts one token. From h and the class c, the head computes

    u, v = features(norm(h))            z = project(silu(u * scale_c + shift_c) * v)

The vector z *tilts* the trunk's distribution over the codes: z changes the trunk's logits. Similar
codes form groups. The distribution is the product of a distribution over the groups and a
distribution over the codes within a group. For each class, the head multiplies z with the weights
of all groups and with the weights of the codes in *one* group, but not with the full codebook:

    log p(t | c) = log softmax(l + groups(z))[group of t]
                   + log softmax(b + tokens(z))[t, among the codes of its group]

where b are the trunk's logits, and l is the logsumexp of b over each group. For each class, the
probabilities of all codes sum to one. If z is zero, the trunk's distribution is unchanged.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from skaocls.priors.layers import RMSNorm
from skaocls.priors.transformer import AnyOrderPrior, Prior

INITIAL_STD = 0.3  # standard deviation of the initial scales and shifts of the classes


class HeadInputs(NamedTuple):
    """What the head needs to score tokens under any class. Tokens are sorted by the order.

    The features `u` and `v` have shape (items, steps, width). `group_logits` (items, steps,
    n_groups) are the trunk's logits of the groups. `member_logits` (items, steps, group_size) are
    the trunk's logits of the codes in the group of the target. `group` and `member` (items, steps)
    are the group of each target, and the index of the target within this group.
    """

    u: Tensor
    v: Tensor
    group_logits: Tensor
    member_logits: Tensor
    group: Tensor
    member: Tensor


class ClassHead(nn.Module):
    """The head, which computes the token distribution of each class (see the module docstring).

    `slots` maps each code to a slot. Codes in the same block of consecutive slots belong to the
    same group. All parameters are documented in :class:`SharedTrunkPrior`.
    """

    slots: Tensor

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        num_classes: int,
        width: int = 128,
        rank: int = 64,
        slots: np.ndarray | None = None,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.group_size = group_size(vocab_size)
        self.n_groups = -(-vocab_size // self.group_size)
        device = torch.get_default_device()
        with torch.device("meta"):
            self.norm = RMSNorm(dim)
            self.features = nn.Linear(dim, 2 * width, bias=False)
            self.classes = nn.Embedding(num_classes + 1, 2 * width)
            self.project = nn.Linear(width, rank, bias=False)
            self.tokens = nn.Parameter(torch.empty(self.n_groups, self.group_size, rank))
            self.groups = nn.Linear(rank, self.n_groups, bias=False)
        self.float().to_empty(device=device)
        slot = torch.arange(vocab_size) if slots is None else torch.as_tensor(slots)
        self.register_buffer("slots", slot.long().to(device))
        nn.init.ones_(self.norm.weight)
        for layer in (self.features, self.project):
            std = 0.5 * layer.weight.shape[1] ** -0.5
            nn.init.normal_(layer.weight, std=std, generator=generator)
        nn.init.normal_(self.classes.weight, std=INITIAL_STD, generator=generator)
        # initially, z is multiplied by zero and the trunk's distribution is unchanged
        for weight in (self.tokens, self.groups.weight):
            nn.init.zeros_(weight)

    def layout(self) -> tuple[Tensor, Tensor]:
        """Return the code in each slot (0 if the slot is empty), and whether the slot is empty."""
        code = torch.full((self.n_groups * self.group_size,), -1, device=self.slots.device)
        code[self.slots] = torch.arange(len(self.slots), device=self.slots.device)
        return code.clamp_min(0), code < 0

    def place(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the group of each code, and the index of the code within its group."""
        slot = self.slots[codes]
        return slot // self.group_size, slot % self.group_size

    def base(self, hidden: Tensor, body: AnyOrderPrior) -> Tensor:
        """Return the trunk's float32 logits (..., n_groups, group_size), -inf for empty slots."""
        code, empty = self.layout()
        # the weights are sorted by slot: this copies fewer numbers than sorting the logits
        logits = F.linear(body.norm(hidden), F.embedding(code, body.output.weight)).float()
        if len(code) > len(self.slots):
            logits = logits.masked_fill(empty, -torch.inf)
        return logits.view(*logits.shape[:-1], self.n_groups, self.group_size)

    def vectors(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and the shift of each class, with shape (..., width) each."""
        scale, shift = F.embedding(labels, self.classes.weight).chunk(2, -1)
        return 1 + scale, shift

    def inputs(self, hidden: Tensor, body: AnyOrderPrior, codes: Tensor) -> HeadInputs:
        """Compute what all classes need to score tokens, from hidden states (items, steps, dim)."""
        base, (group, member) = self.base(hidden, body), self.place(codes)
        return HeadInputs(
            *self.features_of(hidden), base.logsumexp(-1), codes_of(base, group), group, member
        )

    def features_of(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features u and v (..., width) of hidden states (..., dim)."""
        u, v = self.features(self.norm(hidden)).chunk(2, -1)
        return u, v

    def tilt(self, u: Tensor, v: Tensor, labels: Tensor) -> Tensor:
        """Return z (..., rank) for features (..., width) and labels that broadcast with them."""
        scale, shift = self.vectors(labels)
        return cast(Tensor, self.project(F.silu(torch.addcmul(shift, u, scale)) * v))

    def log_prob(self, inputs: HeadInputs, labels: Tensor) -> Tensor:
        """Return the log-probabilities (items, steps, n_classes) for labels (items, n_classes).

        Only the codes in the group of each target are tilted.
        """
        u, v, group_logits, member_logits, group, member = (a.unsqueeze(2) for a in inputs)
        z = self.tilt(u, v, labels[:, None])
        tilts = F.embedding(group[..., 0], self.tokens.flatten(1))
        tilts = tilts.unflatten(-1, self.tokens.shape[1:])
        among = group_logits + self.groups(z).float()
        within = member_logits + (z @ tilts.mT).float()
        group, member = (a.expand(z.shape[:-1]) for a in (group, member))
        return log_softmax_at(among, group) + log_softmax_at(within, member)

    def log_softmax(self, base: Tensor, z: Tensor) -> Tensor:
        """Return the log-probabilities (..., vocab_size) of all codes."""
        of_group = (base.logsumexp(-1) + self.groups(z).float()).log_softmax(-1)
        tilts = F.linear(z, self.tokens.flatten(0, 1)).float()
        tilts = tilts.unflatten(-1, self.tokens.shape[:2])
        by_slot: Tensor = of_group[..., None] + (base + tilts).log_softmax(-1)
        return by_slot.flatten(-2)[..., self.slots]


class SharedTrunkPrior(Prior):
    """Any-order autoregressive prior that needs one forward pass per order for all classes.

    The prior computes log p(tokens | class, order) like :class:`AnyOrderPrior`. The class affects
    only the head that follows the transformer, see :mod:`skaocls.priors.shared_trunk`.

    Parameters
    ----------
    vocab_size : int
        Number of token values (the size of the tokenizer's codebook).
    grid : tuple of int (rows, cols)
        Arrangement of the tokens of one image.
    num_classes : int
        Number of classes. The label `num_classes` is the null class, which stands for no class.
    dim, n_layer, n_head, multiple_of : int, default=128, 3, 4, 256
        Sizes of the trunk, as in :class:`AnyOrderPrior`.
    dropout : float, default=0.0
        Dropout of the trunk, as in :class:`AnyOrderPrior`.
    width : int, default=128
        Number of trunk features that each class scales and shifts.
    rank : int, default=64
        Length of the vector z. For each class, z changes the trunk's distribution.
    slots : int array of shape (vocab_size,), default=None
        Permutation that moves similar codes next to each other. If None, the codes are not moved.
    generator : torch.Generator, default=None
        Generator for the initial float32 weights. If None, torch's global generator is used.
    body : AnyOrderPrior, default=None
        Trained transformer to use as the trunk. All classes except the null class are removed from
        this transformer. If None, a new trunk is created.
    head : ClassHead, default=None
        Trained head to use. If None, a new head is created.

    Examples
    --------
    >>> import torch
    >>> from skaocls import SharedTrunkPrior
    >>> prior = SharedTrunkPrior(vocab_size=16, grid=(2, 3), num_classes=4, dim=32, n_layer=2)
    >>> codes = torch.randint(16, (5, 6))
    >>> orders = torch.stack([torch.randperm(6) for _ in range(5)])
    >>> prior(codes, orders, torch.tensor([0, 1, 2, 3, 4])).shape  # label 4: no class
    torch.Size([5, 6, 16])
    """

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        num_classes: int,
        dim: int = 128,
        n_layer: int = 3,
        n_head: int = 4,
        multiple_of: int = 256,
        dropout: float = 0.0,
        width: int = 128,
        rank: int = 64,
        slots: np.ndarray | None = None,
        generator: Generator | None = None,
        body: AnyOrderPrior | None = None,
        head: ClassHead | None = None,
    ):
        super().__init__()
        if body is None:
            body = AnyOrderPrior(
                vocab_size, grid, 0, dim, n_layer, n_head, multiple_of, dropout, generator
            )
        else:
            body.replace_class_table(body.class_table.detach()[-1:].clone())
        self.body = body
        self.vocab_size, self.grid = body.vocab_size, body.grid
        self.num_classes = int(num_classes)
        sizes = body.dim, body.vocab_size, self.num_classes
        self.head = head or ClassHead(*sizes, int(width), int(rank), slots, generator)

    @property
    def transformer(self) -> AnyOrderPrior:
        return self.body

    @property
    def class_table(self) -> Tensor:
        return self.head.classes.weight

    @property
    def sizes(self) -> dict[str, object]:
        rank, width = self.head.project.weight.shape
        sizes: dict[str, object] = {"architecture": "shared_trunk"}
        return sizes | {"width": width, "rank": rank} | super().sizes

    def readings(self, n_classes: int) -> int:
        return 1

    def hidden_weights(self) -> dict[Tensor, int]:
        head_weights = {self.head.features.weight: 2, self.head.project.weight: 1}
        return super().hidden_weights() | head_weights

    def replace_class_table(self, table: Tensor) -> None:
        self.num_classes = len(table) - 1
        self.head.classes = nn.Embedding.from_pretrained(table, freeze=False)

    def predict(self, hidden: Tensor, labels: Tensor) -> Tensor:
        head = self.head
        z = head.tilt(*head.features_of(hidden), labels[:, None])
        return head.log_softmax(head.base(hidden, self.body), z)

    def log_prob_by_class(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        return self.head.log_prob(self.head_inputs(codes, orders, labels[:, 0], generator), labels)

    def head_inputs(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None
    ) -> HeadInputs:
        orders = orders.expand_as(codes)
        hidden = self.hidden(codes, orders, labels, generator)
        return self.head.inputs(hidden, self.body, codes.gather(1, orders))

    def hidden(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        # the trunk has no class except the null class
        return self.body.states(codes, orders, torch.zeros_like(labels), generator)

    def class_values(self, labels: Tensor) -> list[Tensor]:
        """Return the class values of the trunk's null class, whatever the labels are."""
        return self.body.class_values(torch.zeros_like(labels))


def codes_of(by_group: Tensor, group: Tensor) -> Tensor:
    """Select the values of one group (..., group_size) from (..., n_groups, group_size)."""
    index = group[..., None, None].expand(*group.shape, 1, by_group.shape[-1])
    return by_group.gather(-2, index).squeeze(-2)


def log_softmax_at(logits: Tensor, index: Tensor) -> Tensor:
    """Return the log-probability of one index (...) under logits (..., n)."""
    return logits.log_softmax(-1).gather(-1, index[..., None]).squeeze(-1)


def group_size(vocab_size: int) -> int:
    """Return the number of codes per group, about the square root of the number of codes."""
    return int(np.ceil(vocab_size**0.5))


def similar_slots(codebook: np.ndarray) -> np.ndarray:
    """Return a slot for each code of a codebook (vocab_size, n_features). Groups are similar codes.

    The codes are split into halves along their principal axis. Each half is split in the same way
    again, until every part is at most as large as a group.
    """
    size = group_size(len(codebook))

    def sort(codes: np.ndarray) -> list[int]:
        if len(codes) <= size:
            return sorted(codes.tolist(), key=lambda code: codebook[code].tolist())
        centered = codebook[codes] - codebook[codes].mean(0)
        axis = np.linalg.svd(centered, full_matrices=False)[2][0]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        codes = codes[np.argsort(centered @ axis, kind="stable")]
        half = -(-len(codes) // size) // 2 * size
        return sort(codes[:half]) + sort(codes[half:])

    slots = np.empty(len(codebook), dtype=np.int64)
    slots[sort(np.arange(len(codebook)))] = np.arange(len(codebook))
    return slots

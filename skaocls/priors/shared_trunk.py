"""A prior that reads an image once for all classes: a shared trunk and a small head per class.

The trunk is the transformer of :mod:`skaocls.priors.transformer` with the null class. From its
hidden state h at a predicting position, the head computes for class c

    u, v = features(norm(h))            z = project(silu(u * scale_c + shift_c) * v)

and z tilts the trunk's distribution over the codes. The tilted distribution is factored into groups
of similar codes and codes within a group. A class then costs the product of z with the groups and
with the codes of *one* group, instead of the full codebook:

    log p(t | c) = log softmax(l + groups(z))[group of t]
                   + log softmax(b + tokens(z))[t, among the codes of its group]

where b are the trunk's logits and l their logsumexp over each group. The distribution sums to one
over the codebook for each class. With a zero tilt it is the trunk's distribution.
"""

from typing import cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from skaocls.priors.layers import RMSNorm
from skaocls.priors.transformer import AnyOrderPrior, Prior

INITIAL_STD = 0.3  # standard deviation of initial scales and shifts between classes


class ClassHead(nn.Module):
    """The head that computes class-dependent distributions, see the module's docstring.

    Consecutive slots form the groups of codes. The parameters are those of SharedTrunkPrior.
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
        for weight in (self.tokens, self.groups.weight):  # initial predictions are the trunk's
            nn.init.zeros_(weight)

    def layout(self) -> tuple[Tensor, Tensor]:
        """Return the code in each slot, (n_groups * group_size,), and which slots are empty."""
        code = torch.full((self.n_groups * self.group_size,), -1, device=self.slots.device)
        code[self.slots] = torch.arange(len(self.slots), device=self.slots.device)
        return code.clamp_min(0), code < 0

    def place(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the group of each code, and the code's index within the group."""
        slot = self.slots[codes]
        return slot // self.group_size, slot % self.group_size

    def base(self, hidden: Tensor, output: Tensor) -> Tensor:
        """Return the trunk's float32 logits (..., n_groups, group_size); empty slots are -inf."""
        code, empty = self.layout()
        logits = F.linear(hidden, output[code]).float().masked_fill(empty, -torch.inf)
        return logits.view(*logits.shape[:-1], self.n_groups, self.group_size)

    def vectors(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and the shift of classes, (..., width) each."""
        scale, shift = F.embedding(labels, self.classes.weight).chunk(2, -1)
        return 1 + scale, shift

    def tilt(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return z (..., rank) for hidden states (..., dim); labels broadcast with them."""
        u, v = self.features(self.norm(hidden)).chunk(2, -1)
        scale, shift = self.vectors(labels)
        return cast(Tensor, self.project(F.silu(u * scale + shift) * v))

    def tilted(self, base: Tensor, z: Tensor) -> Tensor:
        """Return the tilted logits of the codes within their groups, like `base`."""
        tilts = F.linear(z, self.tokens.flatten(0, 1)).float()
        return base + tilts.view(*tilts.shape[:-1], self.n_groups, self.group_size)

    def log_prob(self, base: Tensor, z: Tensor, codes: Tensor) -> Tensor:
        """Return the log-probability (...) of codes, from :meth:`base` and tilts z (..., rank)."""
        group, member = self.place(codes)
        among = base.logsumexp(-1) + self.groups(z).float()
        # tilting all codes is faster than copying the codes of each target's group
        within = codes_of(self.tilted(base, z), group)
        return log_softmax_at(among, group) + log_softmax_at(within, member)

    def log_prob_by_class(self, base: Tensor, z: Tensor, codes: Tensor) -> Tensor:
        """Return the log-probability (..., n_classes) of codes under z (..., n_classes, rank).

        Only the codes of each target's group are tilted. For several classes this is faster than
        tilting all codes as :meth:`log_prob` does.
        """
        group, member = self.place(codes)
        tilts = F.embedding(group, self.tokens.flatten(1)).unflatten(-1, self.tokens.shape[1:])
        within = (z @ tilts.transpose(-1, -2)).float() + codes_of(base, group)[..., None, :]
        among = self.groups(z).float() + base.logsumexp(-1)[..., None, :]
        group, member = (a[..., None].expand(z.shape[:-1]) for a in (group, member))
        return log_softmax_at(among, group) + log_softmax_at(within, member)

    def log_softmax(self, base: Tensor, z: Tensor) -> Tensor:
        """Return the log-probabilities (..., vocab_size) of all codes."""
        of_group = (base.logsumexp(-1) + self.groups(z).float()).log_softmax(-1)
        by_slot: Tensor = of_group[..., None] + self.tilted(base, z).log_softmax(-1)
        return by_slot.flatten(-2)[..., self.slots]


class SharedTrunkPrior(Prior):
    """Any-order autoregressive prior that reads an image once per order for all classes.

    It models log p(tokens | class, order) like :class:`AnyOrderPrior`, but the class affects only a
    head after the transformer, see :mod:`skaocls.priors.shared_trunk`.

    Parameters
    ----------
    vocab_size : int
        Number of token values (the size of the tokenizer's codebook).
    grid : tuple of int (rows, cols)
        Arrangement of the tokens of one image.
    num_classes : int
        Number of classes. Label `num_classes` is the null class (unconditional).
    dim, n_layer, n_head, multiple_of : int, default=128, 3, 4, 256
        Sizes of the trunk, as in :class:`AnyOrderPrior`.
    dropout : float, default=0.0
        Dropout of the trunk, as in :class:`AnyOrderPrior`.
    width : int, default=128
        Number of trunk features that each class scales and shifts.
    rank : int, default=64
        Rank of the tilts between classes.
    slots : int array of shape (vocab_size,), default=None
        Permutation that moves similar codes next to each other. None keeps the order of the codes.
    generator : torch.Generator, default=None
        Draws the initial float32 weights; None uses torch's global generator.
    body : AnyOrderPrior, default=None
        Trained transformer to use as the trunk instead of a new one. It is modified: only the null
        class of its class table is kept.
    head : ClassHead, default=None
        Trained head to use instead of a new one.

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
        return self.head.log_softmax(self.base(hidden), self.head.tilt(hidden, labels[:, None]))

    def base(self, hidden: Tensor) -> Tensor:
        """Return the trunk's logits, see :meth:`ClassHead.base`."""
        return self.head.base(self.body.norm(hidden), self.body.output.weight)

    def log_prob(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        orders = orders.expand_as(codes)
        hidden = self.hidden(codes, orders, labels, generator)
        z = self.head.tilt(hidden, labels[:, None])
        return self.head.log_prob(self.base(hidden), z, codes.gather(1, orders))

    def log_prob_with_rivals(
        self,
        codes: Tensor,
        orders: Tensor,
        labels: Tensor,
        selected: Tensor,
        rivals: Tensor,
        steps: slice,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        orders = orders.expand_as(codes)
        hidden = self.hidden(codes, orders, labels, generator)
        base, targets, head = self.base(hidden), codes.gather(1, orders), self.head
        log_prob = head.log_prob(base, head.tilt(hidden, labels[:, None]), targets)
        z = head.tilt(hidden[selected, steps][:, :, None], rivals[:, None])
        rival_base, rival_targets = base[selected, steps], targets[selected, steps]
        return log_prob, head.log_prob_by_class(rival_base, z, rival_targets)

    def class_values(self, labels: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """Return the trunk's class values, which are the same for all classes."""
        return self.body.class_values(torch.zeros_like(labels), generator)


def codes_of(by_group: Tensor, group: Tensor) -> Tensor:
    """Select the codes of one group, (..., group_size) of (..., n_groups, group_size)."""
    index = group[..., None, None].expand(*group.shape, 1, by_group.shape[-1])
    return by_group.gather(-2, index).squeeze(-2)


def log_softmax_at(logits: Tensor, index: Tensor) -> Tensor:
    """Return the log-probability of one index (...) of logits (..., n)."""
    return logits.log_softmax(-1).gather(-1, index[..., None]).squeeze(-1)


def group_size(vocab_size: int) -> int:
    """Return the number of codes per group, about the square root of the number of codes."""
    return int(np.ceil(vocab_size**0.5))


def similar_slots(codebook: np.ndarray) -> np.ndarray:
    """Return the slot of each code of a codebook (vocab_size, n_features); groups are similar.

    The codes are split in half along their principal axis, recursively.
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

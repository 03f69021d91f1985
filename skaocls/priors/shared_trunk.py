"""A prior that reads an image once for all classes: a trunk that knows no class, and a light head.

The trunk is the transformer of :mod:`skaocls.priors.transformer`, read with its null class. Of its
hidden state h at a predicting position the head makes, for class c,

    u, v = features(norm(h))            z = project(silu(u * scale_c + shift_c) * v)

and z tilts the trunk's own distribution over the codes. The tilt is normalized in two steps, over
groups of similar codes and over the codes of a group, because a class then costs the product of z
with the groups and with the codes of *one* group, not with the whole codebook:

    log p(t | c) = log softmax(l + groups(z))[group of t]
                   + log softmax(b + tokens(z))[t, among the codes of its group]

with b the trunk's logits and l their logsumexp over each group. It is exact: it sums to one over
the codebook for each class, and without a tilt it is the trunk's distribution.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from skaocls.priors.interface import Prior
from skaocls.priors.transformer import AnyOrderPrior, RMSNorm

SPREAD = 0.3  # of scales and shifts between classes at the start


class ClassHead(nn.Module):
    """What tells classes apart, see the module's text.

    Parameters
    ----------
    dim : int
        Width of the hidden states.
    vocab_size : int
    num_classes : int
        The null class comes on top.
    width : int, default=128
        Of scale and shift.
    rank : int, default=64
        Of the tilts.
    slots : int array of shape (vocab_size,), default=None
        Place of each code, of which neighbours make groups (:func:`similar_slots`); None is the
        order of the codes.
    generator : torch.Generator, default=None
        Draws the initial weights; None is torch's global one.
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
        home = torch.get_default_device()
        with torch.device("meta"):
            self.norm = RMSNorm(dim)
            self.features = nn.Linear(dim, 2 * width, bias=False)
            self.classes = nn.Embedding(num_classes + 1, 2 * width)
            self.project = nn.Linear(width, rank, bias=False)
            self.tokens = nn.Parameter(torch.empty(self.n_groups, self.group_size, rank))
            self.groups = nn.Linear(rank, self.n_groups, bias=False)
        self.float().to_empty(device=home)
        places = torch.arange(vocab_size) if slots is None else torch.as_tensor(slots)
        self.register_buffer("slots", places.long().to(home))
        nn.init.ones_(self.norm.weight)
        for layer in (self.features, self.project):
            spread = 0.5 * layer.weight.shape[1] ** -0.5
            nn.init.normal_(layer.weight, std=spread, generator=generator)
        nn.init.normal_(self.classes.weight, std=SPREAD, generator=generator)
        for weight in (self.tokens, self.groups.weight):  # the first predictions are the trunk's
            nn.init.zeros_(weight)

    def layout(self) -> tuple[Tensor, Tensor]:
        """The code at each place (n_groups * group_size,), and which places have none."""
        places = torch.full((self.n_groups * self.group_size,), -1, device=self.slots.device)
        places[self.slots] = torch.arange(len(self.slots), device=self.slots.device)
        return places.clamp_min(0), places < 0

    def place(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Group of each code, and which of its members it is."""
        slot = self.slots[codes]
        return slot // self.group_size, slot % self.group_size

    def base(self, hidden: Tensor, output: Tensor) -> Tensor:
        """The trunk's float32 logits by place, (..., n_groups, group_size); gaps are -inf.

        `hidden` (..., dim) is as the output layer takes it, `output` its weight (vocab_size, dim).
        """
        code_at, gap = self.layout()
        logits = F.linear(hidden, output[code_at]).float().masked_fill(gap, -torch.inf)
        return logits.view(*logits.shape[:-1], self.n_groups, self.group_size)

    def vectors(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of classes, (..., width) each."""
        scale, shift = F.embedding(labels, self.classes.weight).chunk(2, -1)
        return 1 + scale, shift

    def tilt(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """z (..., rank) of hidden states (..., dim) under classes that broadcast with them."""
        u, v = self.features(self.norm(hidden)).chunk(2, -1)
        scale, shift = self.vectors(labels)
        return cast(Tensor, self.project(F.silu(u * scale + shift) * v))

    def tilted(self, base: Tensor, z: Tensor) -> Tensor:
        """Logits of the codes within their groups, like `base`."""
        tilts = F.linear(z, self.tokens.flatten(0, 1)).float()
        return base + tilts.view(*tilts.shape[:-1], self.n_groups, self.group_size)

    def log_prob(self, base: Tensor, z: Tensor, codes: Tensor) -> Tensor:
        """Log-probability (...) of codes, from :meth:`base` and tilts z (..., rank)."""
        group, member = self.place(codes)
        among = base.logsumexp(-1) + self.groups(z).float()
        own = group[..., None, None].expand(*group.shape, 1, self.group_size)
        # of all codes: copying those of each target's group would take longer
        within = self.tilted(base, z).gather(-2, own).squeeze(-2)
        of_group = among.log_softmax(-1).gather(-1, group[..., None])
        in_group = within.log_softmax(-1).gather(-1, member[..., None])
        log_prob: Tensor = (of_group + in_group).squeeze(-1)
        return log_prob

    def log_prob_of_each(self, base: Tensor, z: Tensor, codes: Tensor) -> Tensor:
        """As :meth:`log_prob` under several classes: z is (..., n_classes, rank), the result too.

        Only codes of each target's group are tilted, which several classes are worth copying for.
        """
        group, member = self.place(codes)
        own = group[..., None, None].expand(*group.shape, 1, self.group_size)
        of_members, of_groups = base.gather(-2, own), base.logsumexp(-1)[..., None, :]
        tilts = F.embedding(group, self.tokens.flatten(1)).unflatten(-1, self.tokens.shape[1:])
        within = (z @ tilts.transpose(-1, -2)).float() + of_members
        among = self.groups(z).float() + of_groups
        of_group, in_group = (
            logits.log_softmax(-1).gather(-1, at[..., None, None].expand(*logits.shape[:-1], 1))
            for logits, at in ((among, group), (within, member))
        )
        log_prob: Tensor = (of_group + in_group).squeeze(-1)
        return log_prob

    def log_softmax(self, base: Tensor, z: Tensor) -> Tensor:
        """Log-probabilities (..., vocab_size) of all codes."""
        of_group = (base.logsumexp(-1) + self.groups(z).float()).log_softmax(-1)
        by_place: Tensor = of_group[..., None] + self.tilted(base, z).log_softmax(-1)
        return by_place.flatten(-2)[..., self.slots]


class SharedTrunkPrior(Prior):
    """Any-order autoregressive prior that reads an image once per order, whatever the classes.

    It models log p(tokens | class, order) as :class:`AnyOrderPrior` does, but the class enters only
    after the transformer, see :mod:`skaocls.priors.shared_trunk`.

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
        Of the trunk, as in :class:`AnyOrderPrior`.
    width : int, default=128
        Numbers by which a class scales, and by which it shifts, features of the trunk.
    rank : int, default=64
        Rank of the tilts between classes.
    slots : int array of shape (vocab_size,), default=None
        Place of each code among its like, see :func:`similar_slots`.
    generator : torch.Generator, default=None
        Draws the initial weights, which are float32; None is torch's global one.
    body : AnyOrderPrior, default=None
        A trained transformer to read with, instead of a new one of these sizes. It is taken over,
        and of its class table only the null class stays.
    head : ClassHead, default=None
        A trained head, instead of a new one.

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
        """Scale and shift of each class, and the null class's."""
        return self.head.classes.weight

    @property
    def sizes(self) -> dict[str, Any]:
        rank, width = self.head.project.weight.shape
        return {"architecture": "shared_trunk", "width": width, "rank": rank} | super().sizes

    def readings(self, n_classes: int) -> int:
        return 1

    def matrices(self) -> dict[Tensor, int]:
        of_head = {self.head.features.weight: 2, self.head.project.weight: 1}
        return super().matrices() | of_head

    def replace_class_table(self, table: Tensor) -> None:
        self.num_classes = len(table) - 1
        self.head.classes = nn.Embedding.from_pretrained(table, freeze=False)

    def hidden(self, codes: Tensor, orders: Tensor, generator: Generator | None = None) -> Tensor:
        """States (items, n_tokens, dim) of the trunk before each token, in the order of reading."""
        values = self.class_values(codes[:, 0], generator)
        return self.body.hidden(codes, orders, values, generator)

    def predict(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return self.head.log_softmax(self.base(hidden), self.head.tilt(hidden, labels[:, None]))

    def base(self, hidden: Tensor) -> Tensor:
        """The trunk's own logits, see :meth:`ClassHead.base`."""
        return self.head.base(self.body.norm(hidden), self.body.output.weight)

    def log_prob(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Log-probability of each token.

        Parameters
        ----------
        codes : int tensor of shape (items, n_tokens)
            Tokens in raster order.
        orders : int tensor of shape (items, n_tokens) or (1, n_tokens)
            Place (raster index) visited at each step.
        labels : int tensor of shape (items,)
            Class of each item; `num_classes` is the null class.
        generator : torch.Generator, default=None
            Of dropout while training; None is torch's global one.

        Returns
        -------
        log_prob : float32 tensor of shape (items, n_tokens)
            In the order of reading.
        """
        orders = orders.expand_as(codes)
        hidden = self.hidden(codes, orders, generator)
        z = self.head.tilt(hidden, labels[:, None])
        return self.head.log_prob(self.base(hidden), z, codes.gather(1, orders))

    def log_prob_beside(
        self,
        codes: Tensor,
        orders: Tensor,
        labels: Tensor,
        some: Tensor,
        others: Tensor,
        steps: slice,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`Prior.log_prob_beside`, from one reading of each item."""
        orders = orders.expand_as(codes)
        hidden = self.hidden(codes, orders, generator)
        base, targets, head = self.base(hidden), codes.gather(1, orders), self.head
        own = head.log_prob(base, head.tilt(hidden, labels[:, None]), targets)
        z = head.tilt(hidden[some, steps][:, :, None], others[:, None])
        return own, head.log_prob_of_each(base[some, steps], z, targets[some, steps])

    def class_values(self, labels: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """As the trunk knows no class, the same for all."""
        return self.body.class_values(torch.zeros_like(labels), generator)

    def forward(
        self, codes: Tensor, orders: Tensor, labels: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """Log-probabilities of all codes at every step.

        Parameters
        ----------
        codes : int tensor of shape (items, n_tokens)
            Tokens in raster order.
        orders : int tensor of shape (items, n_tokens) or (1, n_tokens)
            Place (raster index) visited at each step.
        labels : int tensor of shape (items,)
            Class of each item; `num_classes` is the null class.
        generator : torch.Generator, default=None
            Of dropout while training; None is torch's global one.

        Returns
        -------
        logits : float32 tensor of shape (items, n_tokens, vocab_size)
            Normalized. Entry ``[i, s]`` predicts the token at place ``orders[i, s]``.
        """
        orders = orders.expand_as(codes)
        return self.predict(self.hidden(codes, orders, generator), labels)


def group_size(vocab_size: int) -> int:
    """Codes in a group: about as many as there are groups."""
    return int(np.ceil(vocab_size**0.5))


def similar_slots(codebook: np.ndarray) -> np.ndarray:
    """Places of codes among their like: halved along the principal axis, and again.

    Parameters
    ----------
    codebook : array of shape (vocab_size, n_numbers)

    Returns
    -------
    slots : int64 array of shape (vocab_size,)
        A permutation; groups of :func:`group_size` neighbouring places are alike.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.priors.shared_trunk import similar_slots
    >>> similar_slots(np.array([[9.0], [1.0], [8.0], [2.0]]))
    array([3, 0, 2, 1])
    """
    size = group_size(len(codebook))

    def sort(codes: np.ndarray) -> list[int]:
        if len(codes) <= size:
            return sorted(codes.tolist(), key=lambda code: codebook[code].tolist())
        numbers = codebook[codes] - codebook[codes].mean(0)
        axis = np.linalg.svd(numbers, full_matrices=False)[2][0]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        codes = codes[np.argsort(numbers @ axis, kind="stable")]
        half = -(-len(codes) // size) // 2 * size
        return sort(codes[:half]) + sort(codes[half:])

    slots = np.empty(len(codebook), dtype=np.int64)
    slots[sort(np.arange(len(codebook)))] = np.arange(len(codebook))
    return slots

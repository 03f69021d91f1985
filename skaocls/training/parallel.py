"""A training step of several processes: each takes its share of the batch, gradients are summed.

With ``"ddp"`` each process holds all weights (DistributedDataParallel). With ``"fsdp"`` weights,
gradients, optimizer and running mean are cut into as many pieces as there are processes
(``fully_shard``), and each layer is put together while it is needed. Elsewhere in training
``own`` weights are what this process holds: everything, or its pieces.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skaocls.distributed import broadcast_tensor, cpu_group, is_main, rank, world_size
from skaocls.priors.interface import Prior
from skaocls.training.posterior import EVERY, posterior_loss


class Loss(nn.Module):
    """The training loss as a module, which is what torch's engines take.

    Parameters
    ----------
    prior : Prior
    posterior_weight : float, default=0.0
        Of the posterior's loss beside that of the likelihood.
    """

    def __init__(self, prior: Prior, posterior_weight: float = 0.0):
        super().__init__()
        self.prior, self.posterior_weight = prior, posterior_weight

    def forward(
        self,
        codes: Tensor,
        orders: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        generator: Generator | None = None,
        rivals: Tensor | None = None,
        log_share: Tensor | None = None,
        first: int = 0,
    ) -> Tensor:
        """Mean negative log-likelihood per token; `generator` is of dropout.

        With rivals (:func:`skaocls.training.posterior.draw_rivals`) the posterior's loss is added,
        also per token, of the images that have a class, by every second token from `first` on.
        """
        if rivals is None or log_share is None:
            each = -self.prior.log_prob(codes, orders, labels, generator)
            return each.mean() if weights is None else (weights * each.mean(1)).mean()
        some = (labels < self.prior.num_classes).nonzero()[:, 0]
        steps = slice(first, None, EVERY)
        own, others = self.prior.log_prob_beside(
            codes, orders, labels, some, rivals[some], steps, generator
        )
        joint = torch.cat([own[some, steps].sum(1, keepdim=True), others.sum(1)], 1)
        told = posterior_loss(joint, labels[some], rivals[some], log_share)
        weight = self.posterior_weight / codes.shape[1]
        each = (-own.mean(1)).index_add(0, some, weight * told)
        return each.mean() if weights is None else (weights * each).mean()


class Parallel:
    """What computes the loss of a prior and its gradients, in one process or several.

    Parameters
    ----------
    prior : Prior
        To be trained, in place; all processes start from the main one's weights.
    parallel : {"ddp", "fsdp"}
    autocast : torch.dtype or None
        In which ``"fsdp"`` sends the weights of a layer.
    posterior_weight : float, default=0.0
        See :class:`Loss`.

    Attributes
    ----------
    prior : Prior
        What is trained: the given one, or with ``"fsdp"`` a copy in pieces.
    loss : module
        To be called for gradients.
    judge : module
        To be called without.
    sharded : bool
        Whether weights are in pieces.
    """

    def __init__(
        self,
        prior: Prior,
        parallel: str = "ddp",
        autocast: torch.dtype | None = None,
        posterior_weight: float = 0.0,
    ):
        self.given = self.prior = prior
        self.sharded = world_size() > 1 and parallel == "fsdp"
        self.device = prior.device
        if world_size() > 1:
            for tensor in [*prior.parameters(), *prior.buffers()]:
                tensor.data.copy_(broadcast_tensor(tensor.data, tensor.shape, tensor.dtype))
        if self.sharded:
            self.prior = copy.deepcopy(prior.cpu())
        self.loss: Any = Loss(self.prior, posterior_weight)
        self.judge = self.loss
        if self.sharded:
            shard(self.loss, self.device, autocast)
        elif world_size() > 1:
            group = cpu_group() if self.device.type == "cpu" else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of a name that older torch needs
                self.loss = DistributedDataParallel(
                    self.loss,
                    process_group=group,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """In which gradients are computed and, if they are the step's last, summed."""
        if self.sharded:
            self.loss.set_requires_gradient_sync(last)
        if last or world_size() == 1 or self.sharded:
            return nullcontext()
        return self.loss.no_sync()  # type: ignore[no-any-return]

    @contextmanager
    def showing(self, own: list[Tensor], weights: list[Tensor]) -> Iterator[None]:
        """Let the prior have other weights for a while.

        Where they are whole, no numbers move: Ctrl-C may come at any time.
        """
        trained: list[Tensor] = [p for p in self.prior.parameters() if p.requires_grad]
        before = [w.clone() for w in own] if self.sharded else own
        try:
            if self.sharded:
                torch._foreach_copy_(own, weights)
            else:
                use(trained, weights)
            yield
        finally:
            if self.sharded:
                torch._foreach_copy_(own, before)
            else:
                use(trained, own)

    def close(self) -> None:
        """Give the given prior what was trained."""
        if self.sharded:
            pairs = zip(self.given.parameters(), self.prior.parameters(), strict=True)
            for whole, piece in pairs:
                whole.data.copy_(whole_of(piece.data))
            self.given.to(self.device)


def shard(loss: Loss, device: torch.device, autocast: torch.dtype | None) -> None:
    """Cut all weights into pieces, in place; each block is put together for itself."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in loss.prior.transformer.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "read_class")
    # else what is judged between steps would leave the rest whole, and behind what is trained
    fully_shard(loss, mesh=mesh, reshard_after_forward=True)


def use(parameters: list[Tensor], weights: list[Tensor]) -> None:
    """Let parameters show other weights."""
    for p, weight in zip(parameters, weights, strict=True):
        p.data = weight


def piece_of(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all, or its piece."""
    local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def as_piece(like: Tensor, tensor: Tensor) -> Tensor:
    """What this process holds, as a tensor that knows of which whole: one like a parameter."""
    if piece_of(like) is like:
        return tensor
    from torch.distributed.tensor import DTensor

    about: Any = like
    where = about.device_mesh, about.placements
    piece: Tensor = DTensor.from_local(
        tensor, *where, run_check=False, shape=like.shape, stride=like.stride()
    )
    return piece


def whole_of(tensor: Tensor) -> Tensor:
    """The whole of which each process has a piece."""
    piece = piece_of(tensor)
    if piece is tensor:
        return tensor
    rows = -(-tensor.shape[0] // world_size())  # of all pieces but the last ones
    padded = piece.new_zeros(rows, *tensor.shape[1:])
    padded[: len(piece)] = piece
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded, group=None if padded.is_cuda else cpu_group())
    return torch.cat(parts)[: tensor.shape[0]]


def cut(like: Tensor, whole: Tensor) -> Tensor:
    """This process's piece of what is like a parameter, on the parameter's device."""
    if piece_of(like) is not like:
        pieces = whole.chunk(world_size())
        whole = pieces[rank()] if rank() < len(pieces) else whole[:0]
    return whole.to(like.device, copy=True)


def kept_by_main(tensor: Tensor) -> Tensor:
    """The whole, on the CPU, in the main process; others take part and have nothing."""
    whole = whole_of(tensor)
    return whole.detach().cpu() if is_main() else torch.empty(0)

"""The optimizer: AdamW, and steps of orthogonal direction for the matrices of new priors.

AdamW moves every weight by about as much. A matrix acts through its singular directions, and most
of its gradient lies along a few of them; Muon steps by the orthogonal matrix that is nearest to the
gradient's running mean, so that all directions are learned at one pace. New priors get further by
it in as many steps; where each image has one view alone it overfits them.
"""

from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor

from skaocls.priors.interface import Prior
from skaocls.training.parallel import cut, piece_of, whole_of

BETAS = (0.9, 0.95)
MOMENTUM = 0.95
# Of the polynomial by which singular values come to lie around 1, and how often it is applied
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.AdamW):
    """AdamW that steps along orthogonal matrices for groups of parameters with a number ``muon``.

    Each parameter of such a group is so many matrices below each other, as those of queries, keys
    and values are. The step of an m x n matrix has singular values around
    ``lr * sqrt(max(1, m / n))``.

    References
    ----------
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Examples
    --------
    >>> import torch
    >>> from skaocls.training.optimizer import Muon
    >>> p = torch.nn.Parameter(torch.zeros(2, 2))
    >>> (p * torch.tensor([[3.0, 0.0], [0.0, 0.1]])).sum().backward()
    >>> Muon([{"params": [p], "muon": 1}], lr=1.0, weight_decay=0.0).step()
    >>> p.diagonal().abs().gt(0.6).tolist()  # both directions, however small the gradient
    [True, True]
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        everything = self.param_groups
        self.param_groups = [group for group in everything if "muon" not in group]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = everything
        for group in everything:
            if "muon" in group:
                params = [p for p in group["params"] if p.grad is not None]
                ahead = [self.ahead(p) for p in params]
                for p, direction in zip(params, directions(ahead, group["muon"])):
                    weights = piece_of(p.data)
                    weights.mul_(1 - group["lr"] * group["weight_decay"])
                    weights.sub_(cut(p, direction), alpha=group["lr"])
        return loss

    def ahead(self, p: Tensor) -> Tensor:
        """The running mean of a gradient as Nesterov's momentum takes it, whole."""
        gradient, state = cast(Tensor, p.grad), self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
            state["step"] = torch.zeros(())  # which AdamW looks for when it is loaded
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return whole_of(torch.lerp(gradient, state["momentum"], MOMENTUM))


def directions(gradients: list[Tensor], parts: int) -> list[Tensor]:
    """Orthogonal matrices for gradients that are `parts` matrices below each other."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, gradient in enumerate(gradients):
        by_shape[tuple(gradient.shape)].append(i)
    found = list(gradients)
    for (rows, columns), which in by_shape.items():  # small ones take as long as many together
        together = torch.stack([gradients[i] for i in which]).unflatten(1, (parts, -1))
        scale = max(1.0, rows / parts / columns) ** 0.5
        for i, direction in zip(which, scale * orthogonal(together)):
            found[i] = direction.flatten(0, 1)
    return found


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (..., m, n) with the same singular vectors, and singular values around 1.

    Newton and Schulz's iteration, with coefficients that take the small ones up fast and leave all
    between 0.7 and 1.2.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-12)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = x.mT if tall else x
    return found


def make_optimizer(
    prior: Prior, rate: float, weight_decay: float, muon: bool = False
) -> torch.optim.AdamW:
    """Optimizer with weight decay on matrices and none on vectors.

    Parameters
    ----------
    prior : Prior
    rate : float
    weight_decay : float
    muon : bool, default=False
        Whether the prior's :meth:`~skaocls.priors.interface.Prior.matrices` take steps of
        orthogonal direction.
    """
    params = [p for p in prior.parameters() if p.requires_grad]
    decayed, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if not muon:
        return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
    stacks = prior.matrices()
    groups[0]["params"] = [p for p in decayed if p not in stacks]
    for parts in sorted(set(stacks.values())):
        of_so_many = [p for p in decayed if stacks.get(p) == parts]
        groups.append({"params": of_so_many, "weight_decay": weight_decay, "muon": parts})
    return Muon(groups, lr=rate, betas=BETAS, fused=True)

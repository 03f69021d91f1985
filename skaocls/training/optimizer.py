"""The optimizers: AdamW, and Muon for the weight matrices of new priors.

AdamW changes all weights by steps of similar size. A few singular directions dominate each gradient
matrix, so AdamW learns the other directions slowly. Muon replaces the gradient by the nearest
orthogonal matrix. All directions are then learned at the same rate. In a short training, Muon
reaches a lower loss than AdamW. In a long training, Muon overfits
(``benchmarks/quality/optimizers.py``).
"""

from collections import defaultdict
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from skaocls.priors.transformer import Prior

# The weight decay and the betas are from the published RandAR recipe (arXiv 2412.01827, appendix).
# The momentum, the coefficients and the number of iterations are from the authors of Muon.
WEIGHT_DECAY = 0.05  # for weight matrices only, not for vectors
BETAS = (0.9, 0.95)
MOMENTUM = 0.95
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Apply Muon to parameter groups with the key ``"muon"``, and AdamW to all other groups.

    The value of ``"muon"`` is the number of matrices that are stacked vertically in each parameter.
    For example, a joint projection to queries, keys and values has the value 3. The update of a
    matrix of shape (m, n) is an orthogonal matrix times ``lr * sqrt(max(1, m / n))``.

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
    >>> p.diagonal().abs().gt(0.6).tolist()  # both steps are large, but one gradient is small
    [True, True]
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        all_groups = self.param_groups
        self.param_groups = [group for group in all_groups if "muon" not in group]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = all_groups
        for group in all_groups:
            if "muon" not in group:
                continue
            params = [p for p in group["params"] if p.grad is not None]
            gradients = [self.nesterov_gradient(p) for p in params]
            for p, update in zip(params, orthogonal_updates(gradients, group["muon"])):
                p.data.mul_(1 - group["lr"] * group["weight_decay"])
                p.data.sub_(update, alpha=group["lr"])
        return loss

    def nesterov_gradient(self, p: Tensor) -> Tensor:
        """Update the momentum of a parameter, and return the look-ahead gradient (Nesterov)."""
        gradient, state = cast(Tensor, p.grad), self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
            state["step"] = torch.zeros(())  # AdamW expects this key when a state is loaded
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return torch.lerp(gradient, state["momentum"], MOMENTUM)


def orthogonal_updates(gradients: list[Tensor], n_stacked: int) -> list[Tensor]:
    """Return Muon's updates. Each gradient consists of `n_stacked` stacked matrices."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, gradient in enumerate(gradients):
        by_shape[tuple(gradient.shape)].append(i)
    updates = list(gradients)
    # processing all matrices of one shape together takes about as long as processing one matrix
    for (rows, columns), indices in by_shape.items():
        stacked = torch.stack([gradients[i] for i in indices]).unflatten(1, (n_stacked, -1))
        scale = max(1.0, rows / n_stacked / columns) ** 0.5
        for i, update in zip(indices, scale * orthogonalize(stacked)):
            updates[i] = update.flatten(0, 1)
    return updates


def orthogonalize(matrices: Tensor) -> Tensor:
    """Replace the singular values of matrices (..., m, n) by values between about 0.7 and 1.2.

    The coefficients of the Newton-Schulz iteration make small singular values grow fast.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-12)
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    for _ in range(NEWTON_SCHULZ_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


def make_optimizer(
    prior: Prior, learning_rate: float, weight_decay: float = WEIGHT_DECAY, muon: bool = False
) -> torch.optim.AdamW:
    """Return an optimizer for the trainable parameters of a prior.

    Weight decay is applied to matrices, but not to vectors. If `muon` is True, Muon trains the
    weights that ``prior.hidden_weights()`` lists, and AdamW trains all other weights.
    """
    params = [p for p in prior.parameters() if p.requires_grad]
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if not muon:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)
    n_stacked = prior.hidden_weights()
    groups[0]["params"] = [p for p in matrices if p not in n_stacked]
    for n in sorted(set(n_stacked.values())):
        params = [p for p in matrices if n_stacked.get(p) == n]
        groups.append({"params": params, "weight_decay": weight_decay, "muon": n})
    return Muon(groups, lr=learning_rate, betas=BETAS, fused=True)

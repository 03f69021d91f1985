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
            for same_shape in by_shape(params):
                update = orthogonal_update(self.nesterov_gradients(same_shape), group["muon"])
                torch._foreach_mul_(same_shape, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(same_shape, update.unbind(), alpha=group["lr"])
        return loss

    def nesterov_gradients(self, params: list[Tensor]) -> Tensor:
        """Update the momentum of parameters, and return their look-ahead gradients (Nesterov)."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
                # AdamW expects this key when a state is loaded
                self.state[p]["step"] = torch.zeros(())
        gradients = [cast(Tensor, p.grad) for p in params]
        momentum = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momentum, gradients, 1 - MOMENTUM)
        return torch.stack(gradients).lerp_(torch.stack(momentum), MOMENTUM)


def by_shape(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Group tensors of the same shape: all of them together take about as long as one of them."""
    groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tuple(tensor.shape)].append(tensor)
    return list(groups.values())


def orthogonal_update(gradients: Tensor, n_stacked: int) -> Tensor:
    """Return Muon's updates of gradients (n, rows, columns), each `n_stacked` stacked matrices."""
    rows, columns = gradients.shape[1:]
    scale = max(1.0, rows / n_stacked / columns) ** 0.5
    return orthogonalize(gradients.unflatten(1, (n_stacked, -1))).mul_(scale).flatten(1, 2)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Replace the singular values of matrices (..., m, n) by values between about 0.7 and 1.2.

    Each Newton-Schulz iteration multiplies x by a polynomial of the product of x and its transpose.
    The coefficients make small singular values grow fast. The polynomials commute. They are
    therefore multiplied with each other first, which is faster if x is not square.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-12)
    gram = x @ x.mT
    product = polynomial = newton_schulz_polynomial(gram)
    for _ in range(NEWTON_SCHULZ_ITERATIONS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = newton_schulz_polynomial(gram)
        product = polynomial @ product
    result: Tensor = product @ x
    return result.mT if tall else result


def newton_schulz_polynomial(gram: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    result: Tensor = (c * gram @ gram).add_(gram, alpha=b)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
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

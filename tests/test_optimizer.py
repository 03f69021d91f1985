"""Muon, compared with singular value decompositions, and AdamW for all other weights."""

import copy

import numpy as np
import pytest
import torch

from skaocls import AnyOrderPrior, SharedTrunkPrior
from skaocls.training import optimizer
from skaocls.training.config import ResolvedConfig
from skaocls.training.loop import train_prior

LEARNING_RATE, WEIGHT_DECAY = 0.02, 0.1


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (5, 6, 4)])
def test_singular_values_become_1_and_singular_vectors_stay(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.linspace(1, 0.05, s.shape[-1], dtype=s.dtype)[..., None, :] @ vh
    in_singular_basis = u.mT @ optimizer.orthogonalize(x) @ vh.mT
    values = in_singular_basis.diagonal(dim1=-2, dim2=-1)
    assert (values > 0.65).all() and (values < 1.25).all()
    assert (in_singular_basis - torch.diag_embed(values)).abs().max() < 1e-10


def set_gradients(prior):
    generator = torch.Generator().manual_seed(1)
    for p in prior.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    return prior


@pytest.mark.parametrize("cls", [AnyOrderPrior, SharedTrunkPrior])
def test_muon_updates_hidden_matrices_and_adamw_all_other_weights(cls):
    sizes = {"dim": 16, "n_layer": 2, "n_head": 2, "multiple_of": 16}
    generator = torch.Generator().manual_seed(0)
    by_muon = set_gradients(cls(6, (2, 2), 3, **sizes, generator=generator))
    by_adamw = set_gradients(copy.deepcopy(by_muon))
    before = copy.deepcopy(by_muon.state_dict())
    for prior, muon in ((by_muon, True), (by_adamw, False)):
        optimizer.make_optimizer(prior, LEARNING_RATE, WEIGHT_DECAY, muon).step()
    n_stacked_matrices, n_matrices = 0, 0
    for (name, p), q in zip(by_muon.named_parameters(), by_adamw.parameters(), strict=True):
        in_block = "layers" in name and p.ndim == 2
        if not in_block and name not in ("head.features.weight", "head.project.weight"):
            torch.testing.assert_close(p, q, rtol=0, atol=0)
            continue
        n_stacked = 3 if "wqkv" in name else 2 if "features" in name else 1
        update = (before[name] * (1 - LEARNING_RATE * WEIGHT_DECAY) - p.detach()) / LEARNING_RATE
        for part, gradient in zip(update.chunk(n_stacked), p.grad.chunk(n_stacked), strict=True):
            u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
            scale = max(1, part.shape[0] / part.shape[1]) ** 0.5
            values = (u.T @ part @ vh.T).diagonal() / scale
            assert (values > 0.3).all() and (values < 1.25).all()
        if n_stacked == 3:
            n_stacked_matrices += 1
        else:
            n_matrices += n_stacked
    assert n_stacked_matrices == 2 and n_matrices == (11 if cls is SharedTrunkPrior else 8)


def test_momentum_is_nesterov_momentum():
    p = torch.nn.Parameter(torch.zeros(4, 4))
    muon = optimizer.Muon([{"params": [p], "muon": 1}], lr=1.0, weight_decay=0.0)
    gradients = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    momentum, expected = torch.zeros(4, 4), torch.zeros(4, 4)
    for gradient in gradients:
        p.grad = gradient.clone()
        muon.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        expected -= optimizer.orthogonalize(0.95 * momentum + 0.05 * gradient)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-4)


def test_zero_gradients_change_nothing():
    p = torch.nn.Parameter(torch.ones(3, 3))
    p.grad = torch.zeros(3, 3)
    optimizer.Muon([{"params": [p], "muon": 1}], lr=1.0, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.ones(3, 3), rtol=0, atol=0)


def test_muon_reaches_a_lower_loss_in_as_many_steps():
    rng = np.random.RandomState(0)
    labels = rng.randint(3, size=600)
    # each token determines the next one by a rule that depends on the class
    codes = np.empty((600, 1, 9), int)
    codes[:, 0, 0] = rng.randint(8, size=600)
    for k in range(1, 9):
        codes[:, 0, k] = (3 * codes[:, 0, k - 1] + 2 * labels + 1) % 8
    losses = []
    for muon in (False, True):
        prior = SharedTrunkPrior(
            8, (3, 3), 3, dim=32, n_layer=2, n_head=2, generator=torch.Generator().manual_seed(0)
        )
        config = ResolvedConfig(12, 30, learning_rate_init=0.4 / 32, muon=muon)
        losses.append(train_prior(prior, codes, labels, config).loss_curve[-1])
    assert losses[1] < losses[0]

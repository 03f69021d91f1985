"""Muon against singular value decompositions, and AdamW where it is none."""

import copy

import numpy as np
import pytest
import torch

from skaocls import AnyOrderPrior, SharedTrunkPrior
from skaocls.training import optimizer
from skaocls.training.loop import train_prior

RATE, DECAY = 0.02, 0.1


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (5, 6, 4)])
def test_singular_values_come_near_1_and_vectors_stay(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.linspace(1, 0.05, s.shape[-1], dtype=s.dtype)[..., None, :] @ vh
    inside = u.mT @ optimizer.orthogonal(x) @ vh.mT
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert (values > 0.65).all() and (values < 1.25).all()
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-10


def with_gradients(prior):
    random = torch.Generator().manual_seed(1)
    for p in prior.parameters():
        p.grad = torch.randn(p.shape, generator=random)
    return prior


@pytest.mark.parametrize("kind", [AnyOrderPrior, SharedTrunkPrior])
def test_matrices_between_hidden_states_step_apart_and_the_rest_as_ever(kind):
    sizes = {"dim": 16, "n_layer": 2, "n_head": 2, "multiple_of": 16}
    random = torch.Generator().manual_seed(0)
    first = with_gradients(kind(6, (2, 2), 3, **sizes, generator=random))
    second = copy.deepcopy(first)
    before = copy.deepcopy(first.state_dict())
    for prior, muon in ((first, True), (with_gradients(second), False)):
        optimizer.make_optimizer(prior, RATE, DECAY, muon).step()
    alike = {"wq": 0, "of_muon": 0}
    names = {p: name for name, p in first.named_parameters()}
    for p, q in zip(first.parameters(), second.parameters()):
        name = names[p]
        of_blocks = "layers" in name and p.ndim == 2
        if not of_blocks and name not in ("head.features.weight", "head.project.weight"):
            torch.testing.assert_close(p, q, rtol=0, atol=0)
            continue
        parts = 3 if "wqkv" in name else 2 if "features" in name else 1
        moved = (before[name] * (1 - RATE * DECAY) - p.detach()) / RATE
        for one, gradient in zip(moved.chunk(parts), p.grad.chunk(parts)):
            u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
            values = (u.T @ one @ vh.T).diagonal() / max(1, one.shape[0] / one.shape[1]) ** 0.5
            assert (values > 0.3).all() and (values < 1.25).all()
            alike["wq" if parts == 3 else "of_muon"] += 1
    assert alike["wq"] == 6 and alike["of_muon"] == (11 if kind is SharedTrunkPrior else 8)


def test_momentum_is_nesterovs():
    p = torch.nn.Parameter(torch.zeros(4, 4))
    muon = optimizer.Muon([{"params": [p], "muon": 1}], lr=1.0, weight_decay=0.0)
    gradients = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, expected = torch.zeros(4, 4), torch.zeros(4, 4)
    for gradient in gradients:
        p.grad = gradient.clone()
        muon.step()
        mean = 0.95 * mean + 0.05 * gradient
        expected -= optimizer.orthogonal(0.95 * mean + 0.05 * gradient)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-4)


def test_no_gradient_is_no_step():
    p = torch.nn.Parameter(torch.ones(3, 3))
    p.grad = torch.zeros(3, 3)
    optimizer.Muon([{"params": [p], "muon": 1}], lr=1.0, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.ones(3, 3), rtol=0, atol=0)


def test_new_priors_learn_more_in_as_many_steps():
    random = np.random.RandomState(0)
    labels = random.randint(3, size=600)
    # each token says which the next one is, by a rule of its class
    codes = np.empty((600, 1, 9), int)
    codes[:, 0, 0] = random.randint(8, size=600)
    for k in range(1, 9):
        codes[:, 0, k] = (3 * codes[:, 0, k - 1] + 2 * labels + 1) % 8
    losses = []
    for muon in (False, True):
        prior = SharedTrunkPrior(
            8, (3, 3), 3, dim=32, n_layer=2, n_head=2, generator=torch.Generator().manual_seed(0)
        )
        how = {"max_iter": 12, "batch_size": 30, "learning_rate": 0.4 / 32, "muon": muon}
        losses.append(train_prior(prior, codes, labels, **how).loss_curve[-1])
    assert losses[1] < losses[0]

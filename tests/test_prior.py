"""The prior against golden numbers and against first principles."""

import json

import numpy as np
import pytest
import torch

from skaocls import AnyOrderPrior
from skaocls.priors.layers import NORM_EPS, Normalization


def log_prob_by_step(prior, codes, orders, label):
    with torch.no_grad():
        logits = prior(codes, orders, torch.full((len(codes),), label))
    targets = codes.gather(1, orders.expand_as(codes))
    return logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1).numpy()


def test_golden_log_prob(golden_prior):
    prior, expected = golden_prior
    codes, orders = torch.tensor(expected["tokens"]), torch.tensor(expected["orders"])
    for o, order in enumerate(orders):
        for label in range(prior.num_classes + 1):
            np.testing.assert_allclose(
                log_prob_by_step(prior, codes, order[None], label),
                expected["log_prob"][o, label],
                atol=1e-4,
            )


def test_published_keys_and_shapes(golden):
    published = json.loads((golden / "randar_l_llamagen_keys.json").read_text())
    with torch.device("meta"):
        prior = AnyOrderPrior(16384, (16, 16), 1000, dim=1024, n_layer=24, n_head=16)
    assert {k: list(v.shape) for k, v in prior.state_dict().items()} == published


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 2)])
def test_probabilities_of_all_images_sum_to_one(grid):
    # by the chain rule, every order defines a distribution over images
    torch.manual_seed(0)
    n = grid[0] * grid[1]
    prior = AnyOrderPrior(2, grid, 3, dim=16, n_layer=2, n_head=2, multiple_of=16).eval()
    for p in prior.parameters():
        torch.nn.init.normal_(p, std=0.5)
    every = torch.cartesian_prod(*[torch.arange(2)] * n).view(-1, n)
    for label in range(4):
        total = np.exp(log_prob_by_step(prior, every, torch.randperm(n)[None], label).sum(1)).sum()
        assert total == pytest.approx(1, abs=1e-5)


def test_predictions_depend_only_on_previous_tokens():
    torch.manual_seed(0)
    prior = AnyOrderPrior(7, (2, 3), 2, dim=32, n_layer=2, n_head=2, multiple_of=32).eval()
    torch.nn.init.normal_(prior.output.weight)
    codes, order, labels = torch.randint(7, (1, 6)), torch.randperm(6)[None], torch.tensor([1])
    with torch.no_grad():
        before = prior(codes, order, labels)
        for step in range(6):
            changed = codes.clone()
            place = order[0, step]
            changed[0, place] = (changed[0, place] + 1) % 7
            after = prior(changed, order, labels)
            torch.testing.assert_close(after[:, : step + 1], before[:, : step + 1])
            if step < 5:
                assert (after[:, step + 1 :] != before[:, step + 1 :]).any(-1).all()


def test_norm_has_the_gradient_of_its_formula():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    root_mean_square = (x.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
    torch.testing.assert_close(Normalization.apply(x, weight), x / root_mean_square * weight)
    assert torch.autograd.gradcheck(Normalization.apply, (x, weight))


def test_invalid_dim():
    with pytest.raises(ValueError, match="multiple of 4"):
        AnyOrderPrior(4, (2, 2), 2, dim=20, n_head=4)


def test_class_and_position_embeddings_are_never_dropped():
    torch.manual_seed(0)
    prior = AnyOrderPrior(7, (2, 3), 2, dim=32, n_layer=2, n_head=2, multiple_of=32)
    torch.nn.init.normal_(prior.output.weight)
    prior.tok_dropout.p = 1 - 1e-12  # drops all image-token embeddings
    codes, order = torch.randint(7, (2, 6)), torch.randperm(6)[None]
    first, second = prior(codes, order, torch.tensor([0, 0]))
    torch.testing.assert_close(first, second)  # the tokens have no effect
    assert (first - prior(codes, order, torch.tensor([1, 1]))[0]).abs().amin(1).min() > 0
    assert (first[0] - first[1]).abs().min() > 0

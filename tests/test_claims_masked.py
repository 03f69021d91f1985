"""The masked model of benchmarks/claims."""

import copy
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

with pytest.MonkeyPatch.context() as patch:  # the scripts import each other
    patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "claims")
    import flops
    import masked
    import measures
    from masked import MaskedClassifier, MaskedTransformer

from test_claims_contestants import two_sides

TINY = {"patch_size": 2, "n_codes": 8, "dim": 32, "n_layer": 2, "n_head": 2, "augmentation": 1}


def some_module(n_tokens=4):
    """One whose answers differ from token to token and class to class."""
    torch.manual_seed(0)
    module = MaskedTransformer(n_tokens, 8, 3, dim=32, n_layer=2, n_head=2)
    for weights in module.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return module.eval()


@pytest.fixture(scope="module")
def fitted():
    params = {"max_iter": 60, "batch_size": 16, "learning_rate": 1e-2, "n_masks": 8}
    return MaskedClassifier(**TINY, **params, random_state=1).fit(*two_sides(128, 0))


@torch.no_grad()
def test_hidden_tokens_are_not_seen_and_the_others_are():
    module, label = some_module(), torch.tensor([1])
    hidden = torch.tensor([[False, True, False, True]])
    shown = module(torch.tensor([[5, 1, 2, 3]]), hidden, label)
    assert torch.equal(shown, module(torch.tensor([[5, 7, 2, 0]]), hidden, label))
    assert not torch.allclose(shown, module(torch.tensor([[4, 1, 2, 3]]), hidden, label))
    assert not torch.allclose(shown, module(torch.tensor([[5, 1, 2, 3]]), hidden, label * 0))
    torch.testing.assert_close(shown.exp().sum(-1), torch.ones(1, 4))


@torch.no_grad()
def test_mean_over_masks_is_the_mean_over_orders():
    """Each order adds up log p(token | tokens before it); every mask is where some of them stop."""
    module, tokens, label = some_module(), torch.tensor([[5, 1, 2, 3]]), torch.tensor([1])

    def hide(places):
        return torch.tensor([[place in places for place in range(4)]])

    orders = [
        sum(
            module(tokens, hide(order[step:]), label)[0, order[step], tokens[0, order[step]]]
            for step in range(4)
        )
        for order in permutations(range(4))
    ]
    sizes = []
    for size in range(1, 5):
        masks = torch.cat([hide(places) for places in combinations(range(4), size)])
        many = len(masks)
        sizes.append(
            masked.mean_log_prob(module, tokens.expand(many, 4), masks, label.expand(many)).mean()
        )
    assert 4 * np.mean(sizes) == pytest.approx(np.mean(orders), rel=1e-5)


def test_from_one_to_all_tokens_are_hidden():
    torch.manual_seed(0)
    hidden = masked.hidden_tokens(torch.rand(6000), "uniform", 6)
    counts = hidden.sum(1).bincount()
    assert counts[0] == 0 and len(counts) == 7
    np.testing.assert_allclose(counts[1:] / 6000, 1 / 6, atol=0.02)
    np.testing.assert_allclose(hidden.float().mean(0), 3.5 / 6, atol=0.02)  # everywhere alike
    # of cos(pi u / 2), two thirds are above 1 / 2
    share = (masked.hidden_tokens(torch.rand(6000), "cosine", 6).sum(1) > 3).float().mean()
    assert share == pytest.approx(2 / 3, abs=0.02)


def test_it_learns(fitted):
    X, y = two_sides(60, 1)
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert fitted.score(X, y) > 0.9


def test_the_first_masks_are_those_of_a_shorter_search(fitted):
    X, y = two_sides(20, 2)
    staged = dict(zip(fitted.staged_masks(), fitted.staged_predict_proba(X)))
    assert list(staged) == [1, 2, 4, 8]
    for k, proba in staged.items():
        fewer = copy.deepcopy(fitted).set_params(n_masks=k)
        np.testing.assert_allclose(fewer.predict_proba(X), proba, rtol=1e-4, atol=1e-6)
    rows = []
    hook = fitted.module_.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    alone = np.concatenate([fitted.predict_proba(x[None]) for x in X])
    hook.remove()
    assert sum(rows) == 20 * fitted.evaluations_ == 20 * 8 * 2
    np.testing.assert_allclose(alone, staged[8], rtol=1e-4, atol=1e-6)
    points = measures.clean(fitted, X, (y == "right").astype(int))["points"]
    assert [p["masks"] for p in points] == [1, 2, 4, 8]
    assert points[-1]["accuracy"] == fitted.score(X, y)
    assert points[-1]["flops"] == pytest.approx(8 * points[0]["flops"])


def test_clones_learn_the_same():
    X, y = two_sides(32, 0)
    clf = MaskedClassifier(**TINY, max_iter=2, n_masks=4, random_state=3)
    before, state = clf.get_params(), torch.get_rng_state()
    models = [clone(clf).fit(X, y) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert models[0].get_params() == before and not hasattr(clf, "classes_")
    np.testing.assert_array_equal(*(model.predict_proba(X) for model in models))
    other = clone(clf).set_params(random_state=4).fit(X, y)
    assert (other.predict_proba(X) != models[0].predict_proba(X)).any()


def test_operations_of_the_masked_transformer():
    module, d, n = MaskedTransformer(16, 50, 10, 32, 3, 2), 32, 16
    weights = 3 * 12 * d**2 + d * 50  # for each token: blocks and last layer
    condition = 3 * 6 * d**2 + 2 * d**2
    scores = 3 * 2 * n * n * d
    expected = 2 * (n * weights + condition + scores)
    assert flops.masked_flops(module) == expected
    clf = MaskedClassifier(n_masks=4)
    clf.module_, clf.classes_ = module, np.arange(10)
    assert flops.flops_per_image(clf, (8, 8, 1)) == 40 * expected

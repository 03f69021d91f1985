"""The training loss, compared with Bayes' rule computed in NumPy."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

from skaocls import AnyOrderARClassifier, AnyOrderPrior, SharedTrunkPrior
from skaocls.training import loop
from skaocls.training.config import ResolvedConfig
from skaocls.training.loop import train_prior
from skaocls.training.loss import (
    MAX_RIVALS,
    TrainingBatch,
    TrainingLoss,
    class_log_frequencies,
    draw_rivals,
    posterior_loss,
)


def random_example(cls, num_classes=4):
    """A prior with random weights, tokens, orders, and labels; four labels are the null class."""
    generator = torch.Generator().manual_seed(0)
    prior = cls(19, (2, 3), num_classes, dim=32, n_layer=2, generator=generator).eval()
    with torch.no_grad():
        for p in prior.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    codes = torch.randint(19, (20, 6), generator=generator)
    orders = torch.stack([torch.randperm(6, generator=generator) for _ in range(20)])
    labels = torch.randint(num_classes, (20,), generator=generator)
    labels[::5] = num_classes
    return prior, codes, orders, labels


def test_rivals_are_all_other_classes_or_a_sample():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(MAX_RIVALS + 1)
    for label, rivals in enumerate(draw_rivals(labels, len(labels), generator).tolist()):
        assert sorted([label, *rivals]) == labels.tolist()
    labels = torch.arange(100).repeat(20)
    rivals = draw_rivals(labels, 100, generator)
    assert rivals.shape == (2000, MAX_RIVALS)
    assert (rivals != labels[:, None]).all()
    # the expected count of each class is 2000 * 9 / 100 = 180, with a standard deviation of 13
    counts = np.bincount(rivals.flatten(), minlength=100)
    assert len(counts) == 100 and 110 < counts.min() <= counts.max() < 250


def test_posterior_loss_follows_bayes_rule():
    rng = np.random.RandomState(0)
    likelihood, labels = rng.uniform(size=(5, 4)), np.array([0, 1, 2, 3, 1])
    class_log_prior = class_log_frequencies(np.repeat(range(4), [1, 2, 3, 4]), None, 4)
    np.testing.assert_allclose(class_log_prior.exp(), [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    posterior = likelihood * [0.1, 0.2, 0.3, 0.4]
    posterior /= posterior.sum(1, keepdims=True)
    rivals = (torch.as_tensor(labels)[:, None] + torch.arange(1, 4)) % 4
    columns = np.column_stack([labels, rivals])
    ll = torch.as_tensor(np.log(np.take_along_axis(likelihood, columns, 1))).float()
    loss = posterior_loss(ll, torch.as_tensor(labels), rivals, class_log_prior)
    np.testing.assert_allclose(loss, -np.log(posterior[range(5), labels]), rtol=1e-5)


def test_sampled_rivals_estimate_the_sum_over_all_classes():
    """999 rival classes have equal likelihoods, so nine of them give the exact sum."""
    ll = torch.full((1, 1 + MAX_RIVALS), -3.0)
    ll[0, 0] = 0.0
    label, class_log_prior = torch.tensor([7]), torch.full((1000,), 1 / 1000).log()
    rivals = draw_rivals(label, 1000, torch.Generator().manual_seed(0))
    loss = posterior_loss(ll, label, rivals, class_log_prior)
    np.testing.assert_allclose(loss, np.log1p(999 * np.exp(-3.0)), rtol=1e-5)


def test_class_frequencies_are_weighted_and_may_be_zero():
    class_log_prior = class_log_frequencies(np.array([0, 0, 2]), np.array([1.0, 2.0, 3.0]), 4)
    np.testing.assert_allclose(class_log_prior.exp(), [0.5, 0, 0.5, 0], rtol=1e-6)
    rivals = torch.tensor([[1, 2, 3]])
    loss = posterior_loss(torch.zeros(1, 4), torch.tensor([0]), rivals, class_log_prior)
    np.testing.assert_allclose(loss, [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("cls", [AnyOrderPrior, SharedTrunkPrior])
def test_log_probabilities_under_several_labels(cls):
    prior, codes, orders, _ = random_example(cls)
    labels = torch.randint(5, (20, 3), generator=torch.Generator().manual_seed(1))
    by_class = prior.log_prob_by_class(codes, orders, labels)
    for k in range(3):
        expected = prior.log_prob(codes, orders, labels[:, k])
        torch.testing.assert_close(by_class[..., k], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [AnyOrderPrior, SharedTrunkPrior])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_the_sum_of_likelihood_and_posterior(cls, weighted):
    prior, codes, orders, labels = random_example(cls)
    rng = np.random.RandomState(0)
    class_prior = np.array([0.1, 0.2, 0.3, 0.4])
    weights = rng.uniform(size=20) if weighted else np.ones(20)
    with torch.no_grad():
        by_class = [prior.log_prob(codes, orders, torch.full((20,), c)).double() for c in range(5)]
    log_prob = torch.stack(by_class, 2).numpy()
    own = log_prob.sum(1)[range(20), labels]
    joint = torch.as_tensor(log_prob.sum(1)[:, :4] + np.log(class_prior))
    log_posterior = joint.log_softmax(1).numpy()
    own_posterior = np.where(labels < 4, log_posterior[range(20), labels.clamp(max=3)], 0)
    expected = -(weights * (own + 2.5 * own_posterior)).mean() / 6
    rivals = draw_rivals(labels, 4, torch.Generator())
    tensor = torch.as_tensor(weights).float() if weighted else None
    loss = TrainingLoss(prior, 2.5, torch.as_tensor(np.log(class_prior)).float())
    batch = TrainingBatch(codes, orders, labels, tensor, rivals)
    assert loss(batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_classes", [5, 20])
def test_the_first_step_of_a_new_prior_has_a_uniform_posterior(num_classes, monkeypatch):
    """All classes have equal likelihoods then, so that -log p(class) is log(num_classes)."""
    monkeypatch.setattr(loop, "SHARED_TRUNK_CLASS_DROPOUT", 0.0)
    labels = np.arange(num_classes).repeat(4)
    codes = np.random.RandomState(0).randint(19, size=(len(labels), 1, 6))

    def train(posterior_weight, learning_rate):
        generator = torch.Generator().manual_seed(0)
        prior = SharedTrunkPrior(19, (2, 3), num_classes, 32, n_layer=1, generator=generator)
        config = ResolvedConfig(1, 4, learning_rate, posterior_weight=posterior_weight)
        history = train_prior(prior, codes, labels, config)
        return history.loss_curve[0], prior.head.classes.weight.detach()

    difference = train(3.0, 1e-12)[0] - train(0.0, 1e-12)[0]
    assert difference == pytest.approx(3.0 * np.log(num_classes) / 6, rel=1e-4)
    torch.testing.assert_close(train(3.0, 1e-2), train(3.0, 1e-2), rtol=0, atol=0)


def test_posterior_weight_improves_classification_and_has_documented_defaults(digits):
    X, y, *_ = digits
    sizes = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
    params = {"prior": sizes, "max_iter": 2, "batch_size": 16, "random_state": 0, "tol": 10.0}
    images, labels = load_digits().images, load_digits().target
    nats = {}
    for weight in (0.0, "auto"):
        clf = AnyOrderARClassifier(posterior_weight=weight, **params)
        proba = clf.fit(images[:600], labels[:600]).predict_proba(images[600:900])
        nats[weight] = log_loss(labels[600:900], proba)
    assert nats["auto"] < nats[0.0]
    # 5 for at least 48 tokens, less in proportion below; 1/30 per column of a table
    params |= {"max_iter": 1, "augmentation": None}
    for data, weight in ((X, 5 * 16 / 48), (X.reshape(len(X), -1)[:, ::16] ** 1.5, 4 / 30)):
        curves = [
            AnyOrderARClassifier(posterior_weight=w, **params).fit(data, y).loss_curve_
            for w in ("auto", weight, 2 * weight)
        ]
        assert curves[0] == curves[1] != curves[2]
    # 0 for the published architecture
    sizes |= {"architecture": "randar", "n_layer": 1}
    curves = [
        AnyOrderARClassifier(posterior_weight=weight, **params).fit(X, y).loss_curve_
        for weight in ("auto", 0.0, 5.0)
    ]
    assert curves[0] == curves[1] != curves[2]

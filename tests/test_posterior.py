"""Training that tells classes apart: against Bayes' rule written out."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from skaocls import AnyOrderARClassifier, AnyOrderPrior, SharedTrunkPrior
from skaocls.training.loop import train_prior
from skaocls.training.parallel import Loss
from skaocls.training.posterior import (
    MOST_RIVALS,
    class_log_frequencies,
    draw_rivals,
    posterior_loss,
)


def made_up(cls, num_classes=4, **params):
    """A prior whose classes differ, and some tokens, orders and labels, 4 of them none."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"vocab_size": 19, "grid": (2, 3), "num_classes": num_classes, "dim": 32, "n_layer": 2}
    prior = cls(**sizes, generator=generator, **params).eval()
    with torch.no_grad():
        for p in prior.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    codes = torch.randint(19, (20, 6), generator=generator)
    orders = torch.stack([torch.randperm(6, generator=generator) for _ in range(20)])
    labels = torch.randint(num_classes, (20,), generator=generator)
    labels[::5] = num_classes
    return prior, codes, orders, labels


def test_rivals_are_all_others_or_some_of_them():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(MOST_RIVALS + 1)
    for label, rivals in enumerate(draw_rivals(labels, len(labels), generator).tolist()):
        assert sorted([label, *rivals]) == labels.tolist()
    labels = torch.arange(100).repeat(20)
    rivals = draw_rivals(labels, 100, generator)
    assert rivals.shape == (2000, MOST_RIVALS)
    assert (rivals != labels[:, None]).all()
    # each is as likely as any other: 2000 * 9 / 100 = 180, with a standard deviation of 13
    counts = np.bincount(rivals.flatten(), minlength=100)
    assert len(counts) == 100 and 110 < counts.min() <= counts.max() < 250


def test_surprise_is_by_bayes_rule():
    rng = np.random.RandomState(0)
    likelihood, labels = rng.uniform(size=(5, 4)), np.array([0, 1, 2, 3, 1])
    log_share = class_log_frequencies(np.repeat(range(4), [1, 2, 3, 4]), None, 4)
    np.testing.assert_allclose(log_share.exp(), [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    posterior = likelihood * [0.1, 0.2, 0.3, 0.4]
    posterior /= posterior.sum(1, keepdims=True)
    rivals = (torch.as_tensor(labels)[:, None] + torch.arange(1, 4)) % 4
    columns = np.column_stack([labels, rivals])
    ll = torch.as_tensor(np.log(np.take_along_axis(likelihood, columns, 1))).float()
    found = posterior_loss(ll, torch.as_tensor(labels), rivals, log_share)
    expected = -np.log(posterior[range(5), labels])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_drawn_rivals_stand_for_all():
    """Of 1000 classes alike but one, nine tell what all would; the own one is not drawn."""
    ll = torch.full((1, 1 + MOST_RIVALS), -3.0)
    ll[0, 0] = 0.0
    label, log_share = torch.tensor([7]), torch.full((1000,), 1 / 1000).log()
    rivals = draw_rivals(label, 1000, torch.Generator().manual_seed(0))
    found = posterior_loss(ll, label, rivals, log_share)
    np.testing.assert_allclose(found, np.log1p(999 * np.exp(-3.0)), rtol=1e-5)


def test_shares_follow_weights_and_absent_classes_are_no_rivals():
    log_share = class_log_frequencies(np.array([0, 0, 2]), np.array([1.0, 2.0, 3.0]), 4)
    np.testing.assert_allclose(log_share.exp(), [0.5, 0, 0.5, 0], rtol=1e-6)
    rivals = torch.tensor([[1, 2, 3]])
    found = posterior_loss(torch.zeros(1, 4), torch.tensor([0]), rivals, log_share)
    np.testing.assert_allclose(found, [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("cls", [AnyOrderPrior, SharedTrunkPrior])
def test_other_labels_beside_are_each_by_itself(cls):
    prior, codes, orders, labels = made_up(cls)
    some = torch.tensor([3, 0, 17])
    others = torch.randint(5, (3, 2), generator=torch.Generator().manual_seed(1))
    own, of_others = prior.log_prob_beside(codes, orders, labels, some, others, slice(1, None, 2))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(own, prior.log_prob(codes, orders, labels), **close)
    for k in range(2):
        alone = prior.log_prob(codes[some], orders[some], others[:, k])
        torch.testing.assert_close(of_others[..., k], alone[:, 1::2], **close)


@pytest.mark.parametrize("cls", [AnyOrderPrior, SharedTrunkPrior])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_of_likelihood_and_posterior(cls, weighted):
    prior, codes, orders, labels = made_up(cls)
    rng = np.random.RandomState(0)
    share = np.array([0.1, 0.2, 0.3, 0.4])
    weights = rng.uniform(size=20) if weighted else np.ones(20)
    with torch.no_grad():
        each = (prior.log_prob(codes, orders, torch.full((20,), c)) for c in range(5))
        each = torch.stack([log_prob.double() for log_prob in each], 2).numpy()
    own = each.sum(1)[range(20), labels]
    ll = each[:, 1::2].sum(1)  # by every second token
    posterior = log_softmax(ll[:, :4] + np.log(share), 1)
    told = np.where(labels < 4, posterior[range(20), labels.clamp(max=3)], 0)
    expected = -(weights * (own + 2.5 * told)).mean() / 6
    rivals = draw_rivals(labels, 4, torch.Generator())
    some = torch.as_tensor(weights).float() if weighted else None
    log_share = torch.as_tensor(np.log(share)).float()
    found = Loss(prior, 2.5)(codes, orders, labels, some, None, rivals, log_share, first=1)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_classes", [5, 20])
def test_training_asks_for_the_posterior(num_classes):
    """A new prior tells no classes apart: each is as probable as another, all or drawn ones."""
    labels = np.arange(num_classes).repeat(4)
    codes = np.random.RandomState(0).randint(19, size=(len(labels), 1, 6))

    def trained(weight, rate):
        sizes = {"vocab_size": 19, "grid": (2, 3), "num_classes": num_classes, "dim": 32}
        prior = SharedTrunkPrior(**sizes, n_layer=1, generator=torch.Generator().manual_seed(0))
        how = {"max_iter": 1, "batch_size": 4, "learning_rate": rate, "class_dropout": 0.0}
        history = train_prior(prior, codes, labels, posterior_weight=weight, **how)
        return history.loss_curve[0], prior.head.classes.weight.detach()

    more = trained(3.0, 1e-12)[0] - trained(0.0, 1e-12)[0]
    assert more == pytest.approx(3.0 * np.log(num_classes) / 6, rel=1e-4)
    torch.testing.assert_close(trained(3.0, 1e-2), trained(3.0, 1e-2), rtol=0, atol=0)


def test_classes_are_told_apart_better(digits):
    """Held-out images, at the same length of training."""
    X, y, X_test, y_test = digits
    sizes = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
    params = {"prior": sizes, "max_iter": 6, "batch_size": 16, "random_state": 0, "tol": 10.0}
    nats = {}
    for weight in (0.0, "auto"):
        clf = AnyOrderARClassifier(posterior_weight=weight, **params).fit(X, y)
        nats[weight] = log_loss(y_test, clf.predict_proba(X_test))
    assert nats["auto"] < nats[0.0]
    # of 16 tokens a third as much as of 48; of rows, a thirtieth of the number of columns
    params |= {"max_iter": 1, "augmentation": None}
    for data, weight in ((X, 5 * 16 / 48), (X.reshape(len(X), -1)[:, ::16] ** 1.5, 4 / 30)):
        curves = [
            AnyOrderARClassifier(posterior_weight=w, **params).fit(data, y).loss_curve_
            for w in ("auto", weight, 2 * weight)
        ]
        assert curves[0] == curves[1] != curves[2]
    # the published architecture trains by likelihood alone, unless asked
    sizes |= {"architecture": "randar", "n_layer": 1}
    curves = [
        AnyOrderARClassifier(posterior_weight=weight, **params).fit(X, y).loss_curve_
        for weight in ("auto", 0.0, 5.0)
    ]
    assert curves[0] == curves[1] != curves[2]

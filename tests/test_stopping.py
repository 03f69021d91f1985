"""Orders stop once an image is decided: against exhaustive scoring and the rule written out."""

import copy
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from skaocls import AnyOrderARClassifier
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.racing import race
from skaocls.scoring.stopping import stop_early


@pytest.fixture(scope="module")
def clf(digits):
    small = {"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 32, "rank": 16, "width": 24}
    params = {"prior": small, "n_orders": 12, "batch_size": 16, "learning_rate_init": 5e-3}
    params |= {"max_iter": 15, "tol": 10.0, "crop": "center", "random_state": 0}
    params |= {"precision": "float32"}
    return AnyOrderARClassifier(**params).fit(*digits[:2])


@pytest.fixture(scope="module")
def scored(clf, digits):
    """A prior, tokens, 12 orders, class priors, and log p(token | class, order) of them all."""
    prior, X = clf.prior_, digits[2]
    codes = clf.tokenizer_.transform(X).reshape(len(X), -1)
    orders = np.stack([np.random.RandomState(k).permutation(16) for k in range(12)])
    log_prior = np.log([0.5, 0.3, 0.2])
    views = np.repeat(codes[:, None], len(orders), 1)
    return prior, codes, orders, log_prior, token_log_prob(prior, views, orders)


def token_log_prob(prior, views, orders):
    """log p(token | class, order) of what each order reads, (n_images, n_orders, 16, 3)."""
    tokens = np.empty((*views.shape, 3))
    with torch.inference_mode():
        for k, order in enumerate(orders):
            for label in range(3):
                asked = views[:, k], order[None], np.full(len(views), label)
                on_device = (torch.as_tensor(a, device=prior.device) for a in asked)
                tokens[:, k, :, label] = prior.log_prob(*on_device).cpu()
    return tokens


def orders_needed(tokens, log_prior, error, differ=False):
    """After how many orders an image (n_orders, n_tokens, n_classes) is decided."""
    n_orders, n_tokens, n_classes = tokens.shape
    for k in range(3 if differ else 1, n_orders):
        m = k * n_tokens
        score = tokens[:k].sum((0, 1)) / k + log_prior
        leader = score.argmax()
        lags = []
        for c in set(range(n_classes)) - {leader}:
            d = (tokens[:k, :, leader] - tokens[:k, :, c]).ravel()
            spread = d.std(ddof=1) * np.sqrt(m * (1 - m / tokens[..., 0].size)) / k
            if differ:
                totals = d.reshape(k, n_tokens).sum(1)
                spread = max(spread, totals.std(ddof=1) * np.sqrt((1 - k / n_orders) / k))
            wald = max(np.log((n_classes - 1) / error), 2 * spread)
            lags.append(score[leader] - score[c] > min(wald, stats.t.isf(error, m - 1) * spread))
        if all(lags):
            return k
    return n_orders


@pytest.mark.parametrize("error", [1e-1, 1e-3, 1e-6])
def test_orders_stop_by_the_rule_and_what_is_read_is_exhaustive(scored, error):
    prior, codes, orders, log_prior, tokens = scored
    race = stop_early(prior, codes, orders, np.arange(3), log_prior, error=error)
    needed = np.array([orders_needed(image, log_prior, error) for image in tokens])
    # float32 may fall on the other side of the bound
    assert (race.evaluations // 16 == needed).mean() >= 0.97
    assert 1 < needed.mean() < 11
    exact = log_likelihoods(prior, codes, orders, np.arange(3))
    for ll, all_of_it, n in zip(race.log_likelihood, exact, race.evaluations // 16, strict=True):
        np.testing.assert_array_equal(ll[:n], all_of_it[:n])
        np.testing.assert_allclose(ll.mean(0), all_of_it[:n].mean(0), rtol=1e-12)


@pytest.fixture(scope="module")
def misled(scored):
    """Codes of images whose first reading, of twelve, is that of an image of another class.

    And the classes that all readings together find; the first one alone finds the other one.
    """
    prior, codes, orders, log_prior, tokens = scored
    sure = tokens.sum(2).mean(1) + log_prior
    first = tokens[:, 0].sum(1) + log_prior
    gaps = np.sort(first, 1)
    other = np.array([np.flatnonzero(first.argmax(1) != c)[0] for c in sure.argmax(1)])
    by_order = np.repeat(codes[:, None], len(orders), 1)
    by_order[:, 0] = codes[other]
    ll = log_likelihoods(prior, by_order, orders, np.arange(3))
    found = (ll.mean(1) + log_prior).argmax(1)
    some = found != (ll[:, 0] + log_prior).argmax(1)
    assert some.sum() > 20 and (gaps[other, 2] - gaps[other, 1]).max() > 10  # nats
    return by_order[some], found[some]


@pytest.mark.parametrize("search", [stop_early, race])
def test_one_reading_does_not_decide_where_others_read_other_tokens(scored, misled, search):
    """As views may do: a background that is a rare code in one of them."""
    prior, _, orders, log_prior, _ = scored
    codes, found = misled
    result = search(prior, codes, orders, np.arange(3), log_prior)
    assert (result.evaluations >= 3 * 16).all()
    assert ((result.log_likelihood.mean(1) + log_prior).argmax(1) == found).all()
    # the same tokens in all orders are decided by one, if it is clear
    same = search(prior, codes[:, 1], orders, np.arange(3), log_prior)
    assert same.evaluations.min() == 16


def test_views_are_decided_by_the_rule(scored):
    prior, codes, orders, log_prior, _ = scored
    rng = np.random.RandomState(0)
    views = np.repeat(codes[:, None], len(orders), 1)
    others = rng.permutation(len(codes))
    views = np.where(rng.uniform(size=views.shape) < 0.2, codes[others][:, None], views)
    tokens = token_log_prob(prior, views, orders)
    result = stop_early(prior, views, orders, np.arange(3), log_prior)
    needed = np.array([orders_needed(image, log_prior, 1e-3, differ=True) for image in tokens])
    assert (result.evaluations // 16 == needed).mean() >= 0.97
    assert 3 < needed.mean() < 11


def test_two_classes_are_decided_by_the_same_rule(scored):
    prior, codes, orders, log_prior, tokens = scored
    race = stop_early(prior, codes, orders, np.array([1, 2]), log_prior[1:], error=1e-3)
    needed = np.array([orders_needed(t[..., 1:], log_prior[1:], 1e-3) for t in tokens])
    assert (race.evaluations // 16 == needed).mean() >= 0.97
    assert len(set(needed)) > 2


def test_an_image_does_not_care_what_else_is_read(scored):
    prior, codes, orders, log_prior, _ = scored
    ask = (orders, np.arange(3), log_prior)
    together = stop_early(prior, codes, *ask)
    some = np.random.RandomState(0).permutation(len(codes))[:37]
    for apart in (stop_early(prior, codes[some], *ask),):
        np.testing.assert_array_equal(apart.log_likelihood, together.log_likelihood[some])
        np.testing.assert_array_equal(apart.evaluations, together.evaluations[some])
    for i in (0, 50):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            alone = stop_early(prior, codes[i : i + 1], *ask)
        np.testing.assert_array_equal(alone.log_likelihood[0], together.log_likelihood[i])


def test_impossible_and_single_classes(scored):
    prior, codes, orders, _, _ = scored
    with np.errstate(divide="ignore"):
        never = np.log([0.0, 0.5, 0.5])
    race = stop_early(prior, codes, orders, np.arange(3), never)
    exact = log_likelihoods(prior, codes, orders, np.arange(3)).mean(1)
    assert ((race.log_likelihood.mean(1) + never).argmax(1) == exact[:, 1:].argmax(1) + 1).all()
    one = stop_early(prior, codes, orders, np.array([1]), np.zeros(1))
    assert (one.evaluations == 16).all()


def test_by_default_predictions_stop_early_and_all_else_reads_every_order(clf, digits, tmp_path):
    X, n_tokens = digits[2], 16
    joint, stats_ = clf.predict_joint_log_proba(X, return_stats=True)
    codes = clf.tokenizer_.transform(X).reshape(len(X), -1)
    how = clf.prior_, codes, clf.orders_, np.arange(3), clf.class_log_prior_
    race = stop_early(*how, error=clf.racing_error)
    np.testing.assert_array_equal(stats_["evaluations"], race.evaluations)
    assert stats_["evaluations"].mean() < stats_["exhaustive_evaluations"] / 2
    np.testing.assert_allclose(
        joint, race.log_likelihood.mean(1) + clf.class_log_prior_, rtol=1e-12
    )
    exhaustive = copy.deepcopy(clf).set_params(search="exhaustive")
    assert (clf.predict(X) == exhaustive.predict(X)).all()
    last = list(clf.staged_predict_proba(X))[-1]
    np.testing.assert_array_equal(last, exhaustive.predict_proba(X))
    np.testing.assert_array_equal(clf.score_samples(X), exhaustive.score_samples(X))
    np.testing.assert_array_equal(clf.transform(X), exhaustive.transform(X))
    for every_order in ({"aggregation": "logsumexp"}, {"memory": str(tmp_path)}):
        of_all = copy.deepcopy(clf).set_params(**every_order)
        _, stats_ = of_all.predict_joint_log_proba(X, return_stats=True)
        assert (stats_["evaluations"] == 12 * n_tokens).all()

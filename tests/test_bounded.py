"""Bounded evidence: equal to a computation by hand, and limited whatever single places say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from sklearn.base import clone
from sklearn.datasets import load_iris

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.scoring.aggregation import joint_log_proba
from skaocls.scoring.bounded import bounded_evidence, default_bound, mean_evidence
from skaocls.scoring.evidence import token_log_likelihoods

SIZES = {"dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16}


def copy_of(fitted, **params):
    """Return a classifier with the same fitted model and other parameters."""
    return clone(fitted).set_params(**params)._set_fitted(fitted.model_)


@pytest.fixture(scope="module", params=["randar", "shared_trunk"])
def trained(request, digits):
    X, y, *_ = digits
    prior = SIZES | {"architecture": request.param}
    clf = small_classifier(AnyOrderARClassifier, prior=prior, max_iter=3, augmentation=2)
    return clf.set_params(n_orders=7, aggregation="bounded").fit(X, y)


def by_hand(clf, X, bound, n_orders):
    """Compute the posterior token by token, with one call for each class."""
    codes = clf.tokenizer_.transform(X).reshape(len(X), -1)
    orders = clf.orders_[:n_orders]
    per_class = [
        token_log_likelihoods(clf.prior_, codes, orders, np.full(len(X), row))
        for row in clf.model_.rows
    ]
    evidence = np.zeros((len(X), len(per_class)))
    for i, place, label in np.ndindex(len(X), codes.shape[1], len(per_class)):
        total = 0.0
        for k in range(n_orders):
            p = np.exp([of_class[i, k, place] for of_class in per_class])
            total += np.log(p[label] / p.mean())
        evidence[i, label] += min(max(total / n_orders, -bound), bound)
    log_likelihood = np.stack([of_class.sum(2).mean(1) for of_class in per_class], 1)
    return evidence, log_likelihood


@pytest.mark.parametrize(("aggregation", "bound"), [("bounded", 8**0.5 / 4), (0.3, 0.3)])
def test_posteriors_equal_a_computation_by_hand(trained, digits, aggregation, bound):
    X = digits[2][:5]
    clf = copy_of(
        trained, aggregation=aggregation, temperature=1.7, crop="center", search="exhaustive"
    )
    evidence, log_likelihood = by_hand(clf, X, bound, 7)
    expected = log_softmax(evidence / 1.7 + clf.class_log_prior_, axis=1)
    np.testing.assert_allclose(clf.predict_log_proba(X), expected, atol=1e-4)
    log_image = logsumexp(log_likelihood, axis=1)
    np.testing.assert_allclose(logsumexp(clf.transform(X), axis=1), log_image, atol=1e-3)
    for k, proba in enumerate(clf.staged_predict_proba(X), start=1):
        evidence, _ = by_hand(clf, X, bound, k)
        expected = log_softmax(evidence / 1.7 + clf.class_log_prior_, axis=1)
        np.testing.assert_allclose(np.log(proba), expected, atol=1e-4)


def test_evidence_maps_add_up_to_the_posterior(trained, digits):
    X = digits[2][:6]
    clf = copy_of(trained, search="exhaustive", crop="center")
    joint = clf.predict_joint_log_proba(X) - clf.class_log_prior_
    own, rival = np.full(6, clf.classes_[1]), np.full(6, clf.classes_[2])
    evidence = clf.explain(X, own, rival)
    np.testing.assert_allclose(evidence.tokens.sum((1, 2)), joint[:, 1] - joint[:, 2], atol=1e-4)
    alone = clf.explain(X, own).tokens
    assert np.abs(alone).max() <= default_bound(16) + 1e-9
    np.testing.assert_allclose(alone - clf.explain(X, rival).tokens, evidence.tokens, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    n_tokens=st.integers(1, 9),
    n_classes=st.integers(1, 5),
    n_orders=st.integers(1, 3),
    k=st.integers(0, 9),
    scale=st.sampled_from([0.1, 5.0, 300.0]),
    bound=st.sampled_from([0.01, 0.7, 50.0]),
    seed=st.integers(0, 999),
)
def test_a_place_changes_the_answer_by_at_most_the_bound(
    n_tokens, n_classes, n_orders, k, scale, bound, seed
):
    rng = np.random.default_rng(seed)
    ll = -scale * rng.random((2, n_orders, n_tokens, n_classes)).astype(np.float32)
    other = ll.copy()
    places = rng.permutation(n_tokens)[:k]
    lies = -1000 * rng.random((2, n_orders, len(places), n_classes))
    lies[rng.random(lies.shape) < 0.2] = -np.inf
    other[:, :, places] = lies
    change = (bounded_evidence(other, bound) - bounded_evidence(ll, bound)).abs().max()
    assert change <= 2 * len(places) * bound + 1e-6


def test_a_class_that_leads_by_more_than_the_bound_survives_lies():
    """With a bound of 0.5, nine places lead by 4.5 nats, and each lie takes away 1 nat."""
    ll = np.log(np.full((1, 2, 21, 2), 0.5))
    ll[..., :9, 1] -= 0.5
    lead = mean_evidence(ll)[0, :, 0].sum() - mean_evidence(ll)[0, :, 1].sum()
    assert lead == pytest.approx(4.5)
    for n_lies in range(13):
        lying = ll.copy()
        lying[..., 9 : 9 + n_lies, 0] = -1e6
        joint = joint_log_proba(lying, np.log([0.5, 0.5]), 0.5)
        assert joint.argmax() == int(n_lies * 2 * 0.5 > lead)
        # without the bound, one place decides
        total = joint_log_proba(lying.sum(2), np.log([0.5, 0.5]), "mean_log_likelihood")
        assert total.argmax() == int(n_lies > 0)


def test_early_stopping_finds_the_class_of_exhaustive_scoring(digits):
    X, y, X_test, _ = digits
    clf = small_classifier(AnyOrderARClassifier, prior={"dim": 32}, max_iter=6, n_orders=20)
    clf.set_params(aggregation="bounded", search="exhaustive", augmentation=4).fit(X, y)
    exact = clf.predict_proba(X_test)
    clf.set_params(search="auto")
    joint, stats = clf.predict_joint_log_proba(X_test, return_stats=True)
    assert (joint.argmax(1) == exact.argmax(1)).mean() >= 0.99
    share = stats["evaluations"] / stats["exhaustive_evaluations"]
    assert share.min() == 4 / 20 and share.mean() < 0.7
    stages = list(copy_of(clf, search="exhaustive").staged_predict_proba(X_test))
    for i, n in enumerate((20 * share).round().astype(int)):
        np.testing.assert_allclose(
            clf._log_posterior(joint)[i], np.log(stages[n - 1][i]), atol=1e-5
        )
    alone = np.concatenate([clf.predict_proba(X_test[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(alone, clf.predict_proba(X_test[:9]), atol=1e-6)


@pytest.mark.parametrize("n_orders", [1, 3, 4, 5, 9])
def test_early_stopping_with_any_number_of_orders(trained, digits, n_orders):
    X = digits[2][:20]
    clf = copy_of(trained, n_orders=n_orders, search=0.3)
    joint, stats = clf.predict_joint_log_proba(X, return_stats=True)
    scored = stats["evaluations"] * n_orders / stats["exhaustive_evaluations"]
    assert set(scored) <= {*range(4, n_orders, 2), n_orders}
    whole = copy_of(clf, search="exhaustive").predict_joint_log_proba(X)
    np.testing.assert_allclose(joint[scored == n_orders], whole[scored == n_orders], atol=1e-5)


def test_the_cache_and_workers_do_not_change_the_answer(trained, digits, tmp_path):
    X = digits[2][:9]
    clf = copy_of(trained, search="exhaustive")
    expected = clf.predict_proba(X)
    for params in ({"memory": tmp_path}, {"n_jobs": 2}):
        other = copy_of(clf, **params)
        np.testing.assert_allclose(other.predict_proba(X), expected, atol=1e-6)
        np.testing.assert_allclose(other.predict_proba(X), expected, atol=1e-6)
    # the same folder serves aggregations with and without single tokens
    plain = {"aggregation": "mean_log_likelihood"}
    np.testing.assert_allclose(
        copy_of(clf, memory=tmp_path, **plain).predict_proba(X),
        copy_of(clf, **plain).predict_proba(X),
        atol=1e-6,
    )


def test_temperature_tables_and_classes_of_several_priors():
    X, y = load_iris(return_X_y=True)
    clf = AnyOrderARClassifier(
        aggregation="bounded", temperature="auto", max_iter=10, n_orders=4, random_state=0
    )
    clf.fit(X[::2], y[::2])
    assert 0.01 < clf.temperature_ < 10
    assert clf.score(X[1::2], y[1::2]) > 0.9
    grown = AnyOrderARClassifier(
        prior=SIZES, aggregation="bounded", max_iter=2, n_orders=4, random_state=0
    )
    for label in range(3):
        grown.partial_fit(X[y == label], y[y == label])
    assert len(grown.model_.priors) > 1
    expected, _ = by_hand_of_priors(grown, X[::9])
    np.testing.assert_allclose(
        grown.predict_log_proba(X[::9]),
        log_softmax(expected + grown.class_log_prior_, axis=1),
        atol=1e-4,
    )


def by_hand_of_priors(clf, X):
    codes, model = clf.tokenizer_.transform(X).reshape(len(X), -1), clf.model_
    ll = np.stack(
        [
            token_log_likelihoods(model.priors[s], codes, clf.orders_, np.full(len(X), row))
            for s, row in zip(model.sources, model.rows)
        ],
        -1,
    )
    bound = default_bound(4)
    evidence = ll - logsumexp(ll, axis=-1, keepdims=True) + np.log(ll.shape[-1])
    return evidence.mean(1).clip(-bound, bound).sum(1), ll


def test_invalid_bounds(digits):
    X, y, *_ = digits
    for bound in (0, -1.0, "bound"):
        with pytest.raises(ValueError, match="aggregation"):
            small_classifier(AnyOrderARClassifier, aggregation=bound).fit(X, y)

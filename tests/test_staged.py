"""Staged predictions, and the likelihood of images."""

import copy

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

import reference
from skaocls import PatchTokenizer
from skaocls.fitted.class_statistics import log_density
from skaocls.order_selection import smallest_n_orders
from skaocls.scoring.aggregation import AGGREGATIONS, BOUNDED


@pytest.mark.parametrize("aggregation", [*AGGREGATIONS, BOUNDED])
def test_stages_equal_predictions_with_fewer_orders(fitted, digits, aggregation):
    X, y = digits[2][:40], digits[3][:40]
    before = fitted.get_params()
    fitted.set_params(aggregation=aggregation)
    try:
        proba, labels = list(fitted.staged_predict_proba(X)), list(fitted.staged_predict(X))
        scores = list(fitted.staged_score(X, y))
        assert len(proba) == len(labels) == len(scores) == fitted.n_orders == 4
        for k in range(1, 5):
            fitted.set_params(n_orders=k)
            np.testing.assert_allclose(proba[k - 1], fitted.predict_proba(X), atol=1e-6)
            np.testing.assert_array_equal(labels[k - 1], fitted.predict(X))
            assert scores[k - 1] == fitted.score(X, y)
    finally:
        fitted.set_params(**before)


def test_staged_score_uses_sample_weight(fitted, digits):
    X, y = digits[2][:10], digits[3][:10].copy()
    y[0] = (y[0] + 1) % 3  # the first prediction is now wrong
    right = [predicted == y for predicted in fitted.staged_predict(X)]
    weight = np.r_[5.0, np.ones(9)]
    for score, hits in zip(fitted.staged_score(X, y, sample_weight=weight), right, strict=True):
        assert score == pytest.approx((weight * hits).sum() / weight.sum())


def test_score_samples_equals_brute_force(fitted, digits):
    X = digits[2][:3]
    codes = fitted.tokenizer_.transform(X).reshape(3, -1)
    ll = reference.log_likelihoods(fitted.prior_, codes, fitted.orders_, np.arange(3))
    log_prior = np.log(fitted.class_count_ / fitted.class_count_.sum())
    expected = logsumexp(ll.mean(1) + log_prior, axis=1)
    removed = log_density(fitted.model_, fitted.model_.reader.open(X))  # see test_outliers.py
    np.testing.assert_allclose(fitted.score_samples(X), expected + removed, rtol=1e-5)


def test_score_samples_detects_outliers(fitted, digits):
    X = digits[2]
    fitted = clone(fitted).set_params(tokenizer=PatchTokenizer(normalize=None)).fit(*digits[:2])
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(X.reshape(len(X), -1), axis=1).reshape(X.shape)
    for strange in (shuffled, X.max() - X, rng.uniform(0, X.max(), size=X.shape)):
        scores = fitted.score_samples(np.concatenate([X, strange]))
        truth = np.r_[np.ones(len(X)), np.zeros(len(X))]
        assert roc_auc_score(truth, scores) > 0.95


def staged(fitted, right):
    """Return a classifier that is right on a given number of 100 images after each order."""
    clf = copy.copy(fitted)
    clf.staged_predict = lambda X: (np.arange(100) < n for n in right)
    return clf


def test_smallest_n_orders(fitted, digits):
    X, y = digits[2], np.ones(100, dtype=int)
    # the best accuracy is 0.9; its standard error is sqrt(0.9 * 0.1 / 99) = 0.0302
    assert smallest_n_orders(staged(fitted, [80, 86, 87, 90, 89]), X, y) == 3
    assert smallest_n_orders(staged(fitted, [80, 86, 86, 90, 89]), X, y) == 4
    assert smallest_n_orders(staged(fitted, [90, 90, 90]), X, y) == 1
    assert smallest_n_orders(staged(fitted, [50, 100, 99]), X, y) == 2
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        smallest_n_orders(fitted, X, y[:1])
    with pytest.raises(ValueError, match=r"y has labels of type <U.*type int64"):
        smallest_n_orders(fitted, X, y.astype(str))

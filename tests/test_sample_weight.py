"""Sample weights: what scikit-learn means by them, and their way through its tools."""

import numpy as np
import pytest
import sklearn
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import small_classifier
from skaocls import AnyOrderARClassifier


def make(**params):
    defaults = {"max_iter": 3, "augmentation": None}
    return small_classifier(AnyOrderARClassifier, **(defaults | params))


@pytest.mark.parametrize("extra", [{}, {"early_stopping": True}, {"temperature": "auto"}])
def test_a_weight_of_n_is_n_samples(digits, extra):
    X, y, X_test, _ = digits
    weight = np.random.RandomState(0).randint(0, 4, size=len(y))
    weighted = make(**extra).fit(X, y, sample_weight=weight)
    rows = np.random.RandomState(1).permutation(np.repeat(np.arange(len(y)), weight))
    repeated = make(**extra).fit(X[rows], y[rows])
    np.testing.assert_allclose(
        weighted.predict_log_proba(X_test), repeated.predict_log_proba(X_test), atol=1e-9
    )
    np.testing.assert_array_equal(weighted.class_count_, np.bincount(y, weight))


def test_weights_pull_the_likelihood(digits):
    X, y, _, _ = digits
    heavy = np.arange(len(y)) < 30
    clf = make(max_iter=8).fit(X, y, sample_weight=np.where(heavy, 30.0, 1.0))
    plain = make(max_iter=8).fit(X, y)
    gain = clf.score_samples(X) - plain.score_samples(X)
    assert gain[heavy].mean() > gain[~heavy].mean() + 1


def test_score_weighs_samples(fitted, digits):
    X, y = digits[2][:20], digits[3][:20].copy()
    y[0] = (y[0] + 1) % 3
    weight = np.r_[5.0, np.ones(19)]
    right = fitted.predict(X) == y
    assert fitted.score(X, y, sample_weight=weight) == pytest.approx(right @ weight / weight.sum())


@pytest.mark.parametrize(
    "weight, message",
    [
        ([1.0, 2.0], "sample_weight.shape == "),
        (np.full(300, -1.0), "Negative values"),
        (np.full(300, np.nan), "contains NaN"),
        (np.zeros(300), "at least one non-zero number"),
    ],
)
def test_wrong_weights(digits, weight, message):
    with pytest.raises(ValueError, match=message):
        make().fit(*digits[:2], sample_weight=weight)


def test_metadata_routing():
    X, y = load_iris(return_X_y=True)
    weight = np.random.RandomState(0).randint(1, 4, size=len(y)).astype(float)
    with sklearn.config_context(enable_metadata_routing=True):
        clf = make(prior="auto", n_orders=2).set_fit_request(sample_weight=True)
        clf.set_score_request(sample_weight=True)
        search = GridSearchCV(clf, {"n_orders": [1, 2]}, cv=2, error_score="raise")
        search.fit(X, y, sample_weight=weight)
        counts = np.bincount(y, weights=weight)
        np.testing.assert_allclose(search.best_estimator_.class_count_, counts)
        cross_validate(clf, X, y, cv=2, params={"sample_weight": weight}, error_score="raise")
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, clf).fit(X, y, sample_weight=weight)
    scaled = StandardScaler().fit_transform(X)
    direct = make(prior="auto", n_orders=2).fit(scaled, y, weight)
    np.testing.assert_allclose(pipeline.predict_proba(X), direct.predict_proba(scaled), atol=1e-9)

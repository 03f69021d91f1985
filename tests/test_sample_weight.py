"""Sample weights and class weights, also in scikit-learn's pipelines and metadata routing."""

import numpy as np
import pytest
import sklearn
from sklearn.datasets import load_digits, load_iris
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from conftest import small_classifier
from skaocls import AnyOrderARClassifier


def make(**params):
    defaults = {"max_iter": 3, "augmentation": None}
    return small_classifier(AnyOrderARClassifier, **(defaults | params))


@pytest.mark.parametrize("extra", [{}, {"early_stopping": True}, {"temperature": "auto"}])
def test_weight_n_equals_n_samples(digits, extra):
    X, y, X_test, _ = digits
    weight = np.random.RandomState(0).randint(0, 4, size=len(y))
    weighted = make(**extra).fit(X, y, sample_weight=weight)
    rows = np.random.RandomState(1).permutation(np.repeat(np.arange(len(y)), weight))
    repeated = make(**extra).fit(X[rows], y[rows])
    np.testing.assert_allclose(
        weighted.predict_log_proba(X_test), repeated.predict_log_proba(X_test), atol=1e-9
    )
    np.testing.assert_array_equal(weighted.class_count_, np.bincount(y, weight))


def test_weights_increase_the_likelihood(digits):
    X, y, _, _ = digits
    heavy = np.arange(len(y)) < 30
    clf = make(max_iter=8).fit(X, y, sample_weight=np.where(heavy, 30.0, 1.0))
    plain = make(max_iter=8).fit(X, y)
    gain = clf.score_samples(X) - plain.score_samples(X)
    assert gain[heavy].mean() > gain[~heavy].mean() + 1


def test_score_uses_sample_weight(fitted, digits):
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


@pytest.mark.parametrize(
    "class_weight", ["balanced", {0: 2.0, 1: 0.5, 2: 1.0}, {0: 3.0, 1: 0.0, 2: 1.0}]
)
def test_class_weight_equals_sample_weight(digits, class_weight):
    X, y, X_test, _ = digits
    X, y = X[:120], y[:120]
    of_class = compute_sample_weight(class_weight, y)
    clf = make(class_weight=class_weight).fit(X, y)
    same = make().fit(X, y, sample_weight=of_class)
    np.testing.assert_array_equal(clf.classes_, same.classes_)
    np.testing.assert_array_equal(clf.predict_proba(X_test), same.predict_proba(X_test))
    if class_weight == "balanced":
        np.testing.assert_allclose(clf.class_prior_, 1 / 3)
    weight = np.random.RandomState(0).randint(1, 4, size=len(y))
    both = make(class_weight=class_weight).fit(X, y, sample_weight=weight)
    rows = np.repeat(np.arange(len(y)), weight)
    repeated = make(class_weight=class_weight).fit(X[rows], y[rows])
    np.testing.assert_allclose(both.class_count_, repeated.class_count_)
    np.testing.assert_allclose(
        both.predict_log_proba(X_test), repeated.predict_log_proba(X_test), atol=1e-6
    )


def test_class_weight_helps_a_rare_class():
    data = load_digits(n_class=10)
    X, y = data.images[np.isin(data.target, (3, 8))], data.target[np.isin(data.target, (3, 8))]
    train = np.r_[np.flatnonzero(y == 3)[:90], np.flatnonzero(y == 8)[:6]]
    rest = np.setdiff1d(np.arange(len(y)), train)

    def recall(class_weight):
        clf = make(class_weight=class_weight, max_iter=10).fit(X[train], y[train])
        return recall_score(y[rest], clf.predict(X[rest]), pos_label=8)

    assert recall("balanced") > recall(None) + 0.1


@pytest.mark.parametrize(
    "class_weight, message",
    [
        ("even", "'class_weight' parameter"),
        ({0: -1.0, 1: 1.0, 2: 1.0}, "must not be negative"),
        ({0: 1.0, 7: 1.0}, "are not in class_weight"),
        ({0: 0.0, 1: 0.0, 2: 0.0}, "is zero for all classes"),
    ],
)
def test_wrong_class_weights(digits, class_weight, message):
    with pytest.raises(ValueError, match=message):
        make(class_weight=class_weight).fit(*digits[:2])


def test_class_weight_in_partial_fit(digits):
    X, y, _, _ = digits
    with pytest.raises(ValueError, match='class_weight="balanced" is not supported'):
        make(class_weight="balanced").partial_fit(X, y)
    clf = make(class_weight={0: 2.0, 1: 1.0, 2: 1.0}, max_iter=1)
    clf.partial_fit(X, y).partial_fit(X, y)
    np.testing.assert_allclose(clf.class_count_, 2 * np.bincount(y) * [2, 1, 1])

"""Properties of any data and options, checked on random examples.

For more examples run ``pytest tests/test_properties.py --hypothesis-profile=long``.
"""

import copy
import warnings

import joblib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.scoring.aggregation import AGGREGATIONS, BOUNDED

SIZES = {"dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16}
few = settings(max_examples=settings().max_examples // 10, deadline=None)

LABELS = [[3, -7, 5], ["b", "a", "c"], [True, False], [2.0, 0.0, 1e6], ["only"]]
OPTIONS = st.fixed_dictionaries(
    {
        "architecture": st.sampled_from(["randar", "shared_trunk"]),
        "search": st.sampled_from(["exhaustive", "auto"]),
        "aggregation": st.sampled_from([*AGGREGATIONS, BOUNDED]),
        "order": st.sampled_from(["random", "antithetic", "raster"]),
        "temperature": st.sampled_from([1.0, 0.01, 1e-30, 50.0]),
        "class_weight": st.sampled_from([None, "balanced"]),
        "n_orders": st.integers(1, 3),
        "augmentation": st.sampled_from([None, 2]),
        "class_prior": st.sampled_from([None, "one is impossible"]),
    }
)


@st.composite
def data(draw):
    """Images or a table, and labels."""
    n = draw(st.integers(5, 14))
    shape = draw(st.sampled_from([(1,), (4,), (3, 5), (6, 6), (6, 5, 3), (4, 4, 1)]))
    dtype = draw(st.sampled_from(["u1", ">u2", "i4", "f2", "f4", ">f8", "?"]))
    rng = np.random.RandomState(draw(st.integers(0, 99)))
    names = np.array(draw(st.sampled_from(LABELS)))
    X = rng.randint(1 if draw(st.booleans()) else 200, size=(n, *shape)).astype(dtype)
    return X, names[rng.randint(len(names), size=n)]


def make(options, y):
    params = dict(options)
    n = len(np.unique(y))
    if params["class_prior"] is not None:
        params["class_prior"] = np.r_[np.full(n - 1, 1 / max(1, n - 1)), 0.0] if n > 1 else [1.0]
    prior = SIZES | {"architecture": params.pop("architecture")}
    return small_classifier(AnyOrderARClassifier, max_iter=1, prior=prior, **params)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@few
@given(of=data(), options=OPTIONS)
def test_invariants_of_any_fit(of, options):
    X, y = of
    clf = make(options, y)
    before = joblib.hash(clf.get_params())
    clf.fit(X, y)
    np.testing.assert_array_equal(clf.classes_, np.unique(y))
    proba = clf.predict_proba(X)
    assert proba.shape == (len(X), len(clf.classes_)) and (proba >= 0).all()
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-9)
    np.testing.assert_array_equal(clf.predict(X), clf.classes_[proba.argmax(1)])
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), proba)
    assert np.isfinite(clf.score_samples(X)).all() and np.isfinite(clf.transform(X)).all()
    mixed = np.random.RandomState(0).permutation(len(X))
    # rounding stays far below one nat at any temperature
    nats = clf.transform(X[mixed]) - clf.transform(X)[mixed]
    assert np.abs(nats).max() < 1e-5
    if options["temperature"] >= 1:
        np.testing.assert_allclose(clf.predict_proba(X[mixed]), proba[mixed], atol=1e-6)
    # constructors only store parameters, fit does not change them, and fits are reproducible
    assert joblib.hash(clf.get_params()) == before
    again = clone(clf)
    assert joblib.hash(type(clf)(**clf.get_params()).get_params()) == before
    np.testing.assert_array_equal(again.fit(X, y).predict_proba(X), proba)


ODD = [None, -1, 0, 0.5, 2, 1e300, np.nan, np.inf, "x", "auto", b"x", (), [], {}, [1, 2]]
ODD += [{"a": 1}, np.float32(3), np.array(3), np.array([[0]]), True, object()]
# parameters that are names of files and folders are tested elsewhere
OTHERS = {"prior", "memory", "checkpoint_dir", "verbose"}


@pytest.fixture(scope="module")
def known():
    X, y = np.random.RandomState(0).randint(200, size=(12, 4, 4)), np.arange(12) % 3
    params = {"max_iter": 1, "prior": SIZES, "n_orders": 2, "augmentation": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return small_classifier(AnyOrderARClassifier, **params).fit(X, y), X, y


@settings(max_examples=3 * settings().max_examples // 10, deadline=None)
@given(st.data())
def test_invalid_parameters_raise_errors(known, drawn):
    """A value works, or raises an error with a message and leaves the classifier unchanged."""
    clf, X, y = copy.copy(known[0]), *known[1:]
    name = drawn.draw(st.sampled_from(sorted(clf.get_params(deep=False).keys() - OTHERS)), "name")
    value = drawn.draw(st.sampled_from(ODD), "value")
    assume(not (name == "max_iter" and value == "auto"))  # slow
    model, proba = clf.model_, clf.predict_proba(X)
    clf.set_params(**{name: value})
    for call, args in ((clf.predict_proba, (X,)), (clf.fit, (X, y)), (clf.partial_fit, (X, y))):
        try:
            call(*args)
        except (ValueError, TypeError) as exc:
            assert str(exc)  # noqa: PT017
            assert clf.model_ is model
        else:
            model = clf.model_
    if model is known[0].model_:
        clf.set_params(**{name: known[0].get_params()[name]})
        np.testing.assert_array_equal(clf.predict_proba(X), proba)


@few
@given(of=data(), wrong=st.sampled_from(ODD + [np.zeros((3, 9, 9)), np.full((4, 4), np.nan)]))
def test_invalid_data_leave_the_classifier_unchanged(known, of, wrong):
    clf, X, _ = known
    before = clf.predict_proba(X)
    for call in (clf.predict, clf.transform, clf.explain, clf.partial_fit, clf.fit):
        args = (of[1],) if call in (clf.partial_fit, clf.fit) else ()
        with pytest.raises((ValueError, TypeError)) as error:
            call(wrong, *args)
        assert str(error.value)
    np.testing.assert_array_equal(clf.predict_proba(X), before)

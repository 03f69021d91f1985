"""Warnings point at the code that called the library."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.warn import warn


def test_location_is_the_caller():
    with pytest.warns(RuntimeWarning, match="a message") as caught:
        warn("a message", RuntimeWarning)
    assert caught[0].filename == __file__


def test_context_managers_are_skipped():
    @contextmanager
    def context():
        yield
        warn("a message")

    with pytest.warns(UserWarning, match="a message") as caught, context():
        pass
    assert caught[0].filename == __file__


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_warnings_of_fit_point_at_the_call(digits, in_pipeline):
    X, y, _, _ = digits
    clf = small_classifier(AnyOrderARClassifier, max_iter=3, tol=0.0, learning_rate_init=1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if in_pipeline:
            pipeline = make_pipeline(FunctionTransformer(np.asarray), clf)
            cross_val_score(pipeline, X[:60], y[:60], cv=2)
        else:
            clf.fit(X[:60], y[:60])
    assert any("hasn't converged" in str(w.message) for w in caught)
    assert {w.filename for w in caught} == {__file__}

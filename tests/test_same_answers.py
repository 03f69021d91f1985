"""Predictions do not depend on batches, threads or processes."""

import copy
import multiprocessing

import joblib
import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from conftest import small_classifier
from skaocls import AnyOrderARClassifier

SIZES = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}


def joint(clf, X):
    return clf.predict_joint_log_proba(X)


@pytest.fixture(scope="module")
def cases(digits):
    """Classifiers, inputs and expected outputs."""
    X, y, X_test, _ = digits
    table, labels = load_wine(return_X_y=True)
    cases = []
    for architecture in ("randar", "shared_trunk"):
        prior = SIZES | {"architecture": architecture}
        params = {"prior": prior, "max_iter": 2, "augmentation": None, "precision": "float32"}
        for inputs, train in ((X_test[:70], (X, y)), (table[:70], (table, labels))):
            clf = small_classifier(AnyOrderARClassifier, **params).fit(*train)
            for search in ("exhaustive", "auto"):
                copied = copy.copy(clf).set_params(search=search)
                cases.append((copied, inputs, joint(copied, inputs)))
    return cases


def assert_same(found, expected):
    """Compare probabilities to 1e-6, and log-likelihoods to a relative 1e-6."""
    proba = [np.exp(a - np.logaddexp.reduce(a, 1)[:, None]) for a in (found, expected)]
    np.testing.assert_allclose(*proba, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_batches_threads_and_pipelines(cases):
    n_threads, shuffled = torch.get_num_threads(), np.random.RandomState(0).permutation(70)
    for clf, X, expected in cases:
        for n in (1, 7, 64):
            stop = 21 if n == 1 else len(X)
            parts = [joint(clf, X[i : i + n]) for i in range(0, stop, n)]
            assert_same(np.concatenate(parts), expected[:stop])
        assert_same(joint(clf, X[shuffled]), expected[shuffled])
        for form in (np.asfortranarray(X), X[::-1].copy()[::-1], torch.from_numpy(X), list(X)):
            assert_same(joint(clf, form), expected)
        ll = make_pipeline(FunctionTransformer(), clf).transform(X)  # always scores all orders
        exhaustive = joint(copy.copy(clf).set_params(search="exhaustive"), X)
        assert_same(ll + clf.class_log_prior_, exhaustive)
        torch.set_num_threads(2 if n_threads == 1 else 1)
        try:
            assert_same(joint(clf, X), expected)
        finally:
            torch.set_num_threads(n_threads)


def test_saved_classifiers_and_other_processes(cases, tmp_path):
    for clf, X, expected in cases:
        joblib.dump(clf, tmp_path / "dumped")
        clf.save_pretrained(tmp_path / "saved")
        for loaded in (
            joblib.load(tmp_path / "dumped"),
            AnyOrderARClassifier.from_pretrained(tmp_path / "saved"),
        ):
            np.testing.assert_array_equal(joint(loaded, X), expected)
    arguments = [(clf, X) for clf, X, _ in cases]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.starmap(joint, arguments)
    workers = joblib.Parallel(2, backend="loky")(joblib.delayed(joint)(*args) for args in arguments)
    for (_, _, expected), first, second in zip(cases, spawned, workers):
        assert_same(first, expected)
        assert_same(second, expected)

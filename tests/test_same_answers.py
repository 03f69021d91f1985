"""An answer does not depend on where it was computed; more in benchmarks/reliability/same_predictions.py."""

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
def asked(digits):
    """Classifiers, what to ask them, and what they answer."""
    X, y, X_test, _ = digits
    table, labels = load_wine(return_X_y=True)
    cases = []
    for architecture in ("randar", "shared_trunk"):
        prior = SIZES | {"architecture": architecture}
        params = {"prior": prior, "max_iter": 2, "augmentation": None, "precision": "float32"}
        for of, train in ((X_test[:70], (X, y)), (table[:70], (table, labels))):
            clf = small_classifier(AnyOrderARClassifier, **params).fit(*train)
            for search in ("exhaustive", "racing"):
                one = copy.copy(clf).set_params(search=search)
                cases.append((one, of, joint(one, of)))
    return cases


def assert_same(found, expected):
    """To 1e-6, absolutely of probabilities and relatively of log-likelihoods."""
    proba = [np.exp(a - np.logaddexp.reduce(a, 1)[:, None]) for a in (found, expected)]
    np.testing.assert_allclose(*proba, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_in_batches_and_threads_and_pipelines(asked, tmp_path):
    before, mixed = torch.get_num_threads(), np.random.RandomState(0).permutation(70)
    for clf, X, expected in asked:
        for n in (1, 7, 64):
            some = 21 if n == 1 else len(X)
            parts = [joint(clf, X[i : i + n]) for i in range(0, some, n)]
            assert_same(np.concatenate(parts), expected[:some])
        assert_same(joint(clf, X[mixed]), expected[mixed])
        for form in (np.asfortranarray(X), X[::-1].copy()[::-1], torch.from_numpy(X), list(X)):
            assert_same(joint(clf, form), expected)
        ll = make_pipeline(FunctionTransformer(), clf).transform(X)
        assert_same(ll + clf.class_log_prior_, expected)
        torch.set_num_threads(2 if before == 1 else 1)
        try:
            assert_same(joint(clf, X), expected)
        finally:
            torch.set_num_threads(before)


def test_kept_and_in_other_processes(asked, tmp_path):
    for clf, X, expected in asked:
        joblib.dump(clf, tmp_path / "dumped")
        clf.save_pretrained(tmp_path / "saved")
        for again in (
            joblib.load(tmp_path / "dumped"),
            AnyOrderARClassifier.from_pretrained(tmp_path / "saved"),
        ):
            np.testing.assert_array_equal(joint(again, X), expected)
    ask = [(clf, X) for clf, X, _ in asked]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.starmap(joint, ask)
    workers = joblib.Parallel(2, backend="loky")(joblib.delayed(joint)(*one) for one in ask)
    for (_, _, expected), first, second in zip(asked, spawned, workers):
        assert_same(first, expected)
        assert_same(second, expected)

"""Integration with scikit-learn's meta-estimators and tools, pandas and polars."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, PatchTokenizer


def make(**params):
    return small_classifier(AnyOrderARClassifier, **({"augmentation": None} | params))


@pytest.fixture(scope="module")
def flat(digits):
    X, y, X_test, y_test = digits
    return X.reshape(len(X), -1), y, X_test.reshape(len(X_test), -1), y_test


@pytest.fixture(scope="module")
def table(digits, tmp_path_factory):
    """A data frame with a path column and two uninformative numeric columns."""
    X, y, _, _ = digits
    folder = tmp_path_factory.mktemp("digits")
    frame = pd.DataFrame({"path": [str(folder / f"{i}.png") for i in range(len(X))]})
    for path, image in zip(frame["path"], X):
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    frame["ink"] = X.mean((1, 2))
    frame["noise"] = np.random.RandomState(0).randn(len(X))
    return frame, y


def test_path_and_numeric_columns(table):
    frame, y = table
    columns = ColumnTransformer(
        [("image", make(), ["path"]), ("numbers", StandardScaler(), ["ink", "noise"])],
        verbose_feature_names_out=False,
    )
    pipeline = make_pipeline(columns, StandardScaler(), LogisticRegression())
    pipeline.fit(frame[:200], y[:200])
    assert pipeline.score(frame[200:], y[200:]) > 0.9
    names = [f"anyorderarclassifier_{i}" for i in range(3)] + ["ink", "noise"]
    assert list(columns.fit(frame[:200], y[:200]).get_feature_names_out()) == names
    out = columns.set_output(transform="pandas").transform(frame[200:])
    assert list(out.columns) == names and list(out.index) == list(frame.index[200:])
    in_polars = columns.set_output(transform="polars").fit_transform(frame[:200], y[:200])
    assert isinstance(in_polars, pl.DataFrame) and in_polars.columns == names


def test_transform_is_the_log_likelihood(fitted, digits):
    X = digits[2][:20]
    expected = fitted.predict_joint_log_proba(X) - fitted.class_log_prior_
    np.testing.assert_allclose(fitted.transform(X), expected, atol=1e-9)


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_data_frames(kind):
    X, y = load_iris(return_X_y=True)
    names = ["a", "b", "c", "d"]
    frame = kind(dict(zip(names, X.T)))
    clf = make(max_iter=10).fit(frame, y)
    np.testing.assert_array_equal(clf.feature_names_in_, names)
    np.testing.assert_array_equal(clf.predict(frame), make(max_iter=10).fit(X, y).predict(X))


@pytest.mark.parametrize("kind", ["series", "frame", "polars"])
def test_paths_in_data_frames(table, kind):
    frame, y = table
    paths = frame["path"]
    X = {"series": paths, "frame": frame[["path"]], "polars": pl.Series(list(paths))}
    clf = make(max_iter=5).fit(X[kind][:100], y[:100])
    expected = make(max_iter=5).fit(list(frame["path"])[:100], y[:100])
    np.testing.assert_array_equal(
        clf.predict_proba(X[kind][100:110]), expected.predict_proba(list(frame["path"])[100:110])
    )


def test_voting_and_stacking(flat):
    X, y, X_test, y_test = flat
    members = [("ar", make(image_shape=(8, 8))), ("svc", SVC())]
    stack = StackingClassifier(members, final_estimator=LogisticRegression(), cv=2).fit(X, y)
    assert stack.score(X_test, y_test) > 0.95
    members[1] = ("lr", LogisticRegression(max_iter=1000))
    vote = VotingClassifier(members, voting="soft").fit(X, y)
    assert vote.score(X_test, y_test) > 0.9
    mean = np.mean([m.predict_proba(X_test) for m in vote.estimators_], axis=0)
    np.testing.assert_allclose(vote.predict_proba(X_test), mean, atol=1e-9)


def test_calibration_and_one_vs_rest(digits):
    X, y, X_test, y_test = digits
    calibrated = CalibratedClassifierCV(make(), cv=2).fit(X, y)
    assert calibrated.score(X_test, y_test) > 0.9
    one_vs_rest = OneVsRestClassifier(make()).fit(X, y)
    assert one_vs_rest.score(X_test, y_test) > 0.9


def test_searches(flat):
    X, y, _, _ = flat
    clf = make(image_shape=(8, 8), max_iter=5)
    halving = HalvingGridSearchCV(clf, {"n_orders": [1, 2, 4]}, cv=2, min_resources=60, factor=2)
    assert halving.fit(X, y).best_params_["n_orders"] in (1, 2, 4)
    grid = {"tokenizer": [PatchTokenizer(2), PatchTokenizer(4)], "posterior_weight": [0.0, 1.0]}
    random = RandomizedSearchCV(clf, grid, n_iter=2, cv=2, random_state=0, error_score="raise")
    assert random.fit(X, y).best_score_ > 0.5


def test_cross_validation_of_a_pipeline(flat):
    X, y, _, _ = flat
    scale = FunctionTransformer(lambda rows: rows / 16)
    pipeline = make_pipeline(scale, make(image_shape=(8, 8)))
    proba = cross_val_predict(pipeline, X, y, cv=2, method="predict_proba")
    scores = cross_val_score(pipeline, X, y, cv=2)
    assert np.mean(proba.argmax(1) == y) == pytest.approx(scores.mean(), abs=1e-9)
    assert pipeline.fit(X, y).transform(X).shape == (len(X), 3)


def test_permutation_importance():
    X, y = load_iris(return_X_y=True)
    X = np.column_stack([X, np.random.RandomState(0).randn(len(X))])
    clf = make(max_iter=60).fit(X, y)
    result = permutation_importance(clf, X, y, n_repeats=3, random_state=0)
    assert result.importances_mean[2:4].max() > 0.05 + abs(result.importances_mean[4])


def test_html_in_notebooks(fitted):
    html = fitted._repr_html_()
    assert "AnyOrderARClassifier" in html and "max_iter" in html
    assert "Fitted" in html or "fitted" in html

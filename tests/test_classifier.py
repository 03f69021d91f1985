"""Behaviour of the estimator: training, predictions, parameters and errors."""

import fcntl
import io
import os
import pickle
import struct
import subprocess
import sys
import termios
import warnings
from contextlib import suppress

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from PIL import Image
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, StandardScaler
from sklearn.utils.fixes import parse_version

import reference
from conftest import small_classifier
from skaocls import (
    AnyOrderARClassifier,
    AnyOrderPrior,
    FineTuning,
    PatchTokenizer,
    PretrainedWeights,
    QuantileTokenizer,
)
from skaocls.order_selection import smallest_n_orders
from skaocls.scoring.aggregation import AGGREGATIONS, BOUNDED
from skaocls.scoring.orders import draw_orders
from skaocls.training.validation import split_validation


def make(**params):
    return small_classifier(AnyOrderARClassifier, **params)


def copy_of(clf, **params):
    return pickle.loads(pickle.dumps(clf)).set_params(**params)


def with_nan(X):
    X = X.copy()
    X[3, 2, 2] = np.nan
    return X


# Training and predictions -----------------------------------------------------------------------


def test_learns_digits(fitted, digits):
    _, _, X, y = digits
    assert fitted.score(X, y) >= 0.95
    assert fitted.loss_curve_[-1] < 0.8 * fitted.loss_curve_[0]
    assert fitted.n_iter_ == len(fitted.loss_curve_) == 20


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_predictions_equal_brute_force(fitted, digits, aggregation):
    X, clf = digits[2][:3], copy_of(fitted, aggregation=aggregation)
    codes = clf.tokenizer_.transform(X).reshape(3, -1)
    ll = reference.log_likelihoods(clf.prior_, codes, clf.orders_, np.arange(3))
    per_order = ll + np.log(clf.class_count_ / clf.class_count_.sum())
    if aggregation == "mean_log_likelihood":
        joint = per_order.mean(1)
    elif aggregation == "logsumexp":
        joint = logsumexp(per_order, axis=1) - np.log(4)
    else:
        posterior = np.exp(per_order - logsumexp(per_order, axis=2, keepdims=True)).mean(1)
        np.testing.assert_allclose(clf.predict_proba(X), posterior, atol=1e-5)
        return
    np.testing.assert_allclose(clf.predict_joint_log_proba(X), joint, rtol=1e-5)
    expected = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)
    np.testing.assert_array_equal(clf.predict(X), clf.classes_[expected.argmax(1)])


def test_predictions_do_not_depend_on_the_batch(fitted, digits, monkeypatch):
    X = digits[2][:30]
    whole = fitted.predict_proba(X)
    rows = np.concatenate([fitted.predict_proba(X[i : i + 1]) for i in range(len(X))])
    np.testing.assert_allclose(rows, whole, atol=1e-6, rtol=0)
    monkeypatch.setattr("skaocls.fitted.prediction.BATCH_SIZE", 7)
    np.testing.assert_allclose(fitted.predict_proba(X), whole, atol=1e-6, rtol=0)
    shuffled = np.random.RandomState(0).permutation(30)
    proba = fitted.predict_proba(X[shuffled])
    np.testing.assert_allclose(proba, whole[shuffled], atol=1e-6, rtol=0)


def test_same_random_state_same_model(digits):
    X, y, X_test, _ = digits
    a = make(max_iter=2).fit(X, y)
    torch.rand(1)
    np.random.seed(7)
    before = torch.random.get_rng_state()
    b = make(max_iter=2).fit(X, y)
    assert (torch.random.get_rng_state() == before).all()
    c = make(max_iter=2, random_state=1).fit(X, y)
    np.testing.assert_array_equal(a.orders_, b.orders_)
    np.testing.assert_array_equal(a.predict_proba(X_test), b.predict_proba(X_test))
    assert (a.orders_ != c.orders_).any()
    assert abs(a.predict_proba(X_test) - c.predict_proba(X_test)).max() > 1e-3


@pytest.mark.parametrize("load", [load_iris, load_wine])
def test_defaults_on_small_tables(load):
    X, y = load(return_X_y=True)
    train = np.arange(len(y)) % 3 > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # max_iter="auto" must not warn about convergence
        clf = AnyOrderARClassifier(random_state=0).fit(X[train], y[train])
    assert isinstance(clf.tokenizer_, QuantileTokenizer) and clf.image_shape_ is None
    assert len(clf.loss_curve_) == clf.n_iter_ == 30
    bayes = GaussianNB().fit(X[train], y[train]).score(X[~train], y[~train])
    assert clf.score(X[~train], y[~train]) > bayes - 0.04  # two of 50


def test_table_with_columns_of_strings():
    rng = np.random.RandomState(0)
    colour, size = np.array(["red", "green", "blue"])[rng.randint(3, size=160)], rng.rand(160)
    frame = pd.DataFrame({"size": size, "colour": colour})
    y = np.where(colour == "red", "berry", np.where(size > 0.5, "melon", "pea"))
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encoder, ["colour"]), remainder="passthrough")
    prior = {"dim": 16, "n_layer": 1}
    clf = AnyOrderARClassifier(prior, max_iter=20, n_orders=2, random_state=0)
    with pytest.raises(ValueError, match=r"strings: 'colour'.*OrdinalEncoder"):
        clf.fit(frame[:100], y[:100])
    assert make_pipeline(columns, clf).fit(frame[:100], y[:100]).score(frame[100:], y[100:]) > 0.9


def test_tables_in_a_pipeline():
    X, y = load_iris(return_X_y=True)
    clf = make_pipeline(StandardScaler(), AnyOrderARClassifier(n_orders=8, random_state=0))
    assert cross_val_score(clf, X, y, cv=3).mean() > 0.9


def test_values_not_seen_in_fit(digits):
    X, y, _, _ = digits
    clf = make(max_iter=2).fit(np.full_like(X, 7), y)  # a single code
    np.testing.assert_allclose(clf.predict_proba(X[:5]).sum(1), 1)
    clf = make(max_iter=2, tokenizer=PatchTokenizer(n_codes=64)).fit(X[:30], y[:30])
    assert np.isfinite(clf.predict_log_proba(16 - X)).all()
    table = make(max_iter=2).fit(np.random.RandomState(0).randn(40, 3), np.arange(40) % 2)
    assert np.isfinite(table.predict_log_proba([[1e30, -1e30, 0.0]])).all()


def test_given_tokenizer_and_prior_are_copied(digits):
    X, y, X_test, y_test = digits
    tokenizer = PatchTokenizer(patch_size=4, n_codes=32)
    prior = AnyOrderPrior(32, (2, 2), 3, dim=32, n_layer=1, n_head=2)
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    clf = make(tokenizer=tokenizer, prior=prior).fit(X, y)
    assert clf.orders_.shape == (4, 4) and clf.score(X_test, y_test) > 0.8
    assert not hasattr(tokenizer, "codebook_")
    assert all((before[k] == v).all() for k, v in prior.state_dict().items())
    with pytest.raises(ValueError, match=r"do not match.*\(2, 2\).*PatchTokenizer.*\(4, 4\)"):
        make(prior=prior).fit(X, y)


def test_early_stopping_keeps_the_best_weights(digits):
    X, y, _, _ = digits
    clf = make(
        max_iter=60, early_stopping=True, n_iter_no_change=3, tol=0.0, augmentation=None,
        learning_rate_init=1e-2, validation_fraction=0.2,
    )  # fmt: skip
    clf.fit(X, y)
    assert len(clf.validation_scores_) == clf.n_iter_ < 60
    assert clf.best_iter_ == 1 + np.argmax(clf.validation_scores_) == clf.n_iter_ - 3


@pytest.mark.parametrize("held_out", [{"early_stopping": True}, {"temperature": "auto"}])
def test_held_out_data_contain_every_class(digits, held_out):
    X, clf = digits[0][:40], make(max_iter=1, **held_out)
    with pytest.raises(ValueError, match=r"validation_fraction=0\.1"):
        clf.fit(X, np.arange(40) // 2)
    clf.set_params(validation_fraction=0.5).fit(X, np.arange(40) // 2)
    clf.set_params(validation_fraction=0.1).fit(X, np.minimum(np.arange(40), 3))
    with pytest.raises(ValueError, match="classes"):
        clf.fit(X, np.arange(40))


def test_single_samples_of_a_class_are_not_held_out():
    rows = np.array([0, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    config = make(early_stopping=True, validation_fraction=0.4)._training_config()
    for seed in range(20):
        train, held_out = split_validation(rows, config, np.random.RandomState(seed))
        assert {0, 1} < set(train) and len(held_out) == 4
        assert sorted([*train, *held_out]) == list(range(10))


def test_convergence_warning(digits):
    X, y = digits[0][:64], digits[1][:64]
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        make(max_iter=2, tol=1e-4).fit(X, y)
    clf = make(max_iter=24, tol=0.0, augmentation=None)
    with pytest.warns(ConvergenceWarning):
        curve = clf.fit(X, y).loss_curve_
    improvement = (min(curve[:-6]) - min(curve[-6:])) / 6  # per epoch, over the last quarter
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        clf.set_params(tol=1.01 * improvement).fit(X, y)
    with pytest.warns(ConvergenceWarning):
        clf.set_params(tol=0.99 * improvement).fit(X, y)


# Orders -----------------------------------------------------------------------------------------


def test_n_orders_and_order_change_without_a_refit(fitted, digits):
    X, clf = digits[2][:5], copy_of(fitted)
    four = clf.orders_.copy()
    np.testing.assert_array_equal(clf.set_params(n_orders=9).orders_[:4], four)
    np.testing.assert_array_equal(clf.set_params(n_orders=2).orders_, four[:2])
    codes = clf.tokenizer_.transform(X).reshape(5, -1)
    given = draw_orders(3, 16, 8)
    for order, expected in [("raster", np.arange(16)[None]), (given, given)]:
        clf.set_params(order=order, n_orders=20)
        np.testing.assert_array_equal(clf.orders_, expected)
        ll = reference.log_likelihoods(clf.prior_, codes, expected, np.arange(3))
        joint = ll.mean(1) + clf.class_log_prior_
        np.testing.assert_allclose(clf.predict_joint_log_proba(X), joint, rtol=1e-5)


def test_training_uses_the_given_orders(digits, monkeypatch):
    X, y, _, _ = digits
    any_order = make(augmentation=None, max_iter=8).fit(X, y)
    raster = make(augmentation=None, max_iter=8, order="raster").fit(X, y)
    assert raster.orders_.shape == (1, 16)
    # better in the order it was trained for, worse in others
    assert raster.loss_curve_[-1] < any_order.loss_curve_[-1]
    likelihood = [
        copy_of(clf, order=any_order.orders_).predict_joint_log_proba(X)[np.arange(len(y)), y]
        for clf in (any_order, raster)
    ]
    assert likelihood[0].mean() > likelihood[1].mean()
    orders = draw_orders(2, 16, seed=5)
    clf = make(order=orders, max_iter=2).fit(X, y)
    np.testing.assert_array_equal(clf.orders_, orders)
    np.testing.assert_array_equal(clone(clf).order, orders)
    validation_orders = []

    def validation_score(loss, data, orders, autocast):
        validation_orders.append(orders)
        return 0.0

    monkeypatch.setattr("skaocls.training.loop.validation_score", validation_score)
    make(max_iter=1, early_stopping=True, order="raster").fit(X, y)
    np.testing.assert_array_equal(validation_orders[0], np.arange(16)[None])
    make(max_iter=1, early_stopping=True).fit(X, y)
    assert validation_orders[1].shape == (4, 16)


# Early stopping of the search -------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["randar", "shared_trunk"])
def test_search_stops_early_only_where_a_class_is_needed(digits, architecture, tmp_path):
    X, y, X_test, _ = digits
    prior = {"architecture": architecture, "dim": 32, "n_layer": 2, "n_head": 2}
    clf = make(prior=prior, n_orders=8).fit(X, y)
    exhaustive, stats = clf.predict_joint_log_proba(X_test, return_stats=True)
    assert (stats["evaluations"] == stats["exhaustive_evaluations"]).all()
    outputs = [clf.transform(X_test), clf.score_samples(X_test), *clf.staged_predict_proba(X_test)]
    evaluations = {}
    for search in ("auto", 0.2):
        clf.set_params(search=search)
        joint, stats = clf.predict_joint_log_proba(X_test, return_stats=True)
        assert (joint.argmax(1) == exhaustive.argmax(1)).mean() > 0.95
        evaluations[search] = stats["evaluations"].mean()
        same = [clf.transform(X_test), clf.score_samples(X_test), *clf.staged_predict_proba(X_test)]
        for a, b in zip(outputs, same, strict=True):
            np.testing.assert_array_equal(a, b)
    assert evaluations[0.2] <= evaluations["auto"] < stats["exhaustive_evaluations"]
    for params in ({"aggregation": "logsumexp"}, {"memory": tmp_path}):
        stats = copy_of(clf, **params).predict_joint_log_proba(X_test, return_stats=True)[1]
        assert (stats["evaluations"] == stats["exhaustive_evaluations"]).all()


# Classes ----------------------------------------------------------------------------------------


def test_class_prior_takes_effect_after_fit(digits):
    X, y, X_test, _ = digits
    clf, prior = make(max_iter=1).fit(X, y), [0.7, 0.2, 0.1]
    np.testing.assert_allclose(clf.class_prior_, np.bincount(y) / len(y))
    refitted = make(max_iter=1, class_prior=prior).fit(X, y)
    before = clf.predict_joint_log_proba(X_test)
    shift = np.log(prior) - clf.class_log_prior_
    clf.set_params(class_prior=prior)
    np.testing.assert_allclose(clf.class_prior_, prior)
    for method in ("predict_joint_log_proba", "predict_proba", "score_samples"):
        np.testing.assert_array_equal(
            getattr(clf, method)(X_test), getattr(refitted, method)(X_test)
        )
    after = clf.predict_joint_log_proba(X_test)
    np.testing.assert_allclose(after - before, np.tile(shift, (len(X_test), 1)), atol=1e-9)


@pytest.mark.parametrize(
    "class_prior, message",
    [
        ([0.5, 0.5], "one probability for each class"),
        ([0.5, 0.5, 0.5], "must sum to 1"),
        ([1.5, -0.5, 0.0], "must not be negative"),
    ],
)
def test_invalid_class_prior(fitted, digits, class_prior, message):
    with pytest.raises(ValueError, match=message):
        make(class_prior=class_prior).fit(*digits[:2])
    with pytest.raises(ValueError, match=message):
        copy_of(fitted, class_prior=class_prior).predict(digits[2])


def test_classes_of_probability_zero(fitted, digits):
    X = digits[2]
    for params in (
        *({"aggregation": name} for name in (*AGGREGATIONS, BOUNDED)),
        {"search": "auto"},
    ):
        clf = copy_of(fitted, class_prior=[0.5, 0.0, 0.5], **params)
        proba = clf.predict_proba(X)
        assert (proba[:, 1] == 0).all() and np.isfinite(proba).all()
        np.testing.assert_allclose(proba.sum(1), 1)
        assert (clf.predict_log_proba(X)[:, 1] == -np.inf).all()
        assert np.isfinite(clf.score_samples(X)).all()


@pytest.mark.parametrize("names", [["b", "a", "c"], [-5, 3, 0], [2.0, 1.0, 7.0]])
def test_labels_of_any_type(digits, names):
    X, y, X_test, y_test = digits
    names = np.array(names)
    clf = make().fit(X, names[y])
    np.testing.assert_array_equal(clf.classes_, np.sort(names))
    assert clf.predict(X_test).dtype == names.dtype
    assert clf.score(X_test, names[y_test]) > 0.9
    assert clf.get_feature_names_out()[0] == f"anyorderarclassifier_{np.sort(names)[0]}"


def test_one_class(digits):
    X = digits[0][:40]
    clf = make(max_iter=1).fit(X, ["only"] * 40)
    assert (clf.predict(X) == "only").all()
    np.testing.assert_array_equal(clf.predict_proba(X), np.ones((40, 1)))


@pytest.mark.parametrize(
    "invalid, message",
    [
        ([0.0, np.nan], "Input y contains NaN"),
        ([0.5, 1.5], "Unknown label type: continuous"),
        (np.array([1, "a"], dtype=object), "Unknown label type"),
        (np.array([None, "a"], dtype=object), "Unknown label type"),
        (pd.array(["a", None], dtype="string"), "y contains <NA>. Labels must be"),
        (np.array(["2020-01-01", "NaT"], "M8[D]"), "contains NaT"),
        ([[0, 1], [1, 0]], "1d array"),
    ],
)
def test_invalid_labels(digits, invalid, message):
    y = np.concatenate([np.asarray(invalid)] * 20)
    with pytest.raises(ValueError, match=message):
        make().fit(digits[0][:40], y)


# Data and persistence ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["channels", "flat", "tensor", "list"])
def test_the_same_images_in_any_form(fitted, digits, kind):
    X, y, X_test, _ = digits
    convert = {
        "channels": lambda images: images[..., None],
        "flat": lambda images: images.reshape(len(images), -1),
        "tensor": torch.tensor,
        "list": list,
    }[kind]
    clf = make(image_shape=(8, 8) if kind == "flat" else None).fit(convert(X), y)
    assert clf.n_features_in_ == 64
    np.testing.assert_array_equal(clf.predict_proba(convert(X_test)), fitted.predict_proba(X_test))


def dispatch():
    """Let scikit-learn compute with tensors instead of arrays, where it can."""
    if parse_version(sklearn.__version__) < parse_version("1.7"):
        pytest.importorskip("array_api_compat")  # later versions contain it
    return sklearn.config_context(array_api_dispatch=True)


@pytest.mark.parametrize("shape", [(30, 8, 8), (30, 64)])
def test_tensors_with_array_api_dispatch(digits, shape):
    X, y, weight = digits[0][:30].reshape(shape), digits[1][:30], np.linspace(0, 1, 30)
    params = {"prior": {"dim": 16, "n_layer": 1}, "augmentation": None, "random_state": 0}
    params |= {"max_iter": 1, "n_orders": 2}
    expected = AnyOrderARClassifier(**params).fit(X, y, weight)
    scores = expected.score(X, y, weight), *expected.staged_score(X, y, weight)
    n_orders, half = smallest_n_orders(expected, X, y), expected.predict_proba(X[15:])
    tensors = torch.from_numpy(X), torch.from_numpy(y), torch.from_numpy(weight)
    with dispatch():
        clf = AnyOrderARClassifier(**params).fit(*tensors)
        assert isinstance(clf.predict(tensors[0]), np.ndarray)
        np.testing.assert_array_equal(clf.predict_proba(tensors[0][15:]), half)
        assert (clf.score(*tensors), *clf.staged_score(*tensors)) == scores
        assert smallest_n_orders(clf, *tensors[:2]) == n_orders
        cross_val_score(clf, *tensors[:2], cv=2)
        clf.explain(*tensors[:2], rival=2 - tensors[1])
        assert len(clf.sample(y=tensors[1])) == 30
        clf.set_params(class_weight={0: 1.0, 1: 1.0, 2: 1.0})
        clf.partial_fit([*tensors[0]], [*tensors[1]], torch.arange(3), tensors[2])
        if X.ndim == 2:
            QuantileTokenizer().fit(tensors[0]).transform(tensors[0])
    np.testing.assert_allclose(clf.class_count_, 2 * expected.class_count_)


def test_image_files(tmp_path, digits):
    pd = pytest.importorskip("pandas")
    y, pixels = digits[1][:120], (digits[0][:120] * 15).astype(np.uint8)
    paths = [str(tmp_path / f"{i}.png") for i in range(len(pixels))]
    for path, image in zip(paths, pixels):
        Image.fromarray(image).save(path)
    expected = make(max_iter=3).fit(pixels, y).predict_proba(pixels)
    forms = [np.array(paths), pd.DataFrame({"path": paths}), [Image.open(path) for path in paths]]
    for X in (paths, *forms):
        np.testing.assert_array_equal(make(max_iter=3).fit(paths, y).predict_proba(X), expected)


def test_pickle_and_joblib(fitted, digits, tmp_path):
    X = digits[2][:10]
    joblib.dump(fitted, tmp_path / "model.joblib")
    for restored in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(restored.predict_proba(X), fitted.predict_proba(X))
        np.testing.assert_array_equal(restored.orders_, fitted.orders_)


def test_pipeline_and_grid_search_over_n_orders(digits):
    X, y, X_test, y_test = digits
    flat = X.reshape(len(X), -1)
    pipeline = make_pipeline(FunctionTransformer(lambda rows: rows / 16), make(image_shape=(8, 8)))
    grid = {"anyorderarclassifier__n_orders": [1, 4]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(flat, y)
    assert search.score(X_test.reshape(len(X_test), -1), y_test) > 0.9
    assert search.best_estimator_[-1].orders_.shape == (search.best_params_[next(iter(grid))], 16)


def test_cross_val_score_in_processes(digits):
    X, y, _, _ = digits
    scores = [cross_val_score(make(), X, y, cv=2, n_jobs=n, error_score="raise") for n in (1, 2)]
    np.testing.assert_allclose(*scores, atol=0.02)
    assert min(scores[0]) > 0.7


@pytest.mark.parametrize(
    "X, y, message",
    [
        (with_nan, None, "contains NaN"),
        (lambda X: X[:0], lambda y: y[:0], r"0 sample\(s\)"),
        (None, lambda y: y[:-1], "inconsistent numbers of samples"),
        (None, lambda y: None, "y to be passed"),
        (lambda X: [X[0], X[1][:5]], lambda y: y[:2], r"index 0.*index 1"),
        (lambda X: [X[0], "nowhere.png"], lambda y: y[:2], r"X\[1\] .*'nowhere.png'"),
    ],
)
def test_invalid_data_in_fit(digits, X, y, message):
    images, labels, _, _ = digits
    with pytest.raises(ValueError, match=message):
        make().fit(X(images) if X else images, y(labels) if y else labels)


@pytest.mark.parametrize(
    "change, message",
    [
        (with_nan, "contains NaN"),
        (lambda X: X[:0], r"0 sample\(s\)"),
        (lambda X: X[:, :, :7], r"\(8, 7, 1\).*\(8, 8, 1\)"),
        (lambda X: X.reshape(len(X), -1), "images"),
    ],
)
def test_invalid_data_in_predict(fitted, digits, change, message):
    with pytest.raises(ValueError, match=message):
        fitted.predict(change(digits[0]))


def test_unfitted_use(digits):
    for method in ("predict", "predict_proba", "predict_joint_log_proba", "transform", "sample"):
        with pytest.raises(NotFittedError):
            getattr(make(), method)(digits[0])
    for name in ("orders_", "class_prior_", "classes_", "temperature_"):
        assert not hasattr(make(), name)


# Parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params, message",
    [
        ({"n_orders": 0}, "'n_orders' parameter .* must be an int in the range"),
        ({"n_orders": 2.5}, "'n_orders'"),
        ({"aggregation": "median"}, "'aggregation' parameter .* must be a str among"),
        ({"search": "racing"}, "'search'"),
        ({"search": 0.5}, "'search'"),
        ({"order": "snail"}, "'order'"),
        ({"order": [[0, 1, 2]]}, r"shape \(1, 3\), but \(n, 16\) is expected"),
        ({"order": np.zeros((1, 16), int)}, r"order\[0\] is not a permutation"),
        ({"tokenizer": "bytes"}, "'tokenizer'"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"precision": "float8"}, "'precision'"),
        ({"max_iter": 0}, "'max_iter'"),
        ({"learning_rate_init": 0.0}, "'learning_rate_init'"),
        ({"image_shape": (8, 9)}, r"\(8, 9"),
        ({"finetune": "none"}, "'finetune'"),
        ({"finetune": FineTuning(lora_rank=0)}, "'lora_rank' parameter of FineTuning"),
        ({"finetune": FineTuning("none")}, "'mode' parameter of FineTuning"),
        ({"prior": PretrainedWeights(3)}, "'source' parameter of PretrainedWeights"),
        ({"prior": {"dims": 3}}, "'dims'.*dim, n_layer"),
        ({"prior": {"dim": 0}}, "'dim' parameter of prior={'dim': 0}.*Got 0 instead"),
        ({"prior": {"architecture": "randar", "width": 8}}, "'width'.*'randar'"),
        ({"prior": {"dim": 12}}, "dim=12 must be a multiple"),
    ],
    ids=str,
)
def test_invalid_parameters(digits, params, message):
    with pytest.raises(ValueError, match=message):
        make(**params).fit(*digits[:2])


def test_a_classifier_instead_of_its_parts(fitted, digits):
    X, y = digits[0][:30], digits[1][:30]
    for clf in (fitted, AnyOrderARClassifier(), FrozenEstimator(fitted)):
        for call in (
            make(prior=clf).fit,
            make(tokenizer=clf).fit,
            lambda *_, clf=clf: AnyOrderARClassifier.from_pretrained(clf),
        ):
            with pytest.raises(ValueError, match=r"clf\.prior_ .*Estimator\(clf\.tokenizer_\)"):
                call(X, y)
    advised = make(prior=fitted.prior_, tokenizer=FrozenEstimator(fitted.tokenizer_), max_iter=1)
    assert advised.fit(X, y).tokenizer_ is fitted.tokenizer_


def test_invalid_parameters_after_fit(fitted, digits):
    with pytest.raises(ValueError, match="'n_orders'"):
        copy_of(fitted, n_orders=0).predict(digits[2])
    with pytest.raises(ValueError, match="is not a permutation"):
        copy_of(fitted, n_orders=1, order=np.zeros((1, 16), int)).predict(digits[2])
    for rival, message in (
        ("runnerup", "rival has classes that fit has not seen: .'runnerup'"),
        (3, "rival has classes that fit has not seen: .3"),
        ([[0, 1], [1, 0]], "1d array"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted.explain(digits[2][:2], rival=rival)


def test_nested_parameters(digits):
    with pytest.raises(ValueError, match=r"tokenizer__n_codes .*tokenizer=PatchTokenizer\(\)"):
        make(tokenizer="auto").set_params(tokenizer__n_codes=8)
    with pytest.raises(ValueError, match=r'prior__dim .*prior=\{"dim": 64\}'):
        make(prior="auto").set_params(prior__dim=8)
    with pytest.raises(ValueError, match=r"finetune='lora' .*finetune=FineTuning\(\)"):
        make(finetune="lora").set_params(finetune__lora_rank=4)
    with pytest.raises(ValueError, match="Invalid parameter 'tokeniser'"):
        make().set_params(tokeniser__n_codes=8)
    clf = make().set_params(tokenizer__n_codes=8, tokenizer=PatchTokenizer())
    assert clf.tokenizer.n_codes == 8
    clf = make(finetune=FineTuning("lora"), prior=PretrainedWeights("randar-l"))
    copied = clone(clf).set_params(finetune__lora_rank=4, prior__revision="v1")
    assert copied.finetune.lora_rank == 4 and copied.prior.revision == "v1"
    assert clf.finetune.lora_rank == 8 and clf.prior.revision is None


def test_grid_search_over_nested_parameters(fitted, digits):
    tokenizer = FrozenEstimator(fitted.tokenizer_)
    clf = make(prior=fitted.prior_, tokenizer=tokenizer, finetune=FineTuning("lora"), max_iter=1)
    search = GridSearchCV(clf, {"finetune__lora_rank": [2, 3]}, cv=2, error_score="raise")
    assert search.fit(*digits[:2]).best_params_["finetune__lora_rank"] in (2, 3)


@pytest.mark.parametrize("finetune", ["full", "lora", FineTuning(new_classes="null")], ids=str)
def test_fine_tuning_a_new_prior_warns(digits, finetune):
    X, y, _, _ = digits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(max_iter=1, finetune=finetune).fit(X[:40], y[:40])
    messages = [str(w.message) for w in caught if w.category is UserWarning]
    assert len(messages) == (finetune != "full")
    assert all("has no effect" in message and "new prior" in message for message in messages)


def test_explain_reads_iterators(fitted, digits):
    X = digits[2][:4]
    for rival in (None, "runner-up"):
        expected = fitted.explain(X, rival=rival).tokens
        np.testing.assert_array_equal(fitted.explain(iter(X), rival=rival).tokens, expected)


# Progress ---------------------------------------------------------------------------------------


def test_verbose_shows_progress(digits, capsys):
    X, y, _, _ = digits
    make(max_iter=2).fit(X, y).predict(X)
    assert capsys.readouterr().err == ""
    clf = make(max_iter=2, verbose=1).fit(X, y)
    log = capsys.readouterr().err
    for part in ("fitting PatchTokenizer to 300 samples", "tokenizing", "epoch 2/2", "36/36"):
        assert part in log
    assert "step/s" in log and "loss=" in log and "accuracy=" in log
    assert "<" in log  # elapsed<remaining
    clf.predict(X)
    log += (prediction := capsys.readouterr().err)
    assert "scoring" in prediction and "300/300" in prediction
    assert "\r" not in log and len(log.splitlines()) < 10  # lines, not a progress bar
    assert "" not in log.splitlines()


class WriteOnly:
    """A stream with the method `write` alone, as some loggers have."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Failing(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    flush = isatty = write


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("verbose", [0, 2])
@pytest.mark.parametrize(
    "make_stream", [lambda: None, WriteOnly, object, lambda: Failing("text"), closed_stream]
)
def test_any_stream_or_none_as_standard_error(digits, monkeypatch, make_stream, verbose):
    X, y, _, _ = digits
    stream = make_stream()
    clf = make(max_iter=1, tol=10.0, n_orders=1, verbose=verbose)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "stdout", stream)
        clf.fit(X[:30], y[:30]).predict(X[:3])
    if isinstance(stream, WriteOnly):
        lines = stream.text.splitlines()
        assert any(line.startswith("skaocls: training on 30 samples") for line in lines) == bool(
            verbose
        )
        assert any("scoring: 100%" in line for line in lines) == bool(verbose)


def test_import_without_standard_streams(digits, tmp_path):
    """As in a windowed application: there is no stream when the library is imported."""
    program = (
        "import sys; sys.stdout = sys.stderr = None\n"
        "import numpy as np\n"
        "from skaocls import AnyOrderARClassifier, PatchTokenizer\n"
        "X, y = np.random.RandomState(0).rand(20, 8, 8), np.arange(20) % 2\n"
        "clf = AnyOrderARClassifier(PRIOR, PatchTokenizer(4, n_codes=4), max_iter=1, verbose=2)\n"
        "clf.set_params(augmentation=None).fit(X, y).predict(X)\n"
        "clf.save_pretrained(sys.argv[1])\n"
    ).replace("PRIOR", str({"dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16}))
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "saved")], check=True)
    assert (tmp_path / "saved" / "config.json").exists()


def test_verbose_reports_chosen_values(digits, capsys):
    X, y, _, _ = digits
    clf = make(max_iter=1, verbose=2, batch_size="auto", prior="auto", tokenizer="auto").fit(X, y)
    log = capsys.readouterr().err
    assert f"4 x 4 tokens of {clf.tokenizer_.n_codes_} values" in log
    assert "shared_trunk" in log and "'dim': 64" in log
    assert "max_iter=1, batch_size=37" in log and "learning_rate_init=0.005\n" in log
    assert clf.choices_["batch_size"] == 37 and clf.choices_["prior"]["dim"] == 64


def test_verbose_in_a_terminal(digits, monkeypatch):
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        make(max_iter=2, verbose=1).fit(*digits[:2])
        monkeypatch.undo()
        terminal.flush()
        os.set_blocking(reader, False)
        output = b""
        with suppress(BlockingIOError):  # one call returns only a part of a long output
            while True:
                output += os.read(reader, 10**5)
    os.close(reader)
    assert "\repoch 2/2" in output.decode()

"""The estimator: what users and scikit-learn's tools expect of it."""

import fcntl
import os
import pickle
import re
import struct
import termios
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import reference
from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, PatchTokenizer, QuantileTokenizer
from skaocls.scoring.aggregation import AGGREGATIONS
from skaocls.scoring.orders import draw_orders
from skaocls.training.validation import split_validation


def make(**params):
    return small_classifier(AnyOrderARClassifier, **params)


def test_learns_digits(fitted, digits):
    _, _, X, y = digits
    assert fitted.score(X, y) >= 0.95
    assert fitted.loss_curve_[-1] < 0.8 * fitted.loss_curve_[0]
    assert fitted.n_iter_ == len(fitted.loss_curve_) == 20


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_predictions_equal_brute_force(fitted, digits, aggregation):
    X = digits[2][:3]
    clf = clone(fitted).set_params(aggregation=aggregation)
    clf.__dict__.update({k: v for k, v in vars(fitted).items() if k.endswith("_") or k[0] == "_"})
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


def test_answers_do_not_depend_on_the_batch(fitted, digits, monkeypatch):
    X = digits[2][:30]
    whole = fitted.predict_proba(X)
    rows = np.concatenate([fitted.predict_proba(X[i : i + 1]) for i in range(len(X))])
    np.testing.assert_allclose(rows, whole, atol=1e-6, rtol=0)
    monkeypatch.setattr("skaocls.fitted.prediction.SCORE_AT_ONCE", 7)
    np.testing.assert_allclose(fitted.predict_proba(X), whole, atol=1e-6, rtol=0)
    shuffled = np.random.RandomState(0).permutation(30)
    np.testing.assert_allclose(
        fitted.predict_proba(X[shuffled]), whole[shuffled], atol=1e-6, rtol=0
    )


def test_same_random_state_same_model(digits):
    X, y, X_test, _ = digits
    torch.manual_seed(1)
    a = make(max_iter=2).fit(X, y)
    before = torch.random.get_rng_state()
    torch.rand(1)
    np.random.seed(7)
    b = make(max_iter=2).fit(X, y)
    c = make(max_iter=2, random_state=1).fit(X, y)
    np.testing.assert_array_equal(a.orders_, b.orders_)
    np.testing.assert_array_equal(a.predict_proba(X_test), b.predict_proba(X_test))
    assert (a.orders_ != c.orders_).any()
    assert abs(a.predict_proba(X_test) - c.predict_proba(X_test)).max() > 1e-3
    torch.random.set_rng_state(before)
    a.fit(X, y)
    assert (torch.random.get_rng_state() == before).all()


def test_n_orders_and_order_change_without_a_refit(fitted, digits):
    X = digits[2][:5]
    clf = pickle.loads(pickle.dumps(fitted))
    four = clf.orders_.copy()
    np.testing.assert_array_equal(clf.set_params(n_orders=9).orders_[:4], four)
    clf.set_params(n_orders=2)
    np.testing.assert_array_equal(clf.orders_, four[:2])
    codes = clf.tokenizer_.transform(X).reshape(5, -1)
    for order, expected in [("raster", np.arange(16)[None]), (draw_orders(3, 16, 8), None)]:
        clf.set_params(order=order, n_orders=20)
        orders = order if expected is None else expected
        np.testing.assert_array_equal(clf.orders_, orders)
        ll = reference.log_likelihoods(clf.prior_, codes, orders, np.arange(3))
        joint = ll.mean(1) + clf.class_log_prior_
        np.testing.assert_allclose(clf.predict_joint_log_proba(X), joint, rtol=1e-5)


def test_raster_training_is_for_raster(digits):
    X, y, _, _ = digits
    any_order = make(augmentation=None, max_iter=8).fit(X, y)
    raster = make(augmentation=None, max_iter=8, order="raster").fit(X, y)
    assert raster.orders_.shape == (1, 16)
    # specialised on one order, it is better there and worse elsewhere
    assert raster.loss_curve_[-1] < any_order.loss_curve_[-1]
    truth = np.arange(len(y)), y
    random = clone(any_order).set_params(n_orders=4)
    fit_of = {}
    for name, clf in {"raster": raster, "any": any_order}.items():
        random.__dict__.update({k: v for k, v in vars(clf).items() if k.endswith("_")})
        random.model_ = replace(clf.model_, order_seed=0)
        fit_of[name] = random.predict_joint_log_proba(X)[truth].mean()
    assert fit_of["any"] > fit_of["raster"]


def test_explicit_orders_train_too(digits):
    X, y, _, _ = digits
    orders = draw_orders(2, 16, seed=5)
    clf = make(order=orders, max_iter=2).fit(X, y)
    np.testing.assert_array_equal(clf.orders_, orders)
    np.testing.assert_array_equal(clone(clf).order, orders)


def test_priors(fitted, digits):
    X, y, X_test, _ = digits
    clf = make(max_iter=1, priors=[0.7, 0.2, 0.1]).fit(X, y)
    np.testing.assert_allclose(np.exp(clf.class_log_prior_), [0.7, 0.2, 0.1])
    np.testing.assert_allclose(clf.class_prior_, [0.7, 0.2, 0.1])
    other = make(max_iter=1).fit(X, y)
    np.testing.assert_allclose(np.exp(other.class_log_prior_), np.bincount(y) / len(y))
    shift = clf.predict_joint_log_proba(X_test) - other.predict_joint_log_proba(X_test)
    expected = np.log([0.7, 0.2, 0.1]) - np.log(np.bincount(y) / len(y))
    np.testing.assert_allclose(shift, np.tile(expected, (len(X_test), 1)), atol=1e-9)
    never = make(max_iter=1, priors=[0.5, 0.5, 0.0]).fit(X, y).predict_proba(X_test)
    assert (never[:, 2] == 0).all() and np.isfinite(never).all()


@pytest.mark.parametrize(
    "priors, message",
    [
        ([0.5, 0.5], "must match number of classes"),
        ([0.5, 0.5, 0.5], "sum of the priors should be 1"),
        ([1.5, -0.5, 0.0], "must be non-negative"),
    ],
)
def test_wrong_priors(digits, priors, message):
    with pytest.raises(ValueError, match=message):
        make(priors=priors).fit(*digits[:2])


@pytest.mark.parametrize("names", [["b", "a", "c"], [-5, 3, 0], [2.0, 1.0, 7.0]])
def test_labels_of_any_type(digits, names):
    X, y, X_test, y_test = digits
    names = np.array(names)
    clf = make().fit(X, names[y])
    np.testing.assert_array_equal(clf.classes_, np.sort(names))
    assert clf.predict(X_test).dtype == names.dtype
    assert clf.score(X_test, names[y_test]) > 0.9


def test_one_class_is_a_trivial_model(digits):
    X = digits[0][:40]
    clf = make(max_iter=1).fit(X, ["only"] * 40)
    assert (clf.predict(X) == "only").all()
    np.testing.assert_array_equal(clf.predict_proba(X), np.ones((40, 1)))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ([0.0, np.nan], "Input y contains NaN"),
        ([0.5, 1.5], "Unknown label type: continuous"),
        (np.array([1, "a"], dtype=object), "Unknown label type"),
        (np.array([None, "a"], dtype=object), "Unknown label type"),
        (np.array(["2020-01-01", "NaT"], "M8[D]"), "contains NaT"),
        ([[0, 1], [1, 0]], "1d array"),
    ],
)
def test_labels_that_are_none(digits, wrong, message):
    y = np.concatenate([np.asarray(wrong)] * 20)
    with pytest.raises(ValueError, match=message):
        make().fit(digits[0][:40], y)


def test_classes_of_probability_zero(digits):
    X, y, X_test, _ = digits
    clf = make(priors=[0.5, 0.0, 0.5], max_iter=2).fit(X, y)
    for params in (
        *({"aggregation": name} for name in AGGREGATIONS),
        {"search": "racing"},
        {"search": "racing", "racing_screen": 1},
    ):
        clf.set_params(**params)
        proba = clf.predict_proba(X_test)
        assert (proba[:, 1] == 0).all() and np.isfinite(proba).all()
        np.testing.assert_allclose(proba.sum(1), 1)
        assert (clf.predict_log_proba(X_test)[:, 1] == -np.inf).all()
        assert np.isfinite(clf.score_samples(X_test)).all()


def test_what_fit_has_not_seen(digits):
    X, y, _, _ = digits
    clf = make(max_iter=2).fit(np.full_like(X, 7), y)  # one code
    np.testing.assert_allclose(clf.predict_proba(X[:5]).sum(1), 1)
    clf = make(max_iter=2, tokenizer=PatchTokenizer(n_codes=64)).fit(X[:30], y[:30])
    assert np.isfinite(clf.predict_log_proba(16 - X)).all()
    table = make(max_iter=2).fit(np.random.RandomState(0).randn(40, 3), np.arange(40) % 2)
    assert np.isfinite(table.predict_log_proba([[1e30, -1e30, 0.0]])).all()


@pytest.mark.parametrize("copy", ["pickle", "joblib"])
def test_persistence(fitted, digits, copy, tmp_path):
    if copy == "pickle":
        restored = pickle.loads(pickle.dumps(fitted))
    else:
        joblib.dump(fitted, tmp_path / "model.joblib")
        restored = joblib.load(tmp_path / "model.joblib")
    X = digits[2][:10]
    np.testing.assert_array_equal(restored.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(restored.orders_, fitted.orders_)


def test_pipeline_and_grid_search_over_n_orders(digits):
    X, y, X_test, y_test = digits
    flat = X.reshape(len(X), -1)
    pipeline = make_pipeline(FunctionTransformer(lambda rows: rows / 16), make(image_shape=(8, 8)))
    grid = {"anyorderarclassifier__n_orders": [1, 4]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(flat, y)
    assert set(search.cv_results_["param_anyorderarclassifier__n_orders"]) == {1, 4}
    assert search.score(X_test.reshape(len(X_test), -1), y_test) > 0.9
    assert search.best_estimator_[-1].orders_.shape == (search.best_params_[next(iter(grid))], 16)


def test_cross_val_score_in_processes(digits):
    X, y, _, _ = digits
    one = cross_val_score(make(), X, y, cv=2, error_score="raise")
    two = cross_val_score(make(), X, y, cv=2, n_jobs=2, error_score="raise")
    np.testing.assert_allclose(one, two, atol=0.02)
    assert one.min() > 0.7


def test_tabular_data():
    X, y = load_iris(return_X_y=True)
    clf = make_pipeline(StandardScaler(), AnyOrderARClassifier(n_orders=8, random_state=0))
    assert cross_val_score(clf, X, y, cv=3).mean() > 0.9
    clf.fit(X, y)
    assert isinstance(clf[-1].tokenizer_, QuantileTokenizer)
    assert clf[-1].image_shape_ is None and clf[-1].orders_.shape == (8, 4)


@pytest.mark.parametrize("load", [load_iris, load_wine])
def test_defaults_on_small_tables(load):
    X, y = load(return_X_y=True)
    train = np.arange(len(y)) % 3 > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of training too short
        clf = AnyOrderARClassifier(random_state=0).fit(X[train], y[train])
    assert len(clf.loss_curve_) == clf.n_iter_ == 30
    bayes = GaussianNB().fit(X[train], y[train]).score(X[~train], y[~train])
    assert clf.score(X[~train], y[~train]) > bayes - 0.04  # two of 50


@pytest.mark.parametrize("kind", ["array", "channels", "flat", "tensor", "list"])
def test_the_same_images_in_any_form(fitted, digits, kind):
    X, y, X_test, _ = digits

    def form(images):
        return {
            "array": images,
            "channels": images[..., None],
            "flat": images.reshape(len(images), -1),
            "tensor": torch.tensor(images),
            "list": list(images),
        }[kind]

    shape = (8, 8) if kind == "flat" else None
    clf = make(image_shape=shape).fit(form(X), y)
    assert clf.n_features_in_ == 64
    np.testing.assert_array_equal(clf.predict_proba(form(X_test)), fitted.predict_proba(X_test))


def test_image_files(tmp_path, digits):
    from PIL import Image

    pd = pytest.importorskip("pandas")
    X, y, _, _ = digits
    X, y = X[:120], y[:120]
    pixels = (X * 15).astype(np.uint8)
    paths = []
    for i, image in enumerate(pixels):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    clf = make(max_iter=3).fit(pixels, y)
    expected = clf.predict_proba(pixels)
    for form in (
        paths,
        np.array(paths),
        pd.Series(paths),
        pd.DataFrame({"path": paths}),
        [Image.fromarray(image) for image in pixels],
    ):
        np.testing.assert_array_equal(make(max_iter=3).fit(form, y).predict_proba(form), expected)


def test_a_given_tokenizer_and_prior(digits):
    X, y, X_test, y_test = digits
    tokenizer = PatchTokenizer(patch_size=4, n_codes=32)
    prior = AnyOrderPrior(32, (2, 2), 3, dim=32, n_layer=1, n_head=2)
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    clf = make(tokenizer=tokenizer, prior=prior).fit(X, y)
    assert clf.orders_.shape == (4, 4) and clf.score(X_test, y_test) > 0.8
    assert not hasattr(tokenizer, "codebook_")
    assert all((before[k] == v).all() for k, v in prior.state_dict().items())
    with pytest.raises(ValueError, match=r"disagree.*\(2, 2\).*PatchTokenizer.*\(4, 4\)"):
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


def test_convergence_warning(digits):
    X, y = digits[0][:64], digits[1][:64]
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        make(max_iter=2, tol=1e-4).fit(X, y)
    clf = make(max_iter=24, tol=0.0, augmentation=None)
    with pytest.warns(ConvergenceWarning):
        curve = clf.fit(X, y).loss_curve_
    fall = (min(curve[:-6]) - min(curve[-6:])) / 6  # an epoch, over the last quarter
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        clf.set_params(tol=1.01 * fall).fit(X, y)
    with pytest.warns(ConvergenceWarning):
        clf.set_params(tol=0.99 * fall).fit(X, y)


def test_verbose_shows_progress(digits, capsys):
    X, y, _, _ = digits
    make(max_iter=2).fit(X, y).predict(X)
    assert capsys.readouterr().err == ""
    clf = make(max_iter=2, verbose=1).fit(X, y)
    shown = capsys.readouterr().err
    for part in ("fitting PatchTokenizer to 300 samples", "tokenizing", "epoch 2/2", "36/36"):
        assert part in shown
    assert "step/s" in shown and "loss=" in shown and "accuracy=" in shown
    assert "<" in shown  # elapsed<left
    clf.predict(X)
    shown += (predicted := capsys.readouterr().err)
    assert "scoring" in predicted and "300/300" in predicted
    assert "\r" not in shown and len(shown.splitlines()) < 10  # a log
    assert "" not in shown.splitlines()


def test_verbose_says_what_was_chosen(digits, capsys):
    X, y, _, _ = digits
    clf = make(max_iter=1, verbose=2, batch_size="auto", prior="auto", tokenizer="auto").fit(X, y)
    shown = capsys.readouterr().err
    for part in (
        f"PatchTokenizer, the default for images: 4 x 4 tokens of {clf.tokenizer_.n_codes_} values",
        "new shared_trunk prior for 16 tokens and 300 samples: {'dim': 64",
        "max_iter=1, batch_size=37 (auto), learning_rate_init=0.005\n",
        "16 views of each image",
    ):
        assert part in shown


def test_verbose_in_a_terminal(digits, monkeypatch):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        make(max_iter=2, verbose=1).fit(*digits[:2])
        monkeypatch.undo()
        terminal.flush()
        shown = os.read(ours, 10**5).decode()
    os.close(ours)
    assert "\repoch 2/2" in shown


def test_validation_uses_the_orders_of_training(digits, monkeypatch):
    X, y, _, _ = digits
    orders = []

    def validation_score(loss, data, validation_orders, autocast):
        orders.append(validation_orders)
        return 0.0

    monkeypatch.setattr("skaocls.training.loop.validation_score", validation_score)
    make(max_iter=1, early_stopping=True, order="raster").fit(X, y)
    np.testing.assert_array_equal(orders[0], np.arange(16)[None])
    make(max_iter=1, early_stopping=True).fit(X, y)
    assert orders[1].shape == (4, 16) and (orders[1] != orders[0]).any(1).all()


def test_unfitted_use(digits):
    for method in ("predict", "predict_proba", "predict_log_proba", "predict_joint_log_proba"):
        with pytest.raises(NotFittedError):
            getattr(make(), method)(digits[0])
    with pytest.raises(NotFittedError):
        _ = make().orders_
    assert not hasattr(make(), "orders_")


@pytest.mark.parametrize(
    "params, message",
    [
        ({"n_orders": 0}, "'n_orders' parameter .* must be an int in the range"),
        ({"n_orders": 2.5}, "'n_orders'"),
        ({"aggregation": "median"}, "'aggregation' parameter .* must be a str among"),
        ({"order": "snail"}, "'order'"),
        ({"order": [[0, 1, 2]]}, r"shape \(1, 3\), but \(n, 16\) is expected"),
        ({"order": np.zeros((1, 16), int)}, r"order\[0\] is not a permutation"),
        ({"tokenizer": "bytes"}, "'tokenizer'"),
        ({"device": "abacus"}, "device='abacus' is not known"),
        ({"precision": "float8"}, "'precision'"),
        ({"max_iter": 0}, "'max_iter'"),
        ({"learning_rate_init": 0.0}, "'learning_rate_init'"),
        ({"image_shape": (8, 9)}, r"\(8, 9"),
    ],
)
def test_wrong_options(digits, params, message):
    with pytest.raises(ValueError, match=message):
        make(**params).fit(*digits[:2])


def test_wrong_options_after_fit(fitted, digits):
    clf = pickle.loads(pickle.dumps(fitted))
    with pytest.raises(ValueError, match="'n_orders'"):
        clf.set_params(n_orders=0).predict(digits[2])
    with pytest.raises(ValueError, match="is not a permutation"):
        clf.set_params(n_orders=1, order=np.zeros((1, 16), int)).predict(digits[2])


def test_wrong_data(fitted, digits):
    X, y, _, _ = digits
    bad = X.copy()
    bad[3, 2, 2] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        make().fit(bad, y)
    with pytest.raises(ValueError, match="contains NaN"):
        fitted.predict(bad)
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        make().fit(X[:0], y[:0])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        fitted.predict(X[:0])
    with pytest.raises(ValueError, match=r"\(8, 7, 1\).*\(8, 8, 1\)"):
        fitted.predict(X[:, :, :7])
    with pytest.raises(ValueError, match="images"):
        fitted.predict(X.reshape(len(X), -1))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make().fit(X, y[:-1])
    with pytest.raises(ValueError, match="y to be passed"):
        make().fit(X, None)
    with pytest.raises(ValueError, match="Unknown label type"):
        make().fit(X, y + 0.5)
    with pytest.raises(ValueError, match=r"index 0.*index 1"):
        make().fit([X[0], X[1][:5]], [0, 1])
    with pytest.raises(ValueError, match=r"X\[1\] cannot be read as an image: 'nowhere.png'"):
        make().fit([X[0], "nowhere.png"], [0, 1])


# What is said ---------------------------------------------------------------------------------


def said(call, *args, **kwargs):
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call(*args, **kwargs)
    return [str(w.message) for w in seen if w.category is UserWarning]


@pytest.mark.parametrize(
    "params, message",
    [
        ({"finetune": "lora"}, "finetune='lora' has no effect: it needs a given prior"),
        ({"new_classes": "null"}, "new_classes='null' has no effect"),
        ({"lora_rank": 2}, 'lora_rank=2 has no effect.*finetune="lora"'),
        ({"revision": "v1"}, "revision='v1' has no effect.*names weights"),
        (
            {"racing_error": 0.1, "search": "exhaustive"},
            'racing_error=0.1 has no effect: it needs search="racing" or "auto"',
        ),
        ({"racing_error": 0.1}, None),
        ({"racing_screen": 2}, 'racing_screen=2 has no effect: it needs search="racing"'),
        ({"validation_fraction": 0.2}, "validation_fraction=0.2 has no effect.*early_stopping"),
        ({"search": "racing", "racing_error": 0.1}, None),
        ({"early_stopping": True, "validation_fraction": 0.2}, None),
        ({}, None),
    ],
)
def test_parameters_without_effect_are_named(digits, params, message):
    X, y, _, _ = digits
    messages = said(make(max_iter=1, **params).fit, X, y)
    assert len(messages) == (message is not None)
    if message:
        assert re.search(message, messages[0])


def test_parameters_with_an_effect_on_a_given_prior(digits, fitted):
    X, y, _, _ = digits
    tokenizer = FrozenEstimator(fitted.tokenizer_)
    tuned = {"finetune": "lora", "lora_rank": 2, "new_classes": "null"}
    assert not said(make(max_iter=1, prior=fitted.prior_, tokenizer=tokenizer, **tuned).fit, X, y)


def test_parameters_set_after_fit(fitted, digits):
    clf, X = pickle.loads(pickle.dumps(fitted)), digits[2][:5]
    [message] = said(clf.set_params(racing_screen=2).predict, X)
    assert "racing_screen=2 has no effect" in message
    clf.set_params(racing_screen=None, image_shape=(4, 4))
    for call in (clf.predict, clf.explain):
        assert all("image_shape=(4, 4) was set after fit" in m for m in said(call, X))
    assert said(clf.predict, X) and not said(clf.set_params(image_shape=None).predict, X)


def test_nested_parameters_of_names(digits):
    with pytest.raises(ValueError, match=r"tokenizer__n_codes .*tokenizer=PatchTokenizer\(\)"):
        make(tokenizer="auto").set_params(tokenizer__n_codes=8)
    with pytest.raises(ValueError, match=r'prior__dim .*prior=\{"dim": 64\}'):
        make(prior="auto").set_params(prior__dim=8)
    with pytest.raises(ValueError, match="Invalid parameter 'tokeniser'"):
        make().set_params(tokeniser__n_codes=8)
    clf = make().set_params(tokenizer__n_codes=8, tokenizer=PatchTokenizer())
    assert clf.tokenizer.n_codes == 8
    grid = {"tokenizer__n_codes": [8, 16]}
    search = GridSearchCV(make(tokenizer=PatchTokenizer(), max_iter=1), grid, cv=2)
    assert search.fit(*digits[:2]).best_estimator_.tokenizer_.n_codes_ in (8, 16)


@pytest.mark.parametrize(
    "prior, message",
    [
        ({"dims": 3}, "unknown size 'dims'. The sizes of 'shared_trunk' are dim, n_layer"),
        ({"dim": 0}, "'dim' parameter of prior={'dim': 0}.*Got 0 instead"),
        ({"n_head": 1.5}, "'n_head' parameter of prior=.*Got 1.5 instead"),
        ({"architecture": "randar", "width": 8}, "unknown size 'width'. The sizes of 'randar'"),
        ({"dim": 12}, "dim=12 must be a multiple"),
    ],
)
def test_wrong_sizes_of_a_prior(digits, prior, message):
    with pytest.raises(ValueError, match=message):
        make(prior=prior).fit(*digits[:2])


@pytest.mark.parametrize("rival", ["runnerup", 3, [[0], [1]]])
def test_wrong_rivals(fitted, digits, rival):
    with pytest.raises(ValueError, match='rival must be "runner-up", one class for each image'):
        fitted.explain(digits[2][:2], rival=rival)


def test_images_that_can_be_gone_through_once(fitted, digits):
    X = digits[2][:4]
    for rival in (None, "runner-up"):
        expected = fitted.explain(X, rival=rival).tokens
        np.testing.assert_array_equal(fitted.explain(iter(X), rival=rival).tokens, expected)


@pytest.mark.parametrize("holds_out", [{"early_stopping": True}, {"temperature": "auto"}])
def test_holding_out_of_few(digits, holds_out):
    X = digits[0][:40]
    clf = make(max_iter=1, **holds_out)
    with pytest.raises(ValueError, match=r"validation_fraction=0.1 holds out 4 of 40 .*20 classes"):
        clf.fit(X, np.arange(40) // 2)
    clf.set_params(validation_fraction=0.5).fit(X, np.arange(40) // 2)
    clf.set_params(validation_fraction=0.1).fit(X, np.minimum(np.arange(40), 3))
    with pytest.raises(ValueError, match=r"needs at least 2 samples; 40 classes have one\."):
        clf.fit(X, np.arange(40))


def test_a_single_sample_of_a_class_is_trained_on():
    rows = np.array([0, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    recipe = make(early_stopping=True, validation_fraction=0.4)._recipe()
    for seed in range(20):
        train, rest = split_validation(rows, recipe, np.random.RandomState(seed))
        assert {0, 1} < set(train) and len(rest) == 4
        assert sorted([*train, *rest]) == list(range(10))


def test_names_of_features_are_those_of_classes(digits):
    X, y, _, _ = digits
    clf = make(max_iter=1).fit(X, np.array(["cat", "dog", "eel"])[y])
    names = ["anyorderarclassifier_cat", "anyorderarclassifier_dog", "anyorderarclassifier_eel"]
    assert clf.get_feature_names_out().tolist() == names

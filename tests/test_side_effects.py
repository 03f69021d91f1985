"""Calls that fail leave the classifier as it was; nothing around a call changes what it gives."""

import contextlib
import copy
import os
import pickle
import signal
import threading
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, PatchTokenizer, QuantileTokenizer
from skaocls.fitted.parallel import pickle_out_of_band
from skaocls.priors.loading import load_prior


def make(**params):
    return small_classifier(
        AnyOrderARClassifier, **({"max_iter": 6, "augmentation": None} | params)
    )


@pytest.fixture(scope="module")
def four():
    """160 digits of four classes, and 40 of a fifth."""
    data = load_digits(n_class=5)
    X, y = data.images, data.target
    first = np.concatenate([np.flatnonzero(y == c)[:40] for c in range(4)])
    fifth = np.flatnonzero(y == 4)[:40]
    return X[first], y[first], X[fifth], y[fifth]


@pytest.fixture(scope="module")
def paths(four, tmp_path_factory):
    """The same as files, the last of which is no image."""
    folder = tmp_path_factory.mktemp("digits")
    files = []
    for i, image in enumerate(np.concatenate([four[0], four[2]])):
        files.append(folder / f"{i}.png")
        Image.fromarray((image * 15).astype(np.uint8)).save(files[-1])
    files[-1].write_bytes(b"no image")
    return files[:160], files[160:]


def state_of(clf):
    """Return everything that belongs to a classifier, as bytes."""
    pickled, buffers = pickle_out_of_band(clf)
    return pickled + b"".join(map(bytes, buffers))


@contextlib.contextmanager
def ctrl_c_heard():
    """Where tests run in the background, the signal is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def interrupted(seconds):
    """Ctrl-C after some seconds, which is not caught."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    with ctrl_c_heard():
        timer.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                yield
        finally:
            timer.cancel()


class CtrlC(AnyOrderPrior):
    """A prior that presses Ctrl-C while it is trained, at a given step."""

    steps, at = 0, 0

    def log_prob(self, *args):
        if self.training:
            CtrlC.steps += 1
            if CtrlC.steps == CtrlC.at:
                signal.raise_signal(signal.SIGINT)
        return super().log_prob(*args)


@pytest.fixture
def ctrl_c():
    """A classifier of two steps an epoch, stopped at a step."""

    def at(step, **params):
        CtrlC.steps, CtrlC.at = 0, step
        tokenizer = PatchTokenizer(n_codes=16)
        random = torch.Generator().manual_seed(0)
        prior = CtrlC(16, (4, 4), 4, dim=32, n_layer=1, n_head=2, generator=random)
        defaults = {"batch_size": 80, "max_iter": 9, "learning_rate_init": 1e-2}
        return make(prior=prior, tokenizer=tokenizer, **(defaults | params))

    with ctrl_c_heard():
        yield at


# Calls that fail ------------------------------------------------------------------------------


def test_partial_fit_that_fails(four, paths):
    (_, y, _, fifth), (good, more) = four, paths
    clf = make().partial_fit(good, y)
    before, proba = state_of(clf), clf.predict_proba(good[:9])
    with pytest.raises(ValueError, match=r"X\[39\] cannot be read"):
        clf.partial_fit(more, fifth)
    with interrupted(1.0):
        clf.set_params(max_iter=10**6).partial_fit(more[:39], fifth[:39])
    assert state_of(clf.set_params(max_iter=6)) == before
    np.testing.assert_array_equal(clf.predict_proba(good[:9]), proba)
    clf.partial_fit(more[:39], fifth[:39])  # again, and the failed calls do not count
    np.testing.assert_array_equal(clf.class_count_, [40, 40, 40, 40, 39])


@pytest.mark.parametrize("grow", [False, True])
def test_training_on_that_fails(four, grow):
    X, y, _, _ = four
    clf = make(warm_start=True).fit(X, y)
    before = state_of(clf)
    go_on = clf.partial_fit if grow else clf.fit
    if grow:
        with interrupted(1.0):
            clf.set_params(max_iter=10**6)
            go_on(X[:80], y[:80])
        assert state_of(clf.set_params(max_iter=6)) == before
    clf.set_params(priors=[0.5, 0.5])
    with pytest.raises(ValueError, match="Number of priors must match"):
        go_on(X, y)
    assert state_of(clf.set_params(priors=None)) == before


def test_fit_again_that_fails(four):
    X, y, _, _ = four
    clf = make().fit(X, y)
    before = state_of(clf)
    names = np.array(["a", "b", "c", "d"])[y]
    with pytest.raises(ValueError, match="sum of the priors"):
        clf.set_params(priors=[1.0, 1.0, 0.0, 0.0]).fit(X, names)
    assert state_of(clf.set_params(priors=None)) == before


# Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_weights_so_far(four, ctrl_c):
    X, y, _, _ = four

    def fit_until(step, **params):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            clf = ctrl_c(step, **params).fit(X, y)
        assert [str(w.message) for w in seen] == ["Training interrupted by user."]
        return clf

    clf, earlier, watched = fit_until(14), fit_until(5), fit_until(14, verbose=1)
    assert clf.n_iter_ == len(clf.loss_curve_) == 6 and earlier.n_iter_ == 2
    assert clf.score_samples(X).mean() > earlier.score_samples(X).mean() + 1
    np.testing.assert_array_equal(clf.predict_proba(X), watched.predict_proba(X))
    stopped = fit_until(6, early_stopping=True)  # steps of an epoch are one here
    assert stopped.n_iter_ == len(stopped.validation_scores_) == 5
    assert stopped.best_iter_ == 1 + np.argmax(stopped.validation_scores_)
    best = ctrl_c(0, early_stopping=True).fit(X, y)
    np.testing.assert_allclose(stopped.validation_scores_, best.validation_scores_[:5])


def test_ctrl_c_before_the_first_epoch_is_over(four, ctrl_c):
    X, y, _, _ = four
    clf = ctrl_c(2)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    with pytest.raises(NotFittedError, match=r"is not fitted yet. Call 'fit' with appropriate"):
        clf.predict(X)
    CtrlC.at = 0
    before = state_of(clf.fit(X, y))
    CtrlC.steps, CtrlC.at = 0, 1
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y + 1)
    assert state_of(clf) == before


def test_what_was_interrupted_is_not_remembered(four, ctrl_c, tmp_path):
    X, y, _, _ = four
    for _ in range(2):
        with pytest.warns(UserWarning, match="Training interrupted by user"):
            ctrl_c(5, memory=tmp_path).fit(X, y)
    assert ctrl_c(0, memory=tmp_path).fit(X, y).n_iter_ == 9


def test_ctrl_c_while_training_goes_on(four, ctrl_c):
    X, y, _, _ = four
    clf = ctrl_c(0, warm_start=True).fit(X, y)
    before = clf.score_samples(X)
    CtrlC.steps, CtrlC.at = 0, 5
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        clf.fit(X, y)
    assert clf.n_iter_ == 2 and (clf.score_samples(X) != before).all()


# Order of checks ------------------------------------------------------------------------------


def test_wrong_priors_are_found_before_training(four, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: pytest.fail("trained first"))
    with pytest.raises(ValueError, match="Number of priors must match"):
        make(priors=[0.5, 0.5]).fit(*four[:2])


def test_tokenizer_that_fails(four):
    tokenizer = PatchTokenizer(n_codes=8, random_state=0).fit(four[0])
    before = pickle.dumps(vars(tokenizer))
    with pytest.raises(ValueError, match="patch_size"):
        tokenizer.set_params(patch_size=(0, 1)).fit(four[0][:, :5])
    assert pickle.dumps(vars(tokenizer.set_params(patch_size="auto"))) == before


def test_a_table_that_fails():
    X = load_iris(as_frame=True).data
    tokenizer = QuantileTokenizer().fit(X)
    before = pickle.dumps(vars(tokenizer))
    other = X.rename(columns=str.upper)
    other.iloc[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.fit(other)
    assert pickle.dumps(vars(tokenizer)) == before
    assert not hasattr(tokenizer.fit(X.to_numpy()), "feature_names_in_")


def test_warnings_that_are_errors(four):
    clf = make(tol=0.0).fit(*four[:2])
    before = state_of(clf)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        with pytest.raises(ConvergenceWarning):
            clf.fit(four[0], four[1] + 1)
    assert state_of(clf) == before


def test_fitted_attributes_are_read_only(four):
    clf = make()
    with pytest.raises(AttributeError, match="no attribute 'classes_': it is not fitted yet"):
        _ = clf.classes_
    clf.fit(*four[:2])
    with pytest.raises(AttributeError, match="'prior_' is what fit has learned"):
        clf.prior_ = None


def test_names_are_those_of_the_last_fit():
    X, y = load_iris(return_X_y=True, as_frame=True)
    clf = make(max_iter=1).fit(X, y)
    assert list(clf.feature_names_in_) == list(X.columns)
    assert not hasattr(clf.fit(X.to_numpy(), y), "feature_names_in_")
    tokenizer = PatchTokenizer(n_codes=4).fit(X)
    assert not hasattr(tokenizer.fit(X.to_numpy()), "feature_names_in_")


# What is around a call --------------------------------------------------------------------------


def test_threads_give_what_one_thread_gives(four):
    X, y, _, _ = four
    sizes = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32, "dropout": 0.1}
    tasks = [make(prior=sizes, random_state=seed, checkpointing=True) for seed in (0, 0, 1)]
    alone = [copy.deepcopy(clf).fit(X, y).predict_proba(X) for clf in tasks]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with joblib.parallel_config("threading", n_jobs=2):
        fits = joblib.Parallel()(joblib.delayed(clf.fit)(X, y) for clf in tasks)
        cross_val_score(make(), X, y, cv=2, n_jobs=2)
    for clf, proba in zip(fits, alone, strict=True):
        np.testing.assert_array_equal(clf.predict_proba(X), proba)
    assert (torch.get_rng_state() == states[0]).all()
    assert (np.random.get_state()[1] == states[1]).all()


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_the_global_generator_is_not_touched(four, finetune):
    X, y, fifth, label = four
    torch.manual_seed(5)
    state = torch.get_rng_state()
    clf = make(finetune=finetune).fit(X, y)
    clf.partial_fit(fifth, label).sample(2, random_state=0)
    assert (torch.get_rng_state() == state).all()


def test_dropout_is_drawn_again_where_activations_are_computed_again(four):
    X, y, _, _ = four
    sizes = {"dim": 32, "n_layer": 3, "n_head": 2, "multiple_of": 32, "dropout": 0.2}
    plain, twice = (make(prior=sizes, checkpointing=on).fit(X, y) for on in (False, True))
    np.testing.assert_allclose(twice.loss_curve_, plain.loss_curve_, rtol=1e-5)
    np.testing.assert_allclose(twice.predict_proba(X), plain.predict_proba(X), atol=1e-3)


def test_a_random_state_instance_advances_alike_cold_and_warm(four, tmp_path):
    X, y, _, _ = four

    def both(memory):
        rng = np.random.RandomState(3)
        return [make(random_state=rng, memory=memory).fit(X, y).predict_proba(X) for _ in "ab"]

    without, cold, warm = both(None), both(tmp_path), both(tmp_path)
    assert np.abs(without[0] - without[1]).max() > 1e-4
    for other in (cold, warm):
        np.testing.assert_allclose(other, without, atol=1e-9, rtol=0)


@contextlib.contextmanager
def rounded_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "rounded products": rounded_products,
}


@pytest.fixture(scope="module")
def in_peace(four, tmp_path_factory):
    return every_answer(four, tmp_path_factory.mktemp("saved"))


def every_answer(four, folder):
    X, y, fifth, label = four
    clf = make(precision="float32", crop="random", augmentation=2).fit(X, y)
    clf.partial_fit(fifth, label).save_pretrained(folder)
    clf = AnyOrderARClassifier.from_pretrained(folder)
    tuned = make(prior=str(folder), finetune="lora", precision="float32").fit(X, y)
    mask = np.zeros((8, 8), dtype=bool)
    mask[:4] = True
    return {
        "proba": clf.predict_proba(X[:9]),
        "tuned": tuned.predict_proba(X[:9]),
        "racing": tuned.set_params(search="racing", racing_screen=3).predict_proba(X[:9]),
        "evidence": clf.explain(X[:3]).maps,
        "samples": clf.sample(3, random_state=0),
        "filled": clf.inpaint(X[:3], mask, random_state=0),
    }


@pytest.mark.parametrize("name", AMBIENT)
def test_ambient_torch_settings_change_nothing(four, in_peace, tmp_path, name):
    with AMBIENT[name]():
        answers = every_answer(four, tmp_path)
        if name in ("float64", "bfloat16"):  # which belongs to the caller
            assert torch.get_default_dtype() == getattr(torch, name)
    for key, expected in in_peace.items():
        np.testing.assert_array_equal(answers[key], expected, err_msg=key)


# What is loaded ---------------------------------------------------------------------------------


def write(prior, file):
    if file.suffix == ".safetensors":
        save_file(prior.state_dict(), file)
    else:
        torch.save({"model": prior.state_dict()}, file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_was_loaded_does_not_depend_on_its_file(tmp_path, suffix):
    random = torch.Generator().manual_seed(0)
    first, second = (AnyOrderPrior(8, (2, 2), 3, dim=64, n_layer=2, generator=random) for _ in "ab")
    file, other = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write(first, file)
    write(second, other)
    loaded = load_prior(file, grid=(2, 2), n_head=4, num_classes=3)
    content = other.read_bytes()
    with open(file, "rb+") as target:  # the same file, as copying over it does
        target.write(content)
    for name, weight in first.state_dict().items():
        assert (loaded.state_dict()[name] == weight).all()
    os.truncate(file, 10)
    assert np.isfinite(sum(p.double().sum().item() for p in loaded.parameters()))


# Frames -----------------------------------------------------------------------------------------


def test_frames_come_from_transform_and_fit_transform(four):
    X, y, _, _ = four
    clf = make().set_output(transform="pandas")
    for out in (clf.fit_transform(X, y), clf.transform(X)):
        assert isinstance(out, pd.DataFrame)
        assert list(out.columns) == list(clf.get_feature_names_out())
    with sklearn.config_context(transform_output="pandas"), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline = make_pipeline(make(), LogisticRegression()).fit(X, y)
        pipeline.predict(X)
        assert isinstance(pipeline[0].transform(X[:3]), pd.DataFrame)


# Saving -----------------------------------------------------------------------------------------

LABELS = {
    "dates": np.array(["2020-01-01", "2020-01-02", "NaT"], dtype="datetime64[D]")[[0, 1]],
    "durations": np.array([1, 2], dtype="timedelta64[s]"),
    "bools": np.array([False, True]),
    "small ints": np.array([3, 250], dtype=np.uint8),
    "objects": np.array(["a", "b"], dtype=object),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_and_numpy_numbers_are_saved(four, tmp_path, labels):
    X, y, _, _ = four
    clf = make(
        max_iter=np.int64(1),
        tol=np.float32(10.0),
        tokenizer=PatchTokenizer(patch_size=np.int64(2), n_codes=np.int32(16)),
        prior={"dim": np.int64(32), "n_layer": np.int64(1), "n_head": np.int64(2)},
        random_state=np.int64(4),
    ).fit(X[:80], labels[y[:80]])
    clf.save_pretrained(tmp_path)
    restored = AnyOrderARClassifier.from_pretrained(tmp_path)
    assert restored.classes_.dtype == clf.classes_.dtype
    np.testing.assert_array_equal(restored.classes_, clf.classes_)
    np.testing.assert_array_equal(restored.predict(X), clf.predict(X))


# Scales -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [np.int64, np.float32, np.float64, np.uint16, list])
def test_numbers_on_another_scale_than_in_fit(four, other):
    bytes_ = (four[0] * 15.9375).round().astype(np.uint8)
    clf = make().fit(bytes_, four[1])
    X = bytes_.tolist() if other is list else bytes_.astype(other)
    if other is np.uint16:  # a type that says its scale, on which these are dark
        with pytest.warns(UserWarning, match="from 0 to 0.00389, but .* from 0 to 1 "):
            clf.predict(X)
        return
    for use in (clf.predict, clf.tokenizer_.transform):
        message = "X has numbers from 0 to 255, but .* was fitted on numbers from 0 to 1 "
        with pytest.raises(ValueError, match=message):
            use(X)
    np.testing.assert_array_equal(clf.predict(bytes_ / 255), clf.predict(bytes_))


def test_bytes_after_numbers_without_a_scale(four, tmp_path):
    clf = make().fit(four[0], four[1])  # 0 ... 16
    with pytest.raises(ValueError, match="fitted on numbers from 0 to 16"):
        clf.predict(four[0].astype(np.uint8))
    with pytest.warns(UserWarning, match="X has numbers from 0 to 1, but"):
        clf.predict(four[0] / 16)
    Image.fromarray(four[0][0].astype(np.uint8)).save(tmp_path / "digit.png")
    with pytest.raises(ValueError, match="fitted on numbers from 0 to 16"):
        clf.predict([tmp_path / "digit.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf.predict(four[0] * 1.5 - 3)
        clf.predict(np.zeros((2, 8, 8)))  # blank

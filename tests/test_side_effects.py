"""Failed calls leave the classifier unchanged; results do not depend on global state."""

import contextlib
import copy
import functools
import itertools
import os
import pickle
import signal
import warnings

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from conftest import small_classifier
from skaocls import (
    AnyOrderARClassifier,
    AnyOrderPrior,
    PatchTokenizer,
    QuantileTokenizer,
    tokenize_dataset,
)
from skaocls.fitted import fit, joblib_workers
from skaocls.fitted.joblib_workers import pickle_out_of_band
from skaocls.fitted.result_cache import ResultCache
from skaocls.priors.loading import load_prior
from skaocls.training import checkpoints, loop
from skaocls.training.checkpoints import Checkpoints
from skaocls.training.state import TrainingState
from skaocls.warn import warn


def make(**params):
    return small_classifier(
        AnyOrderARClassifier, **({"max_iter": 6, "augmentation": None} | params)
    )


@pytest.fixture(scope="module")
def data():
    """Images and labels: 160 digits of four classes, and 40 of a fifth class."""
    digits = load_digits(n_class=5)
    X, y = digits.images, digits.target
    first = np.concatenate([np.flatnonzero(y == c)[:40] for c in range(4)])
    fifth = np.flatnonzero(y == 4)[:40]
    return X[first], y[first], X[fifth], y[fifth]


@pytest.fixture(scope="module")
def paths(data, tmp_path_factory):
    """Files of the same images. The last file is not an image."""
    folder = tmp_path_factory.mktemp("digits")
    files = []
    for i, image in enumerate(np.concatenate([data[0], data[2]])):
        files.append(folder / f"{i}.png")
        Image.fromarray((image * 15).astype(np.uint8)).save(files[-1])
    files[-1].write_bytes(b"not an image")
    return files[:160], files[160:]


def state_of(clf):
    """Return everything that belongs to a classifier, as bytes, without the code of its classes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joblib_workers, "installed_version", lambda module: "any version")
        pickled, buffers = pickle_out_of_band(clf)
    return pickled + b"".join(map(bytes, buffers))


@contextlib.contextmanager
def sigint_enabled():
    """Enable Ctrl-C, which is ignored in background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class InterruptingPrior(AnyOrderPrior):
    """A prior that presses Ctrl-C in a given training step."""

    steps, interrupt_at = 0, 0

    def log_prob(self, *args):
        if self.training:
            InterruptingPrior.steps += 1
            if InterruptingPrior.steps == InterruptingPrior.interrupt_at:
                signal.raise_signal(signal.SIGINT)
        return super().log_prob(*args)


def interrupt_at(step):
    """Interrupt training at a step from now on; 0 disables this."""
    InterruptingPrior.steps, InterruptingPrior.interrupt_at = 0, step


@pytest.fixture
def make_interrupted():
    """Return a function that makes a classifier, with two steps per epoch, that is interrupted."""

    def make_interrupted(step, **params):
        interrupt_at(step)
        generator = torch.Generator().manual_seed(0)
        prior = InterruptingPrior(16, (4, 4), 4, dim=32, n_layer=1, n_head=2, generator=generator)
        defaults = {"batch_size": 80, "max_iter": 9, "learning_rate_init": 1e-2}
        tokenizer = PatchTokenizer(n_codes=16)
        return make(prior=prior, tokenizer=tokenizer, **(defaults | params))

    with sigint_enabled():
        yield make_interrupted


# Failed calls -----------------------------------------------------------------------------------


def test_failed_partial_fit(data, paths):
    (_, y, _, y_fifth), (files, more_files) = data, paths
    clf = make().partial_fit(files, y)
    before, proba = state_of(clf), clf.predict_proba(files[:9])
    with pytest.raises(ValueError, match=r"X\[39\] cannot be read"):
        clf.partial_fit(more_files, y_fifth)
    assert state_of(clf) == before
    np.testing.assert_array_equal(clf.predict_proba(files[:9]), proba)
    clf.partial_fit(more_files[:39], y_fifth[:39])  # the failed call left no trace
    np.testing.assert_array_equal(clf.class_count_, [40, 40, 40, 40, 39])


def test_interrupted_partial_fit(data, make_interrupted):
    X, y, X_fifth, y_fifth = data
    clf = make_interrupted(0, max_iter=1).fit(X, y)
    before = state_of(clf)
    for images, labels in ((X_fifth, y_fifth), (X, y)):
        interrupt_at(1)
        with pytest.raises(KeyboardInterrupt):
            clf.partial_fit(images, labels)
        interrupt_at(0)
        assert state_of(clf) == before


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_wrong_class_probabilities_are_found_before_training(data, monkeypatch, method):
    X, y, _, _ = data
    clf = make(max_iter=1).fit(X, y)
    before = state_of(clf)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: pytest.fail("trained first"))
    with pytest.raises(ValueError, match="class_prior must contain one probability"):
        getattr(clf.set_params(class_prior=[0.5, 0.5]), method)(X, y)
    assert state_of(clf.set_params(class_prior=None)) == before


def test_failed_fit_to_a_table():
    X = load_iris(as_frame=True).data
    tokenizer = QuantileTokenizer().fit(X)
    before = pickle.dumps(vars(tokenizer))
    other = X.rename(columns=str.upper)
    other.iloc[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.fit(other)
    assert pickle.dumps(vars(tokenizer)) == before
    assert not hasattr(tokenizer.fit(X.to_numpy()), "feature_names_in_")


def fail(*args):
    raise OSError(28, "No space left on device")


def diverge_once(patch):
    finite = itertools.chain([False], itertools.repeat(True))
    patch.setattr(TrainingState, "is_finite", lambda self: next(finite))


LATE_WARNINGS = {  # what causes the warning, parameters, and the message
    "no convergence": (lambda patch: None, {"tol": 0.0}, "hasn't converged"),
    "divergence": (diverge_once, {}, "Training diverged in epoch 1"),
    "long training": (
        lambda patch: patch.setattr(loop, "LONG_TRAINING_SECONDS", 0.0),
        {"batch_size": 8},
        "Training will take about",
    ),
    "no checkpoints": (
        lambda patch: patch.setattr(Checkpoints, "write", fail),
        {"checkpoint_dir": "checkpoints"},
        "Could not write a checkpoint",
    ),
    "no cache": (
        lambda patch: patch.setattr(cloudpickle, "dump", fail),
        {"memory": "memory"},
        "No more results are stored",
    ),
    "no cache for the temperature": (
        lambda patch: patch.setattr(ResultCache, "get_or_compute", cached_after_fit),
        {"memory": "memory", "temperature": "auto"},
        "a warning of the cache",
    ),
}


def cached_after_fit(self, key, function, keep=None):
    if keep is None:  # not a fit
        warn("a warning of the cache", RuntimeWarning)
    return function()


@pytest.mark.parametrize(
    "method, case",
    [("fit", case) for case in LATE_WARNINGS]
    + [("partial_fit", case) for case in ("no convergence", "divergence", "long training")],
)
def test_warnings_as_errors_keep_the_trained_model(data, tmp_path, monkeypatch, method, case):
    cause, params, message = LATE_WARNINGS[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "INTERVAL_FACTOR", 0)
    X, y = data[0][::2], data[1][::2]
    results = []
    for action in ("default", "error"):
        clf = make(max_iter=2).fit(X, y) if method == "partial_fit" else make(max_iter=2)
        clf.set_params(**params)
        with monkeypatch.context() as patch, warnings.catch_warnings():
            cause(patch)
            warnings.simplefilter(action)
            if action == "error":
                with pytest.raises(Warning, match=message):
                    getattr(clf, method)(X, y)
            else:
                with pytest.warns(Warning, match=message):
                    getattr(clf, method)(X, y)
        results.append(clf.set_params(memory=None).predict_proba(X))
    np.testing.assert_array_equal(*results)
    assert not list(tmp_path.glob("checkpoints/checkpoint-*"))  # fit has finished its work


def test_an_interrupted_fit_with_warnings_as_errors(data, make_interrupted):
    X, y, _, _ = data
    clf = make_interrupted(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="interrupted by user"):
            clf.fit(X, y)
    assert clf.n_iter_ == 2 and np.isfinite(clf.predict_proba(X)).all()


def test_early_warnings_as_errors_are_raised_before_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("fit has started to train")

    monkeypatch.setattr(fit, "train_prior", refuse)
    X, y = load_digits(n_class=2, return_X_y=True)
    clf = make(max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="look like pixels"):
            clf.fit(X, y)
    assert not hasattr(clf, "model_")


def count_warnings(call):
    """Repeat a call until it raises no warning, and return the number of warnings."""
    for n in itertools.count():
        try:
            call()
        except RuntimeWarning as error:
            assert "is damaged" in str(error)  # noqa: PT017
        else:
            return n


def test_a_damaged_file_is_reported_once_with_warnings_as_errors(data, tmp_path):
    X, y = data[0][::2], data[1][::2]
    clf = make(max_iter=1, tol=10.0, memory=tmp_path / "memory").fit(X, y)
    tokenizer = PatchTokenizer(n_codes=8, random_state=0).fit(X)
    tokens = tokenize_dataset(tokenizer, X, tmp_path / "tokens")[:]
    expected = clf.predict_proba(X)
    damaged = [*tmp_path.glob("memory/skaocls-memory/*"), tmp_path / "tokens" / "tokens-000000.npy"]
    for path in damaged:
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = functools.partial(tokenize_dataset, tokenizer, X, tmp_path / "tokens")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert count_warnings(lambda: clf.fit(X, y)) == 1
        assert count_warnings(lambda: clf.predict_proba(X)) == clf.n_orders
        assert count_warnings(again) == 1
        np.testing.assert_array_equal(clf.fit(X, y).predict_proba(X), expected)
        np.testing.assert_array_equal(again()[:], tokens)


def test_fitted_attributes_are_read_only(data):
    clf = make(max_iter=1)
    with pytest.raises(AttributeError, match="no attribute 'classes_'"):
        _ = clf.classes_
    clf.fit(*data[:2])
    with pytest.raises(AttributeError, match="'prior_'"):
        clf.prior_ = None


def test_feature_names_are_those_of_the_last_fit():
    X, y = load_iris(return_X_y=True, as_frame=True)
    clf = make(max_iter=1).fit(X, y)
    assert list(clf.feature_names_in_) == list(X.columns)
    assert not hasattr(clf.fit(X.to_numpy(), y), "feature_names_in_")


# Ctrl-C -----------------------------------------------------------------------------------------


def test_interrupted_fit_keeps_the_weights_of_the_last_epoch(data, make_interrupted):
    X, y, _, _ = data

    def fit_until(step, **params):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clf = make_interrupted(step, **params).fit(X, y)
        assert [str(w.message) for w in caught] == ["Training interrupted by user."]
        return clf

    clf, earlier, verbose = fit_until(14), fit_until(5), fit_until(14, verbose=1)
    assert clf.n_iter_ == len(clf.loss_curve_) == 6 and earlier.n_iter_ == 2
    assert clf.score_samples(X).mean() > earlier.score_samples(X).mean() + 1
    np.testing.assert_array_equal(clf.predict_proba(X), verbose.predict_proba(X))
    stopped = fit_until(6, early_stopping=True)  # one step per epoch, because samples are held out
    assert stopped.n_iter_ == len(stopped.validation_scores_) == 5
    assert stopped.best_iter_ == 1 + np.argmax(stopped.validation_scores_)
    whole = make_interrupted(0, early_stopping=True).fit(X, y)
    np.testing.assert_allclose(stopped.validation_scores_, whole.validation_scores_[:5])


def test_interrupted_fit_in_the_first_epoch(data, make_interrupted):
    X, y, _, _ = data
    clf = make_interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    with pytest.raises(NotFittedError, match=r"is not fitted yet. Call 'fit' with appropriate"):
        clf.predict(X)
    interrupt_at(0)
    before = state_of(clf.fit(X, y))
    interrupt_at(1)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y + 1)
    assert state_of(clf) == before


def test_interrupted_fit_is_not_cached(data, make_interrupted, tmp_path):
    X, y, _, _ = data
    for _ in range(2):
        with pytest.warns(UserWarning, match="Training interrupted by user"):
            make_interrupted(5, memory=tmp_path).fit(X, y)
    assert make_interrupted(0, memory=tmp_path).fit(X, y).n_iter_ == 9


# Global state -----------------------------------------------------------------------------------


def test_threads_do_not_change_results(data):
    X, y, _, _ = data
    sizes = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32, "dropout": 0.1}
    classifiers = [make(prior=sizes, random_state=seed) for seed in (0, 0, 1)]
    expected = [copy.deepcopy(clf).fit(X, y).predict_proba(X) for clf in classifiers]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with joblib.parallel_config("threading", n_jobs=2):
        fits = joblib.Parallel()(joblib.delayed(clf.fit)(X, y) for clf in classifiers)
        cross_val_score(make(), X, y, cv=2, n_jobs=2)
    for clf, proba in zip(fits, expected, strict=True):
        np.testing.assert_array_equal(clf.predict_proba(X), proba)
    assert (torch.get_rng_state() == states[0]).all()
    assert (np.random.get_state()[1] == states[1]).all()


def test_cached_fits_advance_a_random_state_instance(data, tmp_path):
    X, y, _, _ = data

    def fit_twice(memory):
        rng = np.random.RandomState(3)
        return [make(random_state=rng, memory=memory).fit(X, y).predict_proba(X) for _ in "ab"]

    uncached, first, cached = fit_twice(None), fit_twice(tmp_path), fit_twice(tmp_path)
    assert np.abs(uncached[0] - uncached[1]).max() > 1e-4
    for proba in (first, cached):
        np.testing.assert_allclose(proba, uncached, atol=1e-9, rtol=0)


@contextlib.contextmanager
def setting(get, set_, value):
    """Change a global setting of torch, and check that nothing else changes it."""
    before = get()
    set_(value)
    try:
        yield
        assert get() == value
    finally:
        set_(before)


DTYPE = torch.get_default_dtype, torch.set_default_dtype
MATMUL = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
AMBIENT = {
    "float64": lambda: setting(*DTYPE, torch.float64),
    "bfloat16": lambda: setting(*DTYPE, torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "matmul precision": lambda: setting(*MATMUL, "medium"),
}


def all_results(data, folder):
    X, y, X_fifth, y_fifth = data
    clf = make(precision="float32", crop="random", augmentation=2).fit(X, y)
    clf.partial_fit(X_fifth, y_fifth).save_pretrained(folder)
    clf = AnyOrderARClassifier.from_pretrained(folder)
    tuned = make(prior=str(folder), finetune="lora", precision="float32").fit(X, y)
    mask = np.zeros((8, 8), dtype=bool)
    mask[:4] = True
    return {
        "proba": clf.predict_proba(X[:9]),
        "tuned": tuned.predict_proba(X[:9]),
        "early stopping": tuned.set_params(search="auto").predict(X[:9]),
        "evidence": clf.explain(X[:3]).maps,
        "samples": clf.sample(3, random_state=0),
        "inpainted": clf.inpaint(X[:3], mask, random_state=0),
    }


@pytest.fixture(scope="module")
def expected_results(data, tmp_path_factory):
    state = torch.get_rng_state()
    results = all_results(data, tmp_path_factory.mktemp("saved"))
    assert (torch.get_rng_state() == state).all()
    return results


@pytest.mark.parametrize("name", AMBIENT)
def test_torch_settings_do_not_change_results(data, expected_results, tmp_path, name):
    with AMBIENT[name]():
        results = all_results(data, tmp_path)
    for result, expected in expected_results.items():
        np.testing.assert_array_equal(results[result], expected, err_msg=result)


# Files ------------------------------------------------------------------------------------------


def write(prior, file):
    if file.suffix == ".safetensors":
        save_file(prior.state_dict(), file)
    else:
        torch.save({"model": prior.state_dict()}, file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_loaded_weights_do_not_depend_on_their_file(tmp_path, suffix):
    random = torch.Generator().manual_seed(0)
    first, second = (AnyOrderPrior(8, (2, 2), 3, dim=64, n_layer=2, generator=random) for _ in "ab")
    file, other = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write(first, file)
    write(second, other)
    loaded = load_prior(file, grid=(2, 2), n_head=4, num_classes=3)
    content = other.read_bytes()
    with open(file, "rb+") as target:  # overwrites the file in place
        target.write(content)
    for name, weight in first.state_dict().items():
        assert (loaded.state_dict()[name] == weight).all()
    os.truncate(file, 10)
    assert np.isfinite(sum(p.double().sum().item() for p in loaded.parameters()))


# Saving -----------------------------------------------------------------------------------------

LABELS = {
    "dates": np.array(["2020-01-01", "2020-01-02", "NaT"], dtype="datetime64[D]")[[0, 1]],
    "bools": np.array([False, True]),
    "objects": np.array(["a", "b"], dtype=object),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_save_labels_and_numpy_scalars(data, tmp_path, labels):
    X, y, _, _ = data
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


KEYS = {
    "int": (2, -7),
    "NumPy int": (np.uint8(2), np.int64(7)),
    "large int": (0, 2**60 + 1),
    "bool": (False, True),
    "NumPy bool": (np.False_, np.True_),
    "float": (-1.0, 2e9),
    "NumPy float": (np.float32(3), np.float64(4)),
    "str": ("params", "type"),
    "NumPy str": (np.str_("2x"), np.str_("x")),
    "mixed": (np.int64(2), 7),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_save_class_weight(data, tmp_path, keys):
    X, y = data[0][::4], data[1][::4] % 2
    labels = np.array(keys)
    clf = make(class_weight={keys[0]: np.float32(3), keys[1]: 1}, max_iter=1, n_orders=1)
    clf.fit(X, labels[y]).save_pretrained(tmp_path)
    restored = AnyOrderARClassifier.from_pretrained(tmp_path)
    assert restored.class_weight == clf.class_weight  # 2 == np.int64(2), but 2 != "2"
    by_fit = dict(zip(clf.classes_.tolist(), clf.class_count_))
    assert by_fit[labels.tolist()[0]] == 3 * np.count_nonzero(y == 0)
    for again in (restored, restored.set_params(prior={"dim": 16, "n_head": 1})):
        again.fit(X, labels[y])
        np.testing.assert_array_equal(again.class_count_, clf.class_count_)


def test_save_other_values_of_parameters(data, tmp_path):
    X, y = data[0][::4], data[1][::4]
    order = torch.arange(16).flip(0)[None]
    clf = make(max_iter=1, order=order, class_prior=pd.Series([0.1, 0.2, 0.3, 0.4])).fit(X, y)
    clf.save_pretrained(tmp_path / "saved")
    restored = AnyOrderARClassifier.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(restored.predict_proba(X), clf.predict_proba(X))
    dates = {np.datetime64("2020-01-01"): 1.0}
    with pytest.raises(TypeError, match=r"date\(2020, 1, 1\) of type date cannot be saved.*joblib"):
        clf.set_params(class_weight=dates).save_pretrained(tmp_path / "dates")
    assert not (tmp_path / "dates").exists()


# Scales -----------------------------------------------------------------------------------------


def test_predict_with_another_scale_than_fit(data):
    bytes_ = (data[0] * 15.9375).round().astype(np.uint8)
    clf = make().fit(bytes_, data[1])
    np.testing.assert_array_equal(clf.predict(bytes_ / 255), clf.predict(bytes_))
    for use in (clf.predict, clf.tokenizer_.transform):
        message = "X has numbers from 0 to 255, but .* was fitted on numbers from 0 to 1 "
        with pytest.raises(ValueError, match=message):
            use(bytes_.astype(np.float32))
    # the full scale of uint16 is 65535, so these images are dark
    with pytest.warns(UserWarning, match="from 0 to 0.00389, but .* from 0 to 1 "):
        clf.predict(bytes_.astype(np.uint16))


def test_predict_with_bytes_after_fit_without_a_scale(data, tmp_path):
    clf = make().fit(data[0], data[1])  # 0 ... 16
    with pytest.raises(ValueError, match="fitted on numbers from 0 to 16"):
        clf.predict(data[0].astype(np.uint8))
    with pytest.warns(UserWarning, match="X has numbers from 0 to 1, but"):
        clf.predict(data[0] / 16)
    Image.fromarray(data[0][0].astype(np.uint8)).save(tmp_path / "digit.png")
    with pytest.raises(ValueError, match="fitted on numbers from 0 to 16"):
        clf.predict([tmp_path / "digit.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf.predict(data[0] * 1.5 - 3)
        clf.predict(np.zeros((2, 8, 8)))  # blank images

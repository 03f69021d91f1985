"""Interrupted fits continue from checkpoints, and diverged epochs restart."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from filelock import FileLock
from sklearn.exceptions import ConvergenceWarning

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, FineTuning, PatchTokenizer
from skaocls.training import checkpoints, defaults, state
from skaocls.training.checkpoints import Checkpoints

TOKENIZER = PatchTokenizer(n_codes=16)


def make(**params):
    default = {"max_iter": 3, "augmentation": None, "batch_size": 50, "tokenizer": TOKENIZER}
    return small_classifier(AnyOrderARClassifier, **(default | params))


class Killed(Exception):
    pass


@pytest.fixture
def fit_until(monkeypatch):
    """Call fit, save a checkpoint after each step, and raise an error after a number of steps."""
    monkeypatch.setattr(checkpoints, "INTERVAL_FACTOR", 0)
    original = Checkpoints.save_if_due

    def fit(clf, X, y, n_steps, *weights, error=Killed):
        steps = iter(range(1, n_steps + 1))

        def save_and_raise(self, training_state):
            original(self, training_state)
            if next(steps) == n_steps:
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save_if_due", save_and_raise)
            if error is not Killed:
                return clf.fit(X, y, *weights)
            with pytest.raises(Killed):
                clf.fit(X, y, *weights)
        return clf

    return fit


def are_equal(clf, other):
    """Return whether two classifiers are bit-identical."""
    weights, other_weights = clf.prior_.state_dict(), other.prior_.state_dict()
    assert weights.keys() == other_weights.keys()
    names = ("loss_curve_", "validation_scores_", "n_iter_", "best_iter_", "temperature_")
    same_history = all(getattr(clf, name) == getattr(other, name) for name in names)
    return same_history and all(torch.equal(weights[k], other_weights[k]) for k in weights)


def pretrained(**params):
    generator = torch.Generator().manual_seed(0)
    prior = AnyOrderPrior(16, (4, 4), 3, dim=32, n_layer=1, n_head=2, generator=generator)
    return {"prior": prior, **params}


OPTIONS = {
    "defaults": {},
    "early_stopping": {"early_stopping": True, "temperature": "auto", "max_iter": 4, "tol": 0.0},
    "micro_batches": {},
    "dropout": {"prior": {"dim": 32, "n_layer": 1, "n_head": 2, "dropout": 0.1}},
    "raster": {"order": "raster"},
    "views": {"augmentation": 3, "verbose": 1},
    "full": pretrained(),
    "lora": pretrained(finetune="lora"),
    "class_embedding": pretrained(finetune=FineTuning("class_embedding", dropout=0.1)),
    "head": pretrained(finetune="head"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_fit_equals_an_uninterrupted_one(digits, tmp_path, fit_until, monkeypatch, name):
    X, y, _, _ = digits
    if name == "micro_batches":
        monkeypatch.setattr(defaults, "ACTIVATION_BUDGET", 10**6)
    uninterrupted = make(**OPTIONS[name]).fit(X, y)
    clf = make(checkpoint_dir=tmp_path / "new" / "folder", **OPTIONS[name])
    for n_steps in (3, 4, 6):  # within an epoch and at its end
        fit_until(clf, X, y, n_steps)
    assert len(list(clf.checkpoint_dir.glob("*.safetensors"))) == 2
    assert are_equal(clf.fit(X, y), uninterrupted)
    assert [p.name for p in clf.checkpoint_dir.iterdir()] in ([], ["checkpoint.lock"])


def test_the_epoch_from_which_a_fit_resumes(digits, tmp_path, fit_until, capsys):
    X, y, _, _ = digits  # six steps per epoch
    clf = make(checkpoint_dir=tmp_path, verbose=1)
    for n_steps, found in [(4, ""), (5, "epoch 1 "), (4, "epoch 2 "), (2, "epoch 3 ")]:
        fit_until(clf, X, y, n_steps)
        said = [line for line in capsys.readouterr().err.splitlines() if "resuming" in line]
        assert len(said) == bool(found)
        assert not found or f"resuming from {found}with the checkpoint in" in said[0]
    clf.set_params(verbose=0).fit(X, y)
    assert capsys.readouterr().err == ""
    clf.set_params(verbose=1).fit(X, y)  # the checkpoints are gone
    assert "resuming" not in capsys.readouterr().err


def test_sample_weights_without_a_seed(digits, tmp_path, fit_until):
    X, y, _, _ = digits
    weights = np.random.RandomState(0).rand(len(y))
    params = {"checkpoint_dir": tmp_path, "random_state": None, "class_weight": "balanced"}
    fit_until(make(**params), X, y, 5, weights)
    seed = json.loads((tmp_path / "checkpoint-5.json").read_text())["seed"]
    clf = make(**params).fit(X, y, weights)
    params |= {"random_state": seed, "checkpoint_dir": None}
    assert are_equal(clf, make(**params).fit(X, y, weights))


def test_checkpoints_of_another_fit_are_refused(digits, tmp_path, fit_until):
    X, y, _, _ = digits
    fit_until(make(checkpoint_dir=tmp_path), X, y, 2)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.glob("*-*"))
    other = X.copy()
    other[5, 0, 0] += 1
    fits = {
        "max_iter": (X, y, {"max_iter": 9}),
        "random_state": (X, y, {"random_state": 1}),
        "tokenizer": (X, y, {"tokenizer": PatchTokenizer(n_codes=8)}),
        "X": (other, y, {}),
        "y": (X, np.roll(y, 1), {}),
    }
    for name, (X_, y_, params) in fits.items():
        clf = make(checkpoint_dir=tmp_path, **params)
        with pytest.raises(ValueError, match=rf"another fit, with different {name}\. .*new fit"):
            clf.fit(X_, y_)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.glob("*-*")) == before
    json_path = tmp_path / "checkpoint-2.json"
    json_path.write_text(json.dumps(json.loads(json_path.read_text()) | {"format": 7}))
    with pytest.raises(ValueError, match=r"have format 7.* reads format 1"):
        make(checkpoint_dir=tmp_path).fit(X, y)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize(
    "damage", [truncate, flip_bit, lambda p: p.unlink(), lambda p: p.write_text("")]
)
def test_damaged_checkpoints_are_not_used(digits, tmp_path, fit_until, suffix, damage):
    X, y, _, _ = digits
    uninterrupted, clf = make().fit(X, y), make(checkpoint_dir=tmp_path)
    fit_until(clf, X, y, 4)
    for name in (".checkpoint-5.json.left", "checkpoint-99.safetensors"):
        (tmp_path / name).write_text("left by a process that was killed")
    damage(tmp_path / f"checkpoint-4.{suffix}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert are_equal(clf.fit(X, y), uninterrupted)
    damaged = [w for w in caught if "damaged" in str(w.message)]
    incomplete = not damaged and suffix == "json"  # without a JSON file it is no checkpoint
    assert incomplete or "Removed the checkpoint" in str(damaged[0].message)
    assert all(w.filename == __file__ for w in damaged)
    assert not list(tmp_path.glob("*checkpoint-*"))


def test_a_fit_continues_after_ctrl_c(digits, tmp_path, fit_until):
    X, y, _, _ = digits
    uninterrupted, clf = make().fit(X, y), make(checkpoint_dir=tmp_path)
    with pytest.warns(UserWarning, match="interrupted by user"):
        fit_until(clf, X, y, 8, error=KeyboardInterrupt)
    assert clf.n_iter_ == 1
    assert are_equal(clf.fit(X, y), uninterrupted)


def test_folders_that_cannot_be_used(digits, tmp_path):
    X, y, _, _ = digits
    file = tmp_path / "file"
    file.touch()
    with pytest.MonkeyPatch.context() as patch:  # nothing is computed before the error
        patch.setattr("skaocls.images.batch.Batch.content_hash", pytest.fail)
        with pytest.raises(OSError, match=r"checkpoint_dir='.*file' cannot be written to"):
            make(checkpoint_dir=str(file)).fit(X, y)
    with (
        FileLock(tmp_path / "checkpoint.lock"),
        pytest.raises(OSError, match="in use by another fit"),
    ):
        make(checkpoint_dir=tmp_path).fit(X, y)


def test_training_continues_if_the_disk_is_full(digits, tmp_path, fit_until, monkeypatch):
    X, y, _, _ = digits
    uninterrupted, clf = make().fit(X, y), make(checkpoint_dir=tmp_path)
    fit_until(clf, X, y, 3)

    def fail(*args):
        raise OSError(28, "No space left on device")

    before = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "tensor_writer", lambda tensors: fail)
        with pytest.warns(RuntimeWarning, match=r"No space left.*Training continues"):
            fit_until(clf, X, y, 4)
    assert sorted(p.name for p in tmp_path.glob("*checkpoint-*")) == before
    assert are_equal(clf.fit(X, y), uninterrupted)


# Training that diverges -------------------------------------------------------------------------


class DivergingPrior(AnyOrderPrior):
    """A prior whose loss is not a number in some steps."""

    step, diverging_steps = 0, ()  # `fit` copies the prior and thus starts at step 0

    def log_prob(self, *args):
        log_prob = super().log_prob(*args)
        if self.training:
            self.step += 1
            if self.step in self.diverging_steps:
                return log_prob * math.nan
        return log_prob


@pytest.fixture
def make_diverging():
    def make_diverging(*steps, **params):
        generator = torch.Generator().manual_seed(0)
        prior = DivergingPrior(16, (4, 4), 3, dim=32, n_layer=1, n_head=2, generator=generator)
        prior.diverging_steps = steps
        return make(prior=prior, max_iter=5, learning_rate_init=5e-3, **params)

    return make_diverging


def test_a_diverged_epoch_restarts(digits, make_diverging, tmp_path, fit_until):
    X, y, _, _ = digits  # six steps per epoch
    early_stopped = make_diverging(8, early_stopping=True).fit(X, y)
    with pytest.warns(ConvergenceWarning, match=r"diverged in epoch 2: .* at 0.1 of the learning"):
        clf = make_diverging(9).fit(X, y)
    assert clf.n_iter_ == len(clf.loss_curve_) == 5 and np.isfinite(clf.loss_curve_).all()
    assert np.diff(clf.loss_curve_).max() < 0
    assert np.isfinite(clf.predict_proba(X)).all() and np.isfinite(early_stopped.loss_curve_).all()
    resumed = make_diverging(9, checkpoint_dir=tmp_path)
    fit_until(resumed, X, y, 15)
    resumed.prior.diverging_steps = ()
    assert are_equal(resumed.fit(X, y), clf)


def test_training_that_always_diverges_raises(digits, make_diverging):
    X, y, _, _ = digits
    clf = make_diverging().fit(X, y)
    before = clf.predict_proba(X)
    clf.prior.diverging_steps = range(9999)
    warning = pytest.warns(ConvergenceWarning, match=r"at 0\.001 of the learning rate")
    with warning, pytest.raises(ValueError, match=r"diverged in epoch 1, and again 3 times"):
        clf.fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_ctrl_c_during_a_restart(digits, make_diverging, monkeypatch):
    X, y, _, _ = digits

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(state.TrainingState, "restart_epoch", interrupt)
    with pytest.warns(UserWarning, match="interrupted by user"):
        clf = make_diverging(9).fit(X, y)
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("learning_rate", [1e4, 1e30])
def test_huge_learning_rates_give_finite_weights_or_an_error(digits, learning_rate):
    X, y, _, _ = digits
    clf = make(learning_rate_init=learning_rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            clf.fit(X, y)
        except ValueError as exc:
            assert "Training diverged" in str(exc)  # noqa: PT017
        else:
            assert np.isfinite(clf.predict_proba(X)).all()

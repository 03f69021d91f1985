"""A fit that is cut short goes on where it was; training that diverges goes back."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from filelock import FileLock
from sklearn.exceptions import ConvergenceWarning

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, PatchTokenizer
from skaocls.training import checkpoints, state
from skaocls.training.checkpoints import Checkpoints

TOKENIZER = PatchTokenizer(n_codes=16)


def make(**params):
    defaults = {"max_iter": 3, "augmentation": None, "batch_size": 50, "tokenizer": TOKENIZER}
    return small_classifier(AnyOrderARClassifier, **(defaults | params))


class Killed(Exception):
    pass


@pytest.fixture
def killed_at(monkeypatch):
    """fit, ended after some steps, each of which is written."""
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    keep = Checkpoints.keep

    def fit(clf, X, y, step, *weights):
        count = iter(range(step - 1, -1, -1))

        def keep_and_end(self, training):
            keep(self, training)
            if next(count) == 0:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "keep", keep_and_end)
            with pytest.raises(Killed):
                clf.fit(X, y, *weights)

    return fit


def same(clf, other):
    """Whether two classifiers are the same, bit for bit."""
    ours, theirs = clf.prior_.state_dict(), other.prior_.state_dict()
    assert ours.keys() == theirs.keys()
    names = ("loss_curve_", "validation_scores_", "n_iter_", "best_iter_", "temperature_")
    told = all(getattr(clf, name) == getattr(other, name) for name in names)
    return told and all(torch.equal(ours[k], theirs[k]) for k in ours)


def given(**params):
    random = torch.Generator().manual_seed(0)
    prior = AnyOrderPrior(16, (4, 4), 3, dim=32, n_layer=1, n_head=2, generator=random)
    return {"prior": prior, **params}


OPTIONS = {
    "plain": {},
    "early_stopping": {"early_stopping": True, "temperature": "auto", "max_iter": 4, "tol": 0.0},
    "micro_batches": {"micro_batch_size": 20, "checkpointing": True},
    "dropout": {"prior": {"dim": 32, "n_layer": 1, "n_head": 2, "dropout": 0.1}},
    "raster": {"order": "raster"},
    "views": {"augmentation": 3, "verbose": 1},
    "full": given(),
    "lora": given(finetune="lora"),
    "class_embedding": given(finetune="class_embedding", finetune_dropout=0.1),
    "head": given(finetune="head"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_ends_as_if_never_killed(digits, tmp_path, killed_at, name):
    X, y, _, _ = digits
    whole = make(**OPTIONS[name]).fit(X, y)
    clf = make(checkpoint_dir=tmp_path / "new" / "folder", **OPTIONS[name])
    for step in (3, 4, 6):  # within an epoch and at its end
        killed_at(clf, X, y, step)
    assert len(list(clf.checkpoint_dir.glob("*.safetensors"))) == 2
    assert same(clf.fit(X, y), whole)
    assert [p.name for p in clf.checkpoint_dir.iterdir()] in ([], ["checkpoint.lock"])


def test_with_weights_of_samples_and_no_seed(digits, tmp_path, killed_at):
    X, y, _, _ = digits
    weights = np.random.RandomState(0).rand(len(y))
    params = {"checkpoint_dir": tmp_path, "random_state": None, "class_weight": "balanced"}
    killed_at(make(**params), X, y, 5, weights)
    seed = json.loads((tmp_path / "checkpoint-5.json").read_text())["seed"]
    clf = make(**params).fit(X, y, weights)
    whole = make(**params).set_params(random_state=seed, checkpoint_dir=None).fit(X, y, weights)
    assert same(clf, whole)


def test_another_fit_is_refused(digits, tmp_path, killed_at):
    X, y, _, _ = digits
    killed_at(make(checkpoint_dir=tmp_path), X, y, 2)
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
        with pytest.raises(ValueError, match=rf"another fit: it differs in {name}\. .*start anew"):
            clf.fit(X_, y_)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.glob("*-*")) == before
    rest = tmp_path / "checkpoint-2.json"
    rest.write_text(json.dumps(json.loads(rest.read_text()) | {"format": 7}))
    with pytest.raises(ValueError, match=r"are of format 7.* reads format 1"):
        make(checkpoint_dir=tmp_path).fit(X, y)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("damage", [cut, flip, lambda p: p.unlink(), lambda p: p.write_text("")])
def test_damaged_checkpoints_are_not_used(digits, tmp_path, killed_at, suffix, damage):
    X, y, _, _ = digits
    whole, clf = make().fit(X, y), make(checkpoint_dir=tmp_path)
    killed_at(clf, X, y, 4)
    for name in (".checkpoint-5.json.left", "checkpoint-99.safetensors"):
        (tmp_path / name).write_text("of a process that was killed")
    damage(tmp_path / f"checkpoint-4.{suffix}")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert same(clf.fit(X, y), whole)
    told = [str(w.message) for w in seen if w.category is RuntimeWarning]
    gone = not told and suffix == "json"  # never complete
    assert gone or "checkpoint-4.json is damaged, and is removed" in told[0]
    assert not list(tmp_path.glob("*checkpoint-*"))


def test_ctrl_c_can_be_gone_on_from(digits, tmp_path, monkeypatch):
    X, y, _, _ = digits
    whole, clf = make().fit(X, y), make(checkpoint_dir=tmp_path)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    keep, count = Checkpoints.keep, iter(range(7, -1, -1))

    def keep_and_press(self, training):
        keep(self, training)
        if next(count) == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "keep", keep_and_press)
        with pytest.warns(UserWarning, match="interrupted by user"):
            clf.fit(X, y)
    assert clf.n_iter_ == 1
    assert same(clf.fit(X, y), whole)


def test_a_folder_that_cannot_be_used(digits, tmp_path, monkeypatch):
    X, y, _, _ = digits
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match=r"checkpoint_dir='.*file' cannot be written to"):
        make(checkpoint_dir=str(file)).fit(X, y)
    with (
        FileLock(tmp_path / "checkpoint.lock"),
        pytest.raises(OSError, match="in use by another fit"),
    ):
        make(checkpoint_dir=tmp_path).fit(X, y)


def test_a_full_disk_does_not_end_training(digits, tmp_path, killed_at, monkeypatch):
    X, y, _, _ = digits
    whole, clf = make().fit(X, y), make(checkpoint_dir=tmp_path)
    killed_at(clf, X, y, 3)

    def full(*args):
        raise OSError(28, "No space left on device")

    before = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "tensor_writer", lambda tensors: full)
        with pytest.warns(RuntimeWarning, match="No space left.*Training goes on"):
            killed_at(clf, X, y, 4)
    assert sorted(p.name for p in tmp_path.glob("*checkpoint-*")) == before
    assert same(clf.fit(X, y), whole)


# Training that diverges -------------------------------------------------------------------------


class Sick(AnyOrderPrior):
    """A prior whose loss is no number in some steps."""

    steps, bad = 0, ()

    def log_prob(self, *args):
        found = super().log_prob(*args)
        if self.training:
            Sick.steps += 1
            if Sick.steps in Sick.bad:
                return found * math.nan
        return found


@pytest.fixture
def sick():
    def make_sick(*bad, **params):
        Sick.steps, Sick.bad = 0, bad
        random = torch.Generator().manual_seed(0)
        prior = Sick(16, (4, 4), 3, dim=32, n_layer=1, n_head=2, generator=random)
        return make(prior=prior, max_iter=5, learning_rate_init=5e-3, **params)

    return make_sick


def test_an_epoch_that_diverged_begins_again(digits, sick, tmp_path, killed_at):
    X, y, _, _ = digits  # six steps an epoch
    whole = sick(8, early_stopping=True).fit(X, y)
    with pytest.warns(ConvergenceWarning, match=r"diverged in epoch 2: .* at 0.1 of the learning"):
        clf = sick(9).fit(X, y)
    assert clf.n_iter_ == len(clf.loss_curve_) == 5 and np.isfinite(clf.loss_curve_).all()
    assert np.diff(clf.loss_curve_).max() < 0
    assert np.isfinite(clf.predict_proba(X)).all() and np.isfinite(whole.loss_curve_).all()
    resumed = sick(9, checkpoint_dir=tmp_path)
    killed_at(resumed, X, y, 15)
    assert same(resumed.fit(X, y), clf)


def test_training_that_always_diverges(digits, sick):
    X, y, _, _ = digits
    clf = sick().fit(X, y)
    before = clf.predict_proba(X)
    Sick.bad = range(9999)
    warned = pytest.warns(ConvergenceWarning, match=r"at 0\.001 of the learning rate")
    with warned, pytest.raises(ValueError, match=r"diverged in epoch 1, and again 3 times"):
        clf.fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_ctrl_c_while_it_diverges(digits, sick, monkeypatch):
    X, y, _, _ = digits

    def press(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(state.TrainingState, "go_back", press)
    with pytest.warns(UserWarning, match="interrupted by user"):
        clf = sick(9).fit(X, y)
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_absurd_rates(digits, rate):
    X, y, _, _ = digits
    clf = make(learning_rate_init=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            clf.fit(X, y)
        except ValueError as exc:
            assert "Training diverged" in str(exc)  # noqa: PT017
        else:
            assert np.isfinite(clf.predict_proba(X)).all()

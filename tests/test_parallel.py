"""Predictions that joblib's workers share: the same answers, also when workers die."""

import copy
import dataclasses
import multiprocessing
import os
import re
import signal
import tempfile
import uuid
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin, clone

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.devices import torch_threads
from skaocls.fitted import answers, parallel
from skaocls.fitted.pieces import pieces_of
from skaocls.images.decoding import BadImage
from skaocls.scoring import exhaustive

pytestmark = pytest.mark.slow


class Watched(TransformerMixin, BaseEstimator):
    """A fitted tokenizer that leaves a file for each lot of images, and does harm to some workers.

    It lies in this module, which workers import.
    """

    def __init__(self, tokenizer, folder, parent, deaths=0):
        self.tokenizer = tokenizer
        self.folder = folder
        self.parent = parent
        self.deaths = deaths

    def fit(self, X, y=None):
        return self

    @property
    def grid_(self):
        return self.tokenizer.grid_

    @property
    def n_codes_(self):
        return self.tokenizer.n_codes_

    def transform(self, X):
        begun = len(list(self.folder.glob("begun-*")))
        (self.folder / f"begun-{uuid.uuid4().hex}").touch()
        if os.getpid() != self.parent and begun > 1:
            for death in range(self.deaths):
                try:
                    (self.folder / f"death-{death}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"threads-{torch.get_num_threads()}").touch()
        return self.tokenizer.transform(X)


def watched(clf, folder, deaths=0):
    """The classifier, its tokenizer watched, and images in lots of 8."""
    clf = clone_fitted(clf)
    tokenizer = Watched(clf.model_.tokenizer, folder, os.getpid(), deaths)
    clf.model_ = dataclasses.replace(clf.model_, tokenizer=tokenizer)
    return clf


def clone_fitted(clf, **params):
    other = clone(clf).set_params(**params)
    other.__dict__.update({k: v for k, v in vars(clf).items() if k.endswith("_") or k[0] == "_"})
    return other


def count(folder, what):
    return len(list(folder.glob(f"{what}-*")))


@pytest.fixture(scope="module")
def heads(digits):
    """A classifier with a shared trunk."""
    X, y, _, _ = digits
    small = {"prior": {"dim": 32, "n_layer": 2}, "max_iter": 3}
    return small_classifier(AnyOrderARClassifier, **small).fit(X, y)


@pytest.fixture
def X(digits):
    return digits[2]


@pytest.fixture(scope="module")
def dask_client():
    from dask.distributed import Client, LocalCluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, Path(__file__).parents[:2])))
        how = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
        with LocalCluster(**how, dashboard_address=None) as cluster, Client(cluster) as client:
            yield client


@pytest.mark.parametrize("search", ["exhaustive", "racing"])
@pytest.mark.parametrize("kind", ["fitted", "heads"])
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_answer_as_one_process(request, X, backend, kind, search):
    clf = request.getfixturevalue(kind)
    alone, shared = (clone_fitted(clf, search=search, n_jobs=n) for n in (None, 2))
    joint, stats = alone.predict_joint_log_proba(X, return_stats=True)
    with joblib.parallel_config(backend):
        for some in (slice(0, 100), slice(4, 5)):
            found, took = shared.predict_joint_log_proba(X[some], return_stats=True)
            assert_allclose(found, joint[some], atol=1e-6)
            assert_array_equal(took["evaluations"], stats["evaluations"][some])


def test_all_that_reads_images_is_shared(fitted, X, tmp_path):
    alone, shared = fitted, watched(clone_fitted(fitted, n_jobs=2), tmp_path)
    for name in ("predict", "predict_proba", "transform", "score_samples"):
        assert_allclose(getattr(shared, name)(X), getattr(alone, name)(X), atol=1e-6)
    for a, b in zip(shared.staged_predict_proba(X), alone.staged_predict_proba(X), strict=True):
        assert_allclose(a, b, atol=1e-6)
    # explain needs to know the tokenizer's patches
    for a, b in zip(clone_fitted(fitted, n_jobs=2).explain(X), alone.explain(X), strict=True):
        assert_allclose(a, b, atol=1e-6)
    assert (tmp_path / "threads-1").exists()
    assert count(tmp_path, "begun") == 5 * 5  # pieces of five calls


def sequences_at_once(monkeypatch, prior, n):
    """So many make a tile, on any device."""
    rows = 2 * prior.n_tokens * n
    monkeypatch.setattr(exhaustive, "STREAM_CPU", 1)
    monkeypatch.setattr(exhaustive, "ROWS_CPU", rows)
    monkeypatch.setattr(exhaustive, "STREAM_CUDA", rows * prior.dim)


@pytest.mark.parametrize(
    "n_images, n_orders, n_workers", [(1, 1, 3), (1, 20, 2), (9, 4, 2), (2000, 3, 8)]
)
@pytest.mark.parametrize("lanes", [1, 3, 256])
def test_pieces_are_the_whole_once(fitted, monkeypatch, n_images, n_orders, n_workers, lanes):
    sequences_at_once(monkeypatch, fitted.prior_, lanes)
    for how in ({}, {"racing": True}, {"whole": True}):
        pieces = pieces_of(fitted.model_, n_images, n_orders, n_workers, 256, **how)
        seen = np.zeros((n_images, n_orders, 3), int)
        for images, orders, classes in pieces:
            seen[images, orders, classes] += 1
        assert (seen == 1).all()
        if not how:
            tiles = n_images * n_orders * 3 // lanes
            assert len(pieces) >= min(n_workers, tiles)
            assert all(
                (i.stop - i.start) * (o.stop - o.start) * (c.stop - c.start) >= min(lanes, 2)
                for i, o, c in pieces
            )


@pytest.mark.parametrize("kind", ["fitted", "heads"])
def test_one_image_is_shared_by_orders_and_classes(request, X, monkeypatch, kind):
    clf = request.getfixturevalue(kind)
    sequences_at_once(monkeypatch, clf.prior_, 1)
    pieces = pieces_of(clf.model_, 1, 2, 2, 256)
    # a trunk that all classes share is not read once more for some of them
    assert len({str(p.classes) for p in pieces}) == (3 if kind == "fitted" else 1)
    alone = clone_fitted(clf, n_orders=2).predict_joint_log_proba(X[:1])
    with joblib.parallel_config("threading", n_jobs=2):
        shared = clone_fitted(clf, n_orders=2).predict_joint_log_proba(X[:1])
    assert_allclose(shared, alone, atol=1e-6)


def test_crops_of_orders_stay_with_their_orders(fitted, X, monkeypatch):
    sequences_at_once(monkeypatch, fitted.prior_, 1)
    alone = clone_fitted(fitted, crop="random").predict_joint_log_proba(X[:3])
    with joblib.parallel_config("threading", n_jobs=4):
        shared = clone_fitted(fitted, crop="random").predict_joint_log_proba(X[:3])
    assert_allclose(shared, alone, atol=1e-6)


def test_other_weights_are_other_weights(fitted, X):
    first = clone_fitted(fitted, n_jobs=2).predict_proba(X)
    changed = clone_fitted(fitted, n_jobs=2)
    prior = copy.deepcopy(fitted.prior_)
    changed.model_ = dataclasses.replace(fitted.model_, priors=(prior,))
    with torch.no_grad():
        prior.class_table[0] += 1
    found = changed.predict_proba(X)
    assert np.abs(found - first).max() > 1e-3
    assert_allclose(found, changed.set_params(n_jobs=None).predict_proba(X), atol=1e-6)


def test_a_packed_model_is_the_same_and_its_numbers_are_apart(heads, tmp_path):
    prior = copy.deepcopy(heads.prior_)
    odd = {
        "halves": torch.arange(3.0).bfloat16(),
        "a_number": torch.tensor(7),
        "nothing": torch.empty(0, 2),
    }
    for name, tensor in odd.items():
        prior.register_buffer(name, tensor)
    model = dataclasses.replace(heads.model_, priors=(prior,))
    with parallel.packed_in_file(model) as (packed, path):
        again = parallel.unpacked(packed, str(path))
        weights = path.stat().st_size
        elsewhere = np.empty(weights + 64, np.uint8)
        elsewhere = elsewhere[(8 - elsewhere.ctypes.data) % 64 :][:weights]
        elsewhere[:] = np.fromfile(path, np.uint8)
    moved = parallel.aligned(elsewhere)
    assert elsewhere.ctypes.data % 64 and not moved.ctypes.data % 64
    assert_array_equal(moved, elsewhere)
    assert parallel.unpacked(packed, "not asked for again") is again
    found, state = again.prior.state_dict(), prior.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[k], state[k]) and found[k].dtype == state[k].dtype for k in state)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
    assert len(packed.rest) < 2e4 < 4 * sum(p.numel() for p in prior.parameters()) < weights
    assert not path.exists()


def test_a_worker_that_does_not_see_the_weights_says_what_to_do(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Set TMPDIR.* to a folder that all machines share"
    ):
        parallel.received(str(tmp_path / "numbers"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing(fitted, X, monkeypatch, method):
    # what joblib reads from JOBLIB_START_METHOD
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(joblib.parallel, "DEFAULT_MP_CONTEXT", context)
    with torch_threads(2):  # OpenMP's threads wait in a process that is forked from here
        torch.ones(500, 500) @ torch.ones(500, 500)
    if method == "fork" and fitted.prior_.device.type == "cuda":
        with (
            joblib.parallel_config("multiprocessing", n_jobs=2),
            pytest.raises(RuntimeError, match=r"CUDA .* 'spawn' start method"),
        ):
            clone_fitted(fitted).predict_proba(X)
        return
    with joblib.parallel_config("multiprocessing", n_jobs=2):
        shared = clone_fitted(fitted).predict_proba(X)
    assert_allclose(shared, fitted.predict_proba(X), atol=1e-6)


def test_dask_needs_no_shared_disk(dask_client, fitted, X, monkeypatch):
    sent = parallel.sent

    def sent_and_forgotten(path, backend):
        numbers = sent(path, backend)
        os.unlink(path)
        return numbers

    monkeypatch.setattr(parallel, "sent", sent_and_forgotten)
    with joblib.parallel_config("dask"):
        shared = clone_fitted(fitted).predict_proba(X)
    assert_allclose(shared, fitted.predict_proba(X), atol=1e-6)


def test_dask_tasks_that_predict_share_their_work_too(dask_client, fitted, X):
    with joblib.parallel_config("dask"):
        found = joblib.Parallel()(joblib.delayed(fitted.predict_proba)(X[:50]) for _ in range(2))
    for some in found:
        assert_allclose(some, fitted.predict_proba(X[:50]), atol=1e-6)


def test_a_dask_worker_is_killed(dask_client, fitted, X, tmp_path):
    shared = watched(fitted, tmp_path, deaths=1)
    with joblib.parallel_config("dask"):
        found = shared.predict_proba(X)
    assert count(tmp_path, "death") == 1
    assert_allclose(found, fitted.predict_proba(X), atol=1e-6)


def test_a_loky_process_is_killed(fitted, X, tmp_path, monkeypatch):
    sequences_at_once(monkeypatch, fitted.prior_, 256)
    shared = watched(clone_fitted(fitted, n_jobs=2), tmp_path, deaths=1)
    with pytest.warns(RuntimeWarning, match=r"A worker was lost .* of 5 pieces"):
        found = shared.predict_proba(X)
    assert count(tmp_path, "death") == 1
    assert_allclose(found, fitted.predict_proba(X), atol=1e-6)


def test_what_came_back_is_not_computed_again(fitted, X, tmp_path, monkeypatch):
    outputs = parallel.outputs

    def cut_off(tasks, *how):
        found = outputs(tasks, *how)
        yield next(found)
        list(found)
        raise BrokenPipeError

    sequences_at_once(monkeypatch, fitted.prior_, 256)
    monkeypatch.setattr(parallel, "outputs", cut_off)
    with joblib.parallel_config("threading", n_jobs=2), pytest.warns(RuntimeWarning) as told:
        shared = watched(fitted, tmp_path).predict_proba(X)
    with torch_threads(1):  # as workers do
        assert_array_equal(shared, fitted.predict_proba(X))
    left = [str(w.message).split(" of 5 pieces")[0][-1] for w in told]
    assert left == ["4", "3", "2", "1", "0"]


def test_workers_are_not_replaced_for_ever(fitted, X, monkeypatch):
    tries = []

    def nothing(tasks, *how):
        tries.append(len(list(tasks)))
        raise BrokenPipeError("all are gone")
        yield

    sequences_at_once(monkeypatch, fitted.prior_, 256)
    monkeypatch.setattr(parallel, "outputs", nothing)
    with (
        joblib.parallel_config("threading", n_jobs=2),
        pytest.warns(RuntimeWarning, match="BrokenPipeError"),
        pytest.raises(BrokenPipeError, match="all are gone"),
    ):
        clone_fitted(fitted).predict(X)
    assert tries == [5] * parallel.TRIES


class Failing(TransformerMixin, BaseEstimator):
    """A tokenizer that fails."""

    def transform(self, X):
        raise KeyError("no such code")


def test_errors_of_tasks_are_raised_and_nothing_is_left(fitted, X, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    clf = clone_fitted(fitted, n_jobs=2)
    clf.predict(X)
    assert not list(tmp_path.glob("skaocls-*"))
    clf.model_ = dataclasses.replace(clf.model_, tokenizer=Failing())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # no worker was lost
        with pytest.raises(KeyError, match="no such code"):
            clf.predict(X)
    assert not list(tmp_path.glob("skaocls-*"))


def test_bad_images_are_named_by_their_places(fitted, X):
    images = [*X[:60], b"broken", *X[:20], b"broken, too"]
    clf = clone_fitted(fitted)
    with pytest.raises(BadImage) as alone:
        clf.predict(images)
    with joblib.parallel_config("threading", n_jobs=2), pytest.raises(BadImage) as shared:
        clf.predict(images)
    told = [re.sub(r"0x\w+", "", str(error.value)) for error in (alone, shared)]
    assert told[0] == told[1]


def test_workers_find_in_memory_what_one_process_has_kept(fitted, X, tmp_path):
    alone = clone_fitted(fitted, memory=str(tmp_path)).predict_proba(X)
    kept = sorted(tmp_path.glob("*/*"))
    with joblib.parallel_config("threading", n_jobs=2):
        shared = clone_fitted(fitted, memory=str(tmp_path)).predict_proba(X)
    assert sorted(tmp_path.glob("*/*")) == kept
    assert_array_equal(shared, alone)


def test_progress_counts_all_images(fitted, X, monkeypatch):
    bars = []

    class Bar(list):
        def __init__(self, total, *about):
            self.total = total
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        update = list.append

    monkeypatch.setattr(answers, "progress", Bar)
    with joblib.parallel_config("threading", n_jobs=2):
        clone_fitted(fitted, verbose=1).predict(X)
    (bar,) = bars
    assert bar.total == sum(bar) == len(X)
    assert len(bar) > 1

"""What `memory` keeps: fits and likelihoods, each made once, under keys that never mislead."""

import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils import gen_batches

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, PatchTokenizer
from skaocls.fitted import learning, store
from skaocls.fitted.result_cache import ResultCache, content_hash

GRID = {"n_orders": [1, 2, 5]}


def make(**params):
    params = {"max_iter": 2, "tokenizer": PatchTokenizer(n_codes=32, normalize=None)} | params
    return small_classifier(AnyOrderARClassifier, augmentation=None, **params)


@pytest.fixture
def counted(monkeypatch):
    """How often a prior was trained and how many (order, image) pairs were read."""
    counts = {"fits": 0, "pairs": 0}
    train_prior, log_likelihoods = learning.train_prior, store.log_likelihoods

    def train(*args, **kwargs):
        counts["fits"] += 1
        return train_prior(*args, **kwargs)

    def read(prior, codes, orders, labels, **kwargs):
        counts["pairs"] += len(codes) * len(orders)
        return log_likelihoods(prior, codes, orders, labels, **kwargs)

    monkeypatch.setattr(learning, "train_prior", train)
    monkeypatch.setattr(store, "log_likelihoods", read)
    return counts


def test_a_search_over_n_orders_trains_once_for_each_fold(digits, counted, tmp_path):
    X, y, _, _ = digits
    grid = {"n_orders": [1, 2, 5, 10, 20]}
    search = GridSearchCV(make(memory=str(tmp_path)), grid, cv=3, error_score="raise").fit(X, y)
    assert counted["fits"] == 3 + 1
    assert counted["pairs"] == 20 * len(X)  # each image is tested once, in 20 orders
    plain = GridSearchCV(make(), grid, cv=3).fit(X, y)
    for name in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(search.cv_results_[name], plain.cv_results_[name], atol=1e-12)


def test_what_may_change_after_fit_trains_nothing(digits, counted, tmp_path):
    X, y, X_test, _ = digits
    make(memory=tmp_path).fit(X, y).predict(X_test)
    before = dict(counted)
    for params in (
        {"aggregation": "mean_posterior"},
        {"temperature": 3.0},
        {"priors": [0.2, 0.3, 0.5]},
        {"search": "racing"},
        {"n_orders": 2},
        {"verbose": 1},
    ):
        again = make(memory=joblib.Memory(tmp_path, verbose=0), **params).fit(X, y)
        fresh = make(**params).fit(X, y)
        counted["fits"] -= 1
        np.testing.assert_allclose(
            again.predict_proba(X_test), fresh.predict_proba(X_test), atol=1e-9
        )
    assert counted == before


def test_orders_that_are_drawn_share_training_and_likelihoods(digits, counted, tmp_path):
    X, y, X_test, _ = digits
    make(memory=tmp_path).fit(X, y).predict(X_test)
    again = make(memory=tmp_path, order="antithetic").fit(X, y)
    proba = again.predict_proba(X_test)
    assert counted["fits"] == 1
    assert counted["pairs"] == (4 + 2) * len(X_test)  # two of four are those of before
    fresh = make(order="antithetic").fit(X, y)
    np.testing.assert_allclose(proba, fresh.predict_proba(X_test), atol=1e-9)


def test_temperature_is_found_anew_for_each_aggregation(digits, counted, tmp_path):
    X, y, _, _ = digits
    found = {}
    for how in ("mean_log_likelihood", "logsumexp"):
        params = {"temperature": "auto", "aggregation": how}
        found[how] = make(memory=tmp_path, **params).fit(X, y).temperature_
        assert found[how] == make(**params).fit(X, y).temperature_
    assert counted["fits"] == 1 + 2
    assert found["logsumexp"] != found["mean_log_likelihood"]


@pytest.mark.parametrize(
    "changed",
    [
        {"max_iter": 3},
        {"random_state": 1},
        {"order": "raster"},
        {"tokenizer": PatchTokenizer(n_codes=20)},
        {"temperature": "auto"},
        {"precision": "bfloat16"},
    ],
)
def test_training_parameters_are_told_apart(digits, counted, tmp_path, changed):
    X, y, _, _ = digits
    make(memory=tmp_path).fit(X, y)
    make(memory=tmp_path).set_params(**changed).fit(X, y)
    assert counted["fits"] == 2


def test_data_are_told_apart_by_content(digits, counted, tmp_path, monkeypatch):
    X, y, _, _ = digits
    make(memory=tmp_path).fit(X, y)
    make(memory=tmp_path).fit(X.copy(), y.copy())
    assert counted["fits"] == 1
    other = X.copy()
    other[7, 0, 0] += 1
    make(memory=tmp_path).fit(other, y)
    make(memory=tmp_path).fit(X, np.roll(y, 1))
    make(memory=tmp_path).fit(X, y, sample_weight=np.r_[2.0, np.ones(len(y) - 1)])
    make(memory=tmp_path).fit(X, np.array(["a", "b", "c"])[y])
    assert counted["fits"] == 5
    monkeypatch.setattr(store, "__version__", "0.0.next")
    make(memory=tmp_path).fit(X, y)
    assert counted["fits"] == 6


def test_files_are_told_apart_by_content(digits, counted, tmp_path):
    from PIL import Image

    X, y, _, _ = digits
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path, image in zip(paths, X, strict=False):
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    make(memory=tmp_path / "kept").fit(paths, y[:40])
    make(memory=tmp_path / "kept").fit(paths, y[:40])
    assert counted["fits"] == 1
    Image.fromarray((X[50] * 15).astype(np.uint8)).save(paths[3])
    make(memory=tmp_path / "kept").fit(paths, y[:40])
    assert counted["fits"] == 2


def test_processes_share(digits, tmp_path):
    X, y, _, _ = digits
    search = GridSearchCV(make(memory=str(tmp_path)), GRID, cv=2, n_jobs=2, refit=False).fit(X, y)
    entries = [p for p in tmp_path.glob("skaocls-memory/*") if p.is_file()]
    fits = [e for e in entries if not e.read_bytes().startswith(b"\x93NUMPY")]
    assert len(fits) == 2
    assert len(entries) == 2 + 2 * 5  # orders of two test folds
    plain = GridSearchCV(make(), GRID, cv=2, refit=False).fit(X, y)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"], atol=0.02
    )


def test_the_size_is_bounded(digits, tmp_path, monkeypatch):
    X, y, _, _ = digits
    monkeypatch.setattr(store, "KEPT_BYTES", 2**20)
    for seed in range(6):  # about 0.3 MiB each
        make(memory=tmp_path, random_state=seed).fit(X, y)
    size = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert 2**17 < size < 2**20


def test_what_is_not_ours_stays(digits, tmp_path, monkeypatch):
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    other = joblib.Memory(tmp_path, verbose=0)
    assert other.cache(len)([1, 2]) == 2
    monkeypatch.setattr(store, "KEPT_BYTES", 0)
    make(memory=tmp_path).fit(*digits[:2])
    assert not any(p.is_file() for p in (tmp_path / "skaocls-memory").iterdir())
    assert mine.exists() and other.cache(len).check_call_in_cache([1, 2])


def test_a_fit_from_memory_is_a_fit(digits, tmp_path):
    X, y, X_test, _ = digits
    first = make(memory=tmp_path).fit(X, y)
    second = clone(first).fit(X, y)
    assert vars(second).keys() == vars(first).keys()
    np.testing.assert_array_equal(second.predict_proba(X_test), first.predict_proba(X_test))
    assert second.loss_curve_ == first.loss_curve_
    pickle.loads(pickle.dumps(second))
    second.set_params(memory=joblib.Memory(tmp_path, verbose=0)).save_pretrained(tmp_path / "saved")
    restored = AnyOrderARClassifier.from_pretrained(tmp_path / "saved")
    assert restored.memory is None  # a folder of another machine
    np.testing.assert_array_equal(restored.predict_proba(X_test), first.predict_proba(X_test))


def test_digests():
    def halves(x):
        return [x[part] for part in gen_batches(len(x), 2)]

    x = torch.arange(4.0)
    assert content_hash(x) == content_hash(x.clone()) == content_hash(torch.nn.Parameter(x.clone()))
    different = [x, x.double(), x + 1, x[:3], x.view(2, 2), x.numpy(), halves(x), None]
    assert len({content_hash(thing) for thing in different}) == len(different)
    assert content_hash({"a": x, "b": 1}) == content_hash({"b": 1, "a": x})


# What goes wrong --------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda p: p.write_bytes(b"")])
def test_damaged_entries_are_made_again(digits, counted, tmp_path, damage):
    X, y, X_test, _ = digits
    clf = make(memory=tmp_path).fit(X, y)
    expected, before = clf.predict_proba(X_test), dict(counted)
    entries = sorted(p for p in tmp_path.glob("skaocls-memory/*") if p.is_file())
    for path in entries:
        damage(path)
    with pytest.warns(RuntimeWarning, match=r"of memory is damaged, and is made again") as seen:
        again = make(memory=tmp_path).fit(X, y).predict_proba(X_test)
    assert len([w for w in seen if w.category is RuntimeWarning]) == len(entries) == 1 + 4
    np.testing.assert_array_equal(again, expected)
    assert counted == {name: 2 * n for name, n in before.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        make(memory=tmp_path).fit(X, y).predict_proba(X_test)
    assert counted == {name: 2 * n for name, n in before.items()}


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_what_is_there(digits, counted, tmp_path, monkeypatch):
    X, y, X_test, _ = digits
    clf = make(memory=tmp_path).fit(X, y)
    expected = clf.set_params(n_orders=2).predict_proba(X_test)
    before = sorted(tmp_path.glob("skaocls-memory/*"))
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        clf.set_params(n_orders=4)
        with pytest.warns(RuntimeWarning, match="Nothing more is kept.*No space left") as seen:
            proba = clf.predict_proba(X_test)
    assert len(seen) == 1
    assert sorted(tmp_path.glob("skaocls-memory/*")) == before
    np.testing.assert_array_equal(proba, clf.set_params(memory=None).predict_proba(X_test))
    counted["pairs"] = 0
    clf.set_params(n_orders=2, memory=tmp_path)
    np.testing.assert_array_equal(clf.predict_proba(X_test), expected)
    assert counted["pairs"] == 0


def test_a_folder_that_cannot_be_written_to(digits, tmp_path):
    X, y, X_test, _ = digits
    expected = make().fit(X, y).predict_proba(X_test)
    (tmp_path / "file").touch()
    with pytest.warns(RuntimeWarning, match=r"Nothing more is kept in memory='.*file'"):
        clf = make(memory=str(tmp_path / "file")).fit(X, y)
    with pytest.warns(RuntimeWarning, match="Nothing more is kept"):
        np.testing.assert_array_equal(clf.predict_proba(X_test), expected)


def test_what_killed_processes_have_left_goes(tmp_path):
    results = ResultCache(tmp_path)
    results.recall("a", lambda: np.arange(3))
    left, fresh = (results.folder / name for name in (".left", ".fresh"))
    for path in (left, fresh):
        path.write_text("half")
    os.utime(left, (0, 0))
    results.reduce()
    assert fresh.exists() and not left.exists()
    np.testing.assert_array_equal(ResultCache(tmp_path).recall("a", full), np.arange(3))


def test_memory_here_hides_no_package(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(memory=".").fit(*digits[:2])
    assert [p.name for p in tmp_path.iterdir()] == ["skaocls-memory"]


def call_often(folder, seed):
    rng = np.random.RandomState(seed)
    for i in rng.randint(20, size=100):
        if not (ResultCache(folder).recall(str(i), lambda i=i: np.full(500, i)) == i).all():
            return False
    return True


def test_processes_do_not_disturb_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "KEPT_BYTES", 20_000)  # entries come and go
    with ThreadPoolExecutor(2) as threads:  # locks are of files, and hold for threads too
        assert all(threads.map(call_often, [tmp_path] * 2, range(2)))

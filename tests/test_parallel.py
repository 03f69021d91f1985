"""Predictions in joblib's workers: the same answers, and lost workers cost a retry."""

import copy
import dataclasses
import io
import multiprocessing
import os
import re
import signal
import sys
import uuid
import warnings
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageFile
from sklearn.base import BaseEstimator, TransformerMixin, clone
from torch.utils.data import Dataset

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.devices import torch_threads
from skaocls.fitted import joblib_workers, prediction
from skaocls.fitted.joblib_workers import split_work
from skaocls.images.decoding import BadImage

pytestmark = pytest.mark.slow


class LoggingTokenizer(TransformerMixin, BaseEstimator):
    """A fitted tokenizer that creates a file for each call, and may kill one worker process."""

    def __init__(self, tokenizer, folder, parent, kill=False):
        self.tokenizer = tokenizer
        self.folder = folder
        self.parent = parent
        self.kill = kill
        self.grid_, self.n_codes_ = tokenizer.grid_, tokenizer.n_codes_

    def transform(self, X):
        n_calls = count(self.folder, "call")
        (self.folder / f"call-{uuid.uuid4().hex}").touch()
        killed = self.folder / "killed"
        if self.kill and os.getpid() != self.parent and n_calls > 1 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"threads-{torch.get_num_threads()}").touch()
        return self.tokenizer.transform(X)

    def image_statistics(self, X):
        return self.tokenizer.image_statistics(X)


OFFSET = 0  # a value that only the parent changes


class OffsetTokenizer(TransformerMixin, BaseEstimator):
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.grid_, self.n_codes_ = tokenizer.grid_, tokenizer.n_codes_

    def transform(self, X):
        return (self.tokenizer.transform(X) + OFFSET) % self.n_codes_


class FailingTokenizer(TransformerMixin, BaseEstimator):
    def transform(self, X):
        raise KeyError("no such code")


def count(folder, event):
    return len(list(folder.glob(f"{event}-*")))


def copy_fitted(clf, **params):
    """Copy a fitted classifier with other parameters."""
    other = clone(clf).set_params(**params)
    other.__dict__.update({k: v for k, v in vars(clf).items() if k.endswith("_") or k[0] == "_"})
    return other


def with_tokenizer(clf, tokenizer, **params):
    clf = copy_fitted(clf, **params)
    clf.model_ = dataclasses.replace(clf.model_, tokenizer=tokenizer)
    return clf


def with_logging(clf, folder, kill=False, **params):
    tokenizer = LoggingTokenizer(clf.model_.tokenizer, folder, os.getpid(), kill)
    return with_tokenizer(clf, tokenizer, **params)


@pytest.fixture(scope="module")
def shared_trunk(digits):
    X, y, _, _ = digits
    small = {"prior": {"dim": 32, "n_layer": 2}, "max_iter": 3}
    return small_classifier(AnyOrderARClassifier, **small).fit(X, y)


@pytest.fixture
def X(digits):
    return digits[2]


@pytest.fixture(scope="module")
def gray():
    """Return a classifier of 8 x 8 gray PIL images, and new images."""
    pixels = np.random.RandomState(0).randint(256, size=(60, 8, 8), dtype=np.uint8)
    pixels[::2, :4] //= 4
    images = [Image.fromarray(x) for x in pixels]
    clf = small_classifier(AnyOrderARClassifier, max_iter=2, augmentation=None, image_shape=(8, 8))
    return clf.fit(images[:40], np.arange(40) % 2), images[40:]


@pytest.fixture
def small_tiles(monkeypatch):
    """Split the work as if 256 sequences filled a tile, so that 100 images make 5 pieces."""
    monkeypatch.setattr(prediction, "lanes_at_once", lambda prior: 256)


@pytest.fixture(scope="module")
def dask_client():
    from dask.distributed import Client, LocalCluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, Path(__file__).parents[:2])))
        options = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
        with LocalCluster(**options, dashboard_address=None) as cluster, Client(cluster) as client:
            yield client


@pytest.mark.parametrize("search", ["exhaustive", "auto"])
@pytest.mark.parametrize("architecture", ["fitted", "shared_trunk"])
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_give_the_same_answers(request, X, backend, architecture, search):
    clf = request.getfixturevalue(architecture)
    serial, shared = (copy_fitted(clf, search=search, n_jobs=n) for n in (None, 2))
    expected, stats = serial.predict_joint_log_proba(X, return_stats=True)
    with joblib.parallel_config(backend):
        for rows in (slice(0, 100), slice(4, 5)):
            found, found_stats = shared.predict_joint_log_proba(X[rows], return_stats=True)
            assert_allclose(found, expected[rows], atol=1e-6)
            assert_array_equal(found_stats["evaluations"], stats["evaluations"][rows])


def test_all_methods_use_workers(fitted, X, tmp_path):
    shared = with_logging(fitted, tmp_path, n_jobs=2)
    for name in ("predict", "predict_proba", "transform", "score_samples"):
        assert_allclose(getattr(shared, name)(X), getattr(fitted, name)(X), atol=1e-6)
    for a, b in zip(shared.staged_predict_proba(X), fitted.staged_predict_proba(X), strict=True):
        assert_allclose(a, b, atol=1e-6)
    assert (tmp_path / "threads-1").exists()
    assert count(tmp_path, "call") == 5 * 5  # five methods, five pieces
    for a, b in zip(copy_fitted(fitted, n_jobs=2).explain(X), fitted.explain(X), strict=True):
        assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("n_images, n_orders, n_workers", [(1, 20, 2), (9, 4, 2), (2000, 3, 8)])
@pytest.mark.parametrize("tile_size", [1, 256])
@pytest.mark.parametrize("options", [{}, {"split_orders": False}, {"keep_batches": True}])
def test_pieces_cover_all_work_once(n_images, n_orders, n_workers, tile_size, options):
    sizes = {"batch_size": 256, "tile_size": tile_size}
    pieces = split_work(n_images, n_orders, n_workers, **sizes, **options)
    seen = np.zeros((n_images, n_orders), int)
    for images, orders in pieces:
        seen[images, orders] += 1
    assert (seen == 1).all()
    if not options:
        n_tiles = n_images * n_orders // tile_size
        assert len(pieces) >= min(n_workers, n_tiles)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_orders_of_a_single_image_are_split(fitted, X, monkeypatch, crop):
    clf = copy_fitted(fitted, crop=crop)
    score_piece, parts = prediction.score_piece, []

    def record(model, batch, orders, part, options):
        parts.append(part)
        return score_piece(model, batch, orders, part, options)

    monkeypatch.setattr(prediction, "lanes_at_once", lambda prior: 1)
    monkeypatch.setattr(prediction, "score_piece", record)
    expected = clf.predict_joint_log_proba(X[:1])
    with joblib.parallel_config("threading", n_jobs=2):
        found = clf.predict_joint_log_proba(X[:1])
    assert_allclose(found, expected, atol=1e-6)
    assert sorted(part.start for part in parts) == [0, 1, 2, 3]


def test_workers_do_not_reuse_an_outdated_model(fitted, X):
    first = copy_fitted(fitted, n_jobs=2).predict_proba(X)
    prior = copy.deepcopy(fitted.prior_)
    with torch.no_grad():
        prior.class_table[0] += 1
    changed = copy_fitted(fitted, n_jobs=2)
    changed.model_ = dataclasses.replace(fitted.model_, priors=(prior,))
    found = changed.predict_proba(X)
    assert np.abs(found - first).max() > 1e-3
    assert_allclose(found, changed.set_params(n_jobs=None).predict_proba(X), atol=1e-6)


def test_workers_do_not_use_outdated_code(fitted, X, monkeypatch):
    clf = with_tokenizer(fitted, OffsetTokenizer(fitted.tokenizer_), n_jobs=2)
    first = clf.predict_joint_log_proba(X)
    assert_allclose(first, fitted.predict_joint_log_proba(X), atol=1e-6)
    monkeypatch.setattr(sys.modules[__name__], "OFFSET", 1)
    with pytest.warns(RuntimeWarning, match=r"OffsetTokenizer, or a value.*without workers"):
        found = clf.predict_joint_log_proba(X)
    assert np.abs(found - first).max() > 1e-3
    assert_array_equal(found, clf.set_params(n_jobs=None).predict_joint_log_proba(X))


def test_weights_are_not_part_of_the_pickle(shared_trunk):
    prior = copy.deepcopy(shared_trunk.prior_)
    prior.register_buffer("halves", torch.arange(3.0).bfloat16())
    prior.register_buffer("scalar", torch.tensor(7))
    prior.register_buffer("empty", torch.empty(0, 2))
    model = dataclasses.replace(shared_trunk.model_, priors=(prior,))
    digest, pickled, buffers = joblib_workers.pack_model(
        model, joblib.parallel.get_active_backend()[0]
    )
    n_bytes = sum(buffer.nbytes for buffer in buffers)
    assert len(pickled) < 2e4 < 4 * sum(p.numel() for p in prior.parameters()) <= n_bytes
    rebuilt = joblib_workers.run_in_process(lambda model: model, 1, digest, pickled, buffers, ())
    found, expected = rebuilt.prior.state_dict(), prior.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert (
        joblib_workers.run_in_process(lambda model: model, 1, digest, b"unused", [], ()) is rebuilt
    )


def test_processes_map_large_weights(tmp_path):
    weights = torch.zeros(2**19)  # 2 MiB, above joblib's limit for mapping
    (names,) = set(joblib_workers.map_pieces(mapped_files, weights, [0, 1], lambda piece: (), 2))
    assert names


def mapped_files(weights):
    """Return the mapped file that holds a tensor's data."""
    address = weights.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in addresses.split("-"))
        if start <= address < end and name.startswith("/"):
            return name
    return ""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_backend(fitted, X, monkeypatch, method):
    # joblib reads the method from JOBLIB_START_METHOD when it is imported
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(joblib.parallel, "DEFAULT_MP_CONTEXT", context)
    with torch_threads(2):  # a forked process must not wait for these OpenMP threads
        torch.ones(500, 500) @ torch.ones(500, 500)
    if method == "fork" and fitted.prior_.device.type == "cuda":
        with (
            joblib.parallel_config("multiprocessing", n_jobs=2),
            pytest.raises(RuntimeError, match=r"CUDA .* 'spawn' start method"),
        ):
            copy_fitted(fitted).predict_proba(X)
        return
    with joblib.parallel_config("multiprocessing", n_jobs=2):
        shared = copy_fitted(fitted).predict_proba(X)
    assert_allclose(shared, fitted.predict_proba(X), atol=1e-6)


def test_dask_tasks_that_predict(dask_client, fitted, X):
    with joblib.parallel_config("dask"):
        found = joblib.Parallel()(joblib.delayed(fitted.predict_proba)(X[:50]) for _ in range(2))
    for proba in found:
        assert_allclose(proba, fitted.predict_proba(X[:50]), atol=1e-6)


def test_killed_dask_worker(dask_client, fitted, X, tmp_path):
    with joblib.parallel_config("dask"):
        found = with_logging(fitted, tmp_path, kill=True, n_orders=20).predict_proba(X)
    assert (tmp_path / "killed").exists()
    expected = copy_fitted(fitted, n_orders=20).predict_proba(X)
    assert_allclose(found, expected, atol=1e-6)


def test_killed_loky_process(fitted, X, tmp_path, small_tiles):
    shared = with_logging(fitted, tmp_path, kill=True, n_jobs=2)
    with pytest.warns(RuntimeWarning, match=r"A worker was lost .* of 5 pieces"):
        found = shared.predict_proba(X)
    assert (tmp_path / "killed").exists()
    assert_allclose(found, fitted.predict_proba(X), atol=1e-6)


def failing_parallel(monkeypatch, n_results, error):
    """Let every call of joblib return some results, then raise an error. Return the task counts."""
    n_tasks = []

    class FailingParallel:
        def __init__(self, *args, **options):
            pass

        def __call__(self, tasks):
            tasks = list(tasks)
            n_tasks.append(len(tasks))
            for function, args, kwargs in tasks[:n_results]:
                yield function.function(*args, **kwargs)
            if len(tasks) > n_results:
                raise error

    monkeypatch.setattr(joblib_workers, "Parallel", FailingParallel)
    return n_tasks


def test_only_pieces_without_a_result_are_repeated(fitted, X, monkeypatch, small_tiles):
    n_tasks = failing_parallel(monkeypatch, 1, BrokenProcessPool())
    with joblib.parallel_config("threading", n_jobs=2), pytest.warns(RuntimeWarning) as caught:
        found = copy_fitted(fitted).predict_proba(X)
    with torch_threads(1):  # as in workers
        assert_array_equal(found, fitted.predict_proba(X))
    assert n_tasks == [5, 4, 3, 2, 1]
    remaining = [re.search(r"(\d) of 5 pieces", str(w.message))[1] for w in caught]
    assert remaining == ["4", "3", "2", "1"]


def test_retries_end_if_no_result_arrives(fitted, X, monkeypatch, small_tiles):
    n_tasks = failing_parallel(monkeypatch, 0, BrokenProcessPool("no workers left"))
    with (
        joblib.parallel_config("threading", n_jobs=2),
        pytest.warns(RuntimeWarning, match="BrokenProcessPool"),
        pytest.raises(BrokenProcessPool, match="no workers left"),
    ):
        copy_fitted(fitted).predict(X)
    assert n_tasks == [5] * joblib_workers.MAX_LOSSES


def test_other_errors_are_raised_at_once(fitted, X):
    clf = with_tokenizer(fitted, FailingTokenizer(), n_jobs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(KeyError, match="no such code"):
            clf.predict(X)


# State of the main process that workers lack. Each case returns an X that a worker would read in
# another way, and the images that X contains.


def other_folder(images, tmp_path, monkeypatch):
    """Relative paths in a folder that became the current folder after the workers had started."""
    joblib.Parallel(2)(joblib.delayed(os.getpid)() for _ in range(2))
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(images):
        image.save(f"{i}.png")
    return [Path(f"{i}.png") for i in range(len(images))]


def other_format(images, tmp_path, monkeypatch):
    """A format that only this process can read: 8 x 8 bytes after a signature."""

    def read(file, name):
        return Image.frombytes("L", (8, 8), file.read()[4:])

    Image.init()
    monkeypatch.setattr(Image, "ID", [*Image.ID, "RAW8"])
    monkeypatch.setitem(Image.OPEN, "RAW8", (read, lambda prefix: prefix.startswith(b"RAW8")))
    return [b"RAW8" + image.tobytes() for image in images]


def truncated_files(images, tmp_path, monkeypatch):
    """Files without the last bytes, which Pillow reads after a change of its settings."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        image.save(file, "bmp")
        file.truncate(len(file.getvalue()) - 8)  # BMP files contain the first row of pixels last
        image.paste(0, (0, 0, 8, 1))
    return files


def orientation(images, tmp_path, monkeypatch):
    """An EXIF orientation that is set on an image in memory."""
    turned = [image.transpose(Image.Transpose.ROTATE_180) for image in images]
    for image in turned:
        image.getexif()[0x0112] = 3
    return turned


def transparent_palette(images, tmp_path, monkeypatch):
    """A palette with transparency: white differs from black only by being transparent."""
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 3] = 255 - np.arange(256)
    indexed = [Image.fromarray(np.asarray(image), "P") for image in images]
    for image in indexed:
        image.putpalette(palette.tobytes(), "RGBA")
    return indexed


class OpenFile(Dataset):
    """A data set that reads images of 8 x 8 pixels from an open file, and cannot be pickled."""

    def __init__(self, path):
        self.file = path.open("rb")

    def __len__(self):
        return os.fstat(self.file.fileno()).st_size // 64

    def __getitem__(self, i):
        self.file.seek(64 * i)
        return Image.frombytes("L", (8, 8), self.file.read(64))


def open_file(images, tmp_path, monkeypatch):
    (tmp_path / "raw").write_bytes(b"".join(image.tobytes() for image in images))
    return OpenFile(tmp_path / "raw")


def changed_memmap(images, tmp_path, monkeypatch):
    """A memory-mapped file whose changes exist only in this process."""
    np.save(tmp_path / "x.npy", np.stack([np.asarray(image) for image in images[::-1]]))
    X = np.load(tmp_path / "x.npy", mmap_mode="c")
    X[:] = X[::-1].copy()
    return X


@pytest.mark.parametrize(
    "case",
    [
        other_folder,
        other_format,
        truncated_files,
        orientation,
        transparent_palette,
        open_file,
        changed_memmap,
    ],
)
def test_workers_need_no_state_of_this_process(gray, tmp_path, monkeypatch, case):
    clf, images = gray
    X = case(images, tmp_path, monkeypatch)
    found = copy_fitted(clf, n_jobs=2).predict_joint_log_proba(X)
    assert_allclose(found, clf.predict_joint_log_proba(images), atol=1e-6)


def test_unreadable_images_have_their_index_in_X(fitted, X):
    images = [*X[:60], b"broken", *X[:20], b"broken, too"]
    with pytest.raises(BadImage) as serial:
        copy_fitted(fitted).predict(images)
    with joblib.parallel_config("threading", n_jobs=2), pytest.raises(BadImage) as shared:
        copy_fitted(fitted).predict(images)
    messages = [re.sub(r"0x\w+", "", str(error.value)) for error in (serial, shared)]
    assert messages[0] == messages[1]


def test_workers_use_the_cache_of_a_single_process(fitted, X, tmp_path):
    serial = copy_fitted(fitted, memory=str(tmp_path)).predict_proba(X)
    entries = sorted(tmp_path.glob("*/*"))
    with joblib.parallel_config("threading", n_jobs=2):
        shared = copy_fitted(fitted, memory=str(tmp_path)).predict_proba(X)
    assert sorted(tmp_path.glob("*/*")) == entries
    assert_array_equal(shared, serial)

"""Data larger than memory: same results as in memory, and bounded memory use."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.frozen import FrozenEstimator

from skaocls import (
    AnyOrderARClassifier,
    PatchTokenizer,
    PrecomputedTokenizer,
    load_tokens,
    tokenize_dataset,
)
from skaocls.fitted import tokenization
from skaocls.images.lazy import Lazy, Mapped
from skaocls.images.reader import learn_reader
from skaocls.order_selection import smallest_n_orders

PRIOR = {"dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16}
PARAMS = {"prior": PRIOR, "max_iter": 2, "n_orders": 2, "random_state": 0, "tol": 10.0}


class CountingDataset(torch.utils.data.Dataset):
    """A data set of pairs that counts how often each item is read."""

    def __init__(self, X, y):
        self.X, self.y, self.counts = X, y, np.zeros(len(X), dtype=int)

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        self.counts[i] += 1
        return torch.from_numpy(self.X[i]), int(self.y[i])


class Column:
    """A column of images, as in the datasets library: it has a length and items."""

    def __init__(self, X):
        self.X = X

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return Image.fromarray(self.X[i])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Distinct images: array, labels, memory-mapped array, and paths of files."""
    rng = np.random.RandomState(0)
    y = rng.randint(3, size=90)
    X = (80 * y[:, None, None] + rng.randint(60, size=(90, 8, 8))).astype(np.uint8)
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "images.npy", X)
    paths = [folder / f"{i:03d}.png" for i in range(len(X))]
    for image, path in zip(X, paths, strict=True):
        Image.fromarray(image).save(path)
    return X, y, np.load(folder / "images.npy", mmap_mode="r"), paths


def make(**params):
    tokenizer = PatchTokenizer(4, n_codes=8, random_state=0)
    return AnyOrderARClassifier(**({"tokenizer": tokenizer, "augmentation": 3} | PARAMS | params))


def same_weights(a, b):
    """Return whether two classifiers have the same weights."""
    pairs = zip(a.prior_.state_dict().values(), b.prior_.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_results_do_not_depend_on_where_images_are(images, monkeypatch):
    X, y, mapped, paths = images
    expected = make().fit(X, y)
    proba = expected.predict_proba(X)
    batches = [learn_reader(x, "Reader") for x in (mapped, X, X + np.uint8(1))]
    assert isinstance(batches[0].data, Lazy)
    hashes = [batch.content_hash() for batch in batches]
    assert hashes[0] == hashes[1] != hashes[2]
    for form in (mapped, CountingDataset(X, y), Column(X), paths):
        clf = make().fit(form, y)
        assert same_weights(clf, expected)
        np.testing.assert_array_equal(clf.predict_proba(form), proba)
    monkeypatch.setattr(tokenization, "MAX_TOKEN_BYTES", 0)  # tokens are in a temporary file
    params = {"early_stopping": True, "validation_fraction": 0.2}
    clf = make(**params).fit(mapped, y)
    codes = tokenization.training_tokens(
        clf.tokenizer_, clf.model_.reader.open(mapped), 3, np.random.RandomState(0)
    )
    assert isinstance(codes, Mapped) and codes.dtype == np.uint16 and codes.shape == (90, 3, 4)
    monkeypatch.undo()
    assert same_weights(clf, make(**params).fit(X, y))


def test_weights_and_repeated_images(images):
    X, y, mapped, _ = images
    weights = np.random.RandomState(1).randint(3, size=len(y))
    repeated = np.repeat(np.arange(len(y)), weights)
    clf = make().fit(mapped, y, sample_weight=weights)
    assert same_weights(clf, make().fit(X[repeated], y[repeated]))
    # Items of data sets are not merged; items of weight zero are left out.
    data = CountingDataset(X, y)
    make(augmentation=None).fit(data, y, sample_weight=weights > 0)
    kept = make(augmentation=None).fit(X[weights > 0], y[weights > 0])
    assert same_weights(make(augmentation=None).fit(data, y, sample_weight=weights > 0), kept)


def test_items_are_read_as_often_as_documented(images, monkeypatch):
    X, y, _, _ = images
    monkeypatch.setattr("skaocls.tokenizers.patch.MAX_PATCHES", 4 * 30)  # an image has 4 patches
    data = CountingDataset(X, y)
    clf = make(max_iter=5).fit(data, y)
    counts = data.counts.copy()
    counts[0] -= 1  # to find out whether it is an image
    sampled = np.unique(np.linspace(0, 89, 16).astype(int))  # to find the shape and range
    counts[sampled] -= 1
    assert counts.min() == 1 and (counts == 2).sum() == 30 == (counts > 1).sum()
    data.counts[:] = 0
    clf.predict_proba(data)
    data.counts[0] -= 1
    data.counts[sampled] -= 1
    assert (data.counts == 1).all()


def test_decoding_in_threads(images, monkeypatch):
    paths = images[3]
    batch = learn_reader(paths, "Reader")
    monkeypatch.setattr("skaocls.devices.cpu_count", lambda: 1)
    expected = batch.images()
    monkeypatch.setattr("skaocls.devices.cpu_count", lambda: 4)
    np.testing.assert_array_equal(batch.images(), expected)
    with pytest.raises(ValueError, match=r"X\[17\] cannot be read.*missing"):
        batch.reader.open([*paths[:17], "missing.png", *paths[18:]]).images()


def test_fit_refuses_streams(images):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(images[0])

    with pytest.raises(ValueError, match=r"Write its tokens.*skaocls.tokenize_dataset"):
        make().fit(Stream(), images[1])


# Labels inside of X ------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    """A data set of pairs, like torchvision's ImageFolder: images and numbers of classes."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i]), self.labels[i]


def swapped(y, i=40, k=41):
    """Return a copy of the labels in which two different labels are swapped."""
    y = y.copy()
    k = k + np.argmax(y[k:] != y[i])
    y[[i, k]] = y[[k, i]]
    return y


NAMES = np.array(["ant", "bee", "cat"])


@pytest.mark.parametrize(
    "own, given",
    [
        (lambda y: y.tolist(), lambda y: np.roll(y, 1)),
        (lambda y: y.tolist(), swapped),  # labels that are not in the sample
        (lambda y: y.tolist(), lambda y: 2 - y),
        (lambda y: torch.from_numpy(y), lambda y: swapped(y, 3).astype(float)),
        (lambda y: NAMES[y], lambda y: swapped(NAMES[y])),
        (lambda y: y.tolist(), lambda y: swapped(NAMES[y])),  # not a name of each class
        (lambda y: NAMES[y], swapped),
        (lambda y: (y > 0).tolist(), lambda y: y.tolist()),
    ],
)
def test_labels_inside_of_x_that_differ_from_y_are_refused(images, own, given):
    X, y, _, _ = images
    data, other = Pairs(X, own(y)), given(y)
    with pytest.raises(ValueError, match=r"y differs from the labels in X.*Pass the labels of X"):
        make(max_iter=1).fit(data, other)


@pytest.mark.parametrize(
    "own, given",
    [
        (lambda y: y.astype(float).tolist(), lambda y: y),
        (lambda y: y.tolist(), lambda y: NAMES[y]),
        (lambda y: y.tolist(), lambda y: np.where(y > 0, "insect", "animal")),
        (lambda y: [{"box": [0, 1]}] * len(y), lambda y: y),  # not labels of classes
        (lambda y: np.eye(3)[y], lambda y: y),
    ],
)
def test_labels_inside_of_x_may_have_other_names(images, own, given):
    X, y, _, _ = images
    clf = make(max_iter=1).fit(Pairs(X, own(y)), given(y))
    assert same_weights(clf, make(max_iter=1).fit(X, given(y)))


def test_every_use_of_labels_compares_them(images, tokenizer, tmp_path):
    X, y, _, _ = images
    tensors = torch.from_numpy(X), torch.from_numpy(y)
    data, wrong = torch.utils.data.TensorDataset(*tensors), swapped(y)
    clf = make(max_iter=1).partial_fit(data, y)
    assert clf.score(data, y) == clf.score(X, y)
    tokens = tokenize_dataset(tokenizer, data, tmp_path / "tokens", y=y)
    coded = make(tokenizer="precomputed", max_iter=1).fit(tokens, y)
    for use in (
        lambda: clf.partial_fit(data, wrong),
        lambda: clf.score(data, wrong),
        lambda: list(clf.staged_score(data, wrong)),
        lambda: smallest_n_orders(clf, data, wrong),
        lambda: tokenize_dataset(tokenizer, data, tmp_path / "other", y=wrong),
        lambda: make(tokenizer="precomputed").fit(tokens, wrong),
        lambda: coded.score(tokens, wrong),
    ):
        with pytest.raises(ValueError, match="y differs from the labels in X"):
            use()
    assert clf.explain(data, wrong).tokens.shape == (90, 2, 2)  # any class can be explained


def test_labels_inside_of_x_do_not_replace_y(images):
    X, y, _, _ = images
    with pytest.raises(
        ValueError, match=r"requires y .* pass them as y: \[label for _, label in X"
    ):
        make().fit(Pairs(X, y.tolist()), None)
    with pytest.raises(ValueError, match="pairs of an image and a label"):
        make().fit(list(Pairs(X, y.tolist())), y)


# Tokens in files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(images):
    return PatchTokenizer(4, n_codes=8, random_state=0).fit(images[0])


def test_tokens_in_files_equal_those_of_the_tokenizer(images, tokenizer, tmp_path):
    X, y, mapped, paths = images
    expected = tokenizer.transform(X)
    inputs = {"array": X, "mapped": mapped, "files": paths, "pairs": CountingDataset(X, y)}
    for name, data in inputs.items():
        labels = None if name == "pairs" else y
        tokens = tokenize_dataset(tokenizer, data, tmp_path / name, y=labels, shard_size=40)
        np.testing.assert_array_equal(tokens[:], expected)
        np.testing.assert_array_equal(tokens.labels, y)
    assert inputs["pairs"].counts[1:89].max() <= 2  # once to find the shape and range
    loader = torch.utils.data.DataLoader(CountingDataset(X, y), batch_size=32)
    for name, stream in {"stream": zip(paths, y), "loader": loader}.items():
        tokens = tokenize_dataset(tokenizer, stream, tmp_path / name, shard_size=30)
        np.testing.assert_array_equal(tokens[:], expected)
        np.testing.assert_array_equal(tokens.labels, y)
    assert tokens.dtype == np.uint16 and tokens.n_codes == tokenizer.n_codes_
    rows = np.array([80, 3, 41, 3])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokens))[rows], expected[rows])
    assert len(np.load(tmp_path / "array" / "tokens-000001.npy")) == 40


def test_classifier_of_tokens_in_files(images, tokenizer, tmp_path):
    X, y, _, _ = images
    tokens = tokenize_dataset(tokenizer, X, tmp_path, y=y, n_views=3, shard_size=40)
    assert tokens.shape == (90, 3, 2, 2)
    params = {"prior": {**PRIOR, "architecture": "randar"}}
    precomputed = PrecomputedTokenizer(tokens.n_codes)
    expected = make(tokenizer=precomputed, **params).fit(tokens[:], y)
    clf = make(tokenizer="precomputed", **params).fit(tokens, tokens.labels)
    assert same_weights(clf, expected)
    np.testing.assert_array_equal(clf.tokenizer_.codebook_, tokens.codebook)
    np.testing.assert_array_equal(clf.predict_proba(tokens), expected.predict_proba(tokens[:]))
    with pytest.raises(ValueError, match=r"codes must be in 0 \.\.\. 3"):
        make(tokenizer=PrecomputedTokenizer(4)).fit(tokens, y)


def test_tokens_train_the_same_classifier_as_their_images(images, tokenizer, tmp_path):
    X, y, _, _ = images
    codes = tokenizer.transform(X)
    # Samples with equal tokens are merged in one case and not in the other.
    _, distinct = np.unique(codes.reshape(len(y), -1), axis=0, return_index=True)
    X, y = X[distinct], y[distinct]
    tokens = tokenize_dataset(tokenizer, X, tmp_path / "tokens", y=y)
    expected = make(tokenizer=FrozenEstimator(tokenizer), augmentation=None).fit(X, y)
    precomputed = FrozenEstimator(PrecomputedTokenizer().fit(tokens))
    clf = make(tokenizer=precomputed).fit(tokens, tokens.labels)
    assert same_weights(clf, expected)  # the prior starts from the vectors of the codes
    clf.save_pretrained(tmp_path / "saved")
    restored = AnyOrderARClassifier.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(restored.predict_proba(tokens), expected.predict_proba(X))


def test_parts_make_the_whole(images, tokenizer, tmp_path):
    X, y, _, paths = images
    params = {"y": y, "n_views": 2, "shard_size": 20}
    expected = tokenize_dataset(tokenizer, X, tmp_path / "1", **params)
    assert tokenize_dataset(tokenizer, X, tmp_path / "2", part=(1, 2), **params) is None
    with pytest.raises(ValueError, match=r"incomplete; missing: tokens-000000\.npy, tokens-000002"):
        load_tokens(tmp_path / "2")
    with pytest.raises(ValueError, match=r"contains other tokens; different: X\."):
        tokenize_dataset(tokenizer, 255 - X, tmp_path / "2", part=(0, 2), **params)
    tokens = tokenize_dataset(tokenizer, X, tmp_path / "2", part=(0, 2), **params)
    np.testing.assert_array_equal(tokens[:], expected[:])
    np.testing.assert_array_equal(tokens.labels, y)
    for i in range(2):  # each part has a stream of its own
        half = slice(i * 45, (i + 1) * 45)
        stream = zip(paths[half], y[half])
        tokens = tokenize_dataset(tokenizer, stream, tmp_path / "3", shard_size=20, part=(i, 2))
        assert (tokens is None) == (i == 0)
    starts = [(0, 20), (45, 65), (20, 40), (65, 85), (40, 45), (85, 90)]
    order = np.concatenate([np.arange(*shard) for shard in starts])
    np.testing.assert_array_equal(tokens[:], tokenizer.transform(X[order]))
    np.testing.assert_array_equal(tokens.labels, y[order])


KILLED = """
import os, signal, sys
import numpy as np
from skaocls import PatchTokenizer, tokenize_dataset
from skaocls.tokenizers import token_files

write_all = token_files.write_all

def write_all_and_die(folder, writers):
    if "tokens-000002.npy" in writers:
        writers = writers | {"last": lambda path: os.kill(os.getpid(), signal.SIGKILL)}
    write_all(folder, writers)

token_files.write_all = write_all_and_die
X = np.load(sys.argv[1])
tokenizer = PatchTokenizer(4, n_codes=8, random_state=0).fit(X)
tokenize_dataset(tokenizer, X, sys.argv[2], n_views=2, shard_size=20)
"""


def test_killed_process_loses_one_shard(images, tokenizer, tmp_path, monkeypatch):
    X, _, mapped, _ = images
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, mapped.filename, str(folder)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert list(folder.glob(".tokens-000002*"))
    tokenized, views_of = [], tokenization.views_of

    def count_and_encode(tokenizer, images, *args):
        tokenized.append(len(images))
        return views_of(tokenizer, images, *args)

    monkeypatch.setattr("skaocls.fitted.token_dataset.views_of", count_and_encode)
    tokens = tokenize_dataset(tokenizer, X, folder, n_views=2, shard_size=20)
    assert sum(tokenized) == 90 - 2 * 20
    expected = tokenize_dataset(tokenizer, X, tmp_path / "whole", n_views=2, shard_size=20)
    np.testing.assert_array_equal(tokens[:], expected[:])
    assert not list(folder.glob(".tokens*"))


def test_folder_of_tokens_that_cannot_be_written(images, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("skaocls.fitted.token_dataset.open_source", pytest.fail)
    for folder in (tmp_path / "file", tmp_path / "file" / "tokens"):
        with pytest.raises(OSError, match=r"folder='.*' cannot be written to"):
            tokenize_dataset(tokenizer, images[0], folder)


def test_damaged_files_are_found_and_written_again(images, tokenizer, tmp_path):
    X, y, _, _ = images
    expected = tokenize_dataset(tokenizer, X, tmp_path, y=y, shard_size=40)[:]
    shard = tmp_path / "tokens-000001.npy"
    content = shard.read_bytes()
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for damaged in (content[:-2] + b"\x07\x00", content[:-2], b"", objects.read_bytes()):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tokens-000001\.npy is damaged"):
            load_tokens(tmp_path)
        with pytest.warns(RuntimeWarning, match=r"tokens-000001\.npy is damaged.*written again"):
            tokens = tokenize_dataset(tokenizer, X, tmp_path, y=y, shard_size=40)
        np.testing.assert_array_equal(tokens[:], expected)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    changes = ({"n_codes": "8"}, {"dtype": "object"}, {"format": 9}, {"grid": [2]})
    for text in (*(json.dumps(manifest | change) for change in changes), "{}", "[]", "{"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is not a valid manifest"):
            load_tokens(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not contain tokens"):
        load_tokens(tmp_path / "nothing")


def test_other_tokens_are_refused(images, tokenizer, tmp_path):
    X, y, _, _ = images
    tokenize_dataset(tokenizer, X, tmp_path, y=y)
    other = PatchTokenizer(4, n_codes=8, random_state=1).fit(X)
    for args, params, different in (
        ((other, X), {"y": y}, "tokenizer"),
        ((tokenizer, X[:80]), {"y": y[:80]}, "n, y"),
        ((tokenizer, X), {"y": 1 + y}, "y"),
        ((tokenizer, X), {"y": y, "n_views": 2, "shard_size": 9}, "n_views, shard_size"),
        ((tokenizer, X), {"y": y, "part": (0, 3), "random_state": 1}, "parts, random_state"),
    ):
        with pytest.raises(ValueError, match=rf"contains other tokens; different: {different}\."):
            tokenize_dataset(*args, tmp_path, **params)


@pytest.mark.parametrize("kind", ["array", "files", "PIL images", "data set", "stream"])
def test_other_images_of_the_same_kind_are_refused(images, tokenizer, tmp_path, kind):
    X, y, _, _ = images
    changed = X.copy()
    changed[50, 0, 0] ^= 1

    def as_kind(X, y):
        if kind == "files":
            for i, image in enumerate(X):
                Image.fromarray(image).save(tmp_path / f"{i}.png")
            return [tmp_path / f"{i}.png" for i in range(len(X))]
        pil = [Image.fromarray(image) for image in X]
        inputs = {"array": X, "PIL images": pil, "data set": CountingDataset(X, y)}
        return inputs[kind] if kind in inputs else zip(pil, y)

    folder, params = tmp_path / "tokens", {"shard_size": 40}
    tokens = tokenize_dataset(tokenizer, as_kind(X, y), folder, **params)
    again = tokenize_dataset(tokenizer, as_kind(X, y), folder, **params)
    np.testing.assert_array_equal(again[:], tokens[:])
    with pytest.raises(ValueError, match=r"contains other tokens; different: X\."):
        tokenize_dataset(tokenizer, as_kind(changed, y), folder, **params)
    if kind in ("data set", "stream"):
        with pytest.raises(ValueError, match=r"contains other tokens; different: y\."):
            tokenize_dataset(tokenizer, as_kind(X, np.roll(y, 1)), folder, **params)
    if kind == "stream":
        for stream in (zip(X[:80], y), zip(X[:79], y), zip(np.concatenate([X, X]), [*y, *y])):
            with pytest.raises(ValueError, match=r"contains other tokens; different: "):
                tokenize_dataset(tokenizer, stream, folder, **params)


@pytest.mark.parametrize("different", [(), (3,), (1, 2), (0, 3)])
def test_parts_of_other_images_that_start_together_are_refused(
    images, tokenizer, tmp_path, monkeypatch, different
):
    X, all_started, own = images[0], threading.Barrier(4), threading.local()

    def wait_and_encode(*args):
        if not hasattr(own, "waited"):
            own.waited = all_started.wait()  # until each part has checked the empty folder
        return tokenization.views_of(*args)

    def write(part):
        data = 255 - X if part in different else X
        try:
            return tokenize_dataset(tokenizer, data, tmp_path, shard_size=20, part=(part, 4))
        except ValueError as error:
            return str(error)

    monkeypatch.setattr("skaocls.fitted.token_dataset.views_of", wait_and_encode)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(write, range(4)))
    if different:
        assert any("contains other tokens; different: X." in str(result) for result in results)
        with pytest.raises(ValueError, match="is incomplete; missing: tokens-"):
            load_tokens(tmp_path)
    else:
        np.testing.assert_array_equal(load_tokens(tmp_path)[:], tokenizer.transform(X))


def test_tokens_notice_that_their_folder_was_written_again(
    images, tokenizer, tmp_path, monkeypatch
):
    X, y, _, _ = images
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    tokens = tokenize_dataset(tokenizer, X, "tokens", y=y)
    pickled, codes = pickle.dumps(tokens), tokens[:]
    monkeypatch.chdir("elsewhere")  # the folder of the tokens has a relative path
    np.testing.assert_array_equal(tokens.labels, y)
    np.testing.assert_array_equal(pickle.loads(pickled)[:], codes)
    (tmp_path / "tokens").rename(tmp_path / "earlier")
    tokenize_dataset(tokenizer, X[::-1], tmp_path / "tokens", y=y[::-1])
    np.testing.assert_array_equal(tokens[:], codes)
    for call in (lambda: tokens.labels, lambda: pickle.loads(pickled)):
        with pytest.raises(ValueError, match="contains other tokens than when it was opened"):
            call()


# Memory -----------------------------------------------------------------------------------------

MEMORY = """
import resource, sys
import numpy as np
from sklearn.frozen import FrozenEstimator
from skaocls import AnyOrderARClassifier, PatchTokenizer
X = np.load(sys.argv[1], mmap_mode="r")
clf = AnyOrderARClassifier(
    tokenizer=FrozenEstimator(PatchTokenizer(32, n_codes=4, random_state=0).fit(X[:64])),
    augmentation=None, max_iter=1, batch_size=256, n_orders=1, random_state=0, tol=10.0,
    prior={"dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16},
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clf.fit(X, np.arange(len(X)) % 2)
clf.predict(X[:4096])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_peak_memory_does_not_grow_with_the_data(tmp_path):
    """An array of 192 MiB, or 768 MiB in float32, is processed a few rows at a time."""
    path = tmp_path / "images.npy"
    X = np.lib.format.open_memmap(path, "w+", np.uint8, (12288, 128, 128))
    for at in range(0, len(X), 512):
        coarse = np.random.RandomState(at).randint(256, size=(512, 16, 16), dtype=np.uint8)
        X[at : at + 512] = coarse.repeat(8, axis=1).repeat(8, axis=2)
    X.flush()
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 350

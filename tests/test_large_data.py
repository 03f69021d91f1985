"""Data larger than memory: the same answers as in memory, and no more memory for more of them."""

import json
import os
import pickle
import signal
import subprocess
import sys

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

PRIOR = {"dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16}
HOW = {"prior": PRIOR, "max_iter": 2, "n_orders": 2, "random_state": 0, "tol": 10.0}


class Counting(torch.utils.data.Dataset):
    """A data set of pairs that knows how often each was asked for."""

    def __init__(self, X, y):
        self.X, self.y, self.asked = X, y, np.zeros(len(X), dtype=int)

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        self.asked[i] += 1
        return torch.from_numpy(self.X[i]), int(self.y[i])


class Column:
    """What a column of another library is: a length and images."""

    def __init__(self, X):
        self.X = X

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return Image.fromarray(self.X[i])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images with labels, distinct, in memory and in files."""
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
    return AnyOrderARClassifier(**({"tokenizer": tokenizer, "augmentation": 3} | HOW | params))


def same(a, b):
    """Whether two classifiers have the same weights."""
    pairs = zip(a.prior_.state_dict().values(), b.prior_.state_dict().values(), strict=True)
    return all(torch.equal(mine, other) for mine, other in pairs)


def test_where_images_lie_changes_nothing(images, monkeypatch):
    X, y, mapped, paths = images
    expected = make().fit(X, y)
    proba = expected.predict_proba(X)
    assert isinstance(learn_reader(mapped, "Reader").data, Lazy)
    for form in (mapped, Counting(X, y), Column(X), paths):
        clf = make().fit(form, y)
        assert same(clf, expected)
        np.testing.assert_array_equal(clf.predict_proba(form), proba)
    # tokens in a file, not in memory; the codebook from images read one by one
    monkeypatch.setattr(tokenization, "CODES_IN_MEMORY", 0)
    monkeypatch.setattr(tokenization, "DECODED_AT_ONCE", 0)
    held = {"early_stopping": True, "validation_fraction": 0.2}
    clf = make(**held).fit(mapped, y)
    codes = tokenization.training_tokens(
        clf.tokenizer_, clf.model_.reader.open(mapped), 3, np.random.RandomState(0)
    )
    assert isinstance(codes, Mapped) and codes.dtype == np.uint16 and codes.shape == (90, 3, 4)
    monkeypatch.undo()
    assert same(clf, make(**held).fit(X, y))


def test_weights_and_repeated_images(images):
    X, y, mapped, _ = images
    weights = np.random.RandomState(1).randint(3, size=len(y))
    repeated = np.repeat(np.arange(len(y)), weights)
    clf = make().fit(mapped, y, sample_weight=weights)
    assert same(clf, make().fit(X[repeated], y[repeated]))
    # items are not compared with each other, but those that weigh nothing are left out
    data = Counting(X, y)
    make(augmentation=None).fit(data, y, sample_weight=weights > 0)
    kept = make(augmentation=None).fit(X[weights > 0], y[weights > 0])
    assert same(make(augmentation=None).fit(data, y, sample_weight=weights > 0), kept)


def test_an_item_is_asked_for_as_often_as_documented(images, monkeypatch):
    X, y, _, _ = images
    monkeypatch.setattr("skaocls.tokenizers.patch.MAX_PATCHES", 4 * 30)  # of 4 an image
    data = Counting(X, y)
    clf = make(max_iter=5).fit(data, y)
    asked = data.asked.copy()
    asked[0] -= 1  # whether it is an image
    looked_at = np.unique(np.linspace(0, 89, 16).astype(int))
    asked[looked_at] -= 1
    assert asked.min() == 1 and (asked == 2).sum() == 30 == (asked > 1).sum()
    data.asked[:] = 0
    clf.predict_proba(data)
    data.asked[0] -= 1
    data.asked[looked_at] -= 1
    assert (data.asked == 1).all()


def test_more_threads_give_the_same(images, monkeypatch):
    paths = images[3]
    batch = learn_reader(paths, "Reader")
    monkeypatch.setattr("skaocls.devices.cpu_count", lambda: 1)
    alone = batch.images()
    monkeypatch.setattr("skaocls.devices.cpu_count", lambda: 4)
    np.testing.assert_array_equal(batch.images(), alone)
    with pytest.raises(ValueError, match=r"X\[17\] cannot be read.*missing"):
        batch.reader.images(np.array([*paths[:17], "missing.png", *paths[18:]], dtype=object))


def test_what_is_known_again(images):
    X, _, mapped, _ = images
    hashes = [learn_reader(x, "Reader").content_hash() for x in (mapped, X, X + np.uint8(1))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_can_only_be_gone_through_is_named(images):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(images[0])

    with pytest.raises(ValueError, match=r"Write its tokens.*skaocls.tokenize_dataset"):
        make().fit(Stream(), images[1])


# Tokens in files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(images):
    return PatchTokenizer(4, n_codes=8, random_state=0).fit(images[0])


def test_tokens_in_files_are_those_of_the_tokenizer(images, tokenizer, tmp_path):
    X, y, mapped, paths = images
    expected = tokenizer.transform(X)
    forms = {"array": X, "mapped": mapped, "files": paths, "pairs": Counting(X, y)}
    for name, form in forms.items():
        given = None if name == "pairs" else y
        tokens = tokenize_dataset(tokenizer, form, tmp_path / name, y=given, shard_size=40)
        np.testing.assert_array_equal(tokens[:], expected)
        np.testing.assert_array_equal(tokens.labels, y)
    assert forms["pairs"].asked[1:89].max() <= 2  # of which one tells how they look
    loader = torch.utils.data.DataLoader(Counting(X, y), batch_size=32)
    for name, stream in {"pairs": zip(paths, y), "batches": loader}.items():
        tokens = tokenize_dataset(tokenizer, stream, tmp_path / f"of {name}", shard_size=30)
        np.testing.assert_array_equal(tokens[:], expected)
        np.testing.assert_array_equal(tokens.labels, y)
    assert tokens.dtype == np.uint16 and tokens.n_codes == tokenizer.n_codes_
    rows = np.array([80, 3, 41, 3])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokens))[rows], expected[rows])
    np.testing.assert_array_equal(
        np.load(tmp_path / "array" / "tokens-000001.npy")[:, 0].shape[0], 40
    )


def test_a_classifier_of_tokens_in_files(images, tokenizer, tmp_path):
    X, y, _, _ = images
    tokens = tokenize_dataset(tokenizer, X, tmp_path, y=y, n_views=3, shard_size=40)
    assert tokens.shape == (90, 3, 2, 2)
    how = {"prior": {**PRIOR, "architecture": "randar"}}
    precomputed = PrecomputedTokenizer(tokens.n_codes)
    clf = make(tokenizer=precomputed, **how).fit(tokens[:], y)
    lazily = make(tokenizer="precomputed", **how).fit(tokens, tokens.labels)
    assert same(clf, lazily)
    np.testing.assert_array_equal(lazily.predict_proba(tokens), clf.predict_proba(tokens[:]))
    # and one whose tokens are an array that is mapped
    np.save(tmp_path / "all.npy", tokens[:])
    mapped = np.load(tmp_path / "all.npy", mmap_mode="r")
    assert same(make(tokenizer=precomputed, **how).fit(mapped, y), clf)
    with pytest.raises(ValueError, match=r"codes must lie in 0 \.\.\. 3"):
        make(tokenizer=PrecomputedTokenizer(4)).fit(tokens, y)


def test_from_tokens_comes_what_comes_from_their_images(images, tokenizer, tmp_path):
    X, y, _, _ = images
    codes = tokenizer.transform(X)
    _, distinct = np.unique(codes.reshape(len(y), -1), axis=0, return_index=True)
    X, y = X[distinct], y[distinct]  # equal samples are merged, and images are not where tokens are
    tokens = tokenize_dataset(tokenizer, X, tmp_path / "tokens", y=y)
    of_images = make(tokenizer=FrozenEstimator(tokenizer), augmentation=None).fit(X, y)
    precomputed = FrozenEstimator(PrecomputedTokenizer().fit(tokens))
    clf = make(tokenizer=precomputed).fit(tokens, tokens.labels)
    assert same(clf, of_images)  # the prior knows which codes are alike
    clf.save_pretrained(tmp_path / "saved")
    restored = AnyOrderARClassifier.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(restored.predict_proba(tokens), of_images.predict_proba(X))


def test_parts_made_apart_are_the_whole(images, tokenizer, tmp_path):
    X, y, _, paths = images
    whole = tokenize_dataset(tokenizer, X, tmp_path / "1", y=y, n_views=2, shard_size=20)
    how = {"y": y, "n_views": 2, "shard_size": 20}
    assert tokenize_dataset(tokenizer, X, tmp_path / "2", part=(1, 2), **how) is None
    with pytest.raises(ValueError, match=r"lacks tokens-000000\.json"):
        load_tokens(tmp_path / "2")
    both = tokenize_dataset(tokenizer, X, tmp_path / "2", part=(0, 2), **how)
    np.testing.assert_array_equal(both[:], whole[:])
    np.testing.assert_array_equal(both.labels, y)
    # of streams each part has its own
    for i in range(2):
        stream = zip(paths[i * 45 : (i + 1) * 45], y[i * 45 : (i + 1) * 45])
        tokens = tokenize_dataset(tokenizer, stream, tmp_path / "3", shard_size=20, part=(i, 2))
        assert (tokens is None) == (i == 0)
    order = [
        *range(20),
        *range(45, 65),
        *range(20, 40),
        *range(65, 85),
        *range(40, 45),
        *range(85, 90),
    ]
    np.testing.assert_array_equal(tokens[:], tokenizer.transform(X[order]))
    np.testing.assert_array_equal(tokens.labels, y[order])


KILLED = """
import os, signal, sys
import numpy as np
from skaocls import PatchTokenizer, tokenize_dataset
from skaocls.fitted import tokenizing

write_all, done = tokenizing.write_all, []

def killed(folder, writers):
    done.append(sorted(writers))
    if len(done) == 4:  # the header and two shards are there
        first = next(iter(writers))
        writers = {first: writers[first], "kill": lambda path: os.kill(os.getpid(), signal.SIGKILL)}
    write_all(folder, writers)

tokenizing.write_all = killed
X = np.load(sys.argv[1])
tokenizer = PatchTokenizer(4, n_codes=8, random_state=0).fit(X)
tokenize_dataset(tokenizer, X, sys.argv[2], n_views=2, shard_size=20)
"""


def test_a_kill_costs_one_shard(images, tokenizer, tmp_path, monkeypatch):
    X, _, mapped, _ = images
    command = [sys.executable, "-c", KILLED, mapped.filename, str(tmp_path / "killed")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    before = {name for name in os.listdir(tmp_path / "killed") if name.endswith("0.json")}
    assert any(name.startswith(".tokens-000002") for name in os.listdir(tmp_path / "killed"))
    made, write = [], tokenization.views_of
    monkeypatch.setattr(
        "skaocls.fitted.token_dataset.views_of",
        lambda tokenizer, images, *rest: (
            made.append(len(images)) or write(tokenizer, images, *rest)
        ),
    )
    tokens = tokenize_dataset(tokenizer, X, tmp_path / "killed", n_views=2, shard_size=20)
    assert before and sum(made) == 90 - 2 * 20
    whole = tokenize_dataset(tokenizer, X, tmp_path / "whole", n_views=2, shard_size=20)
    np.testing.assert_array_equal(tokens[:], whole[:])
    assert not [name for name in os.listdir(tmp_path / "killed") if name.startswith(".tokens")]


def test_damage_is_found_and_named(images, tokenizer, tmp_path):
    X, y, _, _ = images
    expected = tokenize_dataset(tokenizer, X, tmp_path, y=y, shard_size=40)[:]
    shard = tmp_path / "tokens-000001.npy"
    whole = shard.read_bytes()
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for damaged, why in (
        (whole[:-2] + b"\x07\x00", "its content has changed"),
        (whole[:-2], "tokens-000001.npy is damaged"),
        (b"", "tokens-000001.npy is damaged"),
        (objects.read_bytes(), "tokens-000001.npy is damaged"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"tokens-000001.npy.*{why}|{why}"):
            load_tokens(tmp_path)
        with pytest.warns(RuntimeWarning, match="tokens-000001.npy is damaged.*made again"):
            tokens = tokenize_dataset(tokenizer, X, tmp_path, y=y, shard_size=40)
        np.testing.assert_array_equal(tokens[:], expected)
    header = json.loads((tmp_path / "tokens.json").read_text())
    for change in ({"n_codes": "8"}, {"dtype": "object"}, {"format": 9}, {"grid": [2]}):
        (tmp_path / "tokens.json").write_text(json.dumps(header | change))
        with pytest.raises(ValueError, match=r"tokens\.json does not say"):
            load_tokens(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no tokens"):
        load_tokens(tmp_path / "nothing")


def test_other_tokens_are_not_mixed_in(images, tokenizer, tmp_path):
    X, y, _, _ = images
    tokenize_dataset(tokenizer, X, tmp_path, y=y)
    other = PatchTokenizer(4, n_codes=8, random_state=1).fit(X)
    for args, how, what in (
        ((other, X), {"y": y}, "tokenizer"),
        ((tokenizer, X[:80]), {"y": y[:80]}, "X, n, y"),
        ((tokenizer, X), {"y": 1 + y}, "y"),
        ((tokenizer, X), {"y": y, "n_views": 2, "shard_size": 9}, "n_views, shard_size"),
        ((tokenizer, X), {"y": y, "part": (0, 3), "random_state": 1}, "parts, random_state"),
    ):
        with pytest.raises(ValueError, match=rf"holds other tokens: they differ in {what}\."):
            tokenize_dataset(*args, tmp_path, **how)


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
    """An array of 192 MiB, as numbers of 32 bits of 768, takes a few parts of it."""
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

"""The cache behind `memory`: each fit and each likelihood is computed once and never confused."""

import os
import pickle
import sys
import threading
import types
import warnings
from argparse import Namespace
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV

from benchmarks.reliability.properties import Colors
from conftest import small_classifier
from skaocls import (
    AnyOrderARClassifier,
    AnyOrderPrior,
    FeatureTokenizer,
    LlamaGenTokenizer,
    PatchTokenizer,
)
from skaocls.fitted import fit, result_cache
from skaocls.fitted.result_cache import ResultCache
from skaocls.hashing import hash_bytes, hash_chunks, hash_file, hash_object
from skaocls.images import to_pixels
from skaocls.images.reader import learn_reader


def make(**params):
    defaults = {"max_iter": 2, "tokenizer": PatchTokenizer(n_codes=32, normalize=None)}
    defaults |= {"augmentation": None, "search": "exhaustive"}  # only this uses cached likelihoods
    return small_classifier(AnyOrderARClassifier, **(defaults | params))


def entries(folder):
    return sorted(path for path in folder.glob("skaocls-memory/*") if path.is_file())


@pytest.fixture
def counts(monkeypatch):
    """Count the trained priors and the scored (order, image) pairs."""
    counts = {"fits": 0, "pairs": 0}
    train_prior, log_likelihoods = fit.train_prior, result_cache.log_likelihoods

    def train(*args, **kwargs):
        counts["fits"] += 1
        return train_prior(*args, **kwargs)

    def score(prior, codes, orders, labels, **kwargs):
        counts["pairs"] += len(codes) * len(orders)
        return log_likelihoods(prior, codes, orders, labels, **kwargs)

    monkeypatch.setattr(fit, "train_prior", train)
    monkeypatch.setattr(result_cache, "log_likelihoods", score)
    return counts


# What is cached ---------------------------------------------------------------------------------


def test_grid_search_over_n_orders_trains_once_per_fold(digits, counts, tmp_path):
    X, y, _, _ = digits
    grid = {"n_orders": [1, 2, 5]}
    search = GridSearchCV(make(memory=str(tmp_path)), grid, cv=3, error_score="raise").fit(X, y)
    assert counts["fits"] == 3 + 1
    assert counts["pairs"] == 5 * len(X)  # each image is tested once, in 5 orders
    uncached = GridSearchCV(make(), grid, cv=3, refit=False).fit(X, y)
    parallel = make(memory=str(tmp_path / "parallel"))  # processes share a cache
    parallel = GridSearchCV(parallel, grid, cv=3, n_jobs=2, refit=False).fit(X, y)
    assert len(entries(tmp_path / "parallel")) == 3 * (1 + 5)  # a fit and five orders in each fold
    scores = [s.cv_results_["mean_test_score"] for s in (search, uncached, parallel)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-12)
    np.testing.assert_allclose(scores[2], scores[1], atol=0.02)  # workers use one thread


def test_parameters_of_predict_do_not_train_again(digits, counts, tmp_path):
    X, y, X_test, _ = digits
    make(memory=tmp_path).fit(X, y).predict(X_test)
    before = dict(counts)
    for params in (
        {"aggregation": "mean_posterior"},
        {"temperature": 3.0},
        {"class_prior": [0.2, 0.3, 0.5]},
        {"search": "auto"},  # with a cache, all orders are scored
        {"n_orders": 2},
    ):
        cached = make(memory=joblib.Memory(tmp_path, verbose=0), **params).fit(X, y)
        uncached = make(**(params | {"search": "exhaustive"})).fit(X, y)
        counts["fits"] -= 1
        np.testing.assert_allclose(
            cached.predict_proba(X_test), uncached.predict_proba(X_test), atol=1e-9
        )
    assert counts == before


def test_orders_share_training_and_likelihoods(digits, counts, tmp_path):
    X, y, X_test, _ = digits
    make(memory=tmp_path).fit(X, y).predict(X_test)
    cached = make(memory=tmp_path, order="antithetic").fit(X, y)
    proba = cached.predict_proba(X_test)
    assert counts["fits"] == 1
    assert counts["pairs"] == (4 + 2) * len(X_test)  # two of the four orders are cached
    uncached = make(order="antithetic").fit(X, y)
    np.testing.assert_allclose(proba, uncached.predict_proba(X_test), atol=1e-9)


def test_temperature_is_fitted_for_each_aggregation(digits, counts, tmp_path):
    X, y, _, _ = digits
    temperature = {}
    for aggregation in ("mean_log_likelihood", "logsumexp"):
        params = {"temperature": "auto", "aggregation": aggregation}
        temperature[aggregation] = make(memory=tmp_path, **params).fit(X, y).temperature_
        assert temperature[aggregation] == make(**params).fit(X, y).temperature_
    assert counts["fits"] == 1 + 2
    assert temperature["logsumexp"] != temperature["mean_log_likelihood"]


@pytest.mark.parametrize(
    "changed",
    [
        {"random_state": 1},
        {"order": "raster"},
        {"tokenizer": PatchTokenizer(n_codes=20)},
        {"temperature": "auto"},
        {"precision": "bfloat16"},
    ],
)
def test_training_parameters_are_part_of_the_key(digits, counts, tmp_path, changed):
    X, y, _, _ = digits
    make(memory=tmp_path).fit(X, y)
    make(memory=tmp_path).set_params(**changed).fit(X, y)
    assert counts["fits"] == 2


def test_data_and_version_are_part_of_the_key(digits, counts, tmp_path, monkeypatch):
    X, y, _, _ = digits
    changed = X.copy()
    changed[7, 0, 0] += 1
    weights = np.r_[2.0, np.ones(len(y) - 1)]
    for X_, y_, weights_, n_fits in [
        (X, y, None, 1),
        (X.copy(), y.copy(), None, 1),
        (changed, y, None, 2),
        (X, np.roll(y, 1), None, 3),
        (X, y, weights, 4),
        (X, np.array(["a", "b", "c"])[y], None, 5),
    ]:
        make(memory=tmp_path).fit(X_, y_, weights_)
        assert counts["fits"] == n_fits
    monkeypatch.setattr(result_cache, "__version__", "0.0.next")
    make(memory=tmp_path).fit(X, y)
    assert counts["fits"] == 6


def test_files_are_identified_by_content(digits, counts, tmp_path):
    X, y, _, _ = digits
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path, image in zip(paths, X):
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    for _ in range(2):
        make(memory=tmp_path / "cache").fit(paths, y[:40])
    assert counts["fits"] == 1
    Image.fromarray((X[50] * 15).astype(np.uint8)).save(paths[3])
    make(memory=tmp_path / "cache").fit(paths, y[:40])
    assert counts["fits"] == 2


def test_weights_of_a_tokenizer_are_identified_by_content(counts, tmp_path, monkeypatch):
    monkeypatch.setattr(LlamaGenTokenizer, "_network", Colors)
    blocks = np.random.RandomState(0).randint(256, size=(9, 2, 2, 1), dtype=np.uint8)
    X = blocks.repeat(16, 1).repeat(16, 2).repeat(3, 3)
    weights, tokens = Colors().state_dict(), []
    tokenizer = LlamaGenTokenizer(tmp_path / "vq.safetensors", image_shape=(32, 32))
    for factor, n_fits in ((1, 1), (1, 1), (0.5, 2)):
        save_file({"codebook": factor * weights["codebook"]}, tokenizer.source)
        os.utime(tokenizer.source, (0, 0))
        clf = make(tokenizer=tokenizer, memory=tmp_path / "cache").fit(X, np.arange(9) % 3)
        tokens.append(clf.tokenizer_.transform(X))
        assert counts["fits"] == n_fits
    assert (tokens[1] == tokens[0]).all() and (tokens[2] != tokens[0]).any()


class Doubled(AnyOrderPrior):
    """A prior with the weights of its base class and other probabilities."""

    def predict(self, hidden, labels):
        return 2 * super().predict(hidden, labels)


def test_priors_are_identified_by_class_and_buffers(digits, tmp_path):
    X, y = digits[0][:40], digits[1][:40]
    tokenizer = FrozenEstimator(PatchTokenizer(n_codes=8, random_state=0).fit(X))
    sizes, classes = (8, (4, 4), 3, 32, 2, 2), (AnyOrderPrior, AnyOrderPrior, Doubled)
    priors = [cls(*sizes, generator=torch.Generator().manual_seed(0)) for cls in classes]
    priors[1].rope.mul_(0.5)
    for prior in priors:
        cached, fresh = (
            make(prior=prior, tokenizer=tokenizer, memory=memory).fit(X, y).predict_proba(X)
            for memory in (tmp_path, None)
        )
        np.testing.assert_array_equal(cached, fresh)


def repaint(image):
    image.putpalette(np.random.RandomState(1).bytes(3 * 256))


def fade(image):
    image.putpalette(np.random.RandomState(0).bytes(4 * 256), "RGBA")


def turn(image):
    image.getexif()[0x0112] = 3


def move(image):
    image.putpixel((7, 7), image.getpixel((7, 7)) ^ 1)


IMAGE_CHANGES = {
    "palette": ("P", repaint),
    "alpha in the palette": ("P", fade),
    "transparent index": (
        "P",
        lambda image: image.info.update(transparency=image.getpixel((2, 3))),
    ),
    "transparent gray": ("L", lambda image: image.info.update(transparency=image.getpixel((2, 3)))),
    "alpha": ("RGBA", lambda image: image.putalpha(77)),
    "orientation": ("RGB", turn),
    "one pixel": ("P", move),
    "nothing": ("P", lambda image: None),
    "metadata": ("RGB", lambda image: image.info.update(comment="changed")),
}


@pytest.mark.parametrize("change", IMAGE_CHANGES)
def test_pil_images_are_identified_by_decoded_pixels(counts, tmp_path, change):
    """Compare with `to_pixels`: a model may only be reused for images with the same pixels."""
    mode, edit = IMAGE_CHANGES[change]
    rng = np.random.RandomState(0)
    pixels = rng.randint(256, size=(12, 8, 8, {"P": 1, "L": 1, "RGB": 3, "RGBA": 4}[mode]))
    before = [Image.fromarray(x.squeeze().astype(np.uint8), mode) for x in pixels]
    if mode == "P":
        for image in before:
            image.putpalette(rng.bytes(3 * 256))
    after = [image.copy() for image in before]
    for image in after:
        edit(image)
    same = all(np.array_equal(to_pixels(a, 3), to_pixels(b, 3)) for a, b in zip(before, after))
    assert same == (change in ("nothing", "metadata"))
    for X in (before, after):
        make(memory=tmp_path, max_iter=1).fit(X, np.arange(12) % 2)
    assert counts["fits"] == 2 - same
    found = learn_reader([*before, *after], "Reader").row_hashes()
    assert len(set(found)) == (12 if same else 24)


def test_number_of_channels_is_part_of_the_key(counts, tmp_path):
    """Images of mode LA and their conversions to RGB have equal pixels, but 1 and 3 channels."""
    rng = np.random.RandomState(0)
    gray = [
        Image.fromarray(x).convert("LA") for x in rng.randint(256, size=(12, 8, 8)).astype("u1")
    ]
    for X, n_channels in ((gray, 1), ([image.convert("RGB") for image in gray], 3)):
        clf = make(memory=tmp_path, max_iter=1).fit(X, np.arange(12) % 2)
        assert clf.image_shape_ == clf.tokenizer_.image_shape_ == (8, 8, n_channels)
        assert clf.predict(X).shape == (12,)
    assert counts["fits"] == 2


def test_a_cached_fit_equals_a_fit(digits, tmp_path):
    X, y, X_test, _ = digits
    first = make(memory=tmp_path).fit(X, y)
    second = clone(first).fit(X, y)
    assert vars(second).keys() == vars(first).keys()
    np.testing.assert_array_equal(second.predict_proba(X_test), first.predict_proba(X_test))
    assert second.loss_curve_ == first.loss_curve_
    pickle.loads(pickle.dumps(second))
    second.set_params(memory=joblib.Memory(tmp_path, verbose=0)).save_pretrained(tmp_path / "saved")
    restored = AnyOrderARClassifier.from_pretrained(tmp_path / "saved")
    assert restored.memory is None  # the folder may not exist where the model is loaded
    np.testing.assert_array_equal(restored.predict_proba(X_test), first.predict_proba(X_test))


def test_hashes(tmp_path):
    x = torch.arange(4.0)
    assert hash_object(x) == hash_object(x.clone()) == hash_object(torch.nn.Parameter(x.clone()))
    different = [x, x.double(), x + 1, x[:3], x.view(2, 2), x.numpy(), [x[:2], x[2:]], None]
    assert len({hash_object(value) for value in different}) == len(different)
    assert hash_object({"a", "b", 1}) == hash_object({1, "b", "a"})
    assert hash_object({"a": x, "b": 1}) != hash_object({"b": 1, "a": x})
    one, other = Namespace(a=x, b=1), Namespace(b=1, a=x)
    assert hash_object(one) == hash_object(other) != hash_object(Namespace(a=1, b=x))
    layers = {"a": torch.nn.ReLU(), "b": torch.nn.Tanh()}
    networks = [OrderedDict(items) for items in (layers.items(), list(layers.items())[::-1])]
    assert len({hash_object(torch.nn.Sequential(layers)) for layers in networks}) == 2
    (tmp_path / "file").write_bytes(b"content")
    hashes = {hash_file(tmp_path / "file"), hash_bytes(b"content"), hash_chunks([b"con", b"tent"])}
    assert len(hashes) == 1


# Functions --------------------------------------------------------------------------------------

CODE = """
import functools, math
import numpy as np
import user_module

SCALE = 1.5
TABLE = {"weights": [1.0, 2.0]}

def helper(x):
    return math.sqrt(x) + 10

def simple(x, power=2, *, shift=3):
    return SCALE * helper(x) ** power + shift

def nested(x):
    def inner(values):
        return [value * 20 for value in values]
    return inner([x]) + TABLE["weights"]

def recursive(n):
    return 1 if n < 2 else n * recursive(n - 1) % 1000

def by_module(x):
    return np.exp(user_module.filters.blur(x))

def make_closure(factor):
    return lambda x: factor * x

closure = make_closure(4)
constant = lambda x: x in {"a", "b", "c30"}
partial = functools.partial(simple, shift=5)

@functools.wraps(nested)
def wrapped(x):
    return simple(x) - 40

@functools.lru_cache(maxsize=None)
def cached(x):
    return helper(x)

def with_attribute(x):
    return with_attribute.offset + x

with_attribute.offset = 50

class Base:
    limit = 60

    def __call__(self, x):
        return self.transform(x) + self.half

    @property
    def half(self):
        return self.state / 70

    @staticmethod
    def clip(x):
        return min(x, 80)

class Callable(Base):
    def __init__(self, state=6):
        self.state = state

    def transform(self, x):
        return super().limit + self.clip(helper(x))

instance = Callable()
bound = instance.transform
other_class = [Callable]
"""
NAMES = ["simple", "nested", "recursive", "by_module", "closure", "constant", "partial", "wrapped"]
NAMES += ["cached", "with_attribute", "instance", "bound", "other_class"]
CHANGES = {  # changed code, and the names whose content changes with it
    "SCALE = 1.5": ("SCALE = 1.6", "simple partial wrapped"),
    '"weights": [1.0, 2.0]': ('"weights": [1.0, 3.0]', "nested wrapped"),
    "math.sqrt(x) + 10": (
        "math.sqrt(x) + 11",
        "simple partial wrapped cached instance bound other_class",
    ),
    "math.sqrt(x)": ("math.cbrt(x)", "simple partial wrapped cached instance bound other_class"),
    "power=2": ("power=3", "simple partial wrapped"),
    "shift=3": ("shift=4", "simple partial wrapped"),
    "value * 20": ("value * 21", "nested wrapped"),
    "% 1000": ("% 1001", "recursive"),
    "filters.blur": ("filters.sharpen", "by_module"),
    "np.exp": ("np.log", "by_module"),
    "make_closure(4)": ("make_closure(5)", "closure"),
    '"c30"': ('"c31"', "constant"),
    "shift=5": ("shift=6", "partial"),
    "simple(x) - 40": ("simple(x) - 41", "wrapped"),
    "offset = 50": ("offset = 51", "with_attribute"),
    "limit = 60": ("limit = 61", "instance bound other_class"),
    "self.state / 70": ("self.state / 71", "instance bound other_class"),
    "min(x, 80)": ("min(x, 81)", "instance bound other_class"),
    "state=6": ("state=7", "instance bound other_class"),
    "instance.transform": ("instance.clip", "bound"),
    "import functools, math": ("\n# a comment\n\nimport functools, math", ""),
    "def inner(values):": ("def inner(values):  # another comment", ""),
}


def run(code, filters=None):
    """Execute code as in a notebook, and return the hash of each name."""
    filters = filters or {"blur": lambda x: x + 1, "sharpen": lambda x: x - 1}
    names = {"__name__": "__main__"}
    user_module = types.ModuleType("user_module")
    user_module.filters = types.ModuleType("user_module.filters")
    vars(user_module.filters).update(filters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "user_module", user_module)
        exec(code, names)
        return {name: hash_object(names[name]) for name in NAMES}


def test_functions_are_identified_by_everything_they_use():
    before = run(CODE)
    assert len(set(before.values())) == len(NAMES)
    assert run(CODE) == before
    for old, (new, changed) in CHANGES.items():
        after = run(CODE.replace(old, new, 1))
        assert {name for name in NAMES if after[name] != before[name]} == set(changed.split()), old
    after = run(CODE, {"blur": lambda x: x + 2, "other": lambda x: x})
    assert {name for name in NAMES if after[name] != before[name]} == {"by_module"}


def test_functions_have_the_same_hash_in_workers():
    names = {"__name__": "__main__"}
    exec(CODE.replace("import user_module\n", ""), names)
    sent = [names[name] for name in NAMES if name not in ("by_module", "cached")]
    hashes = joblib.Parallel(2)(joblib.delayed(hash_object)(value) for value in sent)
    assert hashes == [hash_object(value) for value in sent]


def mean_of_blocks(pixels):
    return torch.nn.functional.avg_pool2d(pixels, 4)


def features(backbone, memory=None):
    tokenizer = FeatureTokenizer(backbone, n_codes=8, n_components=None, mean=None, std=None)
    return make(tokenizer=tokenizer, memory=memory, max_iter=1, n_orders=1)


def redefine(code):
    """Return a function that is defined by code under the same name each time."""
    names = {"__name__": "__main__", "pool": torch.nn.functional.avg_pool2d}
    exec(code, names)
    return names["function"]


@pytest.mark.parametrize(
    "first, second",
    [
        ("function = lambda x: pool(x, 4)", "function = lambda x: -pool(x, 4) ** 2"),
        ("def function(x): return pool(x, 4)", "def function(x): return pool(1 - x, 2)"),
        ("def function(x, k=4): return pool(x, k)", "def function(x, k=2): return pool(x, k)"),
    ],
)
def test_a_function_that_is_defined_again(digits, counts, tmp_path, first, second):
    X, y, X_test = digits[0][:60] / 16, digits[1][:60], digits[2][:20] / 16
    for code, n_fits in ((first, 1), (first, 1), (second, 2), (first, 2)):
        clf = features(redefine(code), tmp_path).fit(X, y)
        assert counts["fits"] == n_fits
        expected = features(redefine(code)).fit(X, y)
        counts["fits"] -= 1
        np.testing.assert_array_equal(clf.tokenizer_.transform(X), expected.tokenizer_.transform(X))
        np.testing.assert_array_equal(clf.predict_proba(X_test), expected.predict_proba(X_test))


def test_an_old_function_after_its_module_was_loaded_again(digits, tmp_path, monkeypatch):
    """A pickle of a function of a module refers to the module's present function."""
    X, y = digits[0][:60] / 16, digits[1][:60]
    module = types.ModuleType("my_features")
    monkeypatch.setitem(sys.modules, "my_features", module)
    code = "import torch\ndef function(x): return torch.nn.functional.avg_pool2d(x, {})"
    exec(code.format(4), vars(module))
    clf = features(module.function, tmp_path).fit(X, y)
    codes = clf.tokenizer_.transform(X)
    exec(code.format(2), vars(module))
    for _ in range(2):
        np.testing.assert_array_equal(clf.fit(X, y).tokenizer_.transform(X), codes)


def test_functions_whose_content_is_not_known_are_not_cached(digits, counts, tmp_path, monkeypatch):
    X, y = digits[0][:60] / 16, digits[1][:60]
    monkeypatch.setitem(sys.modules, "user_module", types.ModuleType("user_module"))
    lock, generator = threading.Lock(), (i for i in range(9))

    def locked(x):
        with lock:
            return mean_of_blocks(x)

    def importing(x):
        import user_module  # noqa: F401

        return mean_of_blocks(x)

    class Pooling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = generator

        forward = staticmethod(mean_of_blocks)
        __deepcopy__ = __copy__ = lambda self, memo=None: self

    for backbone in (locked, importing, Pooling()):
        for params in ({"memory": tmp_path}, {"checkpoint_dir": tmp_path / "checkpoints"}):
            clf = features(backbone).set_params(**params)
            with pytest.warns(UserWarning, match="uses neither memory nor checkpoint_dir, because"):
                clf.fit(X, y)
    assert counts["fits"] == 6
    assert not entries(tmp_path) and not (tmp_path / "checkpoints").exists()


class Unpicklable(PatchTokenizer):
    def fit(self, X, y=None):
        super().fit(X, y)
        self.lock_ = threading.Lock()
        return self

    def __deepcopy__(self, memo):
        return self


def test_models_that_cannot_be_stored_are_kept(digits, tmp_path):
    X, y = digits[0][:60], digits[1][:60]
    clf = make(tokenizer=Unpicklable(4, n_codes=8), memory=tmp_path, max_iter=1)
    with pytest.warns(RuntimeWarning, match=r"No more results are stored.*cannot pickle"):
        clf.fit(X, y)
    assert clf.n_iter_ == 1 and not entries(tmp_path)


# Several processes and the size limit -----------------------------------------------------------


def read_many(folder, seed):
    """Read random entries and return whether all of them have the right content."""
    return all(
        (ResultCache(folder).get_or_compute(str(i), lambda i=i: np.full(500, i)) == i).all()
        for i in np.random.RandomState(seed).randint(20, size=100)
    )


def test_concurrent_readers_and_writers(tmp_path, monkeypatch):
    monkeypatch.setattr(result_cache, "MAX_BYTES", 20_000)  # entries are removed all the time
    with ThreadPoolExecutor(2) as threads:  # file locks also hold between threads
        assert all(threads.map(read_many, [tmp_path] * 2, range(2)))


def test_total_size_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(result_cache, "MAX_BYTES", 2**20)
    cache = ResultCache(tmp_path)
    for i in range(6):  # 0.3 MB each
        cache.get_or_compute(str(i), lambda i=i: np.full(300_000, i, np.uint8))
    assert 2**17 < sum(path.stat().st_size for path in entries(tmp_path)) < 2**20
    assert cache.read(cache.path("5"))[0][0] == 5


def test_other_files_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    memory = joblib.Memory(tmp_path, verbose=0)
    assert memory.cache(len)([1, 2]) == 2
    monkeypatch.setattr(result_cache, "MAX_BYTES", 0)
    before = set(tmp_path.iterdir())
    relative = ResultCache(".")
    monkeypatch.chdir("/")
    relative.get_or_compute("a", lambda: 1)
    assert not entries(tmp_path)
    assert memory.cache(len).check_call_in_cache([1, 2])
    # a hyphen is not valid in module names, so the folder hides no package
    assert set(tmp_path.iterdir()) - before == {tmp_path / "skaocls-memory"}


def test_files_of_killed_processes_are_removed(tmp_path):
    cache = ResultCache(tmp_path)
    cache.get_or_compute("a", lambda: np.arange(3))
    abandoned, recent = (cache.folder / name for name in (".abandoned", ".recent"))
    for path in (abandoned, recent):
        path.write_text("half")
    os.utime(abandoned, (0, 0))
    cache.clean_up()
    assert recent.exists() and not abandoned.exists()
    np.testing.assert_array_equal(ResultCache(tmp_path).get_or_compute("a", fail), np.arange(3))


def test_results_can_be_kept_out_of_the_cache(tmp_path):
    cache = ResultCache(tmp_path)
    assert cache.get_or_compute("a", lambda: 1, keep=lambda result: result > 1) == 1
    assert cache.get_or_compute("a", lambda: 2, keep=lambda result: result > 1) == 2
    assert cache.get_or_compute("a", fail) == 2


# Damage and full disks --------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 0)])
def test_damaged_entries_are_computed_again(digits, counts, tmp_path, damage):
    X, y, X_test, _ = digits
    expected = make(memory=tmp_path).fit(X, y).predict_proba(X_test)
    before = dict(counts)
    assert len(entries(tmp_path)) == 1 + 4
    for path in entries(tmp_path):
        damage(path)
    with pytest.warns(
        RuntimeWarning, match=r"of memory is damaged and is computed again"
    ) as caught:
        proba = make(memory=tmp_path).fit(X, y).predict_proba(X_test)
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1 + 4
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(proba, expected)
    assert counts == {name: 2 * n for name, n in before.items()}


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_existing_entries_are_used_when_the_disk_is_full(digits, counts, tmp_path, monkeypatch):
    X, y, X_test, _ = digits
    clf = make(memory=tmp_path).fit(X, y)
    expected = clf.set_params(n_orders=2).predict_proba(X_test)
    before = entries(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cloudpickle, "dump", fail)
        clf.set_params(n_orders=4)
        with pytest.warns(RuntimeWarning, match="No more results.*No space left") as caught:
            proba = clf.predict_proba(X_test)
    assert len(caught) == 1
    assert entries(tmp_path) == before
    np.testing.assert_array_equal(proba, clf.set_params(memory=None).predict_proba(X_test))
    counts["pairs"] = 0
    clf.set_params(n_orders=2, memory=tmp_path)
    np.testing.assert_array_equal(clf.predict_proba(X_test), expected)
    assert counts["pairs"] == 0


def test_folder_that_is_not_writable(digits, tmp_path):
    X, y, X_test, _ = digits
    expected = make().fit(X, y).predict_proba(X_test)
    (tmp_path / "file").touch()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr("skaocls.fitted.fit.train_new_model", pytest.fail)
        with pytest.raises(RuntimeWarning, match="No more results"):  # before the training
            make(memory=str(tmp_path / "file")).fit(X, y)
    with pytest.warns(RuntimeWarning, match=r"No more results are stored in memory='.*file'"):
        clf = make(memory=str(tmp_path / "file")).fit(X, y)
    with pytest.warns(RuntimeWarning, match="No more results are stored"):
        np.testing.assert_array_equal(clf.predict_proba(X_test), expected)

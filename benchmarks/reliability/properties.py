"""The properties of inputs and settings that the benchmark of stale answers changes.

Each generator yields properties: a name, a function and two values. For each value, the function
returns changes of `JOB` and of the parameters `PARAMS` of the classifier.
"""

import importlib
import inspect
import io
import os
import sys
from collections import OrderedDict

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from torch.utils.data import Dataset

from skaocls import (
    AnyOrderARClassifier,
    AnyOrderPrior,
    FeatureTokenizer,
    FineTuning,
    LlamaGenTokenizer,
    PatchTokenizer,
    PrecomputedTokenizer,
    QuantileTokenizer,
    tokenize_dataset,
)

PIXELS, LABELS = (a[:24] for a in load_digits(n_class=3, return_X_y=True))
PIXELS = (PIXELS * 15).astype(np.uint8).reshape(-1, 8, 8)
TURNED = PIXELS.swapaxes(1, 2)
DIGITS = PIXELS / np.float32(255)
SIZES = {"architecture": "randar", "dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16}
PATCHES = PatchTokenizer(4, 6, normalize=None, random_state=0)
PARAMS = {"prior": SIZES, "tokenizer": PATCHES, "max_iter": 2, "batch_size": 8, "tol": 10.0}
PARAMS |= {"learning_rate_init": 0.02, "n_orders": 2, "crop": "center", "search": "exhaustive"}
PARAMS |= {"augmentation": None, "precision": "float32", "random_state": 0}
JOB = {"X": DIGITS, "y": LABELS, "sample_weight": None, "options": {}}  # of `tokenize_dataset`
# Two values of each parameter of the classifier, and other parameters of both jobs
PARAMETERS = {
    "aggregation": ("mean_log_likelihood", "logsumexp"),
    "augmentation": (None, 2),
    "batch_size": (8, 6),
    "class_prior": (None, [0.5, 0.3, 0.2]),
    "class_weight": ({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 3.0, 2: 2.0}),
    "crop": ("center", "views", {"augmentation": 2, "n_orders": 8}),
    "decoding": ("as_seen", "plain"),
    "early_stopping": (False, True, {"validation_fraction": 0.3}),
    "finetune": ("full", FineTuning("lora", lora_rank=2)),
    "image_shape": ((8, 8), (4, 16)),
    "learning_rate_init": (0.02, 0.03),
    "max_iter": (2, 3),
    "n_iter_no_change": (1, 3, {"max_iter": 6, "early_stopping": True}),
    "n_orders": (2, 3),
    "order": ("random", "raster"),
    "posterior_weight": (0.0, 1.0),
    "precision": ("float32", "bfloat16"),
    "prior": (SIZES, SIZES | {"dim": 32}),
    "random_state": (0, 1),
    "temperature": (1.0, "auto"),
    "tol": (10.0, 0.0, {"max_iter": 6, "n_iter_no_change": 1, "early_stopping": True}),
    "validation_fraction": (0.2, 0.4, {"early_stopping": True}),
}
# Parameters that have rows of their own, change no answer or have no effect with `memory`
OTHERS = {"checkpoint_dir", "device", "memory", "n_jobs", "on_bad_image", "search", "tokenizer"}
OTHERS |= {"verbose"}
# Definitions of the function of a FeatureTokenizer, and two texts that replace K
POOL = "torch.nn.functional.avg_pool2d(x.clamp(K, 1), 2)"
OF_ARGUMENT = POOL.replace("K", "k")
FUNCTIONS = {
    "operator": ("def network(x): return torch.nn.functional.avg_pool2d(x K x, 2)", "+", "*"),
    "called name": ("def network(x): return torch.K(6 * x)", "sin", "tan"),
    "constant": (f"def network(x): return {POOL}", 0.1, 0.6),
    "default argument": (f"def network(x, k=K): return {OF_ARGUMENT}", 0.1, 0.6),
    "keyword-only default": (f"def network(x, *, k=K): return {OF_ARGUMENT}", 0.1, 0.6),
    "closure value": (f"def f(k): return lambda x: {OF_ARGUMENT}\nnetwork = f(K)", 0.1, 0.6),
    "global value": (f"k = K\ndef network(x): return {OF_ARGUMENT}", 0.1, 0.6),
    "called function": (f"def pool(x): return {POOL}\ndef network(x): return pool(x)", 0.1, 0.6),
    "inner function": (f"def network(x):\n def pool(): return {POOL}\n return pool()", 0.1, 0.6),
    "argument of `partial`": (
        f"import functools\ndef f(k, x): return {OF_ARGUMENT}\nnetwork = functools.partial(f, K)",
        *(0.1, 0.6),
    ),
}
CLASSES = {
    "`__call__`": "class C:\n def __call__(self, x): return {}\nnetwork = C()",
    "bound method": "class C:\n def run(self, x): return {}\nnetwork = C().run",
    "`forward`": "class C(torch.nn.Module):\n def forward(self, x): return {}\nnetwork = C()",
}
FUNCTIONS |= {name: (source.format(POOL), 0.1, 0.6) for name, source in CLASSES.items()}
OWN_TOKENIZER = """
from sklearn.base import BaseEstimator, TransformerMixin
class Own(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.n_codes_, self.grid_ = 4, (4, 4)
        return self
    def transform(self, X):
        return (X[:, ::2, ::2, 0] * K).astype(int)
network = Own()
"""
OWN_PRIOR = """
from skaocls import AnyOrderPrior
class Own(AnyOrderPrior):
    def predict(self, hidden, labels):
        return K * super().predict(hidden, labels)
network = Own(6, (2, 2), 3, 16, 1, 1, generator=torch.Generator().manual_seed(0))
"""


def define(source, value):
    """Execute a definition as a notebook does, and return what it calls `network`."""
    namespace = {"__name__": "__main__", "torch": torch}
    exec(source.replace("K", str(value)), namespace)
    for name in namespace.keys() - {"__name__", "__builtins__"}:
        setattr(sys.modules["__main__"], name, namespace[name])
    return namespace["network"]


def entry(name):
    """Return a function that returns a dict with one entry."""
    return lambda value: {name: value}


# Images -----------------------------------------------------------------------------------------


def pil(mode, **info):
    """Return PIL images. In modes with equally many channels, the images have the same bytes."""
    size = len(Image.new(mode, (1, 1)).tobytes())
    images = [Image.frombytes(mode, (8, 8), a.repeat(size).tobytes()) for a in PIXELS]
    for image in images:
        image.info.update(info)
    return images


def with_palette(color, **info):
    images = pil("P", **info)
    for image in images:
        image.putpalette([c * k // 255 for k in range(256) for c in color])
    return images


def rotated(orientation):
    images = pil("L")
    for image in images:
        image.getexif()[0x0112] = orientation
    return images


def images():
    changed, white = DIGITS.copy(), (255, 255, 255)
    changed[-1, 3, 3] += 0.4
    values = {
        "one pixel": (DIGITS, changed),
        "order of the images": (DIGITS, np.roll(DIGITS, 1, axis=0)),
        "data type of equal values": (DIGITS, DIGITS.astype(np.float64)),
        "data type of equal numbers": (PIXELS, PIXELS.astype(np.uint16)),
        "byte order": (DIGITS, DIGITS.astype(">f4")),
        "memory layout": (DIGITS, np.asfortranarray(DIGITS)),
        "strides": (DIGITS, DIGITS.repeat(2, 2)[:, :, ::2]),
        "array or tensor": (DIGITS, torch.from_numpy(DIGITS)),
        "axis of the channels": (DIGITS[..., None], DIGITS[:, None]),
        "palette": (with_palette(white), with_palette((255, 0, 0))),
        "transparency of a color": (with_palette(white), with_palette(white, transparency=0)),
        "transparency of a gray value": (pil("L"), pil("L", transparency=0)),
        "alpha": ([image.convert("RGBA") for image in pil("L")], pil("RGBA")),
        "EXIF orientation": (pil("L"), rotated(6)),
        "mode (L, P)": (pil("L"), with_palette((90, 200, 40))),
    }
    for pair in (("RGB", "YCbCr"), ("RGBA", "CMYK"), ("RGBA", "RGBX"), ("LA", "La")):
        values[f"mode ({', '.join(pair)})"] = map(pil, pair)
    for name, (first, second) in values.items():
        yield name, entry("X"), first, second


def files(folder, pixels):
    """Save one file per image. The names, sizes and times of the files are always the same."""
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(pixels):
        path = folder / f"{i:02}.bmp"
        Image.fromarray(image).save(path)
        os.utime(path, (0, 0))
    return {"X": sorted(folder.iterdir())}


def truncated_files(folder):
    paths = files(folder, PIXELS)["X"]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-20])
    return {"X": paths}


def relative_files(folder):
    os.chdir(folder)
    return {"X": sorted(os.listdir("."))}


def linked_files(folder):
    link = folder.parent / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return {"X": [link / name for name in sorted(os.listdir(folder))]}


def mapped(path, pixels, mode):
    np.save(path, pixels)
    os.utime(path, (0, 0))
    return {"X": np.load(path, mmap_mode=mode)}


def animations():
    for frames in zip(PIXELS, TURNED):
        file, (first, second) = io.BytesIO(), map(Image.fromarray, frames)
        first.save(file, "GIF", save_all=True, append_images=[second])
        yield Image.open(file)


def at_frame(animations, k):
    for image in animations:
        image.seek(k)
    return animations


def filled(array, values):
    np.copyto(array, values)
    return array


class Items(Dataset):
    """A data set of images."""

    def __init__(self, pixels):
        self.pixels = pixels

    def filled(self, pixels):
        self.pixels = pixels
        return self

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return self.pixels[i]


def stored_images(folder):
    folders = folder / "upright", folder / "turned"
    for path, pixels in zip(folders, (PIXELS, TURNED)):
        files(path, pixels)
    yield "working directory", relative_files, *folders
    yield "target of a link", linked_files, *folders
    items, array, moving = Items(PIXELS), PIXELS.copy(), list(animations())
    private = mapped(folder / "b.npy", PIXELS, "c")["X"]
    calls = {
        "content of files": lambda x: files(folder / "files", x),
        "content of a mapped file": lambda x: mapped(folder / "a.npy", x, "r"),
        "private memory map": lambda x: {"X": filled(private, x)},
        "content of an array": lambda x: {"X": filled(array, x)},
        "items of a data set": lambda x: {"X": items.filled(x)},
    }
    for name, call in calls.items():
        yield name, call, PIXELS, TURNED
    yield "frame of an animation", lambda k: {"X": at_frame(moving, k)}, 0, 1


# Labels and parameters --------------------------------------------------------------------------


def labels():
    one, weights = LABELS.copy(), np.ones(len(LABELS))
    one[0], weights[0] = (one[0] + 1) % 3, 3
    yield "one label", entry("y"), LABELS, one
    yield "names of the classes", entry("y"), LABELS, np.array(["a", "b", "c"])[LABELS]
    yield "data type of the labels", entry("y"), LABELS, LABELS.astype(np.int32)
    yield "`sample_weight`", entry("sample_weight"), None, weights


def views():
    yield "`n_views`", lambda n: {"options": {"n_views": n}}, 1, 2
    yield "seed of the views", lambda k: {"options": {"n_views": 2, "random_state": k}}, 0, 1


def parameters():
    unknown = inspect.signature(AnyOrderARClassifier).parameters.keys() - PARAMETERS.keys() - OTHERS
    assert not unknown, f"Add two values of each new parameter: {unknown}."
    jobs = {
        "image_shape": {"X": DIGITS.reshape(-1, 64)},
        "decoding": {"X": pil("RGBA")},
        "finetune": {"prior": new_prior(), "tokenizer": FrozenEstimator(new_patches())},
    }
    for name, (first, second, *others) in PARAMETERS.items():
        job = jobs.get(name, {}) | (others[0] if others else {})
        yield f"`{name}`", lambda value, name=name, job=job: job | {name: value}, first, second


# Tokenizers and priors --------------------------------------------------------------------------


def new_patches(seed=0):
    return clone(PATCHES).set_params(random_state=seed).fit(DIGITS)


def features(network, **params):
    params = {"mean": None, "std": None, "n_codes": 6, "random_state": 0} | params
    return {"tokenizer": FeatureTokenizer(network, **params)}


def imported(folder, value):
    """Write a module, and import its function or import it again."""
    source = FUNCTIONS["constant"][0].replace("K", str(value))
    (folder / "networks.py").write_text(f"import torch\n{source}")
    sys.modules.pop("networks", None)
    importlib.invalidate_caches()
    return features(importlib.import_module("networks").network)


def network(names="ab"):
    """Return a convolution (layer a) and a nonlinear layer b, called in the given order."""
    torch.manual_seed(0)
    found = {"a": torch.nn.Conv2d(3, 3, 2, 2), "b": torch.nn.Softshrink(0.3)}
    return torch.nn.Sequential(OrderedDict((name, found[name]) for name in names))


class Colors(torch.nn.Module):
    """Stands for the network of a published tokenizer."""

    n_codes = 3

    def __init__(self):
        super().__init__()
        self.codebook = torch.nn.Parameter(torch.tensor([[0.0], [0.4], [1.0]]).repeat(1, 3))

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 16).permute(0, 2, 3, 1)

    def nearest(self, latents):
        return torch.cdist(latents.flatten(1, 2), self.codebook[None]).argmin(-1).view(-1, 2, 2)


class ColorTokenizer(LlamaGenTokenizer):
    """A published tokenizer with a small network."""

    _network = Colors


def published(folder, factor):
    path = folder / "vq.safetensors"
    save_file({"codebook": factor * Colors().codebook.detach()}, path)
    os.utime(path, (0, 0))
    X = PIXELS.repeat(4, 1).repeat(4, 2)[..., None].repeat(3, 3)
    return {"X": X, "tokenizer": ColorTokenizer(path, image_shape=(32, 32))}


def frozen(tokenizer, codebook):
    filled(tokenizer.codebook_, codebook)
    return {"tokenizer": FrozenEstimator(tokenizer)}


def scaled(module, tensor, factor):
    """Multiply a tensor of a module in a way that torch does not notice."""
    tensor.data.mul_(factor)
    return module


def tokenizers(folder):
    for name, value in {"n_codes": 9, "patch_size": 3, "normalize": "image"}.items():
        changed = clone(PATCHES).set_params(**{name: value})
        yield f"`{name}` of the tokenizer", entry("tokenizer"), PATCHES, changed
    codebooks, patches, kept = [new_patches(k).codebook_ for k in (0, 1)], new_patches(), network()
    yield "fitted tokenizer", lambda codebook: frozen(new_patches(), codebook), *codebooks
    yield "codebook, in place", lambda codebook: frozen(patches, codebook), *codebooks
    for name, (source, *values) in FUNCTIONS.items():
        call = lambda value, source=source: features(define(source, value))  # noqa: E731
        yield f"function: {name}", call, *values
    yield "function: module", lambda k: imported(folder, k), 0.1, 0.6
    yield "order of layers", lambda names: features(network(names)), "ab", "ba"
    yield "`layer`", lambda layer: features(network(), layer=layer), "a", "b"
    yield "`mean` of the pixels", lambda mean: features(network(), mean=mean), None, [0.5] * 3
    in_place = lambda k: features(scaled(kept, kept[0].weight, k))  # noqa: E731
    yield "weights of a network, in place", in_place, 1, -3
    yield "code of a tokenizer", lambda k: {"tokenizer": define(OWN_TOKENIZER, k)}, 2, 3
    yield "file of a tokenizer's weights", lambda k: published(folder, k), 1, 0.5


def new_prior(seed=0, n_head=1):
    generator = torch.Generator().manual_seed(seed)
    return AnyOrderPrior(6, (2, 2), 3, 16, 1, n_head, generator=generator)


def wide_prior():
    """Return a prior that is so wide that bfloat16 can be faster than float32."""
    generator = torch.Generator().manual_seed(0)
    prior = AnyOrderPrior(64, (2, 2), 8, 512, 1, 8, generator=generator)
    torch.nn.init.normal_(prior.output.weight, std=0.1, generator=generator)
    return prior


def saved_model(folder, seed):
    clf = AnyOrderARClassifier(**PARAMS | {"random_state": seed}).fit(DIGITS, LABELS)
    clf.save_pretrained(folder / "model")
    for path in (folder / "model").iterdir():
        os.utime(path, (0, 0))
    return {"prior": folder / "model", "tokenizer": "auto"}


def priors(folder):
    kept, tokenizer = new_prior(), FrozenEstimator(new_patches())
    calls = {
        "weights of the prior": (new_prior, 0, 1),
        "number of heads": (lambda n: new_prior(n_head=n), 1, 2),
        "weights of the prior, in place": (lambda k: scaled(kept, kept.class_table, k), 1, -1),
        "rotations of the prior, in place": (lambda k: scaled(kept, kept.rope, k), 1, -0.5),
        "code of the prior": (lambda k: define(OWN_PRIOR, k), 1, 3),
    }
    for name, (call, *values) in calls.items():
        yield name, lambda v, call=call: {"prior": call(v), "tokenizer": tokenizer}, *values
    yield "content of a saved model", lambda seed: saved_model(folder, seed), 0, 1


# Tables and tokens ------------------------------------------------------------------------------


def tables(folder):
    X, codes = DIGITS[:, 3], new_patches().transform(DIGITS)
    changed = X.copy()
    changed[-1, 3] += 0.4
    table = lambda X, n=3: {"X": X, "tokenizer": QuantileTokenizer(n)}  # noqa: E731
    yield "one value of a table", table, X, changed
    yield "order of the rows", table, X, X[::-1]
    yield "`n_bins`", lambda n: table(X, n), 3, 4
    with_codes = lambda n: {"X": codes, "tokenizer": PrecomputedTokenizer(n)}  # noqa: E731
    yield "`n_codes` of tokens", with_codes, 6, 7
    tokens = [tokenize_dataset(new_patches(), DIGITS, folder / "tokens") for _ in range(2)]
    tokens[1].codebook = tokens[1].codebook[[0, 3, 1, 4, 2, 5]]
    job = {"tokenizer": "precomputed", "prior": "shared_trunk"}
    yield "codebook of tokens", lambda tokens: {"X": tokens} | job, *tokens

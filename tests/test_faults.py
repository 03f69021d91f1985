"""Damaged and malicious files give a result or an error with a clear message."""

import json
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, tokenize_dataset
from skaocls.displays import write_report
from skaocls.files import find_file, read_state_dict
from skaocls.priors.loading import load_prior
from skaocls.scoring.aggregation import AGGREGATIONS
from skaocls.training import checkpoints

ROOT = Path(__file__).parents[1]
SIZES = {"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 32}


@pytest.fixture(scope="module")
def small(digits):
    X, y, _, _ = digits
    params = {"max_iter": 1, "augmentation": None, "prior": SIZES}
    return small_classifier(AnyOrderARClassifier, **params).fit(X[:60], y[:60])


@pytest.fixture
def folder(small, tmp_path):
    small.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def memory_limit():
    """Limit the memory of this process to 4 GiB more than it uses now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def safetensors_of(header, body=b"", length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(shape, end, begin=0, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


MALICIOUS = {
    "a terabyte": safetensors_of({"a": tensor([2**38], 2**40)}),
    "a terabyte in 8 bytes": safetensors_of({"a": tensor([2**38], 8)}, b"0" * 8),
    "overflow": safetensors_of({"a": tensor([2**62, 4], 0)}),
    "header": safetensors_of({}, length=2**60),
    "negative": safetensors_of({"a": tensor([-1], 4)}, b"0000"),
    "overlap": safetensors_of({"a": tensor([1], 4), "b": tensor([1], 4)}, b"0000"),
    "nested": safetensors_of(b"[" * 100_000),
    "nothing": b"",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_safetensors_files_are_refused(tmp_path, memory_limit, name):
    (tmp_path / "model.safetensors").write_bytes(MALICIOUS[name])
    with pytest.raises(ValueError, match="is not a readable file of weights"):
        read_state_dict(tmp_path / "model.safetensors")


def test_malicious_torch_files_are_refused(tmp_path, memory_limit):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1).expand(2**38)}, path)
    assert path.stat().st_size < 5000
    with pytest.raises(ValueError, match=r"tensors of 1099511627776 bytes exceed the file"):
        read_state_dict(path)
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    with pytest.raises(ValueError, match="'a' is not a dense tensor"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", b"0" * 2**24)
    with pytest.raises(ValueError, match="unpacks to 16777216 bytes"):
        read_state_dict(path)
    tied = torch.zeros(100)
    torch.save({"a": tied, "b": tied[:50], "c": tied.view(10, 10).T}, path)
    assert {k: v.shape for k, v in read_state_dict(path).items()}["c"] == (10, 10)


def test_weights_of_invalid_shapes_are_refused(tmp_path, memory_limit):
    from skaocls import AnyOrderPrior

    state = AnyOrderPrior(8, (2, 2), 3, dim=32, n_layer=1, n_head=2).state_dict()
    path = tmp_path / "prior.safetensors"
    layer = {k.replace("layers.0", "layers.99999999"): v for k, v in state.items()}
    empty = {"tok_embeddings.weight": torch.zeros(8, 0).reshape(0, 10**9)}
    for changed, sizes in [
        (layer, {}),
        (state | empty, {}),
        (state | {"layers.0.feed_forward.w1.weight": torch.zeros(10**6, 0)}, {}),
        (state | {"tok_embeddings.weight": torch.zeros(0, 2**60)}, {}),
        (state, {"n_head": 3}),
    ]:
        save_file(changed, path)
        with pytest.raises(ValueError, match=r"prior.safetensors|must be a multiple"):
            load_prior(path, num_classes=3, **{"grid": (2, 2), "n_head": 2, **sizes})


CHANGES = [
    ("prior", "grid", [10**5, 10**5]),
    ("prior", "grid", [-4, -4]),
    ("prior", "grid", [2, 2]),
    ("prior", "grid", "ab"),
    ("prior", "n_head", 0),
    ("prior", "n_head", 10**12),
    ("prior", None),
    ("added_priors", -1),
    ("rows", [10**9, 0, 1]),
    ("rows", [0]),
    ("sources", [5, 0, 0]),
    ("order_seed", "a"),
    ("reader", "image_shape", [10**6, 10**6, 3]),
    ("reader", "other", 1),
    ("classes", "dtype", "<U1000000000"),
    ("classes", "values", [[]]),
    ("tokenizer", "type", "os.system"),
    ("tokenizer", "attributes", "grid_", [10**6, 10**6]),
    ("tokenizer", "attributes", "patch_size_", [10**6, 10**6]),
    ("tokenizer", "attributes", "n_codes_", 10**12),
    ("params", "n_orders", 10**12),
    ("params", "unknown", 1),
    ("params", []),
    ("history", None),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_invalid_configurations_are_refused(folder, memory_limit, change):
    *keys, last, value = change
    config = json.loads((folder / "config.json").read_text())
    section = config
    for key in keys:
        section = section[key]
    section[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"saved does not contain a valid (model|classifier)"):
        AnyOrderARClassifier.from_pretrained(folder)


@pytest.mark.parametrize("number", [99, 0, "x", None])
def test_unknown_formats_are_refused(folder, number):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": number}))
    with pytest.raises(ValueError, match=f"in format {number!r}; .*reads format 1"):
        AnyOrderARClassifier.from_pretrained(folder)


def test_configurations_cannot_set_other_attributes(folder, digits):
    config = json.loads((folder / "config.json").read_text())
    config["history"]["predict"] = config["history"]["model_"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    assert AnyOrderARClassifier.from_pretrained(folder).predict(digits[0][:2]).shape == (2,)


def test_deeply_nested_configurations_are_refused(folder):
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"config.json is not readable JSON"):
        AnyOrderARClassifier.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["../../secret.pt", "/etc/secret.pt", "a\\..\\b.pt", "a/../../b.pt"]
)
def test_file_names_outside_of_a_repository_are_refused(name):
    with pytest.raises(OSError, match="is refused: it leads out of the repository"):
        find_file("owner/name", name)


def test_local_models_need_no_network(digits, folder, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    X, y, X_test, _ = digits
    clf = AnyOrderARClassifier.from_pretrained(folder, max_iter=1, memory=tmp_path / "memory")
    clf.fit(X[:60], y[:60]).predict(X_test[:5])
    clf.set_params(prior=str(folder)).fit(X[:60], y[:60]).predict(X_test[:5])
    assert np.isfinite(clf.score_samples(X_test[:5])).all()


# Killed processes, and random damage -----------------------------------------------------------


@pytest.mark.slow
def test_killed_calls_can_be_repeated(tmp_path):
    """A short run of the benchmark; benchmarks/results/faults.md contains a long one."""
    sizes = ["--kills", "3", "--digits", "90", "--images", "150", "--models", "30"]
    command = [sys.executable, "-m", "benchmarks.reliability.faults", *sizes, "--output", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True)
    counts = {}
    for line in (tmp_path / "faults.md").read_text().splitlines()[6:]:
        _, what, numbers, _ = line.split("|")
        pairs = re.findall(r"([\w ]+): (\d+)", numbers)
        counts[what.split()[2]] = {name.strip(): int(n) for name, n in pairs}
    for kind in ("fits", "predictions"):
        assert counts[kind]["killed"] == counts[kind]["equal"] == 3
        assert counts[kind]["damaged files"] == 0
    assert counts["predictions"]["most parts computed twice"] <= 1
    for kind, n in (("image", 150), ("model", 30)):
        assert counts[kind].get("results", 0) + counts[kind].get("clear errors", 0) == n
        failures = ("crashes", "hangs", "other errors", "above 5 CPU s", "above 2 GiB")
        assert not any(counts[kind].get(name) for name in failures)


DTYPES = st.sampled_from(["u1", ">u2", "i8", "f2", "f4", "f8", "?", "O"])


@settings(max_examples=25, deadline=None)
@hypothesis.given(data=st.data())
def test_any_array_gives_probabilities_or_an_error(data):
    """Arrays of random shapes, types and labels."""
    n = data.draw(st.integers(0, 12), "images")
    shape = data.draw(st.lists(st.integers(0, 7), min_size=0, max_size=4), "shape")
    dtype = data.draw(DTYPES, "dtype")
    values = np.random.RandomState(0).randint(9, size=(n, *shape)).astype(dtype)
    if n and values.size and values.dtype.kind == "f":
        values.flat[0] = data.draw(st.sampled_from([0.0, -1.0, np.nan, np.inf, 1e4]), "first")
    X = data.draw(st.sampled_from([lambda x: x, list, np.asfortranarray, torch_if_possible]))(
        values
    )
    y = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=n, max_size=n), "labels")
    params = {
        "search": data.draw(st.sampled_from(["exhaustive", "auto"]), "search"),
        "aggregation": data.draw(st.sampled_from(AGGREGATIONS), "aggregation"),
        "order": data.draw(st.sampled_from(["random", "antithetic", "raster"]), "order"),
        "augmentation": data.draw(st.sampled_from([None, 2]), "augmentation"),
        "n_orders": 2,
    }
    clf = small_classifier(AnyOrderARClassifier, max_iter=1, prior=SIZES).set_params(**params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            clf.fit(X, y)
        except (ValueError, TypeError) as exc:
            assert str(exc)  # noqa: PT017
            return
        proba = clf.predict_proba(X)
    assert proba.shape == (n, len(set(y)))
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(clf.predict_proba(X[:1]), proba[:1], atol=1e-6)


def torch_if_possible(values):
    possible = values.dtype.isnative and values.dtype.kind in "uif" and values.dtype != np.uint16
    return torch.from_numpy(values) if possible else values


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o002, 0o664)])
def test_files_respect_the_umask(digits, tmp_path, monkeypatch, umask, mode):
    X, y = digits[0][:60], digits[1][:60]
    monkeypatch.setattr(checkpoints, "INTERVAL_FACTOR", 0)
    monkeypatch.setattr(checkpoints.Checkpoints, "clear", lambda self: None)  # keep the files
    params = {"max_iter": 1, "augmentation": None, "prior": SIZES, "n_orders": 1}
    clf = small_classifier(AnyOrderARClassifier, memory=tmp_path / "memory", **params)
    before = os.umask(umask)
    try:
        clf.set_params(checkpoint_dir=tmp_path / "checkpoints").fit(X, y).predict(X)
        clf.save_pretrained(tmp_path / "saved")
        tokenize_dataset(clf, X, tmp_path / "tokens", y=y)
        write_report(clf, X[:9], y[:9], tmp_path / "report" / "report.html")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert len({path.parent for path in files}) == 5
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o777 & ~umask}

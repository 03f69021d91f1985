"""Published weights, the hub, and the native format.

Hub tests run the client library against its cache layout and a local server. Each environment
needs a separate process, because the client reads it when it is imported.
"""

import argparse
import copy
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import urllib.parse
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

from conftest import small_classifier
from skaocls import (
    AnyOrderARClassifier,
    AnyOrderPrior,
    FineTuning,
    LlamaGenTokenizer,
    MaskGITTokenizer,
    PatchTokenizer,
    PretrainedWeights,
)
from skaocls.files import ask_hub, try_to_connect
from skaocls.fitted.pretrained import load_published
from skaocls.fitted.tokenization import encode_for_orders, training_tokens
from skaocls.priors.loading import load_prior
from skaocls.scoring.exhaustive import log_likelihoods

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json", "model.safetensors", "tokenizer.safetensors"}

# The published tokenizers ---------------------------------------------------------------------


def made_up(shapes):
    """Return weights that only depend on their name."""
    state = {}
    for key, shape in shapes.items():
        r = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        r = r.astype(np.float32)
        if len(shape) >= 2:
            r /= np.sqrt(np.prod(shape[1:], dtype=np.float32))
        else:
            r = 1 + 0.1 * r if key.endswith("weight") else 0.1 * r
        state[key] = torch.from_numpy(r.astype(np.float32))
    return state


@pytest.fixture(scope="module")
def llamagen(golden, tmp_path_factory):
    state = made_up(json.loads((golden / "llamagen_vq16_keys.json").read_text()))
    state["quantize.codebook_used"] = torch.zeros(65536)
    file = tmp_path_factory.mktemp("llamagen") / "vq.pt"
    torch.save({"model": state, "steps": 3}, file)
    return file


@pytest.fixture(scope="module")
def maskgit(golden, tmp_path_factory):
    file = tmp_path_factory.mktemp("maskgit") / "vq.bin"
    torch.save(made_up(json.loads((golden / "maskgit_vq16_keys.json").read_text())), file)
    return file


def picture(s):
    y, x = np.mgrid[:s, :s]
    channels = [x * 255 // (s - 1), y * 255 // (s - 1), (x + y) * 7 % 256]
    return np.stack(channels, -1).astype(np.uint8)[None]


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("name", ["llamagen", "maskgit"])
def test_golden_tokenizers(name, size, golden, request):
    cls, every = {"llamagen": (LlamaGenTokenizer, 1), "maskgit": (MaskGITTokenizer, 16)}[name]
    source = request.getfixturevalue(name)
    tokenizer = cls(source, image_shape=(size, size)).fit()
    expected = np.load(golden / "tokenizers_expected.npz")
    model, latents = tokenizer.model_, []
    encode = model.encode
    model.encode = lambda pixels: latents.append(encode(pixels)) or latents[-1]
    codes = tokenizer.transform(picture(size))
    assert codes.shape == (1, size // 16, size // 16)
    assert (codes.ravel() == expected[f"{name}_codes_{size}"]).mean() >= 0.99
    latent = latents[0][:, ::every].cpu()
    np.testing.assert_allclose(latent, expected[f"{name}_latent_{size}"], atol=1e-3)
    if f"{name}_decoded_{size}" in expected:
        codes = expected[f"{name}_codes_{size}"].reshape(codes.shape)
        with torch.inference_mode():
            codes = torch.from_numpy(codes).to(latents[0].device)
            decoded = model.decode(codes)[:, :, ::8, ::8]
        np.testing.assert_allclose(decoded.cpu(), expected[f"{name}_decoded_{size}"], atol=1e-3)


@pytest.fixture(scope="module")
def small_tokenizer(llamagen):
    return LlamaGenTokenizer(llamagen, image_shape=(32, 48)).fit()


@pytest.fixture(scope="module")
def pictures():
    return np.random.RandomState(0).randint(256, size=(3, 32, 48, 3), dtype=np.uint8)


def test_tokenizer_batches_and_inverse(small_tokenizer, pictures, maskgit):
    for tokenizer in (small_tokenizer, MaskGITTokenizer(maskgit, image_shape=(32, 48)).fit()):
        codes = tokenizer.transform(pictures)
        assert codes.shape == (3, 2, 3)
        single = np.concatenate([tokenizer.transform(p[None]) for p in pictures])
        np.testing.assert_array_equal(codes, single)
        np.testing.assert_array_equal(codes, tokenizer.transform(pictures / np.float32(255)))
        images = tokenizer.inverse_transform(codes)
        assert images.shape == pictures.shape and images.dtype == np.float32
        assert images.min() >= 0 and images.max() <= 1


def test_latent_noise(small_tokenizer, pictures):
    codes = small_tokenizer.transform(pictures)
    tokenizer = copy.copy(small_tokenizer).set_params(latent_noise=0.5)
    np.testing.assert_array_equal(tokenizer.transform(pictures), codes)
    # a classifier trains without noise, and draws noise for each order
    batch = tokenizer.reader_.open(pictures)
    views = training_tokens(tokenizer, batch, None, np.random.RandomState(0))
    np.testing.assert_array_equal(views[:, 0], codes.reshape(len(codes), -1))
    by_order = encode_for_orders(tokenizer, batch, slice(0, 3), 2, seed=0).all_codes()
    assert by_order.shape == (3, 2, 6)
    assert (by_order[:, 0] != by_order[:, 1]).any()
    alone = encode_for_orders(tokenizer, batch, slice(1, 2), 2, seed=0).all_codes()
    np.testing.assert_array_equal(alone, by_order[1:2])


def test_invalid_input_of_tokenizers(small_tokenizer, llamagen, maskgit, pictures):
    for factor in (2.0, -1.0):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            small_tokenizer.transform(pictures / np.float32(255) * factor)
    with pytest.raises(ValueError, match="multiples of 16"):
        LlamaGenTokenizer(llamagen, image_shape=(64, 72)).fit()
    with pytest.raises(ValueError, match="does not fit LlamaGenVQ"):
        LlamaGenTokenizer(maskgit).fit()


# Files and folders ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(golden):
    return load_file(golden / "randar_tiny.safetensors")


def load_tiny(*args, **params):
    return load_prior(*args, **({"grid": (4, 4), "n_head": 4, "num_classes": 5} | params))


FORMS = {  # common wrappers and prefixes of state dicts
    "plain": lambda state: state,
    "both": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    "both, otherwise": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    "blocks compiled": lambda state: {
        k.replace(".attention.", "._orig_mod.attention."): v for k, v in state.items()
    },
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    "ema": lambda state: {"ema": state, "model": {k: 0 * v for k, v in state.items()}, "steps": 7},
    "nested": lambda state: {"state_dict": {"model": state}},
    "deepspeed": lambda state: {"module": state, "dp_world_size": 8},
}


@pytest.mark.parametrize("form", ["safetensors", "legacy", "accelerate", *FORMS])
def test_golden_prior_from_file(golden, tiny, tmp_path, form):
    source = tmp_path
    if form in FORMS:
        torch.save(FORMS[form](tiny), tmp_path / "prior.pt")
    elif form == "legacy":
        source = tmp_path / "prior.pt"
        torch.save(tiny, source, _use_new_zipfile_serialization=False)
    elif form == "accelerate":  # the format of accelerator.save_state
        save_file({f"_orig_mod.{k}": v for k, v in tiny.items()}, tmp_path / "model.safetensors")
        for name in ("optimizer.bin", "scheduler.bin", "sampler.bin", "scaler.pt"):
            torch.save({"state": {}}, tmp_path / name)
        (tmp_path / "random_states_0.pkl").touch()
    else:
        source = golden / "randar_tiny.safetensors"
    prior = load_tiny(source)
    assert not prior.training and all(p.requires_grad for p in prior.parameters())
    expected = np.load(golden / "randar_tiny_expected.npz")
    ll = log_likelihoods(prior, expected["tokens"], expected["orders"], np.arange(6))
    np.testing.assert_allclose(ll, expected["log_prob"].sum(-1).transpose(2, 0, 1), atol=1e-4)


def test_folder_of_several(tiny, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(tiny, tmp_path / name)
    (tmp_path / "._a.safetensors").touch()
    with pytest.raises(OSError, match=r"several: a\.safetensors, b\.safetensors. Pass filename"):
        load_tiny(tmp_path)
    assert load_tiny(tmp_path, "b.safetensors").num_classes == 5
    with pytest.raises(FileNotFoundError, match=r"no file 'c\.safetensors'"):
        load_tiny(tmp_path, "c.safetensors")


@pytest.mark.parametrize(
    "source",
    ["missing.pt", "no such thing", "a/b/c", "/no/such/file.pt", "./new", "../new", "~/new", "new/"]
    + [Path("models/new"), ""],
)
def test_nonsense_source(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"neither a file nor a folder, as seen from|no weights file"):
        load_tiny(source)
    if source:
        with pytest.raises(OSError, match=rf"^'{source!s}' is neither a file nor a folder"):
            AnyOrderARClassifier.from_pretrained(source)


@pytest.mark.parametrize("form", ["safetensors", "pt", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_truncated_file(tiny, tmp_path, form, share):
    file = tmp_path / ("prior.safetensors" if form == "safetensors" else "prior.pt")
    if form == "safetensors":
        save_file(tiny, file)
    else:
        torch.save(tiny, file, _use_new_zipfile_serialization=form == "pt")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"prior\.(safetensors|pt) "):
        load_tiny(file)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output.weight": torch.zeros(41, 64)}, r"output\.weight: .*\[41, 64\].*\[40, 64\]"),
        (
            {"norm.weight": None, "extra.bias": torch.zeros(1)},
            r"Missing key.*norm\.weight.*\n.*Unexpected key.*extra\.bias",
        ),
        ({"module.norm.weight": torch.ones(64)}, r"'norm\.weight' under several names"),
    ],
)
def test_weights_that_do_not_fit(tiny, tmp_path, change, message):
    state = {k: v for k, v in (tiny | change).items() if v is not None}
    save_file(state, tmp_path / "prior.safetensors")
    with pytest.raises(ValueError, match=message):
        load_tiny(tmp_path)


@pytest.mark.parametrize(
    "content", [[1, 2], torch.zeros(3), {"a": 1}, {"model": {"a": "b"}}, {"conv.w": torch.zeros(2)}]
)
def test_other_contents(tmp_path, content):
    torch.save(content, tmp_path / "prior.pt")
    with pytest.raises(ValueError, match=r"state dict|conv\.w"):
        load_tiny(tmp_path)


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_file_is_not_executed(tiny, tmp_path, writer):
    file, trace = tmp_path / "prior.pt", tmp_path / "trace"
    state = tiny | {"evil": Evil(trace)}
    torch.save(state, file) if writer == "torch" else file.write_bytes(pickle.dumps(state, 2))
    with pytest.raises(ValueError, match="objects other than tensors"):
        load_tiny(file)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".joblib", ".pkl.gz", ".safetensors"])
@pytest.mark.parametrize("compress", [0, 3, "bz2", "xz"])
def test_pickled_classifiers(fitted, tmp_path, suffix, compress):
    file = tmp_path / f"it's a classifier{suffix}"
    joblib.dump(fitted, file, compress=compress)
    for use in (
        AnyOrderARClassifier.from_pretrained,
        lambda file: AnyOrderARClassifier(prior=file).fit(np.zeros((4, 8, 8)), [0, 1, 0, 1]),
    ):
        with pytest.raises(ValueError, match=r"clf\.save_pretrained") as error:
            use(file)
        assert f"joblib.load({str(file)!r})" in str(error.value)
        assert error.value.__suppress_context__  # hides torch's advice


@pytest.mark.parametrize("content", [lambda clf: clf, lambda clf: {"model": clf.prior_}])
def test_classifiers_in_torch_files(fitted, tmp_path, content):
    file = tmp_path / "model.pt"
    torch.save(content(fitted), file)
    with pytest.raises(ValueError, match=r"\(skaocls\..*clf.save_pretrained") as error:
        AnyOrderARClassifier.from_pretrained(file)
    assert f"torch.load({str(file)!r}, weights_only=False)" in str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_arguments_in_a_file(tiny, tmp_path, legacy):
    """Arguments of a training script are harmless; other objects are refused with advice."""
    file = tmp_path / "it's.pt"
    kind = {"_use_new_zipfile_serialization": not legacy}
    torch.save({"model": tiny, "args": argparse.Namespace(lr=1e-4, data="x")}, file, **kind)
    assert total(load_tiny(file).state_dict()) == pytest.approx(total(tiny))
    torch.save({"model": tiny, "path": Path("x")}, file, **kind)
    with pytest.raises(ValueError, match=r"pathlib.*trust") as error:
        load_tiny(file)
    line = str(error.value).splitlines()[-1]
    subprocess.run([sys.executable, "-c", line], cwd=tmp_path, check=True)
    assert total(load_tiny(tmp_path / "weights.pt").state_dict()) == pytest.approx(total(tiny))


@pytest.mark.parametrize("given, loaded", [(None, 5), (5, 5), (6, 6)])
def test_class_table_with_and_without_a_null_row(golden_prior, tiny, tmp_path, given, loaded):
    save_file(tiny, tmp_path / "prior.safetensors")  # six rows
    if given is None:
        with pytest.warns(UserWarning, match="num_classes=5.*num_classes=6"):
            prior = load_tiny(tmp_path, num_classes=None)
    else:
        prior = load_tiny(tmp_path, num_classes=given)
    assert prior.num_classes == loaded
    expected, rows = golden_prior[1], prior.class_table.detach()
    ll = log_likelihoods(prior, expected["tokens"], expected["orders"], np.arange(6))
    np.testing.assert_allclose(ll, expected["log_prob"].sum(-1).transpose(2, 0, 1), atol=1e-4)
    table = tiny["cls_embedding.embedding_table.weight"]
    null = table[5] if loaded == 5 else table.mean(0)
    np.testing.assert_allclose(rows[-1], null, atol=1e-6)
    for num_classes in (4, 7, 1000):
        with pytest.raises(ValueError, match=rf"6 rows.* 5.*{num_classes}"):
            load_tiny(tmp_path, num_classes=num_classes)


# The hub --------------------------------------------------------------------------------------

CALLS = """
import json, sys, time
time.sleep = lambda seconds: None  # no waiting between retries
from skaocls import PretrainedWeights
from skaocls.fitted.pretrained import load_published

for args, params in json.loads(sys.argv[1]):
    try:
        token = params.pop("token", None)
        weights = PretrainedWeights(*args, grid=(4, 4), n_head=4, **params)
        prior = load_published(weights, token=token)
        answer = {"sum": sum(float(p.double().sum()) for p in prior.parameters())}
    except Exception as exc:
        answer = {"error": str(exc), "types": [t.__name__ for t in type(exc).__mro__]}
    print(json.dumps(answer))
"""


def call_hub(home, *calls, code=CALLS, **environment):
    """Call load_published with each (args, params) in a process with that environment."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(calls)],
        env=inherited | environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def check_refusals(answers, expected):
    for answer, (kind, message) in zip(answers, expected, strict=True):
        assert kind in answer.get("types", []), answer
        assert message in answer["error"], answer


def total(state):
    return sum(float(v.double().sum()) for v in state.values())


def test_offline_cache(golden, tiny, tmp_path):
    repo = tmp_path / "hub" / "models--owner--name"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    content = (golden / "randar_tiny.safetensors").read_bytes()
    (repo / "blobs" / "etag").write_bytes(content)
    (repo / "snapshots" / COMMIT / "prior.safetensors").symlink_to("../../blobs/etag")
    in_cache = ["owner/name", "prior.safetensors"]
    main, commit, *refusals = call_hub(
        tmp_path,
        (in_cache, {}),
        (in_cache, {"revision": COMMIT}),
        (["owner/other", "prior.safetensors"], {}),
        (in_cache, {"revision": "v2"}),
        (["owner/name"], {}),
        HF_HUB_OFFLINE="1",
    )
    assert main["sum"] == commit["sum"] == pytest.approx(total(tiny), abs=1e-6)
    check_refusals(
        refusals,
        [
            ("FileNotFoundError", "not in the cache"),
            ("FileNotFoundError", "'v2': 'prior.safetensors' is not in the cache"),
            ("OSError", "HF_HUB_OFFLINE"),
        ],
    )


class HubHandler(BaseHTTPRequestHandler):
    """The hub's routes for files, listings and commits."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code, status=404):
        self.answer(status=status, X_Error_Code=code, X_Error_Message=code)

    def do_GET(self):
        self.server.requests.append((self.command, self.path, self.headers["Authorization"]))
        path = urllib.parse.urlparse(self.path).path
        api, path = path.startswith("/api/models/"), path.removeprefix("/api/models")
        parts = path.strip("/").split("/")
        repo, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
        files = self.server.repos.get(repo)
        if files is None:
            self.refuse("RepoNotFound")
        elif repo.endswith("/gated"):
            self.refuse("GatedRepo", 403)
        elif revision not in ("main", COMMIT):
            self.refuse("RevisionNotFound")
        elif api:
            listing = [
                {"type": "file", "path": k, "size": len(v), "oid": "0"} for k, v in files.items()
            ]
            self.answer(json.dumps(listing).encode(), Content_Type="application/json")
        elif parts[4] not in files:
            self.refuse("EntryNotFound")
        else:
            content = files[parts[4]]
            headers = {"ETag": f'"{zlib.crc32(content)}"', "X-Repo-Commit": COMMIT}
            if parts[4].startswith("cut") and self.command == "GET":
                headers["Content-Length"] = len(content)
                content = content[: len(content) // 2]
                self.close_connection = True
            self.answer(content, **headers)

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.repos, server.requests = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(golden, tiny, hub, tmp_path):
    content = (golden / "randar_tiny.safetensors").read_bytes()
    hub.repos["owner/name"] = {
        "README.md": b"#",
        "prior.safetensors": content,
        "cut.pt": content[::-1],
    }
    hub.repos["owner/one"] = {"README.md": b"#", "prior.safetensors": content}
    hub.repos["owner/training"] = {"prior.safetensors": content, "optimizer.bin": b"no weights"}
    hub.repos["iasudakov/ar_classifier"] = {"a.pt": b"", "b.safetensors": content}
    hub.repos["owner/gated"] = {"prior.safetensors": content}
    name = ["owner/name", "prior.safetensors"]
    main, commit, only, training, papers, *refusals = call_hub(
        tmp_path,
        (name, {"token": "hf_secret"}),
        (name, {"revision": COMMIT}),
        (["owner/one"], {}),
        (["owner/training"], {}),
        (["randar-l-classifier", "b.safetensors"], {}),
        (["randar-l-classifier"], {}),
        (["owner/name"], {}),
        (["owner/missing", "prior.safetensors"], {}),
        (["owner/missing"], {}),
        (["owner/name", "other.pt"], {}),
        (["owner/gated", "prior.safetensors"], {}),
        (["owner/gated"], {}),
        (name, {"revision": "v9"}),
        (["owner/name"], {"revision": "v9"}),
        (["owner/name", "cut.pt"], {}),
        (["owner--/name", "prior.safetensors"], {}),
        HF_ENDPOINT=hub.url,
    )
    for answer in (main, commit, only, training, papers):
        assert answer["sum"] == pytest.approx(total(tiny), abs=1e-6)
    assert ("GET", "/owner/name/resolve/main/prior.safetensors", "Bearer hf_secret") in hub.requests
    repo, listed = "The hub repository 'owner/", "has several: "
    missing, gated = f"{repo}missing' does not exist, or is private", f"{repo}gated' is gated"
    revision = f"{repo}name' at revision 'v9' does not exist: there is no such revision"
    check_refusals(
        refusals,
        [
            ("OSError", f"ar_classifier' {listed}a.pt, b.safetensors. Pass filename."),
            ("OSError", f"{repo}name' {listed}cut.pt, prior.safetensors. Pass filename."),
            ("OSError", missing),
            ("OSError", missing),
            ("FileNotFoundError", f"{repo}name' has no file 'other.pt'"),
            ("OSError", gated),
            ("OSError", gated),
            ("OSError", revision),
            ("OSError", revision),
            ("OSError", f"{repo}name': 'cut.pt' could not be fetched"),
            ("OSError", "The hub repository 'owner--/name'"),
        ],
    )
    cached = [p.name for p in (tmp_path / "hub").glob("models--*/snapshots/*/*")]
    assert sorted(cached) == ["b.safetensors", *["prior.safetensors"] * 3]


def test_no_network(golden, tiny, tmp_path):
    """Without a network, calls fail at once, and cached files are still loaded."""
    no_waiting = "def fail(seconds): raise AssertionError('the client waits')\n"
    code = CALLS.replace("time.sleep = lambda seconds: None", no_waiting + "time.sleep = fail")
    repo = tmp_path / "hub" / "models--owner--cached"
    for folder in ("refs", f"snapshots/{COMMIT}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    shutil.copy(golden / "randar_tiny.safetensors", repo / "snapshots" / COMMIT / "a.safetensors")
    cached, *refused = call_hub(
        tmp_path,
        (["owner/cached", "a.safetensors"], {}),
        (["owner/cached", "b.safetensors"], {}),
        (["models/mine"], {}),
        (["randar-l"], {}),
        code=code,
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert cached["sum"] == pytest.approx(total(tiny), abs=1e-6)
    cannot = "the hub cannot be reached"
    check_refusals(refused, [("OSError", cannot)] * 3)
    check_refusals(refused, [("OSError", "o local file or folder has this name")] * 3)
    check_refusals(refused, [("OSError", "HF_HUB_OFFLINE=1")] * 3)


@pytest.mark.parametrize("variable", [None, "http_proxy", "all_proxy"])
def test_hub_that_does_not_answer(monkeypatch, variable):
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        if variable is not None:
            monkeypatch.setenv(variable, url)
            url = "http://hub.invalid"  # only the proxy can reach it
        assert try_to_connect(url) is None
    assert "127.0.0.1: " in try_to_connect(url)  # refused
    waiting = threading.Event()

    def connect(*args):
        waiting.wait()
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr("skaocls.files.CONNECT_SECONDS", 0.1)
    try:
        assert try_to_connect(url) == "127.0.0.1 did not answer within 0.1 seconds"
    finally:
        waiting.set()


def test_slow_hub_is_logged(caplog):
    asking = "The hub repository 'owner/name'", "'prior.pt'"
    assert ask_hub(*asking, lambda: 7) == 7
    with pytest.raises(OSError, match=r"'prior.pt' could not be fetched"):
        ask_hub(*asking, socket.create_connection, ("127.0.0.1", 9), 1.0)
    assert not caplog.records
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        caller = socket.create_connection(silent.getsockname(), 3.5)
        with caller, pytest.raises(OSError, match="timed out"):
            ask_hub(*asking, caller.recv, 1)
    [record] = caplog.records
    assert "owner/name" in record.getMessage() and "prior.pt" in record.getMessage()
    assert "HF_HUB_OFFLINE=1" in record.getMessage()


def test_unwritable_cache(golden, hub, tmp_path):
    hub.repos["owner/name"] = {"a.pt": (golden / "randar_tiny.safetensors").read_bytes()}
    (tmp_path / "file").touch()
    call = ["owner/name", "a.pt"], {}
    answers = call_hub(tmp_path / "file" / "home", call, HF_ENDPOINT=hub.url)
    check_refusals(answers, [("OSError", "'a.pt' could not be fetched or cached")])


class UploadApi:
    """Uploads to a folder instead of the hub, and records the arguments."""

    def __init__(self, token):
        self.token = token

    def create_repo(self, repo_id, **params):
        self.created = (repo_id, params)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert self.created == (repo_id, {"private": True, "exist_ok": True})
        assert self.token == "hf_secret"
        shutil.copytree(folder_path, repo_id)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/{COMMIT}")


def test_push_to_hub(fitted, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("skaocls.fitted.saving.HfApi", UploadApi)
    metrics = {"test accuracy": 0.98765}
    url = fitted.push_to_hub("me/digits", metrics=metrics, private=True, token="hf_secret")
    assert url.endswith(f"/me/digits/commit/{COMMIT}")
    assert {path.name for path in Path("me/digits").iterdir()} == FILES | {"README.md"}
    card = Path("me/digits/README.md").read_text()
    assert "| test accuracy | 0.9877 |" in card and "Classes (3): 0, 1, 2" in card
    assert 'AnyOrderARClassifier.from_pretrained("me/digits")' in card
    restored = AnyOrderARClassifier.from_pretrained("me/digits")
    X = digits[2][:10]
    np.testing.assert_array_equal(restored.predict_proba(X), fitted.predict_proba(X))


# The native format ----------------------------------------------------------------------------


def make(**params):
    return small_classifier(
        AnyOrderARClassifier, **({"max_iter": 2, "augmentation": None} | params)
    )


def digits_model():
    data = load_digits(n_class=3)
    orders = [np.random.RandomState(i).permutation(4) for i in range(3)]
    clf = make(tokenizer=PatchTokenizer(4, n_codes=16), order=np.array(orders))
    return clf.fit(data.images[:80], data.target[:80]), data.images[80:90]


def tabular_model():
    X, y = load_iris(return_X_y=True)
    clf = make(class_prior=[0.5, 0.5, 0.0], random_state=np.random.RandomState(0))
    return clf.fit(X, np.array(["setosa", "versicolor", "virginica"])[y]), X[::10]


def frame_model():
    X, y = load_iris(return_X_y=True, as_frame=True)
    labels = np.where(y == 0, "setosa", "other").astype(object)
    return make(early_stopping=True, device=torch.device("cpu")).fit(X, labels), X[::10]


def finetuned_model():
    clf, X = digits_model()
    y = np.arange(30) % 2
    data = load_digits().images[:30]
    frozen, tuning = FrozenEstimator(clf.tokenizer_), FineTuning("lora", lora_rank=4)
    return make(prior=clf.prior_, tokenizer=frozen, finetune=tuning).fit(data, y), X


@pytest.mark.parametrize("model", [digits_model, tabular_model, frame_model, finetuned_model])
def test_native_round_trip(model, tmp_path):
    (clf, X), folder = model(), tmp_path / "new" / "folder"
    clf.save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == FILES
    restored = AnyOrderARClassifier.from_pretrained(folder)
    for method in ("predict_proba", "predict"):
        np.testing.assert_array_equal(getattr(restored, method)(X), getattr(clf, method)(X))
    for name in ("orders_", "classes_"):
        np.testing.assert_array_equal(getattr(restored, name), getattr(clf, name))
    assert restored.classes_.dtype == clf.classes_.dtype
    assert vars(restored).keys() == vars(clf).keys() - {"place_evidence_"}
    params = restored.get_params()
    for name, value in clf.get_params().items():
        if value is None or isinstance(value, (str, bool, int, float, dict)):
            assert params[name] == value
    codes = clf.tokenizer_.transform(np.asarray(X))
    np.testing.assert_array_equal(restored.tokenizer_.transform(np.asarray(X)), codes)
    images = clf.tokenizer_.inverse_transform(codes)
    np.testing.assert_array_equal(restored.tokenizer_.inverse_transform(codes), images)

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    restored.save_pretrained(folder)  # over the files it was loaded from
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    np.testing.assert_array_equal(restored.predict_proba(X), clf.predict_proba(X))


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    return tmp_path


def test_parameters_at_load_and_refit(fitted, digits, folder):
    X, y, *_ = digits
    clf = AnyOrderARClassifier.from_pretrained(folder, n_orders=2, max_iter=1, augmentation=None)
    np.testing.assert_array_equal(clf.orders_, fitted.orders_[:2])
    assert clf.fit(X[:40], y[:40]).n_iter_ == 1
    with pytest.raises(TypeError, match="n_order"):
        AnyOrderARClassifier.from_pretrained(folder, n_order=2)


def test_classes_of_a_saved_classifier(tmp_path):
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    clf = make(prior={"dim": 32, "n_layer": 1, "n_head": 2}).fit(X[:100], names[:100])
    clf.partial_fit(X[100:], names[100:])  # a second prior
    clf.save_pretrained(tmp_path)
    some = AnyOrderARClassifier.from_pretrained(tmp_path, classes=["virginica", "setosa"])
    assert list(some.classes_) == ["setosa", "virginica"]
    np.testing.assert_array_equal(some.transform(X), clf.transform(X)[:, [0, 2]])
    proba = clf.predict_proba(X)[:, [0, 2]]
    expected = proba / proba.sum(1, keepdims=True)
    np.testing.assert_allclose(some.predict_proba(X), expected, rtol=1e-5)
    np.testing.assert_array_equal(some.class_count_, [50, 50])
    prior = AnyOrderARClassifier.from_pretrained(
        tmp_path, classes=["versicolor"], class_prior=[1.0]
    )
    assert set(prior.predict(X)) == {"versicolor"}


def test_a_prior_and_its_tokenizer_of_gray_images(fitted, digits):
    X = digits[2][:9]
    clf = from_pretrained(fitted.prior_, FrozenEstimator(fitted.tokenizer_), n_orders=4)
    assert clf.image_shape_ == (8, 8, 1)
    codes = fitted.tokenizer_.transform(X).reshape(9, -1)
    ll = log_likelihoods(fitted.prior_, codes, clf.orders_, np.arange(3))
    np.testing.assert_allclose(clf.transform(X), ll.mean(1), atol=1e-4)


def test_image_shape_of_a_saved_classifier(fitted, digits, folder, tmp_path):
    X, expected = digits[2][:5], fitted.predict_proba(digits[2][:5])
    with pytest.raises(ValueError, match="X does not contain images"):
        AnyOrderARClassifier.from_pretrained(folder).predict(X.reshape(5, 64))
    clf = AnyOrderARClassifier.from_pretrained(folder, image_shape=(8, 8))
    np.testing.assert_array_equal(clf.predict_proba(X.reshape(5, 64)), expected)
    clf.save_pretrained(tmp_path / "again")
    clf = AnyOrderARClassifier.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(clf.predict_proba(X.reshape(5, 64)), expected)


def test_tokens_for_a_classifier_that_was_trained_on_views(digits, tmp_path):
    X, y, X_test, _ = digits
    clf = make(crop="auto", augmentation=2).fit(X[:60], y[:60])
    assert clf.model_.views
    clf.save_pretrained(tmp_path)
    codes = clf.tokenizer_.transform(X_test)
    reader = AnyOrderARClassifier.from_pretrained(tmp_path, tokenizer="precomputed")
    expected = clf.set_params(crop="center").predict_proba(X_test)
    np.testing.assert_array_equal(reader.predict_proba(codes), expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"classes": [0, 3]}, r"3 in classes is unknown. The classes are 0, 1, 2\."),
        ({"classes": ["zero"]}, "'zero' in classes is unknown"),
        ({"classes": [1, 2, 1]}, "the same class twice"),
        ({"classes": []}, "classes is empty"),
        ({"classes": [0, 1], "class_prior": [0.2, 0.3, 0.5]}, "one probability for each class"),
        ({"tokenizer": PatchTokenizer(4)}, "only knows the tokens of the saved PatchTokenizer"),
        ({"tokenizer": "patch"}, "Do not pass a tokenizer"),
        ({"prior": {"dim": 64}}, "no parameter prior"),
        ({"priors": [0.2, 0.3, 0.5]}, "'priors'"),
        ({"class_prior": [0.5, 0.5]}, "one probability for each class"),
        ({"image_shape": (16, 16)}, r"image_shape=\(16, 16\) does not match"),
        ({"order": [[0, 1, 2, 3]]}, r"\(n, 16\) is expected"),
        ({"num_classes": 3}, "'num_classes'"),
    ],
)
def test_arguments_that_a_saved_classifier_refuses(folder, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AnyOrderARClassifier.from_pretrained(folder, **arguments)


@pytest.mark.parametrize(
    "name, value", [("grid", (4, 4)), ("n_head", 2), ("num_classes", 3), ("revision", "v1")]
)
def test_weights_options_that_a_saved_classifier_refuses(folder, digits, name, value):
    weights = PretrainedWeights(folder, **{name: value})
    with pytest.raises(ValueError, match=f"Remove {name}"):
        AnyOrderARClassifier.from_pretrained(weights)
    with pytest.raises(ValueError, match=f"Remove {name}"):
        AnyOrderARClassifier(weights).fit(digits[0], digits[1])


def test_filename_of_weights_in_a_saved_classifier(fitted, folder):
    """With a file name, the weights are loaded without the classes and the tokenizer."""
    weights = PretrainedWeights(folder, "model.safetensors", grid=(4, 4), n_head=2, num_classes=3)
    clf = from_pretrained(weights, FrozenEstimator(fitted.tokenizer_))
    assert total(clf.prior_.state_dict()) == pytest.approx(total(fitted.prior_.state_dict()))
    for source in (folder / "model.safetensors", str(folder / "config.json")):
        with pytest.raises(FileNotFoundError, match=r"is a file and contains no file"):
            from_pretrained(PretrainedWeights(source, "other.safetensors"), "auto")


@pytest.mark.parametrize("name", sorted(FILES))
def test_truncated_or_missing_file_of_a_save(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{name} is no"):
        AnyOrderARClassifier.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(OSError, match=name if name != "config.json" else "several"):
        AnyOrderARClassifier.from_pretrained(folder)


@pytest.mark.parametrize("fails", ["model", "tokenizer", "config", "replace"])
def test_failing_save_leaves_the_old_one(folder, fails, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    clf = digits_model()[0]

    def failing_save_file(tensors, file, *args):
        save_file(tensors, file, *args)
        if ("output.weight" in tensors) == (fails == "model"):
            Path(file).write_bytes(b"half")
            raise OSError("disk full")

    if fails == "config":
        clf.loss_curve_ = [np.inf]
    elif fails == "replace":
        monkeypatch.setattr(os, "replace", Mock(side_effect=OSError("disk full")))
    else:
        monkeypatch.setattr("skaocls.files.save_file", failing_save_file)
    with pytest.raises((OSError, ValueError), match=r"disk full|JSON"):
        clf.save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_classifiers_that_cannot_be_saved(digits, tmp_path):
    for method in ("save_pretrained", "push_to_hub"):
        with pytest.raises(NotFittedError):
            getattr(AnyOrderARClassifier(), method)(str(tmp_path / "folder"))
    X, y, *_ = digits
    clf = make(tokenizer=type("OddTokenizer", (PatchTokenizer,), {})()).fit(X[:40], y[:40])
    with pytest.raises(TypeError, match=r"OddTokenizer cannot be saved.*joblib"):
        clf.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# Zero-shot classification with published weights ------------------------------------------------


def save_prior(file, vocab_size, num_classes=1000):
    torch.manual_seed(0)
    prior = AnyOrderPrior(vocab_size, (16, 16), num_classes, 64, 1, 1)
    torch.nn.init.normal_(prior.output.weight, std=0.5)
    torch.nn.init.normal_(prior.cls_embedding["embedding_table"].weight, std=2.0)
    save_file(prior.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def stand_in():
    """A tokenizer of 256 x 256 pictures that takes no time."""
    X = np.random.RandomState(0).randint(256, size=(4, 256, 256, 3), dtype=np.uint8)
    return PatchTokenizer(16, n_codes=8, random_state=0).fit(X)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("small") / "prior.safetensors", 8)


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("large") / "prior.safetensors", 16384)


def from_pretrained(source, tokenizer, **params):
    params = {"n_orders": 1, "random_state": 0, "search": "exhaustive"} | params
    return AnyOrderARClassifier.from_pretrained(source, tokenizer=tokenizer, **params)


def test_zero_shot_subset(small_file, stand_in, tmp_path):
    full = from_pretrained(small_file, stand_in)
    np.testing.assert_array_equal(full.classes_, np.arange(1000))
    some = from_pretrained(small_file, stand_in, classes=["goldfish", "n01440764", 3])
    np.testing.assert_array_equal(some.classes_, [0, 1, 3])
    assert list(some.class_names_) == ["tench", "goldfish", "tiger shark"]
    assert list(some.wordnet_ids_) == ["n01440764", "n01443537", "n01491361"]

    X = picture(256)
    joint, part = full.predict_joint_log_proba(X), some.predict_joint_log_proba(X)
    np.testing.assert_allclose(part + np.log(3), joint[:, [0, 1, 3]] + np.log(1000), atol=1e-3)
    expected = softmax(joint[:, [0, 1, 3]], axis=1)
    assert expected.min() > 0 and np.ptp(expected) > 0.01  # differs between classes
    np.testing.assert_allclose(some.predict_proba(X), expected, atol=1e-3)

    some.save_pretrained(tmp_path)
    restored = AnyOrderARClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(restored.predict_proba(X), some.predict_proba(X))
    assert list(restored.class_names_) == list(some.class_names_)
    assert list(restored.wordnet_ids_) == list(some.wordnet_ids_)


def test_zero_shot_without_a_null_row(stand_in, tmp_path):
    """1000 rows are assumed to be the classes of ImageNet."""
    file, X = save_prior(tmp_path / "prior.safetensors", 8, num_classes=999), picture(256)
    with pytest.warns(UserWarning, match=r"1000 classes"):
        clf = from_pretrained(file, stand_in)
    assert len(clf.classes_) == 1000 and clf.wordnet_ids_[999] == "n15075141"
    clf.save_pretrained(tmp_path / "saved")
    restored = AnyOrderARClassifier.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(restored.predict_proba(X), clf.predict_proba(X))

    weights = PretrainedWeights(save_prior(file, 8, num_classes=9), num_classes=10)
    clf = from_pretrained(weights, stand_in)
    table = load_file(file)["cls_embedding.embedding_table.weight"]
    np.testing.assert_array_equal(clf.prior_.class_table[:-1].detach().cpu(), table)
    tuned = clf.set_params(max_iter=1, augmentation=None, tokenizer=FrozenEstimator(stand_in))
    tuned.fit(np.repeat(X, 10, 0), np.arange(10))  # starts from all ten classes
    assert len(tuned.classes_) == 10


def test_zero_shot_class_prior(small_file, stand_in):
    X = picture(256)
    uniform = from_pretrained(small_file, stand_in, classes=[5, 6])
    skewed = from_pretrained(small_file, stand_in, classes=[5, 6], class_prior=[0.9, 0.1])
    odds = skewed.predict_log_proba(X) - uniform.predict_log_proba(X)
    np.testing.assert_allclose(np.diff(odds), np.log(0.1 / 0.9))


def test_zero_shot_llamagen(large_file, llamagen, tmp_path):
    Image.fromarray(picture(300)[0]).save(tmp_path / "photo.png")
    clf = from_pretrained(large_file, LlamaGenTokenizer(llamagen), classes=[7, 8])
    proba = clf.predict_proba([str(tmp_path / "photo.png")])
    assert proba.shape == (1, 2) and proba.sum() == pytest.approx(1)


def test_plain_decoding_lasts(small_file, stand_in, tmp_path):
    """The decoding of a model is kept by fit and by saving."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.png"
    lying = picture(256)
    lying[:, :, 128:] //= 2
    Image.fromarray(lying[0]).save(file, exif=exif)
    for params in ({"crop": "center"}, {"crop": "random", "n_orders": 2}):
        clf = from_pretrained(small_file, stand_in, classes=[5, 6], decoding="plain", **params)
        clf.save_pretrained(tmp_path / "saved")
        for model in (clf, AnyOrderARClassifier.from_pretrained(tmp_path / "saved")):
            ours = model.predict_joint_log_proba([file])
            np.testing.assert_array_equal(ours, clf.predict_joint_log_proba(lying))
        turned = from_pretrained(small_file, stand_in, classes=[5, 6], **params)
        assert (turned.predict_joint_log_proba([file]) != ours).any()
        turned.save_pretrained(tmp_path / "saved")
        model = AnyOrderARClassifier.from_pretrained(tmp_path / "saved", decoding="plain")
        np.testing.assert_array_equal(model.predict_joint_log_proba([file]), ours)
    wide = [tmp_path / f"{i}.png" for i in range(4)]
    for i in range(4):
        Image.fromarray(lying[0, :8, i : i + 16]).save(wide[i], exif=exif)
    assert make(decoding="plain", max_iter=1).fit(wide, [0, 1, 0, 1]).image_shape_ == (8, 16, 3)
    assert make(max_iter=1).fit(wide, [0, 1, 0, 1]).image_shape_ == (16, 8, 3)


def save_other(file, grid, n_head, dim=64, num_classes=10):
    """Save weights of another grid and number of heads than the published ones."""
    torch.manual_seed(1)
    prior = AnyOrderPrior(16384, grid, num_classes, dim, 2, n_head)
    torch.nn.init.normal_(prior.output.weight, std=0.5)
    save_file(prior.state_dict(), file)
    return prior.eval()


def test_zero_shot_of_other_sizes(llamagen, tmp_path):
    """Other grids, image sizes and numbers of heads can be passed."""
    X = np.random.RandomState(0).randint(256, size=(2, 48, 32, 3), dtype=np.uint8)
    prior = save_other(tmp_path / "prior.safetensors", (3, 2), 2)
    tokenizer = LlamaGenTokenizer(llamagen, image_shape=(48, 32)).fit()
    codes = tokenizer.transform(X).reshape(2, -1)
    sizes = {"n_head": 2, "num_classes": 10}
    weights = PretrainedWeights(tmp_path, **sizes)
    for source, given in (
        (weights, {}),
        (PretrainedWeights(tmp_path, grid=(3, 2), **sizes), {"image_shape": (48, 32)}),
        (prior, {}),
    ):
        for ready in (tokenizer, clone(tokenizer), FrozenEstimator(tokenizer)):
            clf = from_pretrained(source, ready, **given)
            ll = log_likelihoods(prior, codes, clf.orders_, np.arange(10))
            ours = clf.predict_joint_log_proba(X) - clf.class_log_prior_
            np.testing.assert_allclose(ours, ll[:, 0], atol=1e-4)
    assert clf.prior_ is not prior
    # the default is one head per 64 dimensions, which is another model
    other = from_pretrained(PretrainedWeights(tmp_path, num_classes=10), tokenizer)
    difference = other.predict_joint_log_proba(X) - clf.predict_joint_log_proba(X)
    assert abs(difference).max() > 1e-3
    # a later fit starts from the same sizes
    clf = from_pretrained(weights, FrozenEstimator(tokenizer))
    clf.set_params(max_iter=1, augmentation=None, finetune="class_embedding")
    assert clf.fit(X, [0, 1]).prior_.n_head == 2


def test_grid_follows_the_images(tmp_path, monkeypatch):
    """384 x 384 pixels imply 24 x 24 tokens, in from_pretrained and in fit."""
    save_other(tmp_path / "prior.safetensors", (24, 24), 1, num_classes=1000)
    made = []
    monkeypatch.setattr(LlamaGenTokenizer, "fit", lambda self, *_: made.append(self) or 1 / 0)
    with_grid = PretrainedWeights(tmp_path, grid=(24, 24))
    for source, params in ((tmp_path, {"image_shape": (384, 384)}), (with_grid, {})):
        with pytest.raises(ZeroDivisionError):
            from_pretrained(source, "auto", **params)
        assert made.pop().image_shape == (384, 384)
    X = np.zeros((2, 384, 384, 3), np.uint8)
    with pytest.raises(ZeroDivisionError):
        make(prior=tmp_path, image_shape=(384, 384)).fit(X, [0, 1])
    assert made.pop().image_shape == (384, 384)


def test_zero_shot_sizes_that_do_not_match(llamagen, tmp_path, stand_in, small_file):
    prior = save_other(tmp_path / "prior.safetensors", (3, 2), 2)
    tokenizer = LlamaGenTokenizer(llamagen, image_shape=(48, 32))

    def weights(**sizes):
        return PretrainedWeights(tmp_path, num_classes=10, **sizes)

    with pytest.raises(ValueError, match=r"do not match: .*\(2, 3\).*\(3, 2\)"):
        from_pretrained(weights(grid=(2, 3)), tokenizer)
    with pytest.raises(ValueError, match=r"image_shape=\(40, 32\) does not match LlamaGen"):
        from_pretrained(weights(), tokenizer, image_shape=(40, 32))
    with pytest.raises(ValueError, match=r"'source' parameter of PretrainedWeights"):
        from_pretrained(PretrainedWeights(prior), tokenizer)
    with pytest.raises(ValueError, match=r"dim=64 must be a multiple of 4 \* n_head = 12"):
        from_pretrained(weights(n_head=3), tokenizer)


@pytest.mark.parametrize(
    "classes, message",
    [
        (["no such fish"], "is not an ImageNet class"),
        ([1000], "is not an ImageNet class"),
        ([-1], "is not an ImageNet class"),
        (["goldfish", 1], "twice"),
        (["crane"], "Several ImageNet classes are called 'crane'. Pass a WordNet ID"),
    ],
)
def test_zero_shot_invalid_classes(small_file, stand_in, classes, message):
    with pytest.raises(ValueError, match=message):
        from_pretrained(small_file, stand_in, classes=classes)


def test_prior_and_tokenizer_must_match(large_file, small_file, maskgit):
    with pytest.raises(ValueError, match=r"do not match.*16384.*MaskGITTokenizer.*1024"):
        from_pretrained(large_file, MaskGITTokenizer(maskgit))
    with pytest.raises(ValueError, match=r"vocabulary of 8 tokens.*Pass tokenizer"):
        from_pretrained(small_file, "auto")


@pytest.fixture
def downloads(monkeypatch, small_file):
    """Calls of the hub's download function, which always returns the same file."""
    calls = []

    def download(repo, filename, *, revision=None, token=None, local_files_only=False):
        calls.append((repo, filename, revision, token))
        return small_file

    monkeypatch.setattr("skaocls.files.hf_hub_download", download)
    return calls


RANDAR_L = "randar_0.3b_llamagen_360k_bs_1024_lr_0.0004.safetensors"


def test_published_names(downloads, stand_in):
    xl, maskgit = RANDAR_L.replace("0.3b", "0.7b"), RANDAR_L.replace("llamagen", "maskgit")
    for source, filename, expected in [
        ("randar-l", None, RANDAR_L),
        ("randar-xl", None, xl),
        ("randar-l-maskgit", None, maskgit),
        ("ziqipang/RandAR", None, RANDAR_L),
        ("ziqipang/RandAR", "other.pt", "other.pt"),
    ]:
        weights = PretrainedWeights(source, filename, revision="v1")
        load_published(weights, token="hf_secret")
        assert downloads.pop() == ("ziqipang/RandAR", expected, "v1", "hf_secret")
    clf = from_pretrained(weights, stand_in, token="hf_secret")
    assert downloads.pop() == ("ziqipang/RandAR", "other.pt", "v1", "hf_secret")
    assert clf.prior is weights
    assert from_pretrained("randar-l", stand_in).prior == "randar-l"
    downloads.clear()
    for cls, repo, filename in [
        (LlamaGenTokenizer, "FoundationVision/LlamaGen", "vq_ds16_c2i.pt"),
        (MaskGITTokenizer, "fun-research/TiTok", "maskgit-vqgan-imagenet-f16-256.bin"),
    ]:
        with pytest.raises(ValueError, match="does not fit"):  # the file contains a prior
            cls(revision="v1").fit()
        assert downloads.pop() == (repo, filename, "v1", None)


# The real size --------------------------------------------------------------------------------

FULL_SIZE = """
import json, sys
import numpy as np
from skaocls.priors.loading import load_prior
from skaocls.scoring.orders import draw_orders
from skaocls.scoring.exhaustive import log_likelihoods

def peak():  # bytes; unlike ru_maxrss not inherited from the parent process
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])

before = peak()
[path] = json.loads(sys.argv[1])
prior = load_prior(path)
loading = peak() - before
codes = np.random.RandomState(0).randint(16384, size=(1, 256))
ll = log_likelihoods(prior, codes, draw_orders(1, 256, 0), np.array([1, 2]))
print(json.dumps({"loading": loading, "peak": peak(), "ll": ll.tolist()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's memory counters")
def test_full_size_prior_fits_in_memory(golden, tmp_path):
    shapes = json.loads((golden / "randar_l_llamagen_keys.json").read_text())
    generator = torch.Generator().manual_seed(0)
    file = tmp_path / "randar.safetensors"
    state = {k: 0.02 * torch.randn(shape, generator=generator) for k, shape in shapes.items()}
    save_file(state, file)
    del state
    size = file.stat().st_size
    [result] = call_hub(tmp_path, str(file), code=FULL_SIZE)
    file.unlink()
    assert result["loading"] <= 1.3 * size
    assert result["peak"] <= 4 * 2**30
    assert np.isfinite(result["ll"]).all()
    assert np.abs(np.array(result["ll"]) / 256 + np.log(16384)).max() < 2  # nats per token

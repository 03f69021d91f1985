"""benchmarks/imagenet.py on miniature folders, with made-up weights and a stand-in tokenizer."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import BaseEstimator, TransformerMixin

from skaocls import AnyOrderARClassifier, AnyOrderPrior
from skaocls.images import load_images
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CLASSES = {"n01440764": 0, "n01882714": 105, "n07753592": 954}
N_ORDERS = 3


class MeansTokenizer(TransformerMixin, BaseEstimator):
    """The colour of each patch of 16 x 16 pixels, in 16 x 8 x 8 levels."""

    def fit(self, X=None, y=None):
        self.n_codes_, self.grid_, self.image_shape_ = 1024, (16, 16), (256, 256, 3)
        return self

    def transform(self, X):
        means = load_images(X, self.image_shape_).reshape(-1, 16, 16, 16, 16, 3).mean((2, 4))
        r, g, b = np.moveaxis((means * [15.9, 7.9, 7.9]).astype(int), -1, 0)
        return (r * 8 + g) * 8 + b


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    prior = AnyOrderPrior(1024, (16, 16), 1000, dim=64, n_layer=1, n_head=1)
    torch.nn.init.normal_(prior.output.weight, std=0.3)
    file = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_file(prior.state_dict(), file)
    return file


@pytest.fixture
def imagenet(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("imagenet", BENCHMARKS / "imagenet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.published = module.make_tokenizer
    monkeypatch.setattr(module, "make_tokenizer", lambda args: MeansTokenizer())
    monkeypatch.setattr(module, "AT_ONCE", 2)
    scored, score = [], module.score

    def counting(clf, files, columns):
        scored.extend(files)
        return score(clf, files, columns)

    monkeypatch.setattr(module, "score", counting)
    module.scored = scored
    return module


def make_folder(folder, names=CLASSES, n=2):
    rng = np.random.RandomState(0)
    for name in names:
        (folder / str(name)).mkdir(parents=True)
        for i in range(n):
            small = rng.randint(256, size=(4, 5, 3), dtype=np.uint8)
            Image.fromarray(small).resize((300, 260)).save(folder / str(name) / f"{i}.png")
    return folder


def run(imagenet, weights, tmp_path, *options, **folders):
    data = [f"--data={name}={folder}" for name, folder in folders.items()]
    fixed = [f"--prior={weights}", f"--n-orders={N_ORDERS}", "--device=cpu"]
    imagenet.main([*data, *fixed, f"--output={tmp_path / 'out'}", *options])
    return json.loads((tmp_path / "out" / "imagenet.json").read_text())


def without_times(result):
    for r in result["data"].values():
        assert r.pop("images_per_second") > 0
    return result


def test_accuracy(imagenet, weights, tmp_path, capsys):
    """As computed from the classifier's own probabilities, image by image and k by k."""
    folder = make_folder(tmp_path / "data")
    result = run(imagenet, weights, tmp_path, mini=folder)
    files = sorted(folder.glob("*/*.png"))
    y = np.array([CLASSES[f.parent.name] for f in files])
    clf = AnyOrderARClassifier.from_pretrained(
        weights, tokenizer=MeansTokenizer(), classes=list(CLASSES), random_state=0, device="cpu"
    )
    mini = result["data"]["mini"]
    assert mini["images"] == 6 and mini["classes"] == 3
    seen = set()
    for how in AGGREGATIONS:
        clf.set_params(aggregation=how)
        p = [clf.set_params(n_orders=k).score(files, y) for k in range(1, N_ORDERS + 1)]
        np.testing.assert_allclose(mini["accuracy"][how], p)
        error = np.sqrt(np.array(p) * (1 - np.array(p)) / 6)
        np.testing.assert_allclose(mini["standard_error"][how], error)
        seen |= set(p)
    assert seen - {0.0, 1.0}  # else the comparison would say little
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| data | images | classes | aggregation | 1 order | 2 orders |")
    shown = mini["accuracy"]["logsumexp"][0], mini["standard_error"]["logsumexp"][0]
    assert any("| logsumexp | {:.4f} ± {:.4f} |".format(*shown) in line for line in lines)
    assert result["settings"]["precision"] == "torch.float32" and result["device"]
    with Image.open(tmp_path / "out" / "imagenet.png") as image:
        assert np.asarray(image.convert("L")).std() > 5  # not blank


def test_score_of_known_likelihoods(imagenet):
    class Known:
        class_log_prior_ = np.log(np.full(4, 0.25))
        ll = np.random.RandomState(0).normal(size=(7, 5, 4)) * 3

        def _log_likelihoods(self, files):
            yield self.ll[:4]
            yield self.ll[4:]

    columns = np.arange(7) % 4
    right = imagenet.score(Known(), [], columns)
    for how in AGGREGATIONS:
        for k in range(1, 6):
            joint = joint_log_proba(Known.ll[:, :k], Known.class_log_prior_, how)
            np.testing.assert_array_equal(right[how][:, k - 1], joint.argmax(1) == columns)


def test_resume(imagenet, weights, tmp_path):
    folder = make_folder(tmp_path / "data")
    whole = without_times(run(imagenet, weights, tmp_path, mini=folder))
    assert len(imagenet.scored) == 6
    record = tmp_path / "out" / "mini.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    assert len(lines) == 7
    record.write_text("".join(lines[:4]) + lines[4][:20])
    imagenet.scored.clear()
    assert without_times(run(imagenet, weights, tmp_path, mini=folder)) == whole
    kept = {json.loads(line)["file"] for line in lines[1:4]}
    again = [f.relative_to(folder).as_posix() for f in imagenet.scored]
    assert len(again) == 3 and not kept & set(again)
    rows = [json.loads(line) for line in record.read_text().splitlines()[1:]]
    assert sorted(r["file"] for r in rows) == sorted(kept | set(again))
    assert all(r["class"] == CLASSES[r["file"].split("/")[0]] for r in rows)
    imagenet.scored.clear()
    assert without_times(run(imagenet, weights, tmp_path, mini=folder)) == whole
    assert not imagenet.scored
    record.write_text(lines[0][:30])  # stopped while the first line was written
    assert without_times(run(imagenet, weights, tmp_path, mini=folder)) == whole


def test_changed_settings(imagenet, weights, tmp_path):
    folder = make_folder(tmp_path / "data", n=1)
    run(imagenet, weights, tmp_path, mini=folder)
    before = (tmp_path / "out" / "mini.jsonl").read_text()
    with pytest.raises(SystemExit, match=r"mini\.jsonl was made with seed=0 \(now 1\)"):
        run(imagenet, weights, tmp_path, "--seed=1", mini=folder)
    with pytest.raises(SystemExit, match=r"order='random' \(now 'raster'\)"):
        run(imagenet, weights, tmp_path, "--order=raster", mini=folder)
    make_folder(folder, ["n01443537"])
    with pytest.raises(SystemExit, match=r"images=3 \(now 5\), classes=3 \(now 4\)"):
        run(imagenet, weights, tmp_path, mini=folder)
    assert (tmp_path / "out" / "mini.jsonl").read_text() == before


def test_index_folders_and_imagenet_c(imagenet, weights, tmp_path):
    """Indices and WordNet ids name the same classes; of ImageNet-C each severity is a data set."""
    make_folder(tmp_path / "v2", CLASSES.values())
    for severity in "12":
        make_folder(tmp_path / "c" / "fog" / severity)
    folders = {"v2": tmp_path / "v2", "c": tmp_path / "c", "severity": tmp_path / "c/fog/1"}
    data = without_times(run(imagenet, weights, tmp_path, **folders))["data"]
    assert list(data) == ["v2", "c/fog/1", "c/fog/2", "severity"]
    for r in data.values():
        assert r.pop("folder") and r == data["v2"]
    assert (tmp_path / "out" / "c" / "fog" / "2.jsonl").exists()


def test_limit(imagenet, tmp_path):
    folder = make_folder(tmp_path, n=4)
    chosen = {}
    for limit in (2, 3, 7, None):
        files, y, classes = imagenet.list_images(folder, limit, seed=0)
        assert classes.tolist() == sorted(CLASSES.values())  # whether or not they were chosen
        assert y.tolist() == [CLASSES[f.parent.name] for f in files]
        assert len(set(files)) == (limit or 12)
        assert np.ptp([np.sum(y == c) for c in classes]) <= 1
        chosen[limit] = files
    assert chosen[7][:2] == chosen[2]
    assert imagenet.list_images(folder, 7, seed=1)[0] != chosen[7]


def test_tokenizer_file(imagenet, weights):
    """It is read by the tokenizer of the prior's vocabulary."""
    args = imagenet.parse_args(["--data=here=.", f"--prior={weights}", "--tokenizer=vq.bin"])
    assert repr(imagenet.published(args)) == "MaskGITTokenizer(source='vq.bin')"
    args.tokenizer = None
    assert imagenet.published(args) == "auto"


def test_fine_tuned_classifier(imagenet, tmp_path):
    """Saved by save_pretrained, with WordNet ids as labels; it knows more than the folder has."""
    folder = make_folder(tmp_path / "data", ["n01443537", *CLASSES])
    files = sorted(folder.glob("*/*.png"))
    clf = AnyOrderARClassifier(
        {"dim": 32, "n_layer": 1, "n_head": 2}, image_shape=(16, 16), max_iter=3, random_state=0
    )
    clf.fit(files, [f.parent.name for f in files]).save_pretrained(tmp_path / "saved")
    (folder / "n01443537").rename(tmp_path / "n01443537")
    files = sorted(folder.glob("*/*.png"))
    result = run(imagenet, tmp_path / "saved", tmp_path, mini=folder)
    ll = np.concatenate(list(clf.set_params(n_orders=N_ORDERS)._log_likelihoods(files)))
    keep = clf.classes_ != "n01443537"
    predicted = clf.classes_[keep][ll.mean(1)[:, keep].argmax(1)]
    expected = np.mean(predicted == [f.parent.name for f in files])
    assert result["data"]["mini"]["accuracy"]["mean_log_likelihood"][-1] == expected
    (folder / "n01882714").rename(folder / "n01484850")
    with pytest.raises(SystemExit, match="does not know the class n01484850"):
        run(imagenet, tmp_path / "saved", tmp_path, mini=folder)


def test_what_is_wrong_is_said(imagenet, weights, tmp_path):
    folder = make_folder(tmp_path / "data", ["n01440764"], n=1)
    (folder / "n01440764" / "broken.JPEG").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.JPEG"):
        run(imagenet, weights, tmp_path, mini=folder)
    (folder / "tench").mkdir()
    with pytest.raises(SystemExit, match="tench is named for no ImageNet class"):
        run(imagenet, weights, tmp_path, mini=folder)
    with pytest.raises(SystemExit, match="no subfolders named by WordNet id"):
        run(imagenet, weights, tmp_path, mini=folder / "tench")
    with pytest.raises(SystemExit):
        run(imagenet, weights, tmp_path, mini=tmp_path / "nowhere")

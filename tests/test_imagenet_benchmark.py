"""benchmarks/imagenet on miniature folders, with made-up weights and a stand-in tokenizer."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import BaseEstimator, TransformerMixin

from skaocls import AnyOrderARClassifier, AnyOrderPrior
from skaocls.images.reader import learn_reader
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "imagenet"
CLASSES = {"n01440764": 0, "n01443537": 1, "n01484850": 2}
N_ORDERS = 4
STAGES = [[4, 2], [8, 1]]

with pytest.MonkeyPatch.context() as patch:  # the scripts import each other
    patch.syspath_prepend(BENCHMARK)
    patch.syspath_prepend(BENCHMARK.parent)
    patch.syspath_prepend(BENCHMARK.parent / "claims")
    import anyorder
    import dit
    import elimination
    import folders
    import report

    spec = importlib.util.spec_from_file_location("imagenet", BENCHMARK / "__main__.py")
    imagenet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imagenet)


class MeansTokenizer(TransformerMixin, BaseEstimator):
    """The colour of each patch of 16 x 16 pixels, in 16 x 8 x 8 levels."""

    def fit(self, X=None, y=None):
        self.n_codes_, self.grid_, self.image_shape_ = 1024, (16, 16), (256, 256, 3)
        return self

    def transform(self, X):
        means = learn_reader(X, "Colours").images().reshape(-1, 16, 16, 16, 16, 3).mean((2, 4))
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


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory):
    """A DiT of three classes for images of 16 x 16, with its autoencoder and scheduler."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2,
        sample_size=8, num_embeds_ada_norm=3,
    )  # fmt: skip
    autoencoder = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8], norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("dit")
    DiTPipeline(transformer, autoencoder, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def scored(monkeypatch):
    """Files that were scored, by method; a few at a time."""
    files = {"any-order": [], "diffusion": []}
    monkeypatch.setattr(anyorder, "make_tokenizer", lambda args: MeansTokenizer())
    monkeypatch.setattr(imagenet, "AT_ONCE", 2)

    def counting(method, score):
        def counted(*args):
            files[method].extend(args[-2])
            return score(*args)

        return counted

    monkeypatch.setattr(anyorder, "score", counting("any-order", anyorder.score))
    monkeypatch.setattr(dit, "score", counting("diffusion", dit.score))
    return files


def make_folder(folder, names=CLASSES, n=2, size=(300, 260)):
    rng = np.random.RandomState(0)
    for name in names:
        (folder / str(name)).mkdir(parents=True)
        for i in range(n):
            small = rng.randint(256, size=(4, 5, 3), dtype=np.uint8)
            Image.fromarray(small).resize(size).save(folder / str(name) / f"{i}.png")
    return folder


def run(weights, tmp_path, *options, **data):
    data = [f"--data={name}={folder}" for name, folder in data.items()]
    fixed = [f"--prior={weights}", f"--n-orders={N_ORDERS}", "--device=cpu"]
    imagenet.main([*data, *fixed, f"--output={tmp_path / 'out'}", *options])
    return json.loads((tmp_path / "out" / "imagenet.json").read_text())


def without_times(result):
    for data in result["data"].values():
        for method in data["methods"].values():
            assert method.pop("images_per_second") > 0
    return result


def classifier(weights, classes=tuple(CLASSES), **params):
    params |= {"tokenizer": MeansTokenizer(), "random_state": 0, "device": "cpu"}
    return AnyOrderARClassifier.from_pretrained(weights, classes=classes, **params)


def labels_of(files):
    return np.array([CLASSES[Path(f).parent.name] for f in files])


def test_one_table(scored, weights, dit_folder, tmp_path, capsys):
    """Ours, raster order and a diffusion classifier, each as computed by itself."""
    folder = make_folder(tmp_path / "data")
    all_methods = ["--methods", "any-order", "raster", "diffusion", "--dit", str(dit_folder)]
    stages = ["--stages", *(f"{a}:{b}" for a, b in STAGES)]
    result = run(weights, tmp_path, *all_methods, *stages, mini=folder)
    mini = result["data"]["mini"]
    assert mini["images"] == 6 and mini["classes"] == 3
    files = sorted(folder.glob("*/*.png"))
    y = labels_of(files)

    clf, seen, how = classifier(weights, n_orders=N_ORDERS), set(), AGGREGATIONS[0]
    ours, orders = mini["methods"]["any-order"], clf.orders_
    for k in range(1, N_ORDERS + 1):
        groups = [orders[i : i + k] for i in range(0, N_ORDERS - k + 1, k)]
        p = [clf.set_params(order=g, n_orders=k).score(files, y) for g in groups]
        assert ours["accuracy"][how][k - 1] == pytest.approx(np.mean(p))
        spread = ours["spread"][how][k - 1]
        assert spread == (None if len(p) == 1 else pytest.approx(np.std(p, ddof=1)))
        seen |= set(p)
    assert seen - {0.0, 1.0}  # else the comparison would say little
    raster = mini["methods"]["raster"]
    expected = clf.set_params(order="raster").score(files, y)
    assert set(map(tuple, raster["accuracy"].values())) == {(expected,)}
    assert raster["flops"] == ours["flops"][:1]
    np.testing.assert_allclose(ours["flops"], ours["flops"][0] * np.arange(1, N_ORDERS + 1))

    diffusion = mini["methods"]["diffusion"]
    images = learn_reader(files, "DiT", (16, 16, 3)).images()
    errors = dit.class_errors(DiTPipeline.from_pretrained(dit_folder), images, [0, 1, 2], STAGES, 0)
    assert diffusion["accuracy"] == {"error": [np.mean(errors.argmin(1).numpy() == y)]}

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| data | images | classes | method | orders | accuracy |")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    orders = [("any-order", str(k)) for k in range(1, N_ORDERS + 1)]
    assert [tuple(row[3:5]) for row in rows] == [*orders, ("raster", "1"), ("diffusion", "")]
    shown = [ours["accuracy"][how][0], ours["spread"][how][0]]
    assert rows[0][5] == "{:.4f} ± {:.4f}".format(*shown)
    assert rows[-1][5:8:2] == [f"{diffusion['accuracy']['error'][0]:.4f}", "5.74e-06"]
    assert result["settings"]["raster"]["order"] == "raster" and result["device"]
    with Image.open(tmp_path / "out" / "imagenet.png") as image:
        assert np.asarray(image.convert("L")).std() > 5  # not blank


def test_groups_of_known_likelihoods():
    log_prior = np.log(np.full(4, 0.25))
    ll = np.random.RandomState(0).normal(size=(7, 5, 4)) * 3
    truth = np.random.RandomState(1).rand(7, 4) < 0.4  # several may be right, or none
    right = anyorder.hits_of_groups(ll, log_prior, truth)
    for how in AGGREGATIONS:
        for k in range(1, 6):
            for g in range(5 // k):
                joint = joint_log_proba(ll[:, g * k : g * k + k], log_prior, how)
                hits = truth[range(7), joint.argmax(1)]
                assert [row[how][k - 1][g] == "1" for row in right] == hits.tolist()
        assert [len(hits) for hits in right[0][how]] == [5, 2, 1, 1, 1]


@pytest.mark.parametrize("crop", ["center", "random"])
def test_tokens_kept_and_read(scored, weights, tmp_path, crop):
    folder, kept = make_folder(tmp_path / "data"), tmp_path / "tokens"
    options = ["--methods=any-order", f"--crop={crop}"]
    first = run(weights, tmp_path, *options, f"--write-tokens={kept}", mini=folder)
    files = sorted(p.relative_to(kept / "mini").as_posix() for p in kept.rglob("*.npy"))
    assert files == [f"{p.relative_to(folder)}.npy" for p in sorted(folder.glob("*/*.png"))]
    shape = (16, 16) if crop == "center" else (N_ORDERS, 16, 16)
    codes = np.load(kept / "mini" / files[0])
    assert codes.shape == shape and codes.dtype == np.uint16
    if crop == "center":
        clf = classifier(weights, n_orders=N_ORDERS)
        image = learn_reader(
            [folder / files[0].removesuffix(".npy")], "Reader", (256, 256, 3)
        ).images()
        np.testing.assert_array_equal(clf.tokenizer_.transform(image)[0], codes)
    for file in folder.glob("*/*.png"):
        file.write_bytes(b"no image")
    again = run(weights, tmp_path / "again", "--methods=any-order", f"--tokens={kept}", mini=folder)
    found = [result["data"]["mini"]["methods"]["any-order"] for result in (first, again)]
    assert found[0]["accuracy"] == found[1]["accuracy"] and len(scored["any-order"]) == 12


def test_summary_by_hand():
    rows = [{"right": {"a": ["110", "1"]}, "seconds": 2.0}]
    rows += [{"right": {"a": ["010", "0"]}, "seconds": 6.0}]
    found = report.summary(rows)
    assert found["images_per_second"] == 0.25
    assert found["accuracy"]["a"] == [0.5, 0.5]  # 1/2, 1 and 0 with one order
    assert found["spread"]["a"] == [0.5, None]
    # images are right in 2/3 and 1/3 of the groups
    np.testing.assert_allclose(found["standard_error"]["a"], [1 / 6 / 2**0.5, 0.5 / 2**0.5])


def test_resume(scored, weights, dit_folder, tmp_path):
    folder = make_folder(tmp_path / "data")
    options = "--methods", "any-order", "diffusion", f"--dit={dit_folder}", "--stages", "2:1"
    whole = without_times(run(weights, tmp_path, *options, mini=folder))
    for method, files in scored.items():
        assert len(files) == 6
        record = tmp_path / "out" / "mini" / f"{method}.jsonl"
        lines = record.read_text().splitlines(keepends=True)
        assert len(lines) == 7
        record.write_text("".join(lines[:4]) + lines[4][:20])
        files.clear()
        assert without_times(run(weights, tmp_path, *options, mini=folder)) == whole
        kept = {json.loads(line)["file"] for line in lines[1:4]}
        again = [f.relative_to(folder).as_posix() for f in files]
        assert len(again) == 3 and not kept & set(again)
        rows = [json.loads(line) for line in record.read_text().splitlines()[1:]]
        assert sorted(r["file"] for r in rows) == sorted(kept | set(again))
        files.clear()
        record.write_text(lines[0][:30])  # stopped while the first line was written
        assert without_times(run(weights, tmp_path, *options, mini=folder)) == whole
    scored["diffusion"].clear()
    assert without_times(run(weights, tmp_path, *options, mini=folder)) == whole
    assert not scored["diffusion"]


def test_changed_settings(scored, weights, dit_folder, tmp_path):
    folder = make_folder(tmp_path / "data", n=1)
    diffusion = "--methods", "diffusion", f"--dit={dit_folder}", "--stages", "2:1"
    run(weights, tmp_path, mini=folder)
    run(weights, tmp_path, *diffusion, mini=folder)
    records = sorted((tmp_path / "out" / "mini").iterdir())
    assert [f.name for f in records] == ["any-order.jsonl", "diffusion.jsonl", "raster.jsonl"]
    before = [f.read_text() for f in records]
    with pytest.raises(SystemExit, match=r"any-order\.jsonl was made with seed=0 \(now 1\)"):
        run(weights, tmp_path, "--seed=1", mini=folder)
    with pytest.raises(SystemExit, match=r"order='random' \(now 'antithetic'\)"):
        run(weights, tmp_path, "--order=antithetic", mini=folder)
    with pytest.raises(SystemExit, match=r"stages=\[\[2, 1\]\] \(now \[\[3, 1\]\]\)"):
        run(weights, tmp_path, *diffusion[:-1], "3:1", mini=folder)
    make_folder(folder, ["n01491361"])
    with pytest.raises(SystemExit, match=r"images=3 \(now 5\), classes=3 \(now 4\)"):
        run(weights, tmp_path, mini=folder)
    assert [f.read_text() for f in records] == before


def test_index_folders_and_imagenet_c(scored, weights, tmp_path, capsys):
    """Indices and WordNet ids name the same classes; of ImageNet-C each severity is a data set."""
    make_folder(tmp_path / "v2", CLASSES.values())
    for severity in "12":
        make_folder(tmp_path / "c" / "fog" / severity)
    data = {"v2": tmp_path / "v2", "c": tmp_path / "c", "severity": tmp_path / "c/fog/1"}
    data = without_times(run(weights, tmp_path, "--methods=raster", **data))["data"]
    assert list(data) == ["v2", "c/fog/1", "c/fog/2", "c", "severity"]
    together = data.pop("c")
    for r in data.values():
        assert r.pop("folder") and r == data["v2"]
        expected = r["methods"]["raster"]
    assert together["images"] == 12 and together["parts"] == ["c/fog/1", "c/fog/2"]
    same = together["methods"]["raster"]
    assert same["accuracy"] == expected["accuracy"] and same["flops"] == expected["flops"]
    assert (tmp_path / "out" / "c" / "fog" / "2" / "raster.jsonl").exists()
    shown = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert shown == ["| v2", "| c", "| severity"]


def test_limit(tmp_path):
    make_folder(tmp_path, list(CLASSES)[:2], n=4, size=(8, 8))
    make_folder(tmp_path, list(CLASSES)[2:], n=2, size=(8, 8))
    chosen = {}
    for limit, counts in [(1, [1, 1, 1]), (3, [3, 3, 2]), (None, [4, 4, 2])]:
        data = folders.read_folder(tmp_path, limit, seed=0)
        assert data.classes.tolist() == [0, 1, 2]
        assert data.truth.sum(0).tolist() == counts and (data.truth.sum(1) == 1).all()
        assert data.truth.argmax(1).tolist() == labels_of(data.files).tolist()
        assert len(set(data.files)) == len(data.names) == sum(counts)
        chosen[limit] = data.files
    # a round of one per class at a time; fewer are the first of more
    assert sorted(labels_of(chosen[None][:3])) == sorted(labels_of(chosen[None][3:6])) == [0, 1, 2]
    assert chosen[None][:8] == chosen[3] and chosen[3][:3] == chosen[1]
    assert folders.read_folder(tmp_path, None, seed=1).files != chosen[None]


def test_facts():
    """Counts as published; each id is one of ImageNet's, and some maps are known by heart."""
    assert {name: len(classes) for name, classes in folders.SUBSETS.items()} == {
        "imagenet-a": 200, "imagenet-r": 200, "objectnet": 125
    }  # fmt: skip
    assert len(folders.OBJECTNET) == 313
    assert sum(bool(classes) for classes in folders.OBJECTNET.values()) == 113
    assert folders.OBJECTNET["chair"] == [423, 559, 765]  # barber, folding, rocking chair
    assert folders.OBJECTNET["air_freshener"] == []
    goldfish, stingray, tench = 1, 6, 0
    assert goldfish in folders.SUBSETS["imagenet-r"] and stingray in folders.SUBSETS["imagenet-a"]
    assert not any(tench in subset for subset in folders.SUBSETS.values())


def test_objectnet(scored, weights, tmp_path):
    """Any of a folder's classes is right; folders without one and the border are left out."""
    folder = make_folder(tmp_path / "data", ["chair", "air_freshener", "banana"], n=3)
    found = run(weights, tmp_path, "--methods=raster", objects=folder)["data"]["objects"]
    data = folders.read_folder(folder, None, seed=0)
    assert data.classes.tolist() == [423, 559, 765, 954]
    for file, truth in zip(data.files, data.truth.tolist(), strict=True):
        assert truth == [file.parent.name == "chair"] * 3 + [file.parent.name == "banana"]
    clf = classifier(weights, classes=data.classes.tolist(), order="raster")
    predicted = clf.predict([folders.opened(file) for file in data.files])
    right = [p == 954 if "banana" in name else p != 954 for p, name in zip(predicted, data.names)]
    accuracy = found["methods"]["raster"]["accuracy"]["mean_posterior"]
    assert accuracy == [np.mean(right)] and found["classes"] == 4 and found["images"] == 6
    image = Image.new("RGB", (20, 30), "red")
    image.paste("blue", (1, 1, 19, 29))
    image.save(data.files[0])
    inside = np.asarray(folders.opened(data.files[0])).reshape(-1, 3)
    assert np.unique(inside, axis=0).tolist() == [[0, 0, 255]] and len(inside) > 400
    data.files[0].write_bytes(data.files[0].read_bytes()[:40])
    with pytest.raises(ValueError, match=f"'{data.files[0]}'"):
        folders.opened(data.files[0])
    plain = make_folder(tmp_path / "plain", ["n01440764"], n=1) / "n01440764" / "0.png"
    assert folders.opened(plain) == plain


def test_subset(tmp_path):
    """All 200 classes may be answered, images are of those that the folder has among them."""
    make_folder(tmp_path, CLASSES, n=1, size=(8, 8))
    data = folders.read_folder(tmp_path, None, 0, "imagenet-r")
    assert len(data.classes) == 200
    found = [data.classes[row].tolist() for row in data.truth]
    assert found == [[c] for c in labels_of(data.files)] and sorted(found) == [[1], [2]]
    args = [f"--data=here={tmp_path}", "--classes=here=imagenet-r"]
    assert imagenet.parse_args(args).classes == [("here", "imagenet-r")]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--classes=there=imagenet-r"], "'there' is the name of no data set"),
        (["--classes=here=imagenet-q"], "is not NAME=SUBSET with one of imagenet-a"),
        (["--stages", "5:3", "5:1"], "steps must grow"),
        (["--stages", "5:3", "9:3"], "classes kept become fewer"),
        (["--stages", "5:3"], "the last must keep one class"),
        (["--stages", "5"], "is not STEPS:KEPT"),
        (["--limit=0"], "must be at least 1"),
        (["--data=here=."], "two data sets have the same name"),
    ],
)
def test_wrong_arguments(wrong, message, capsys):
    with pytest.raises(SystemExit):
        imagenet.parse_args(["--data=here=.", *wrong])
    assert message in capsys.readouterr().err


def test_tokenizer_file(weights):
    """It is read by the tokenizer of the prior's vocabulary."""
    args = imagenet.parse_args(["--data=here=.", f"--prior={weights}", "--tokenizer=vq.bin"])
    assert repr(anyorder.make_tokenizer(args)) == "MaskGITTokenizer(source='vq.bin')"
    args.tokenizer = None
    assert anyorder.make_tokenizer(args) == "auto"


def test_fine_tuned_classifier(scored, tmp_path):
    """Saved by save_pretrained, with WordNet ids as labels; it knows more than the folder has."""
    folder = make_folder(tmp_path / "data", ["n01491361", *CLASSES])
    files = sorted(folder.glob("*/*.png"))
    clf = AnyOrderARClassifier(
        {"dim": 32, "n_layer": 1, "n_head": 2}, image_shape=(16, 16), max_iter=3, random_state=0
    )
    clf.fit(files, [f.parent.name for f in files]).save_pretrained(tmp_path / "saved")
    (folder / "n01491361").rename(tmp_path / "n01491361")
    files = sorted(folder.glob("*/*.png"))
    result = run(tmp_path / "saved", tmp_path, "--methods=any-order", mini=folder)
    ll = np.concatenate(list(clf.set_params(n_orders=N_ORDERS)._log_likelihoods(files)))
    keep = clf.classes_ != "n01491361"
    predicted = clf.classes_[keep][ll.mean(1)[:, keep].argmax(1)]
    expected = np.mean(predicted == [f.parent.name for f in files])
    found = result["data"]["mini"]["methods"]["any-order"]["accuracy"]
    assert found["mean_log_likelihood"][-1] == expected
    (folder / "n01443537").rename(folder / "n01496331")
    with pytest.raises(SystemExit, match="does not know the class n01496331"):
        run(tmp_path / "saved", tmp_path, mini=folder)


def test_what_is_wrong_is_said(scored, weights, dit_folder, tmp_path):
    folder = make_folder(tmp_path / "data", ["n01440764"], n=1)
    (folder / "n01440764" / "broken.JPEG").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.JPEG"):
        run(weights, tmp_path, mini=folder)
    (folder / "tench").mkdir()
    with pytest.raises(SystemExit, match="tench is named for no class"):
        run(weights, tmp_path, mini=folder)
    with pytest.raises(SystemExit, match="no subfolders named for ImageNet classes"):
        run(weights, tmp_path, mini=folder / "tench")
    with pytest.raises(SystemExit):
        run(weights, tmp_path, mini=tmp_path / "nowhere")
    make_folder(tmp_path / "more", ["n01491361"], n=1)
    diffusion = "--methods", "diffusion", f"--dit={dit_folder}"
    with pytest.raises(SystemExit, match="diffusion model does not know the class n01491361"):
        run(weights, tmp_path, *diffusion, mini=tmp_path / "more")


# --- the diffusion classifier ---


def test_dit_errors_by_hand(dit_folder):
    """As published: one noise for all classes, noised by the scheduler, half of the channels."""
    pipe = DiTPipeline.from_pretrained(dit_folder)
    images = np.random.RandomState(0).rand(2, 16, 16, 3).astype(np.float32)
    found = dit.class_errors(pipe, images, [2, 0], [[3, 1]], seed=5)
    steps, keys = elimination.timesteps(3).long(), elimination.keys_of(images, 5)
    with torch.no_grad():
        x = 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1
        z = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
        for i in range(2):
            noise = elimination.noises(keys[i], (4, 8, 8), range(3))
            share = pipe.scheduler.alphas_cumprod[steps].view(3, 1, 1, 1)
            noisy = share.sqrt() * z[i] + (1 - share).sqrt() * noise
            for column, label in enumerate([2, 0]):
                out = pipe.transformer(noisy, steps, torch.full((3,), label)).sample
                error = (out[:, :4] - noise).square().sum((1, 2, 3)).mean()
                np.testing.assert_allclose(found[i, column], error, rtol=1e-4)
    assert abs(found[:, 0] - found[:, 1]).min() > 1e-4 * found.mean()
    alone = dit.class_errors(pipe, images[1:], [2, 0], [[3, 1]], seed=5)
    np.testing.assert_allclose(found[1:], alone, rtol=1e-5)  # whatever else is in the batch


def test_dit_operations(dit_folder):
    args = imagenet.parse_args(["--data=here=.", "--stages", "4:2", "8:1", "--device=cpu"])
    n, d, waves = 16, 16, 256
    step = 2 * waves * d + 2 * d * d
    block = 8 * n * d * d + 4 * n * n * d + 16 * n * d * d + 12 * d * d + step
    ends = 2 * n * 16 * d + step + 4 * d * d + 2 * n * d * 32
    _, flops = dit.among(DiTPipeline.from_pretrained(dit_folder), args, "here", [0, 1, 2])
    assert flops == [(4 * 3 + 4 * 2) * (2 * block + ends)]

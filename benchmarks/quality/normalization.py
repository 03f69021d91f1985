"""Effect of normalizing images before tokenization on accuracy, under shifts and shortcuts.

    python -m benchmarks.quality.normalization                         # the missing jobs
    python -m benchmarks.quality.normalization --models "naive Bayes"  # minutes
    python -m benchmarks.quality.normalization --models               # only write the page

Tasks, shifts and shortcuts are those of ``benchmarks/claims``. Choices are made on a held-out
quarter of the training images (``"held out"``); test images (``"test"``) are for the final rows.
Writes ``normalization.json`` after each job, and ``normalization.md``.
"""

import json
import warnings

import numpy as np
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier, PatchTokenizer
from skaocls.images.augmentation import random_views
from skaocls.tokenizers.normalization import NORMALIZATIONS

from .. import common
from ..claims.contestants import load
from ..claims.experiments import AGREEMENT, TEST_MARKS
from ..claims.shifts import SHIFTS
from ..claims.shortcuts import with_shortcut

SEVERITIES = (1, 3, 5)
N_VIEWS, SMOOTHING = 6, 4.0  # of naive Bayes
N_TRAIN = {"digits": 1347, "glyphs": 800, "textures": 840}
N_TEST = 300
N_SHIFTED = {"digits": 150, "glyphs": 60, "textures": 60}
SHORT_TRAINING = {"max_iter": 20, "n_orders": 8}  # far less than the defaults, equal for all


class StructureTokenizer(PatchTokenizer):
    """Reduces the mean of each patch by half and compresses its contrast.

    One code describes the remaining coarse mean, the contrast and the structure of a patch.
    """

    mean_share, least_contrast = 0.5, 0.3

    def fit(self, X, y=None):
        return super().fit(self.structure(X), y)

    def transform(self, X, **noise):
        return super().transform(self.structure(X), **noise)

    def structure(self, X):
        n, height, width, channels = X.shape
        side = 2 if height <= 16 else 4
        X = X - X.mean((1, 2, 3), keepdims=True)
        X = X / np.maximum(X.std((1, 2, 3), keepdims=True), 0.02)
        tiles = X.reshape(n, height // side, side, width // side, side, channels)
        mean = tiles.mean((2, 4, 5), keepdims=True)
        contrast = np.sqrt(((tiles - mean) ** 2).mean((2, 4, 5), keepdims=True))
        tiles = (tiles - mean) / (contrast + self.least_contrast) + self.mean_share * mean
        return tiles.reshape(X.shape).astype(np.float32)


class TokenBayes:
    """Naive Bayes on the tokens of images and of their views, which trains quickly."""

    def __init__(self, tokenizer):
        self.tokenizer_ = tokenizer

    def fit(self, X, y):
        rng = np.random.RandomState(0)
        self.tokenizer_.fit(X, y)
        views = [X, *(random_views(X, rng) for _ in range(N_VIEWS))]
        codes = np.concatenate([self.codes(v) for v in views])
        labels, n_codes = np.tile(y, 1 + N_VIEWS), self.tokenizer_.n_codes_

        def counts(codes):
            return np.array(
                [np.bincount(codes[labels == c].ravel(), minlength=n_codes) for c in np.unique(y)],
                dtype=float,
            )

        all_positions = counts(codes) + 0.5
        all_positions *= SMOOTHING / all_positions.sum(1, keepdims=True)
        p = np.stack([counts(position) + all_positions for position in codes.T])
        self.log_p = np.log(p / p.sum(2, keepdims=True))
        return self

    def codes(self, X):
        return self.tokenizer_.transform(X).reshape(len(X), -1)

    def predict(self, X):
        return sum(log_p[:, codes].T for log_p, codes in zip(self.log_p, self.codes(X).T)).argmax(1)


def job(task, normalize, seed=0, split="held out", shortcut=None, model="prior"):
    return {"task": task, "normalize": normalize, "seed": seed, "split": split,
            "shortcut": shortcut, "model": model}  # fmt: skip


def bayes_jobs():
    for task in N_TRAIN:
        for shortcut in (None, "background") if task == "digits" else (None,):
            gray = task == "digits" and shortcut is None
            known = ("image", "image+polarity") if gray else NORMALIZATIONS
            for normalize in (None, *known, "structure", "auto"):
                yield job(task, normalize, shortcut=shortcut, model="naive Bayes")


JOBS = [
    *bayes_jobs(),
    job("digits", None),
    job("digits", "image+polarity"),
    job("glyphs", None),
    job("glyphs", "channel+polarity"),
    job("textures", None),
    job("textures", "image"),
    job("digits", None, shortcut="background"),
    job("digits", "channel+polarity", shortcut="background"),
    job("glyphs", "image+polarity"),
    job("digits", "image"),
    job("digits", "structure"),
    job("glyphs", "structure"),
    job("textures", "structure"),
    job("textures", "channel"),
    job("digits", "auto", shortcut="background"),
    *(
        job(task, normalize, seed, "test")
        for seed in (0, 1, 2)
        for task in N_TRAIN
        for normalize in (None, "auto")
    ),
]


def load_split(task, seed, split):
    """Return training images and labels, evaluation images and labels."""
    X, y, X_test, y_test = load(task, seed)
    X, y = X[: N_TRAIN[task]], y[: N_TRAIN[task]]
    if split == "held out":
        X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=seed)
    return X, y, X_test[:N_TEST], y_test[:N_TEST]


def make_classifier(normalize, seed, model):
    if normalize == "structure":
        tokenizer = StructureTokenizer(normalize=None, random_state=seed)
    else:
        tokenizer = PatchTokenizer(normalize=normalize, random_state=seed)
    if model == "naive Bayes":
        return TokenBayes(tokenizer)
    params = common.LIKELIHOOD_ONLY | SHORT_TRAINING
    return AnyOrderARClassifier(tokenizer=tokenizer, device="cpu", random_state=seed, **params)


def run(job):
    """Return the accuracies of one job, and the share of accuracy that each shift costs."""
    task, seed, shortcut = job["task"], job["seed"], job["shortcut"]
    X, y, X_test, y_test = load_split(task, seed, job["split"])
    n_classes = y.max() + 1
    if shortcut is not None:
        X, _ = with_shortcut(X, y, n_classes, AGREEMENT, shortcut, seed)
    clf = make_classifier(job["normalize"], seed, job["model"])
    seconds, _ = common.timed(clf.fit, X, y)
    result = {"fit_seconds": seconds, "normalize": clf.tokenizer_.normalize_}
    result["machine"] = common.machine()

    def accuracy(X, y):
        return float((clf.predict(X) == y).mean())

    if shortcut is not None:
        for name, share in (("agreeing", AGREEMENT), ("conflicting", "reversed")):
            test = X_test, y_test, n_classes, share, shortcut, seed + TEST_MARKS
            result[name] = accuracy(with_shortcut(*test)[0], y_test)
        return result
    result["accuracy"] = accuracy(X_test, y_test)
    n = N_SHIFTED[task] if job["model"] == "prior" else None
    X_test, y_test = X_test[:n], y_test[:n]
    unshifted = accuracy(X_test, y_test)
    result["lost"] = {
        name: 1
        - np.mean([accuracy(shift(X_test, s, seed), y_test) for s in SEVERITIES]) / unshifted
        for name, shift in SHIFTS.items()
    }
    return result


def page(record):
    groups: dict[tuple, list] = {}
    for key, result in record.items():
        groups.setdefault(tuple(v for k, v in json.loads(key).items() if k != "seed"), []).append(
            result
        )

    def percent(numbers):
        return f"{100 * np.mean(numbers):.1f}"

    shift_rows, shortcut_rows = [], []
    for (task, normalize, split, shortcut, model), results in groups.items():
        became = ", ".join(sorted({str(r["normalize"]) for r in results}))
        became = became if normalize == "auto" else ""
        if shortcut is None:
            cells = [
                task,
                model,
                split,
                normalize,
                became,
                percent([r["accuracy"] for r in results]),
            ]
            cells.append(percent([list(r["lost"].values()) for r in results]))
            for name in ("inversion", "contrast", "gaussian_noise"):
                cells.append(percent([r["lost"][name] for r in results]))
            shift_rows.append([*cells, len(results)])
        else:
            cells = [f"{task}, {shortcut}", model, normalize, became]
            for name in ("agreeing", "conflicting"):
                cells.append(percent([r[name] for r in results]))
            shortcut_rows.append(cells)
    heads = ["task", "model", "images", "normalize", "resolved to", "accuracy, %", "lost, %"]
    heads += ["lost to inversion", "lost to contrast", "lost to noise", "seeds"]
    marked = ["digits with a tinted background", "model", "normalize", "resolved to"]
    marked += ["accuracy, tint as in training, %", "tint of another class, %"]
    return common.page(
        "Normalization of images",
        "Measured with `python -m benchmarks.quality.normalization` on "
        f"{common.machines(record.values())}. The table compares values of the parameter "
        "`normalize` of `PatchTokenizer`. The value *structure* standardizes each image, halves "
        "the mean of each patch and compresses the contrast of each patch. *Resolved to* is the "
        'value that `"auto"` chose. *Lost* is the percentage of the accuracy that is lost under '
        "the shifts of `benchmarks/claims`, averaged over the severities 1, 3 and 5. *Held out* "
        "means that the accuracy is measured on a quarter of the training images. *Test* means "
        "that the accuracy is measured on the test images. All priors are trained for "
        f"{SHORT_TRAINING['max_iter']} epochs, far fewer than with default parameters. Naive Bayes "
        f"uses the same tokens as the prior. The table contains the results of {len(record)} of "
        f"{len(JOBS)} jobs.",
        common.table(heads, shift_rows),
        common.table(marked, shortcut_rows),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--models", nargs="*", default=["naive Bayes", "prior"])
    parser.add_argument("--tasks", nargs="*", default=list(N_TRAIN))
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # short training, images of another brightness
    jobs = [j for j in JOBS if j["task"] in args.tasks and j["model"] in args.models]
    record = common.add_missing(args.output / "normalization.json", jobs, run)
    common.write_page(args.output / "normalization.md", page(record))


if __name__ == "__main__":
    main()

"""What normalizing images before they are tokenized does to accuracy, under shift and shortcuts.

    python benchmarks/light.py                        # all of it; goes on where it was
    python benchmarks/light.py --models "naive Bayes"  # on the same tokens, in minutes
    python benchmarks/light.py --models               # the page of what there is

Tasks, shifts and shortcuts are those of ``benchmarks/claims``. Choices are made on a quarter of the
training images that is held out, ``"fold"``; test images, ``"test"``, are for the final table.
Writes ``results/light.json`` after each job, and the page ``results/light.md``.
"""

import argparse
import json
import sys
import time
import warnings

import numpy as np
from digits import HERE, PLAIN, machine
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier, PatchTokenizer
from skaocls.images.augmentation import random_views
from skaocls.tokenizers.normalization import NORMALIZATIONS

sys.path.append(str(HERE / "claims"))
from contestants import load
from experiments import AGREEMENT, TEST_MARKS
from shifts import SHIFTS
from shortcuts import with_shortcut

RECORD, PAGE = HERE / "results" / "light.json", HERE / "results" / "light.md"
SEVERITIES = (1, 3, 5)
VIEWS, SMOOTHING = 6, 4.0  # of naive Bayes
N_TRAIN = {"digits": 1347, "glyphs": 800, "textures": 840}
# Of the prior: far less than defaults train, the same for all that are compared
LEAN = {"max_iter": 20, "n_orders": 8}
N_SHIFTED = {"digits": 150, "glyphs": 60, "textures": 60}
HOW = {1: (None, "image", "image+polarity"), 3: (None, *NORMALIZATIONS)}


class StructureTokenizer(PatchTokenizer):
    """Each patch with a share of its mean, and its contrast made much the same.

    What is left of mean and contrast is coarse, and in the same code.
    """

    share, least = 0.5, 0.3

    def fit(self, X, y=None):
        return super().fit(self.structure(X), y)

    def transform(self, X, **how):
        return super().transform(self.structure(X), **how)

    def structure(self, X):
        """Of images that are standardized first."""
        n, height, width, channels = X.shape
        side = 2 if height <= 16 else 4
        X = X - X.mean((1, 2, 3), keepdims=True)
        X = X / np.maximum(X.std((1, 2, 3), keepdims=True), 0.02)
        tiles = X.reshape(n, height // side, side, width // side, side, channels)
        mean = tiles.mean((2, 4, 5), keepdims=True)
        contrast = np.sqrt(((tiles - mean) ** 2).mean((2, 4, 5), keepdims=True))
        tiles = (tiles - mean) / (contrast + self.least) + self.share * mean
        return tiles.reshape(X.shape).astype(np.float32)


class TokenBayes:
    """Naive Bayes on tokens of images and of views of them: quick to train."""

    def __init__(self, tokenizer):
        self.tokenizer_ = tokenizer

    def fit(self, X, y):
        rng = np.random.RandomState(0)
        self.tokenizer_.fit(X, y)
        views = [X, *(random_views(X, rng) for _ in range(VIEWS))]
        codes, labels = np.concatenate([self.codes(v) for v in views]), np.tile(y, 1 + VIEWS)
        n_codes = self.tokenizer_.n_codes_

        def counts(codes):
            of = [np.bincount(codes[labels == c].ravel(), minlength=n_codes) for c in np.unique(y)]
            return np.array(of, dtype=float)

        anywhere = counts(codes) + 0.5
        anywhere *= SMOOTHING / anywhere.sum(1, keepdims=True)
        p = np.stack([counts(place) + anywhere for place in codes.T])
        self.log_p = np.log(p / p.sum(2, keepdims=True))
        return self

    def codes(self, X):
        return self.tokenizer_.transform(X).reshape(len(X), -1)

    def predict(self, X):
        return sum(
            of_place[:, codes].T for of_place, codes in zip(self.log_p, self.codes(X).T)
        ).argmax(1)


def job(task, how, seed=0, on="fold", kind=None, model="prior"):
    return {"task": task, "how": how, "seed": seed, "on": on, "kind": kind, "model": model}


SCREEN = [
    job(task, how, kind=kind, model="naive Bayes")
    for task in N_TRAIN
    for kind in (None, *(["background"] if task == "digits" else []))
    for how in (*HOW[1 if task == "digits" and kind is None else 3], "structure", "auto")
]
JOBS = [
    job("digits", None),
    job("digits", "image+polarity"),
    job("glyphs", None),
    job("glyphs", "channel+polarity"),
    job("textures", None),
    job("textures", "image"),
    job("digits", None, kind="background"),
    job("digits", "channel+polarity", kind="background"),
    job("glyphs", "image+polarity"),
    job("digits", "image"),
    job("digits", "structure"),
    job("glyphs", "structure"),
    job("textures", "structure"),
    job("textures", "channel"),
    job("digits", "auto", kind="background"),
    *(
        job(task, how, seed, "test")
        for seed in (0, 1, 2)
        for task in N_TRAIN
        for how in (None, "auto")
    ),
]


def run(task, how, seed, on, kind, model):
    """Accuracies of one job, with the share of it that each shift takes."""
    X, y, X_test, y_test = load(task, seed)
    X, y = X[: N_TRAIN[task]], y[: N_TRAIN[task]]
    if on == "fold":
        X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=seed)
    X_test, y_test, n_classes = X_test[:300], y_test[:300], y.max() + 1
    if kind is not None:
        X, _ = with_shortcut(X, y, n_classes, AGREEMENT, kind, seed)
    tokenizer = StructureTokenizer(normalize=None) if how == "structure" else PatchTokenizer()
    if how != "structure":
        tokenizer.set_params(normalize=how)
    classifier = TokenBayes(tokenizer.set_params(random_state=seed))
    if model == "prior":
        classifier = AnyOrderARClassifier(
            tokenizer=tokenizer, device="cpu", random_state=seed, **PLAIN, **LEAN
        )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of short training, and of images in another light
        classifier.fit(X, y)
        row = {"fit_seconds": time.perf_counter() - start}
        row |= {"normalize": classifier.tokenizer_.normalize_, "machine": machine()}

        def accuracy(X, y=y_test):
            return float((classifier.predict(X) == y).mean())

        if kind is not None:
            for name, share in (("agreeing", AGREEMENT), ("conflicting", "reversed")):
                marked = with_shortcut(X_test, y_test, n_classes, share, kind, seed + TEST_MARKS)
                row[name] = accuracy(marked[0])
            return row
        row["accuracy"] = accuracy(X_test)
        some = slice(N_SHIFTED[task] if model == "prior" else None)
        unshifted = accuracy(X_test[some], y_test[some])
        row["lost"] = {
            name: 1
            - np.mean([accuracy(shift(X_test[some], s, seed), y_test[some]) for s in SEVERITIES])
            / unshifted
            for name, shift in SHIFTS.items()
        }
    return row


def page(record):
    """The tables, in Markdown."""
    machines = sorted({row["machine"] for row in record.values()})
    lines = [
        "# Tokens that do not depend on the light",
        "",
        f"`python benchmarks/light.py`; {'; '.join(machines)}. What "
        "`PatchTokenizer(normalize=...)` takes off each image; *structure* standardizes images and "
        "leaves of each patch half of its mean and a compressed contrast. *Lost* is the mean share "
        "of the accuracy that the shifts of `benchmarks/claims` take, at severities 1, 3 and 5. "
        "*Fold*: a quarter of the training images; *test*: the test images. The prior is trained "
        f"for {LEAN['max_iter']} epochs, far fewer than by default, the same for all rows; naive "
        f"Bayes reads the same tokens. {len(record)} of {len(SCREEN + JOBS)} jobs have run.",
        "",
        "| task | model | on | normalize | it became | accuracy, % | lost, % | of it inversion "
        "| contrast | noise | seeds |",
        "|---" * 11 + "|",
    ]  # fmt: skip
    groups: dict[tuple, list] = {}
    for key, row in record.items():
        what = json.loads(key)
        of = (what["kind"], what["task"], what["model"], what["on"], what["how"])
        groups.setdefault(of, []).append(row)

    def percent(numbers):
        return f"{100 * np.mean(numbers):.1f}"

    for (kind, task, model, on, how), rows in groups.items():
        if kind is None:
            became = ", ".join(sorted({str(row["normalize"]) for row in rows}))
            cells = [task, model, on, str(how), became if how == "auto" else ""]
            cells += [percent([row["accuracy"] for row in rows])]
            cells += [percent([list(row["lost"].values()) for row in rows])]
            cells += [
                percent([row["lost"][name] for row in rows])
                for name in ("inversion", "contrast", "gaussian_noise")
            ]
            lines.append("| " + " | ".join([*cells, str(len(rows))]) + " |")
    lines += [
        "",
        "| digits with a tinted background | model | normalize | it became "
        "| accuracy, tint as in training, % | tint of another class, % |",
        "|---" * 6 + "|",
    ]
    for (kind, task, model, _, how), rows in groups.items():
        if kind is not None:
            became = ", ".join(sorted({str(row["normalize"]) for row in rows}))
            cells = [f"{task}, {kind}", model, str(how), became if how == "auto" else ""]
            cells += [percent([row[name] for row in rows]) for name in ("agreeing", "conflicting")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["naive Bayes", "prior"])
    parser.add_argument("--tasks", nargs="*", default=list(N_TRAIN))
    args = parser.parse_args()
    for what in SCREEN + JOBS:
        key = json.dumps(what)
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        if key in record or what["task"] not in args.tasks or what["model"] not in args.models:
            continue
        row = run(**what)
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record[key] = row
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        print(what, {k: v for k, v in row.items() if k != "lost"}, flush=True)
        if "lost" in row:
            print("   lost", {k: round(v, 3) for k, v in row["lost"].items()}, flush=True)
    record = json.loads(RECORD.read_text())
    PAGE.write_text(page(record))


if __name__ == "__main__":
    main()

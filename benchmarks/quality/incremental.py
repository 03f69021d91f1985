"""Classes that come a few at a time: copies of the prior against vectors on its frozen trunk.

    python benchmarks/incremental.py

``partial_fit`` on scikit-learn's digits, two classes at a time, and on made-up characters (see
``strokes.py``), ten at a time. *Copies*: each step trains a copy of the first prior, which reads
the new classes alone. *Vectors*: each step trains two vectors for each new class; the trunk and the
head stay as the first step left them. Writes ``results/incremental.json`` and the table
``results/incremental.md``.
"""

import argparse
import json
import time
import warnings

from characters import TEST_SEED, TRAIN_SEED
from digits import HERE, PLAIN, machine
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from strokes import characters

from skaocls import AnyOrderARClassifier, PatchTokenizer

WAYS = {
    "a reading for each class, copies": ("randar", "full"),
    "shared trunk, copies": ("shared_trunk", "full"),
    "shared trunk, vectors": ("shared_trunk", "head"),
}


def tasks(args):
    """Training images and labels, test images and labels, classes a step and settings."""
    X, y = load_digits().images, load_digits().target
    X, X_test, y, y_test = train_test_split(X, y, stratify=y, random_state=0)
    yield "digits", (X, y), (X_test, y_test), 2, {"max_iter": args.epochs}
    settings = {"max_iter": args.character_epochs, "augmentation": None}
    settings["tokenizer"] = PatchTokenizer(patch_size=6, n_codes=512)
    settings["prior"] = {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
    train = characters(args.classes, args.per_class, TRAIN_SEED)
    test = characters(args.classes, args.test_per_class, TEST_SEED)
    yield "characters", train, test, max(1, args.classes // 30), settings


def run(task, train, test, step, settings, name):
    """All classes, step by step; how well each step's classes are told from all others at last."""
    architecture, finetune = WAYS[name]
    prior = {"architecture": architecture} | settings.get("prior", {})
    clf = AnyOrderARClassifier(
        **settings | {"prior": prior if len(prior) > 1 else architecture},
        finetune=finetune,
        finetune_dropout=0.0,
        **PLAIN,
        n_orders=8,
        random_state=0,
    )
    (X, y), (X_test, y_test) = train, test
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for first in range(0, y.max() + 1, step):
            some = (y >= first) & (y < first + step)
            clf.partial_fit(X[some], y[some])
    seconds = time.perf_counter() - start
    right = clf.predict(X_test) == y_test
    numbers = sum(p.numel() for prior in clf.model_.priors for p in prior.parameters())
    return {
        "task": task,
        "way": name,
        "steps": len(range(0, y.max() + 1, step)),
        "accuracy": float(right.mean()),
        "first": float(right[y_test < step].mean()),
        "later": float(right[y_test >= step].mean()),
        "numbers": numbers,
        "readings": clf.model_.readings,
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=50, help="of the digits")
    parser.add_argument("--classes", type=int, default=300, help="of the characters")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--test-per-class", type=int, default=2)
    parser.add_argument("--character-epochs", type=int, default=15)
    args = parser.parse_args()
    rows = []
    for task in tasks(args):
        for name in WAYS:
            rows.append(run(*task, name))
            print(json.dumps(rows[-1]), flush=True)
    results = {"machine": machine(), "settings": vars(args), "rows": rows}
    (HERE / "results" / "incremental.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "# Classes that come a few at a time",
        "",
        f"`python benchmarks/incremental.py`; {results['machine']}. Digits two at a time, "
        f"{args.epochs} epochs each; {args.classes} characters in steps of "
        f"{max(1, args.classes // 30)}, {args.per_class} training images each, "
        f"{args.character_epochs} epochs; 8 orders, no dropout. Readings: how often the "
        "transformer reads an image in each order.",
        "",
        "| data | way | accuracy | of the first step's classes | of later ones | numbers kept "
        "| readings | training, s |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {r['task']} | {r['way']} | {r['accuracy']:.3f} | {r['first']:.3f} | {r['later']:.3f} "
        f"| {r['numbers']:,} | {r['readings']} | {r['seconds']:.0f} |"
        for r in rows
    ]
    (HERE / "results" / "incremental.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

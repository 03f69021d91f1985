"""Hundreds of classes: a shared trunk against the published architecture, trained on the same data.

    python benchmarks/many_classes.py

Made-up characters (see ``strokes.py``); both priors train for the same steps and are kept in
``benchmarks/cache``. The published architecture races, which is its cheapest exact way; the shared
trunk reads all classes to the end, and races. Writes ``results/many_classes.json`` and the table
``results/many_classes.md``.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from characters import TEST_SEED, trained
from digits import HERE, machine
from strokes import characters

sys.path.append(str(HERE / "claims"))
from measures import race_flops

NAMES = {"randar": "a reading for each class", "shared_trunk": "shared trunk"}


def answers(clf, X, y, search):
    """Accuracy, seconds and operations for an image, and the orders that it took."""
    clf.set_params(search=search)
    start = time.perf_counter()
    joint, stats = clf.predict_joint_log_proba(X, return_stats=True)
    seconds = (time.perf_counter() - start) / len(X)
    read = stats["evaluations"].mean()
    flops = race_flops(clf, len(clf.orders_), read / stats["exhaustive_evaluations"])
    row = {"search": search, "accuracy": float((clf.classes_[joint.argmax(1)] == y).mean())}
    row |= {"seconds": seconds, "flops": flops, "orders": read / clf.prior_.n_tokens}
    return row, joint.argmax(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=300)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    X, y = characters(args.classes, -(-args.images // args.classes), TEST_SEED)
    pick = np.sort(np.random.RandomState(0).permutation(len(X))[: args.images])
    X, y = X[pick], y[pick]
    rows = []
    for architecture, name in NAMES.items():
        folder = args.cache / f"many-{args.classes}-{args.epochs}-{architecture}"
        sizes = args.classes, args.per_class, args.epochs
        clf = trained(folder, *sizes, architecture=architecture)
        fit = json.loads((folder / "training.json").read_text())["fit_s"]
        one, _ = answers(clf.set_params(n_orders=1), X, y, "racing")
        clf.set_params(n_orders=20)
        found = {}
        for search in ("exhaustive", "racing") if architecture == "shared_trunk" else ("racing",):
            row, found[search] = answers(clf, X, y, search)
            row |= {"prior": name, "one_order": one["accuracy"], "fit_seconds": fit}
            if len(found) == 2:
                row["agreement"] = float((found["exhaustive"] == found["racing"]).mean())
            rows.append(row)
            print(json.dumps(row), flush=True)
    results = {"machine": machine(), "classes": args.classes, "images": len(X), "rows": rows}
    (args.output / "many_classes.json").write_text(json.dumps(results, indent=1) + "\n")
    asked = {"images": args.images, "classes": args.classes, "epochs": args.epochs}
    options = [f" --{k} {v}" for k, v in asked.items() if v != parser.get_default(k)]
    command = f"python benchmarks/many_classes.py{''.join(options)}"
    lines = [
        "# Hundreds of classes",
        "",
        f"`{command}`; {results['machine']}. {args.classes} made-up characters, {args.per_class} "
        f"training images each, {args.epochs} epochs, {len(X)} test images, 36 tokens, 20 orders. "
        "Readings: how often the transformer reads an image, over all orders and classes.",
        "",
        "| prior | search | accuracy | with 1 order | readings | ms an image | MFLOP an image "
        "| training, s |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {r['prior']} | {r['search']} | {r['accuracy']:.4f} | {r['one_order']:.4f} "
        f"| {r['orders']:.1f} | {1000 * r['seconds']:.3g} | {r['flops'] / 1e6:.3g} "
        f"| {r['fit_seconds']:.0f} |"
        for r in rows
    ]
    lines += [
        "",
        "The shared trunk's race found the class of its exhaustive search for "
        f"{100 * rows[-1]['agreement']:.1f} % of the images. Its operations count every head of "
        "the orders that were read, also of classes that had left.",
    ]
    (args.output / "many_classes.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

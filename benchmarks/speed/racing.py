"""Racing against exhaustive scoring: evaluations per image, agreement, scaling with classes.

    python benchmarks/racing.py

On 1000 made-up characters (see ``strokes.py``; the classifier is trained first, in under half an
hour on two cores, and kept in ``benchmarks/cache``) and on scikit-learn's digits. Exhaustive scores
are kept there too: what was interrupted goes on. Writes ``results/racing.json``, the tables
``results/racing.md`` and the pictures ``docs/racing-*.png``.
"""

import argparse
import json
import time
from pathlib import Path

import joblib
import matplotlib
import numpy as np
from characters import N_CLASSES, TEST_SEED, trained
from digits import HERE, PLAIN, machine
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from strokes import characters

from skaocls import AnyOrderARClassifier
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.racing import race

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ERRORS = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
CLASS_COUNTS = (10, 30, 100, 300, 1000)
SOME = 50  # images scored before their numbers are kept
TIMED = 20  # images whose exhaustive scoring is timed


def exhaustive(clf, codes, folder):
    """Mean log-likelihoods after 1 and after all orders, (n_images, n_classes), kept in parts."""
    folder = folder / joblib.hash(codes)[:12]  # numbers are those of these images
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for at in range(0, len(codes), SOME):
        file = folder / f"{at:05d}.npy"
        if not file.exists():
            start = time.perf_counter()
            ll = log_likelihoods(clf.prior_, codes[at : at + SOME], clf.orders_, clf.class_rows_)
            seconds = time.perf_counter() - start
            part = np.stack([ll[:, 0], ll.mean(1)])
            with open(file.with_suffix(".tmp"), "wb") as out:
                np.save(out, part)
            file.with_suffix(".tmp").rename(file)
            print(f"exhaustive: {at + len(ll)} of {len(codes)} images, {seconds:.0f} s", flush=True)
        parts.append(np.load(file))
    return np.concatenate(parts, axis=1)


def exhaustive_seconds(clf, codes):
    """For one image, in the same run as racing."""
    start = time.perf_counter()
    log_likelihoods(clf.prior_, codes[:TIMED], clf.orders_, clf.class_rows_)
    return (time.perf_counter() - start) / TIMED


def curve(clf, codes, labels, exact, errors=ERRORS):
    """Cost and agreement for several allowed errors."""
    found = []
    per_image = clf.orders_.size * len(clf.class_rows_)
    for error in errors:
        start = time.perf_counter()
        result = race(
            clf.prior_, codes, clf.orders_, clf.class_rows_, clf.class_log_prior_, error=error
        )
        seconds = (time.perf_counter() - start) / len(codes)
        winner = result.log_likelihood.mean(1).argmax(1)
        found.append(
            {
                "error": error,
                "evaluations": result.evaluations.mean(),
                "times_fewer": per_image / result.evaluations.mean(),
                "agreement": np.mean(winner == exact.argmax(1)),
                "accuracy": np.mean(winner == labels),
                "s_per_image": seconds,
            }
        )
        print(found[-1], flush=True)
    return found


def scaling(clf, codes, labels, n_images):
    """Evaluations and seconds per image as classes are added."""
    found = []
    for n_classes in CLASS_COUNTS:
        which = np.flatnonzero(labels < n_classes)[:n_images]
        few = clf.class_rows_[:n_classes], np.log(np.full(n_classes, 1 / n_classes))
        start = time.perf_counter()
        result = race(clf.prior_, codes[which], clf.orders_, *few)
        found.append(
            {
                "n_classes": n_classes,
                "evaluations": result.evaluations.mean(),
                "exhaustive": clf.orders_.size * n_classes,
                "s_per_image": (time.perf_counter() - start) / len(which),
            }
        )
        print(found[-1], flush=True)
    return found


def table(rows, n_images, exhaustive_s):
    lines = [
        "| `racing_error` | token evaluations an image | times fewer | same class as exhaustive "
        "| accuracy | times faster |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row['error']:g}",
            f"{row['evaluations']:,.0f}",
            f"{row['times_fewer']:.1f}",
            f"{round(row['agreement'] * n_images)} of {n_images}",
            f"{row['accuracy']:.4f}",
            f"{exhaustive_s / row['s_per_image']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plot(results, folder):
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, marker in (("characters", "o"), ("digits", "s")):
        rows = results[name]["race"]
        lost = [max(1 - row["agreement"], 0) * 100 for row in rows]
        axes.plot([row["times_fewer"] for row in rows], lost, marker=marker, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("times fewer token evaluations than exhaustive scoring")
    axes.set_ylabel("images whose class differs, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "racing-curve.png", dpi=150)

    figure, axes = plt.subplots(figsize=(6, 4))
    rows = results["characters"]["scaling"]
    classes = [row["n_classes"] for row in rows]
    axes.loglog(classes, [row["exhaustive"] for row in rows], "o-", label="exhaustive")
    axes.loglog(classes, [row["evaluations"] for row in rows], "s-", label="racing")
    axes.set_xlabel("classes")
    axes.set_ylabel("token evaluations an image")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "racing-scaling.png", dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    results = {"machine": machine()}

    X, y = load_digits().images, load_digits().target
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=0
    )
    clf = AnyOrderARClassifier("randar", random_state=0, **PLAIN).fit(X_train, y_train)
    codes = clf.tokenizer_.transform(X_test).reshape(len(X_test), -1)
    ll = log_likelihoods(clf.prior_, codes, clf.orders_, clf.class_rows_)
    seconds = exhaustive_seconds(clf, codes)
    exact = ll.mean(1) + clf.class_log_prior_
    results["digits"] = {
        "n_images": len(codes),
        "accuracy": np.mean(exact.argmax(1) == y_test),
        "exhaustive_s_per_image": seconds,
        "race": curve(clf, codes, y_test, exact),
    }

    clf = trained(args.cache / "characters")
    facts = json.loads((args.cache / "characters" / "training.json").read_text())
    X, y = characters(N_CLASSES, -(-args.images // N_CLASSES), TEST_SEED)
    pick = np.sort(np.random.RandomState(0).permutation(len(X))[: args.images])
    codes, y = clf.tokenizer_.transform(X[pick]).reshape(len(pick), -1), y[pick]
    one, exact = exhaustive(clf, codes, args.cache / "exhaustive")
    seconds = exhaustive_seconds(clf, codes)
    results["characters"] = {
        "n_images": len(codes),
        "fit_s": facts["fit_s"],
        "accuracy_1_order": np.mean(one.argmax(1) == y),
        "accuracy": np.mean(exact.argmax(1) == y),
        "exhaustive_s_per_image": seconds,
        "race": curve(clf, codes, y, exact),
        "scaling": scaling(clf, codes, y, n_images=100),
    }
    write(results)


def write(results):
    (HERE / "results" / "racing.json").write_text(json.dumps(results, indent=1) + "\n")
    digits, many = results["digits"], results["characters"]
    lines = [
        "# Racing",
        "",
        f"`python benchmarks/racing.py`; {results['machine']}. 20 orders.",
        "",
        f"1000 made-up characters, 36 tokens, {many['n_images']} test images; the prior was "
        f"trained for {many['fit_s'] / 60:.0f} minutes on that machine. Accuracy of exhaustive "
        f"scoring: {many['accuracy_1_order']:.4f} with 1 order, {many['accuracy']:.4f} with 20.",
        "",
        *table(many["race"], many["n_images"], many["exhaustive_s_per_image"]),
        "",
        f"Digits, 16 tokens, {digits['n_images']} test images. Accuracy of exhaustive scoring: "
        f"{digits['accuracy']:.4f}.",
        "",
        *table(digits["race"], digits["n_images"], digits["exhaustive_s_per_image"]),
        "",
        "With only the first so many of the characters, `racing_error=0.001`, at most 100 images:",
        "",
        "| classes | token evaluations an image, exhaustive | racing | s an image, racing |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['n_classes']} | {row['exhaustive']:,} | {row['evaluations']:,.0f} "
        f"| {row['s_per_image']:.3f} |"
        for row in many["scaling"]
    ]
    (HERE / "results" / "racing.md").write_text("\n".join(lines) + "\n")
    plot(results, HERE.parent / "docs")


if __name__ == "__main__":
    main()

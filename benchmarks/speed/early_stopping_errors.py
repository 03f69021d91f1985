"""Early-stopped against exhaustive scoring: work saved and classes that differ.

    python -m benchmarks.speed.early_stopping_errors

Measures several allowed errors on 1000 synthetic characters and on scikit-learn's digits, and the
growth of the work with the number of classes. The classifier of the characters is trained first, in
under half an hour on two cores. It is kept in ``benchmarks/cache`` with its exhaustive scores, so
an interrupted run continues. Writes ``early_stopping_errors.json``, ``early_stopping_errors.md``
and ``docs/early-stopping-*.png``.
"""

from pathlib import Path

import joblib
import matplotlib
import numpy as np

from skaocls import AnyOrderARClassifier
from skaocls.scoring.early_stopping import score_until_decided
from skaocls.scoring.exhaustive import log_likelihoods

from .. import common
from ..characters import N_CLASSES, draw_test_images, trained

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ERRORS = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
CLASS_COUNTS = (10, 30, 100, 300, 1000)
CHUNK = 50  # images scored between two writes to the cache
TIMED = 20  # images whose exhaustive scoring is timed


def exhaustive(clf, codes, folder):
    """Return mean log-likelihoods over 1 and over all orders, (n_images, n_classes), cached."""
    folder = folder / joblib.hash(codes)[:12]
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(codes), CHUNK):
        file = folder / f"{start:05d}.npy"
        if not file.exists():
            ll = log_likelihoods(
                clf.prior_, codes[start : start + CHUNK], clf.orders_, clf.model_.rows
            )
            np.save(file.with_suffix(".tmp.npy"), np.stack([ll[:, 0], ll.mean(1)]))
            file.with_suffix(".tmp.npy").rename(file)
            print(f"exhaustive: {start + len(ll)} of {len(codes)} images", flush=True)
        parts.append(np.load(file))
    return np.concatenate(parts, axis=1)


def exhaustive_seconds(clf, codes):
    """Time exhaustive scoring of one image in this run."""
    codes = codes[:TIMED]
    job = clf.prior_, codes, clf.orders_, clf.model_.rows
    return common.timed(log_likelihoods, *job)[0] / len(codes)


def error_curve(clf, codes, labels, exact):
    """Measure work and agreement for several allowed errors."""
    rows = []
    n_evaluations = clf.orders_.size * len(clf.model_.rows)
    job = clf.prior_, codes, clf.orders_, clf.model_.rows, clf.class_log_prior_
    for error in ERRORS:
        seconds, result = common.timed(score_until_decided, *job, error=error)
        predicted = result.log_likelihood.mean(1).argmax(1)
        rows.append(
            {
                "error": error,
                "evaluations": result.evaluations.mean(),
                "times_fewer": n_evaluations / result.evaluations.mean(),
                "agreement": np.mean(predicted == exact.argmax(1)),
                "accuracy": np.mean(predicted == labels),
                "s_per_image": seconds / len(codes),
            }
        )
        print(rows[-1], flush=True)
    return rows


def class_curve(clf, codes, labels, n_images):
    """Measure evaluations and seconds per image as classes are added."""
    rows = []
    for n in CLASS_COUNTS:
        chosen = codes[np.flatnonzero(labels < n)[:n_images]]
        job = clf.prior_, chosen, clf.orders_, clf.model_.rows[:n], common.uniform(n)
        seconds, result = common.timed(score_until_decided, *job)
        rows.append(
            {
                "n_classes": n,
                "evaluations": result.evaluations.mean(),
                "exhaustive": clf.orders_.size * n,
                "s_per_image": seconds / len(chosen),
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure_digits():
    X_train, X_test, y_train, y_test = common.digits()
    clf = AnyOrderARClassifier("randar", random_state=0, **common.LIKELIHOOD_ONLY)
    codes = common.codes_of(clf.fit(X_train, y_train), X_test)
    ll = log_likelihoods(clf.prior_, codes, clf.orders_, clf.model_.rows)
    exact = ll.mean(1) + clf.class_log_prior_
    return {
        "n_images": len(codes),
        "accuracy": np.mean(exact.argmax(1) == y_test),
        "exhaustive_s_per_image": exhaustive_seconds(clf, codes),
        "errors": error_curve(clf, codes, y_test, exact),
    }


def measure_characters(cache, n_images):
    clf = trained(cache / "characters")
    X, y = draw_test_images(N_CLASSES, n_images)
    codes = common.codes_of(clf, X)
    one_order, exact = exhaustive(clf, codes, cache / "exhaustive")
    return {
        "n_images": len(codes),
        "fit_s": common.read_json(cache / "characters" / "training.json")["fit_s"],
        "accuracy_1_order": np.mean(one_order.argmax(1) == y),
        "accuracy": np.mean(exact.argmax(1) == y),
        "exhaustive_s_per_image": exhaustive_seconds(clf, codes),
        "errors": error_curve(clf, codes, y, exact),
        "classes": class_curve(clf, codes, y, n_images=100),
    }


def error_table(result):
    n_images, exhaustive_s = result["n_images"], result["exhaustive_s_per_image"]
    heads = ["allowed error", "token evaluations per image", "times fewer than exhaustive"]
    heads += ["same class as exhaustive", "accuracy", "times faster than exhaustive"]
    rows = [
        [
            f"{r['error']:g}",
            f"{r['evaluations']:,.0f}",
            f"{r['times_fewer']:.1f}",
            f"{round(r['agreement'] * n_images)} of {n_images}",
            f"{r['accuracy']:.4f}",
            f"{exhaustive_s / r['s_per_image']:.1f}",
        ]
        for r in result["errors"]
    ]
    return common.table(heads, rows)


def page(record):
    digits, many = record["digits"], record["characters"]
    rows = [
        [r["n_classes"], f"{r['exhaustive']:,}", f"{r['evaluations']:,.0f}",
         f"{r['s_per_image']:.3f}"]
        for r in many["classes"]
    ]  # fmt: skip
    return common.page(
        "Early-stopped against exhaustive scoring",
        f"Measured with `python -m benchmarks.speed.early_stopping_errors` on {record['machine']}. "
        "All images are scored with the published architecture in 20 "
        "orders." + record.get("note", ""),
        "The first data set has 1000 synthetic characters as classes, 36 tokens per image and "
        f"{many['n_images']} test images. Training the prior took {many['fit_s'] / 60:.0f} "
        f"minutes. The accuracy of exhaustive scoring is {many['accuracy_1_order']:.4f} with 1 "
        f"order and {many['accuracy']:.4f} with 20 orders.",
        error_table(many),
        "The second data set has the digits as classes, 16 tokens per image and "
        f"{digits['n_images']} test images. The accuracy of exhaustive scoring is "
        f"{digits['accuracy']:.4f}.",
        error_table(digits),
        "In the next table, the classes are only a part of the 1000 characters (allowed error "
        "0.001, at most 100 images):",
        common.table(
            ["classes", "token evaluations per image, exhaustive", "early-stopped",
             "s per image, early-stopped"],
            rows,
        ),
    )  # fmt: skip


def plot(record, folder):
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, marker in (("characters", "o"), ("digits", "s")):
        rows = record[name]["errors"]
        lost = [max(1 - row["agreement"], 0) * 100 for row in rows]
        axes.plot([row["times_fewer"] for row in rows], lost, marker=marker, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("times fewer token evaluations than exhaustive scoring")
    axes.set_ylabel("images with another class than by exhaustive scoring, %")
    save(figure, axes, folder / "early-stopping-errors.png")

    figure, axes = plt.subplots(figsize=(6, 4))
    rows = record["characters"]["classes"]
    classes = [row["n_classes"] for row in rows]
    axes.loglog(classes, [row["exhaustive"] for row in rows], "o-", label="exhaustive")
    axes.loglog(classes, [row["evaluations"] for row in rows], "s-", label="early-stopped")
    axes.set_xlabel("classes")
    axes.set_ylabel("token evaluations per image")
    save(figure, axes, folder / "early-stopping-classes.png")


def save(figure, axes, file):
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--cache", type=Path, default=common.CACHE)
    parser.add_argument("--docs", type=Path, default=common.DOCS, help="folder of the plots")
    parser.add_argument("--images", type=int, default=1000, help="test images of the characters")
    args = parser.parse_args(argv)
    record = {"machine": common.machine(), "digits": measure_digits()}
    record["characters"] = measure_characters(args.cache, args.images)
    common.write_json(args.output / "early_stopping_errors.json", record)
    common.write_page(args.output / "early_stopping_errors.md", page(record))
    plot(record, args.docs)


if __name__ == "__main__":
    main()

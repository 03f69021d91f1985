"""Command-line demo of the classifier. Start the demo with ``python -m skaocls``."""

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils._optional_dependencies import check_matplotlib_support

from skaocls import AnyOrderARClassifier, load_image_folder
from skaocls.displays import write_report
from skaocls.files import check_writable
from skaocls.images.reader import learn_reader


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m skaocls",
        description="Fit the classifier to scikit-learn's digits or to a folder of images, and "
        "compare accuracies for different numbers of orders and for baselines.",
    )
    parser.add_argument("--data", type=Path, help="folder with one subfolder of images per class")
    parser.add_argument(
        "--size", type=int, default=32, help="side length in pixels to which --data is resized"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("skaocls-demo"), help="folder for the report"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-iter", type=int, help="number of epochs (default: automatic)")
    return parser.parse_args(argv)


def read_folder(folder, size):
    """Return the images of a folder as an array (n, size, size, channels), and the labels."""
    try:
        files, labels, _ = load_image_folder(folder)
    except (OSError, ValueError) as exc:
        raise SystemExit(str(exc)) from exc
    batch = learn_reader(files, "python -m skaocls", (size, size))
    return batch.images(), np.array(labels)


def timed(function, *args):
    """Call a function, and return its result and its duration in seconds."""
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start


def fit_baselines(X_train, X_test, y_train, y_test, seed):
    """Fit three scikit-learn classifiers, and return the test accuracy of each classifier."""
    X_train, X_test = (X.reshape(len(X), -1) for X in (X_train, X_test))
    classifiers = {
        "LogisticRegression": make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=5000, random_state=seed)
        ),
        "MLPClassifier": make_pipeline(
            StandardScaler(), MLPClassifier(max_iter=1000, random_state=seed)
        ),
        "SVC": SVC(random_state=seed),  # the default gamma depends on the data
    }
    accuracies = {}
    for name, clf in classifiers.items():
        accuracies[name] = clf.fit(X_train, y_train).score(X_test, y_test)
        print(f"  {name:20s} test accuracy {accuracies[name]:.4f}")
    return accuracies


def main(argv=None):
    args = parse_args(argv)
    check_matplotlib_support("python -m skaocls")
    path = args.output / "report.html"
    try:
        check_writable(path, f"--output {args.output}")
    except OSError as exc:
        raise SystemExit(str(exc)) from exc
    if args.data is None:
        X, y = load_digits().images[..., None], load_digits().target
        name = "scikit-learn's digits"
    else:
        X, y = read_folder(args.data, args.size)
        name = str(args.data)
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=args.seed
    )
    summary = f"{len(X_train)} training and {len(X_test)} test images, {len(np.unique(y))} classes"
    print(f"{name}: {summary}")

    params = {"random_state": args.seed, "verbose": 1}
    if args.max_iter:
        params["max_iter"] = args.max_iter
    print("\nFitting AnyOrderARClassifier: a tokenizer, then a transformer for any token order")
    clf = AnyOrderARClassifier(**params)
    _, seconds = timed(clf.fit, X_train, y_train)
    times = {"Fit": f"{seconds:.0f} s for {len(X_train)} samples"}
    rows, cols = clf.tokenizer_.grid_
    codes = clf.tokenizer_.n_codes_
    print(f"  {seconds:.0f} s; an image has {rows} x {cols} tokens, each one of {codes} codes")
    staged = list(clf.staged_predict(X_test))
    for k in (1, 2, 4, 8, 12, 16, 20):
        accuracy = accuracy_score(y_test, staged[k - 1])
        print(f"  {k:2d} order{'s' if k > 1 else ' '}  test accuracy {accuracy:.4f}")

    print("\nFitting the same model for a single order, row by row")
    raster = AnyOrderARClassifier(**params, order="raster")
    _, seconds = timed(raster.fit, X_train, y_train)
    baselines = {"raster order": raster.score(X_test, y_test)}
    print(f"  {seconds:.0f} s; test accuracy {baselines['raster order']:.4f}")

    print("\nFitting scikit-learn's classifiers to the pixels")
    baselines |= fit_baselines(X_train, X_test, y_train, y_test, args.seed)

    _, seconds = timed(clf.predict, X_test)
    times["Predict"] = f"{1000 * seconds / len(X_test):.2g} ms per sample for {len(X_test)} samples"
    options = {"title": name, "subtitle": summary, "baselines": baselines, "times": times}
    report = write_report(clf, X_test, y_test, path, **options)
    print(f"\nReport: {report}")


if __name__ == "__main__":
    main()

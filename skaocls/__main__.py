"""The main job as a demo: ``python -m skaocls``."""

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
from skaocls.displays import OrderCurveDisplay, ReconstructionDisplay, write_report
from skaocls.images.reader import learn_reader


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m skaocls",
        description="Fit the classifier and compare orders and baselines, on scikit-learn's digits "
        "or on a folder of images.",
    )
    parser.add_argument("--data", type=Path, help="folder with one subfolder of images per class")
    parser.add_argument(
        "--size", type=int, default=32, help="side in pixels to which images of --data are resized"
    )
    parser.add_argument("--output", type=Path, default=Path("skaocls-demo"), help="output folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-iter", type=int, help="epochs (default: the classifier's)")
    return parser.parse_args(argv)


def read_folder(folder, size):
    """Images of class subfolders as an array (n, size, size, channels), and their classes."""
    try:
        files, labels, _ = load_image_folder(folder)
    except (OSError, ValueError) as exc:
        raise SystemExit(str(exc)) from exc
    batch = learn_reader(files, "python -m skaocls", (size, size))
    return batch.images(), np.array(labels)


def timed_fit(clf, X, y):
    start = time.perf_counter()
    clf.fit(X, y)
    return time.perf_counter() - start


def main(argv=None):
    args = parse_args(argv)
    check_matplotlib_support("python -m skaocls")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.data is None:
        X, y = load_digits().images[..., None], load_digits().target
        name = "scikit-learn's digits"
    else:
        X, y = read_folder(args.data, args.size)
        name = str(args.data)
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=args.seed
    )
    n_classes = len(np.unique(y))
    print(f"{name}: {len(X_train)} training and {len(X_test)} test images, {n_classes} classes")

    params = {"random_state": args.seed, "verbose": 1}
    if args.max_iter:
        params["max_iter"] = args.max_iter
    print("\nFitting AnyOrderARClassifier: tokens, then a transformer that reads them in any order")
    clf = AnyOrderARClassifier(**params)
    seconds = timed_fit(clf, X_train, y_train)
    times = {"Fit": f"{seconds:.0f} s for {len(X_train)} samples"}
    rows, cols = clf.tokenizer_.grid_
    print(f"  {seconds:.0f} s; an image is {rows} x {cols} tokens of {clf.tokenizer_.n_codes_}")
    staged = list(clf.staged_predict(X_test))
    for k in (1, 2, 4, 8, 12, 16, 20):
        accuracy = accuracy_score(y_test, staged[k - 1])
        print(f"  {k:2d} order{'s' if k > 1 else ' '}  test accuracy {accuracy:.4f}")

    print("\nFitting the same model for one order only, row by row")
    raster = AnyOrderARClassifier(**params, order="raster")
    seconds = timed_fit(raster, X_train, y_train)
    lines = {"raster order": raster.score(X_test, y_test)}
    print(f"  {seconds:.0f} s; test accuracy {lines['raster order']:.4f}")

    print("\nFitting scikit-learn's classifiers to the pixels")
    flat_train, flat_test = X_train.reshape(len(X_train), -1), X_test.reshape(len(X_test), -1)
    for baseline in (LogisticRegression(max_iter=5000), MLPClassifier(max_iter=1000), SVC()):
        label = type(baseline).__name__
        if "random_state" in baseline.get_params():
            baseline.set_params(random_state=args.seed)
        # SVC's kernel width follows the pixels' variance by itself
        model = baseline if label == "SVC" else make_pipeline(StandardScaler(), baseline)
        lines[label] = model.fit(flat_train, y_train).score(flat_test, y_test)
        print(f"  {label:20s} test accuracy {lines[label]:.4f}")

    orders = OrderCurveDisplay.from_predictions(
        y_test,
        staged,
        baselines=lines,
        evaluations_per_order=clf.orders_.shape[1] * clf.model_.readings,
        name=type(clf).__name__,
    )
    orders.figure_.savefig(args.output / "orders.png", dpi=150)
    sheet = [np.flatnonzero(y_test == c)[0] for c in clf.classes_[:16]]
    tokens = ReconstructionDisplay.from_estimator(clf, X_test[sheet])
    tokens.figure_.savefig(args.output / "reconstructions.png", dpi=150)
    start = time.perf_counter()
    clf.predict(X_test)
    each = (time.perf_counter() - start) / len(X_test)
    times["Predict"] = f"{1000 * each:.2g} ms for each of {len(X_test)} samples"
    about = f"{len(X_train)} training and {len(X_test)} test images, {n_classes} classes"
    how = {"subtitle": about, "baselines": lines, "times": times}
    report = write_report(clf, X_test, y_test, args.output / "report.html", title=name, **how)
    print(f"\nReport: {report}")
    print(f"Pictures: {args.output / 'orders.png'}, {args.output / 'reconstructions.png'}")


if __name__ == "__main__":
    main()

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

from skaocls import AnyOrderARClassifier
from skaocls.aggregation import joint_log_proba
from skaocls.images import image_shape_of, load_images

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


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
    files = sorted(p for p in folder.glob("*/**/*") if p.suffix.lower() in EXTENSIONS)
    if not files:
        raise SystemExit(f"{folder} holds no images in class subfolders such as {folder}/cat/1.png")
    y = np.array([p.relative_to(folder).parts[0] for p in files])
    shape = image_shape_of(files, (size, size))
    return load_images(files, shape, resize=True), y


def accuracy_by_orders(clf, X, y):
    """Test accuracy after 1, 2, ... orders, from one pass over the data."""
    ll = np.concatenate(list(clf._log_likelihoods(X)))
    joints = (
        joint_log_proba(ll[:, :k], clf.class_log_prior_, clf.aggregation)
        for k in range(1, ll.shape[1] + 1)
    )
    return [accuracy_score(y, clf.classes_[joint.argmax(axis=1)]) for joint in joints]


def timed_fit(clf, X, y):
    start = time.perf_counter()
    clf.fit(X, y)
    return time.perf_counter() - start


def plot_orders(curve, lines, path):
    """Accuracy against the number of orders, other models as horizontal lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    ax.plot(range(1, len(curve) + 1), curve, "o-", color="C0", label="any-order AR")
    for i, (name, accuracy) in enumerate(lines.items(), 1):
        ax.axhline(accuracy, color=f"C{i}", linestyle="--", label=f"{name} ({accuracy:.3f})")
    ax.set(xlabel="orders averaged over", ylabel="test accuracy", xticks=[1, 5, 10, 15, 20])
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def plot_reconstructions(tokenizer, images, path):
    """Images above what their tokens say of them."""
    from matplotlib.figure import Figure

    decoded = tokenizer.inverse_transform(tokenizer.transform(images)).reshape(images.shape)
    figure = Figure(figsize=(len(images), 2.3), layout="constrained")
    axes = figure.subplots(2, len(images))
    top = images.max() if images.shape[-1] == 1 else 1.0
    for row, pictures in zip(axes, (images, decoded), strict=True):
        for ax, picture in zip(row, pictures, strict=True):
            ax.imshow(np.clip(picture / top, 0, 1).squeeze(), cmap="gray_r", vmin=0, vmax=1)
            ax.set_axis_off()
    figure.suptitle("above: image, below: its tokens decoded", fontsize=10)
    figure.savefig(path, dpi=150)


def main(argv=None):
    args = parse_args(argv)
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
    rows, cols = clf.tokenizer_.grid_
    print(f"  {seconds:.0f} s; an image is {rows} x {cols} tokens of {clf.tokenizer_.n_codes_}")
    curve = accuracy_by_orders(clf, X_test, y_test)
    for k in (1, 2, 4, 8, 12, 16, 20):
        print(f"  {k:2d} order{'s' if k > 1 else ' '}  test accuracy {curve[k - 1]:.4f}")

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

    plot_orders(curve, lines, args.output / "orders.png")
    sheet = [np.flatnonzero(y_test == c)[0] for c in clf.classes_[:16]]
    images = X_test[sheet].astype(np.float32)
    plot_reconstructions(clf.tokenizer_, images, args.output / "reconstructions.png")
    print(f"\nPictures: {args.output / 'orders.png'}, {args.output / 'reconstructions.png'}")


if __name__ == "__main__":
    main()

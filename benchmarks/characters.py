"""Synthetic handwritten characters for benchmarks with many classes, and a classifier of them.

A class is a character of three to five curved strokes, drawn from a seed. An image of it is the
character with moved control points, rotated, sheared, scaled and shifted as a whole, written with a
pen of random width and darkness, under noise: 32 x 32 pixels in grey. Nothing is downloaded.

    python -m benchmarks.characters sheet.png  # draws some of them
"""

import sys
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from skaocls import AnyOrderARClassifier, PatchTokenizer

from .common import LIKELIHOOD_ONLY, SMALL_PRIOR, timed, write_json

SIZE = 32
OVERSAMPLING = 3
CURVE_POINTS = np.linspace(0, 1, 9)[:, None]
N_CLASSES, PER_CLASS, EPOCHS = 1000, 100, 20
TRAIN_SEED, TEST_SEED = 0, 2
TOKENIZER = partial(PatchTokenizer, patch_size=6, n_codes=512)


def skeleton(label):
    """Return the strokes of a class, quadratic curves (n_strokes, 3 control points, 2)."""
    rng = np.random.default_rng([7, label])
    n = rng.integers(3, 6)
    ends = rng.uniform(-1, 1, size=(n + 1, 2))
    strokes = []
    for i in range(n):
        start = ends[i] if rng.random() < 0.6 else rng.uniform(-1, 1, size=2)  # pen up or down
        bend = (start + ends[i + 1]) / 2 + rng.normal(0, 0.5, size=2)
        strokes.append([start, bend, ends[i + 1]])
    strokes = np.clip(strokes, -1, 1)
    low, high = strokes.min((0, 1)), strokes.max((0, 1))
    return (strokes - (low + high) / 2) * 2 / (high - low).max()


def draw(label, rng):
    """Draw one image of a class, uint8 (32, 32)."""
    strokes = skeleton(label)
    strokes = strokes + rng.normal(0, 0.06, size=strokes.shape)
    angle, shear = rng.normal(0, 0.12), rng.normal(0, 0.1)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.diag(rng.uniform(0.85, 1.1, size=2))
    strokes = strokes @ (rotation @ [[1, shear], [0, 1]] @ scale).T + rng.normal(0, 0.06, size=2)
    side = SIZE * OVERSAMPLING
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    width = round(rng.uniform(1.8, 3.2) * OVERSAMPLING)
    ink = int(rng.integers(170, 256))
    t = CURVE_POINTS
    for a, b, c in (strokes * 0.4 + 0.5) * side:
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        pen.line([tuple(p) for p in curve], fill=ink, width=width, joint="curve")
    image = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    return np.clip(image + rng.normal(0, 8, size=image.shape), 0, 255).astype(np.uint8)


def characters(n_classes, per_class, seed):
    """Draw images (n_classes * per_class, 32, 32) and their labels, class by class.

    The seed determines the images; the characters themselves never change.
    """
    labels = np.repeat(np.arange(n_classes), per_class)
    rng = np.random.default_rng([11, seed])
    return np.stack([draw(label, rng) for label in labels]), labels


def draw_test_images(n_classes, n_images):
    """Draw test images of all classes, and choose `n_images` of them at random."""
    X, y = characters(n_classes, -(-n_images // n_classes), TEST_SEED)
    chosen = np.sort(np.random.RandomState(0).permutation(len(X))[:n_images])
    return X[chosen], y[chosen]


def trained(folder, n_classes=N_CLASSES, per_class=PER_CLASS, epochs=EPOCHS, architecture="randar"):
    """Load the classifier from the folder, or train it and save it there.

    Training on all 1000 characters takes under half an hour on two cores.
    """
    if (folder / "config.json").exists():
        return AnyOrderARClassifier.from_pretrained(folder)
    X, y = characters(n_classes, per_class, TRAIN_SEED)
    clf = AnyOrderARClassifier(
        prior={"architecture": architecture} | SMALL_PRIOR,
        tokenizer=TOKENIZER(),
        **LIKELIHOOD_ONLY,
        augmentation=None,
        max_iter=epochs,
        batch_size=128,
        random_state=0,
        verbose=1,
    )
    seconds, _ = timed(clf.fit, X, y)
    clf.save_pretrained(folder)
    write_json(folder / "training.json", {"fit_s": seconds, "loss_curve": clf.loss_curve_})
    return clf


if __name__ == "__main__":
    images, _ = characters(12, 16, seed=0)
    sheet = images.reshape(12, 16, SIZE, SIZE).transpose(0, 2, 1, 3).reshape(12 * SIZE, 16 * SIZE)
    Image.fromarray(255 - sheet).save(sys.argv[1])

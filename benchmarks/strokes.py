"""Made-up characters for benchmarks with many classes.

A class is a character of a few curved strokes, drawn from a seed. An image of it is that
character with its control points moved, turned, sheared, scaled and shifted as a whole, written
with a pen of some width and darkness, under noise: 32 x 32 pixels in grey. The recipe and the
seeds are all there is to it; nothing is downloaded.

    python benchmarks/strokes.py sheet.png  # looks at some of them
"""

import sys

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32
OVERSAMPLING = 3
CURVE_POINTS = np.linspace(0, 1, 9)[:, None]


def skeleton(label):
    """The strokes of a class: 3 to 5 quadratic curves, (n_strokes, 3 control points, 2)."""
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
    """One image of a class, uint8 (32, 32)."""
    strokes = skeleton(label)
    strokes = strokes + rng.normal(0, 0.06, size=strokes.shape)
    angle, shear = rng.normal(0, 0.12), rng.normal(0, 0.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.diag(rng.uniform(0.85, 1.1, size=2))
    strokes = strokes @ (turn @ [[1, shear], [0, 1]] @ scale).T + rng.normal(0, 0.06, size=2)
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
    """Images (n_classes * per_class, 32, 32) and labels, class by class.

    Seeds are for the images alone: the characters themselves are always the same.
    """
    labels = np.repeat(np.arange(n_classes), per_class)
    rng = np.random.default_rng([11, seed])
    return np.stack([draw(label, rng) for label in labels]), labels


if __name__ == "__main__":
    images, _ = characters(12, 16, seed=0)
    sheet = images.reshape(12, 16, SIZE, SIZE).transpose(0, 2, 1, 3).reshape(12 * SIZE, 16 * SIZE)
    Image.fromarray(255 - sheet).save(sys.argv[1])

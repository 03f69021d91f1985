"""Shortcuts: marks that show the class, on which a classifier should not rely."""

import colorsys

import numpy as np


def with_shortcut(images, labels, n_classes, agreement, kind, seed):
    """Put a mark on each image that stands for its class or for another one.

    Parameters
    ----------
    images : float32 array of shape (n, height, width, channels), in [0, 1]
    labels : int array of shape (n,), from 0 to n_classes - 1
    n_classes : int
    agreement : float or "reversed"
        Probability that the mark stands for the image's class; otherwise it stands for a random
        other class. With "reversed" it always stands for the next class.
    kind : {"background", "corner"}
        "background" tints the paper with the hue of a class (grey images become coloured).
        "corner" draws a small square whose corner and grey value stand for a class.
    seed : int

    Returns
    -------
    images : float32 array of shape (n, height, width, channels)
    marks : int array of shape (n,)
        Class of each image's mark.
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng([23, seed])
    if agreement == "reversed":
        marks = (labels + 1) % n_classes
    else:
        another = (labels + rng.integers(1, n_classes, size=len(labels))) % n_classes
        marks = np.where(rng.random(len(labels)) < agreement, labels, another)
    draw = MARKS[kind]
    marked = [draw(image, mark, n_classes) for image, mark in zip(images, marks)]
    return np.stack(marked).astype(np.float32), marks


def background(image, mark, n_classes):
    """Blend the colour of the paper with the hue of the class."""
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    paper = np.median(border, axis=0)
    distance = np.abs(image - paper).max(-1, keepdims=True)
    share = 1 - distance / max(distance.max(), 0.25)  # share of paper in each pixel
    hue = np.array(colorsys.hsv_to_rgb(mark / n_classes, 1, 1))
    tint = (paper.mean() + hue) / 2
    return (1 - share) * image + share * tint


def corner(image, mark, n_classes):
    """Draw a square in one of the corners, in a grey that contrasts with the paper."""
    side, n_greys = max(2, len(image) // 8), -(-n_classes // 4)
    grey = np.linspace(1, 0.4, n_greys)[mark // 4]
    rows = slice(None, side) if mark % 4 < 2 else slice(-side, None)
    cols = slice(None, side) if mark % 2 == 0 else slice(-side, None)
    marked = image.copy()
    marked[rows, cols] = 1 - grey if np.median(image) > 0.5 else grey
    return marked


MARKS = {"background": background, "corner": corner}

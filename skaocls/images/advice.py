"""What else people pass: images where the meaning is plain, else a message with the right call."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from skaocls.images.folders import EXTENSIONS
from skaocls.images.inputs import as_batch, is_item
from skaocls.images.lazy import Items, Lazy, image_of


def gathered(X: Any, shape: tuple[int, ...] | None = None, *, rows: bool = False) -> Any:
    """X; of what can only be gone through a list, of data sets of images what reads them lazily.

    Parameters
    ----------
    X : object
        What the user passed.
    shape : tuple of int (height, width, channels), default=None
        Of the images that are expected, if it is known.
    rows : bool, default=False
        Whether images may come as flat rows.

    Raises
    ------
    ValueError
        If it holds images in a form that is not read; the message shows the right call.
    """
    if isinstance(X, Lazy):
        return X
    if isinstance(X, IterableDataset):
        raise ValueError(
            "X can only be gone through, once for each epoch. Write its tokens, which are then "
            "read in any order: tokens = skaocls.tokenize_dataset(tokenizer, X, folder), and "
            'fit(tokens, tokens.labels) with tokenizer="precomputed".'
        )
    if isinstance(X, (str, os.PathLike)):
        if not Path(X).is_dir():
            raise ValueError(f"X is one path, {os.fspath(X)!r}. Pass a list of paths: [X].")
        raise ValueError(
            f"X is a folder. Pass the paths of its images: paths, labels, names = "
            f"skaocls.load_image_folder({os.fspath(X)!r}) if each class has a subfolder, else "
            "sorted(Path(X).glob('*.png')) or the like."
        )
    if isinstance(X, Image.Image):
        raise ValueError("X is one image. Pass a list of images: [X].")
    if hasattr(X, "shape") and not hasattr(X, "column_names"):
        names = getattr(X, "columns", ())
        of_images = [name for name in names if is_picture(first_of(X[:1][name]))]
        if of_images and len(names) > 1:
            name = of_images[0]
            raise ValueError(
                f"X has {len(names)} columns, of which {name!r} holds images. Pass that one "
                f"alone, X[[{name!r}]], or choose it in a ColumnTransformer."
            )
        if shape is not None and is_one_image(tuple(X.shape), shape, rows):
            raise ValueError(
                f"X has shape {tuple(X.shape)}, which is one image of shape {shape}. Pass a batch "
                "of one: X[None]."
            )
        return X
    if isinstance(X, Iterable) and not hasattr(X, "__getitem__"):
        X = list(X)
    first = None if isinstance(X, dict) else first_of(X)
    if isinstance(X, Dataset) and is_item(image_of(first)):
        return Items(X, as_batch)
    if isinstance(first, dict):
        names = [name for name, value in first.items() if is_picture(value)]
        if names and hasattr(X, "column_names"):  # of the library `datasets`
            raise ValueError(
                f"X is a table, in which {names[0]!r} is an image. Pass that column alone, "
                f"X[{names[0]!r}], which is read as it is needed."
            )
        if names:
            rest = [name for name in first if name not in names] or ["label"]
            raise ValueError(
                f"X holds dicts, in which {names[0]!r} is an image. Pass images and labels apart: "
                f"[x[{names[0]!r}] for x in X] as X, [x[{rest[0]!r}] for x in X] as y."
            )
    elif isinstance(first, (tuple, list)) and len(first) > 1:
        if is_picture(first[0]) and not is_picture(first[1]):
            raise ValueError(
                "X holds pairs of an image and a label. Pass them apart: [x for x, _ in X] as X, "
                "[y for _, y in X] as y."
            )
        if hasattr(first[0], "detach") and first[0].ndim == 4:
            raise ValueError(
                "X holds batches of images and labels. Pass torch.cat([x for x, _ in X]) as X, "
                "torch.cat([y for _, y in X]) as y."
            )
    if is_item(first) and not isinstance(X, (list, tuple)):
        return Items(X, as_batch)
    return X


def is_picture(x: Any) -> bool:
    """Whether x is surely one image: of strings those that end as image files do."""
    if isinstance(x, (str, os.PathLike)):
        return Path(x).suffix.lower() in EXTENSIONS
    return is_item(x)


def first_of(X: Any) -> Any:
    """The first thing in X, or None."""
    X = X.to_numpy() if hasattr(X, "to_numpy") else X
    try:
        return X[0]
    except Exception:  # data sets raise all sorts
        return None


def is_one_image(have: tuple[int, ...], shape: tuple[int, ...], rows: bool) -> bool:
    """Whether an array of that shape is one image where a batch of them is expected."""
    height, width, channels = shape
    if (rows and have[1:] == (math.prod(shape),)) or (channels == 1 and have[1:] == shape[:2]):
        return False
    one = {shape, (channels, height, width)}
    return have in (one | {shape[:2]} if channels == 1 else one)


def pixels_in_rows(X: np.ndarray) -> tuple[int, ...] | None:
    """The `image_shape` that the columns of a table suggest, if they look like pixels.

    Pixels are not negative, all on one scale, and as many as a square of at least 8 x 8 has, or
    three times as many.
    """
    for channels in (1, 3):
        side = math.isqrt(X.shape[1] // channels)
        if side >= 8 and side * side * channels == X.shape[1]:
            shape = (side, side) if channels == 1 else (side, side, 3)
            one_scale = X.min() >= 0 and 2 * np.median(X.max(axis=0)) >= X.max() > 0
            return shape if one_scale else None
    return None

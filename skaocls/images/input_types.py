"""Conversion of X to one form: an array, an array of files and images, or a lazy sequence."""

import io
import math
import os
from collections.abc import Iterable, Mapping, MappingView, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from skaocls.images.folders import ImageFolder, has_image_suffix
from skaocls.images.lazy import Items, Lazy, Mapped, image_of, memmap_of

MAX_KEYS = 5  # largest number of keys that an error message lists
FILES_AND_IMAGES = (str, os.PathLike, bytes, io.IOBase, Image.Image)
# An object with one of these attributes is a tensor or an array of another library
ARRAY_PROTOCOLS = ("detach", "__array__", "__array_interface__", "__dlpack__")


def convert_input(
    X: object, image_shape: tuple[int, ...] | None = None, *, flat_rows: bool = False
) -> Any:
    """Convert the user's X to an array or a :class:`skaocls.images.lazy.Lazy`.

    Images are converted to one of three types: a numeric array with 3 or 4 dimensions; a 1-D object
    array whose elements are files, PIL images or arrays; or a `Lazy`. Memory-mapped arrays stay on
    disk. Tensors become arrays, and other data are returned unchanged. If X has an unsupported
    form, the error message shows a call that works.
    If `image_shape` (height, width, channels) is given, X must be a batch, not a single image of
    this shape. If `flat_rows`, each row of a 2-D X is an image.
    """
    if isinstance(X, Lazy):
        return X
    check_container(X)
    X = as_array(X)
    if hasattr(X, "shape") and not hasattr(X, "column_names"):
        check_columns(X)
        if image_shape is not None and is_one_image(tuple(X.shape), image_shape, flat_rows):
            raise ValueError(
                f"X has shape {tuple(X.shape)}, which is one image of shape {image_shape}. Pass a "
                "batch of one: X[None]."
            )
    else:
        if isinstance(X, Iterable) and not (hasattr(X, "__getitem__") and hasattr(X, "__len__")):
            X = list(X)
        first = first_row(X)
        if isinstance(X, Dataset) and is_item(image_of(first)):
            return Items(X, stack_items)
        check_first_row(X, first)
        if is_item(first) and not isinstance(X, (list, tuple)):
            return Items(X, stack_items)
    data = convert_array(X)
    check_axes("X", getattr(data, "shape", ()), allowed=4)
    return data


def convert_array(X: Any) -> Any:
    """Convert arrays, data frame columns and lists; return tables unchanged."""
    table = X
    if hasattr(X, "to_numpy"):  # pandas, polars
        table = X.to_numpy() if len(getattr(X, "columns", "1")) == 1 else X
    elif isinstance(X, (list, tuple)):
        X = [as_array(x) for x in X]
        if any(is_item(x) for x in X):
            return stack_items(X)
        try:
            table = np.asarray(X)
        except ValueError:  # rows of different lengths
            return X
    if not isinstance(table, np.ndarray):
        return X
    is_column = table.ndim == 1 or table.shape[1:] == (1,)
    if (table.dtype.kind in "OUT" and is_column) or (table.dtype.kind == "S" and table.ndim == 1):
        items = object_array(table.ravel().tolist())
        return items if any(is_item(x) for x in items) else X
    return keep_mapped(table) if table.ndim > 2 else X


def stack_items(items: Sequence[object]) -> np.ndarray:
    """Stack arrays if all have the same shape and dtype; otherwise return an object array."""
    kinds = {(type(x), getattr(x, "shape", None), getattr(x, "dtype", None)) for x in items}
    if len(kinds) > 1 or isinstance(items[0], FILES_AND_IMAGES):
        return object_array(items)
    return np.stack([as_array(x) for x in items])


def object_array(items: Sequence[object] | np.ndarray) -> np.ndarray:
    """Return a 1-D object array of images; replace open files by their content as bytes."""
    check_frames(items)
    out = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        if isinstance(item, io.IOBase):
            item.seek(0)
            content = item.read()
            if not isinstance(content, bytes):
                raise TypeError(f"X has a file opened as text: {item!r}. Open it with mode 'rb'.")
            item = content
        out[i] = item
    return out


def keep_mapped(array: np.ndarray) -> np.ndarray | Mapped:
    """Wrap a memory-mapped array so that only a few rows are loaded at a time."""
    return array if memmap_of(array) is None else Mapped(array)


def as_array(x: Any, name: str = "X") -> Any:
    """Convert a tensor or an array of another library to a NumPy array.

    NumPy arrays, images, data frames, lists and all other objects are returned unchanged.
    """
    same = isinstance(x, (np.ndarray, np.generic, type, Dataset, *FILES_AND_IMAGES))
    if same or hasattr(x, "columns") or not any(hasattr(x, p) for p in ARRAY_PROTOCOLS):
        return x
    try:
        if not hasattr(x, "detach"):
            by_numpy = hasattr(x, "__array__") or hasattr(x, "__array_interface__")
            return np.asarray(x) if by_numpy else np.from_dlpack(x)
        tensor = x.detach().cpu()
        # NumPy has no bfloat16
        is_half = tensor.is_floating_point() and tensor.element_size() < 4
        return (tensor.float() if is_half else tensor).numpy()
    except Exception as exc:  # such as a sparse tensor, or an array on a GPU
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        raise TypeError(
            f"{name} has an object of type {kind} that cannot be converted to a NumPy array: {exc}"
        ) from exc


def is_item(x: object) -> bool:
    """Return whether x is one image: a file, a PIL image, or an array of 2 or 3 dimensions."""
    if isinstance(x, FILES_AND_IMAGES):
        return True
    x = as_array(x)
    return isinstance(x, np.ndarray) and x.ndim in (2, 3)


def is_items(data: object) -> TypeGuard[np.ndarray]:
    """Return whether the data are a 1-D object array, which contains files or mixed images."""
    return isinstance(data, np.ndarray) and data.dtype == object and data.ndim == 1


def contains_images(data: object) -> bool:
    """Return whether the result of :func:`convert_input` contains images rather than a table."""
    if isinstance(data, Lazy):
        return data.ndim != 2
    if is_items(data):
        return any(is_item(x) for x in data)
    return isinstance(data, np.ndarray) and data.ndim in (3, 4)


# Common mistakes ---------------------------------------------------------------------------------


def check_container(X: object) -> None:
    """Reject a single image, and containers without order or without access by index."""
    if isinstance(X, IterableDataset):
        raise ValueError(
            "X is an IterableDataset, whose items cannot be accessed by index. Write its tokens to "
            "a folder: tokens = skaocls.tokenize_dataset(tokenizer, X, folder). Pass "
            'tokenizer="precomputed" to the classifier and call fit(tokens, tokens.labels).'
        )
    if isinstance(X, (str, os.PathLike)):
        if not Path(X).is_dir():
            raise ValueError(f"X is one path, {os.fspath(X)!r}. Pass a list of paths: [X].")
        raise ValueError(
            f"X is a folder. Pass the paths of its images. If each class has a subfolder: paths, "
            f"labels, names = skaocls.load_image_folder({os.fspath(X)!r}). Otherwise: "
            "sorted(Path(X).glob('*.png'))."
        )
    if isinstance(X, ImageFolder):
        raise ValueError("X contains paths and labels. Pass X.paths as X, X.labels as y.")
    if isinstance(X, FILES_AND_IMAGES):
        content = "; if the bytes are a path: [os.fsdecode(X)]" if isinstance(X, bytes) else ""
        raise ValueError(f"X is one image. Pass a list of images: [X]{content}.")
    # SciPy's older sparse matrices of type dok are dicts too
    if isinstance(X, Mapping) and not hasattr(X, "shape"):
        keys = ", ".join(map(repr, islice(X, MAX_KEYS))) + ", ..." * (len(X) > MAX_KEYS)
        raise ValueError(
            f"X is a {type(X).__name__} with the keys {keys}. Pass one of its values, which must "
            "contain all images or table rows. If the keys are the images and the values are the "
            "labels, pass list(X) as X and list(X.values()) as y."
        )
    # views of a dict have the order of the dict
    if isinstance(X, Set) and not isinstance(X, MappingView) and not hasattr(X, "__getitem__"):
        raise ValueError(
            f"X is a {type(X).__name__}, which has no fixed order, so the order of y or of the "
            "predictions would not be the order of the images. Pass a list, such as sorted(X)."
        )


def check_axes(name: str, shape: Sequence[int], allowed: int) -> None:
    """Reject an array that has too many axes for images or for one image."""
    if len(shape) > allowed:
        raise ValueError(
            f"{name} has shape {tuple(shape)}. Pass images as X of shape (n, height, width), (n, "
            "height, width, channels) or (n, channels, height, width), or a table of shape "
            "(n_samples, n_features). Each frame of a video must be an image of its own."
        )


def check_frames(items: Sequence[object] | np.ndarray) -> None:
    """Reject an image of several frames that occurs twice; all of them would be the same frame."""
    first: dict[int, int] = {}
    for i, item in enumerate(items):
        if not isinstance(item, Image.Image) or first.setdefault(id(item), i) == i:
            continue
        if getattr(item, "is_animated", False):
            raise ValueError(
                f"X[{first[id(item)]}] and X[{i}] are the same PIL image object, which has several "
                "frames, but shows only one of them at a time. Pass copies of the frames: "
                "[frame.copy() for frame in PIL.ImageSequence.Iterator(image)]."
            )


def check_columns(X: Any) -> None:
    """Reject data frames in which one of several columns contains images."""
    names = getattr(X, "columns", ())
    with_images = [name for name in names if is_image_file(first_row(X[:1][name]))]
    if with_images and len(names) > 1:
        name = with_images[0]
        raise ValueError(
            f"X has {len(names)} columns, and {name!r} contains images. Pass that column alone, "
            f"X[[{name!r}]], or select it in a ColumnTransformer."
        )


def check_first_row(X: object, first: object) -> None:
    """Reject an X whose items contain both images and labels, or several images."""
    check_axes("X[0]", getattr(first, "shape", ()), allowed=3)
    if isinstance(first, dict):
        names = [name for name, value in first.items() if is_image_file(value)]
        if names:
            label = next((name for name in first if name not in names), "label")
            column = "X[{!r}]" if hasattr(X, "column_names") else "[x[{!r}] for x in X]"
            raise ValueError(
                f"The column {names[0]!r} of X contains images. Pass images and labels separately: "
                f"{column.format(names[0])} as X, {column.format(label)} as y."
            )
    elif isinstance(first, (tuple, list)) and len(first) > 1:
        if is_image_file(first[0]) and not is_image_file(first[1]):
            raise ValueError(
                "X contains pairs of an image and a label. Pass them separately: "
                "[x for x, _ in X] as X, [y for _, y in X] as y."
            )
        if hasattr(first[0], "detach") and np.ndim(first[0]) == 4:
            raise ValueError(
                "X contains batches of images and labels. Pass torch.cat([x for x, _ in X]) as X, "
                "torch.cat([y for _, y in X]) as y."
            )


def is_image_file(x: object) -> bool:
    """Return whether x is one image; a path counts if it has the suffix of an image file."""
    if isinstance(x, (str, os.PathLike)):
        return has_image_suffix(x)
    return is_item(x)


def first_row(X: Any) -> Any:
    """Return the first element of X, or None if X is empty or cannot be indexed."""
    X = X.to_numpy() if hasattr(X, "to_numpy") else X
    try:
        return X[0]
    except Exception:  # data sets can raise errors of any type
        return None


def is_one_image(shape: tuple[int, ...], image_shape: tuple[int, ...], flat_rows: bool) -> bool:
    """Return whether an array of this shape is one image instead of a batch of images."""
    height, width, channels = image_shape
    if flat_rows and shape[1:] == (math.prod(image_shape),):
        return False
    if channels == 1 and shape[1:] == (height, width):
        return False
    single = {image_shape, (channels, height, width)}
    return shape in (single | {(height, width)} if channels == 1 else single)

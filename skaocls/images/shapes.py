"""Inference of the common shape of all images. Only the headers of image files are read."""

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from PIL import Image
from sklearn.utils import check_array

from skaocls.images.decoding import check_file_channels, item_name, orientation_of, read_item
from skaocls.images.input_types import as_array, is_items, object_array
from skaocls.images.lazy import Lazy
from skaocls.warn import warn

GRAY_MODES = ("1", "L", "LA", "La", "I", "F")
CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
TIFF_WIDTH, TIFF_HEIGHT = 256, 257  # numbers of TIFF tags
MAX_LISTED = 5  # largest number of images that a message lists


def infer_image_shape(
    data: Any, image_shape: tuple[int, ...] | None = None, decoding: str = "as_seen"
) -> tuple[int, ...]:
    """Infer the common shape (height, width, channels) of images from `convert_input`.

    `image_shape` is the size to which files and PIL images are resized, or the shape of the
    flattened images in a 2-D X. If all files and PIL images are grayscale, the shape has one
    channel; otherwise it has three channels.
    """
    if isinstance(data, Lazy) and data.shape is None:
        index = data.sample_index().tolist()
        return infer_from_items(object_array(data.sample), index, image_shape, decoding)
    if is_items(data):
        return infer_from_items(data, range(len(data)), image_shape, decoding)
    shape: tuple[int, ...]
    if data.ndim == 4:
        shape = array_shape(data.shape[1:], image_shape)
    else:
        shape = image_shape if image_shape and data.ndim == 2 else data.shape[1:]
        shape = (*shape, 1)[:3]
    if image_shape and (
        shape[: len(image_shape)] != image_shape
        or (data.ndim == 2 and data.shape[1] != np.prod(shape))
    ):
        raise ValueError(
            f"X has shape {data.shape}, but n images of image_shape={image_shape} are expected. "
            "Arrays are not resized."
        )
    return shape


def infer_from_items(
    items: np.ndarray, index: Sequence[int], image_shape: tuple[int, ...] | None, decoding: str
) -> tuple[int, ...]:
    """Infer the shape of files, PIL images and arrays, as :func:`infer_image_shape` explains."""
    check_array(np.zeros((len(items), 1)))  # raises scikit-learn's error if X is empty
    arrays = [isinstance(as_array(item), np.ndarray) for item in items]
    read = partial(read_header, image_shape=image_shape, decoding=decoding)
    headers = [read_item(item, i, read) for i, item in zip(index, items, strict=True)]
    shapes = [shape for shape, _ in headers]
    size = image_shape or shapes[0][:2]
    if image_shape is None:
        for i, shape in zip(index, shapes, strict=True):
            if shape[:2] != size:
                raise ValueError(
                    f"Images have different sizes: {size} at index 0, {shape[:2]} at index {i}. "
                    "Pass image_shape=(height, width) to resize files and PIL images. Arrays are "
                    "not resized."
                )
    damaged = [
        f"X[{i}] {item_name(item)!r}"
        for i, item, (_, is_damaged) in zip(index, items, headers, strict=True)
        if is_damaged
    ]
    if damaged:
        warn(
            f"{len(damaged)} images have damaged EXIF metadata, and the damaged parts are ignored: "
            f"{shorten(damaged)}."
        )
    expected = (*size, max(shape[2] for shape in shapes))[:3]
    if not all(arrays):
        check_file_channels(expected[2])
    for i, shape, is_array in zip(index, shapes, arrays, strict=True):
        if is_array and shape != expected:
            raise ValueError(
                f"X[{i}] is an array of shape {shape}, but images of shape {expected} are "
                "expected. Arrays are neither resized nor converted."
            )
    return expected


def read_header(
    image: Any, image_shape: tuple[int, ...] | None, decoding: str
) -> tuple[tuple[int, ...], bool]:
    """Return the shape of the decoded image, and whether its EXIF metadata are damaged."""
    if isinstance(image, np.ndarray):
        shape = array_shape(image.shape, image_shape) if image.ndim == 3 else (*image.shape, 1)
        return shape, False
    width, height = image.size
    # some versions of Pillow swap height and width of rotated TIFF files, but not in the TIFF tags
    tags = getattr(image, "tag_v2", {})
    stored = (tags.get(TIFF_WIDTH, width), tags.get(TIFF_HEIGHT, height)) == (width, height)
    if stored and (decoding == "as_seen" or tags) and orientation_of(image) in (5, 6, 7, 8):
        height, width = width, height
    gray = image.mode in GRAY_MODES or image.mode.startswith("I;16")
    return (height, width, 1 if gray else 3), has_damaged_metadata(image)


def has_damaged_metadata(image: Image.Image) -> bool:
    """Return whether an image has EXIF metadata that Pillow cannot parse and write again."""
    if not image.info.get("exif"):
        return False
    try:
        Image.Image.getexif(image).tobytes()
    except Exception:  # damaged metadata can raise errors of any type
        return True
    return False


def check_image_shape(image_shape: Any) -> tuple[int, ...] | None:
    """Return image_shape as a tuple of 2 or 3 positive ints; return None unchanged."""
    if image_shape is None:
        return None
    shape = tuple(image_shape) if np.iterable(image_shape) else ()
    if len(shape) not in (2, 3) or not all(isinstance(s, Integral) and int(s) >= 1 for s in shape):
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width) or (height, width, channels), "
            "with positive integers."
        )
    return tuple(int(s) for s in shape)


def array_shape(
    shape: tuple[int, ...], image_shape: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Return (height, width, channels) of an array whose channel axis is the last or the first.

    If `image_shape` is given, the channel axis is the axis that matches `image_shape`. Otherwise
    two criteria decide: a channel axis has length 1, 3 or 4, and the two other axes are equally
    long. If neither criterion decides, the channel axis is the axis that is at most half as long as
    the other axes. If the criteria contradict each other or do not decide, a ValueError is raised.
    """
    last, first = shape, (*shape[1:], shape[0])
    if image_shape is not None:
        matches = [s for s in (last, first) if s[: len(image_shape)] == image_shape]
        if len(image_shape) == 3 or (len(set(matches)) < 2 and first != last):
            return (matches or [last])[0]
    elif last[2] == first[2] == 1:  # one row or column of pixels
        return last
    else:
        usual = [s[2] in CHANNELS for s in (last, first)]
        square = [s[0] == s[1] > 1 for s in (last, first)]
        short = [not any(usual) and 2 * s[2] <= min(s[:2]) for s in (last, first)]
        signs = [a - b for a, b in (usual, square) if a != b] or [short[0] - short[1]]
        if len(set(signs)) == 1 and signs[0]:
            return last if signs[0] > 0 else first
    advice = (
        f"Pass image_shape={last} if channels come last, image_shape={first} if they come first."
    )
    if first == last:
        advice = (
            f"Pass image_shape={last}, which means that channels come last. If they come first, "
            "also move them to the end: np.moveaxis(X, 1, -1)."
        )
    raise ValueError(
        f"X has images of shape {shape}, which may be (height, width, channels) or (channels, "
        f"height, width). {advice}"
    )


def shorten(names: list[str]) -> str:
    """Join at most `MAX_LISTED` names; if names are left out, append the total number."""
    more = f", ... ({len(names)} in total)" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more

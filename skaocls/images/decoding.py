"""From images to numbers: float32 arrays of shape (n, height, width, channels).

Numbers keep their meaning: 8-bit values are divided by 255, 16-bit ones by 65535, booleans are 0
and 1, all others are taken as they are.
"""

import os
from typing import Any

import numpy as np
from PIL import Image
from sklearn.utils import check_array

from skaocls.devices import map_in_threads
from skaocls.images.inputs import (
    as_batch,
    channels_last,
    is_items,
    name_of,
    orientation_of,
    read,
)
from skaocls.images.lazy import in_memory

FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(bool): 1}
LARGEST = 1e15  # numbers of images, whose squares are summed in float32
DEEP = ("PNG", "PPM")  # files of 16 bits, which some versions of Pillow read as 32
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_images(
    X: Any,
    shape: tuple[int, ...],
    *,
    resize: bool = False,
    start: int = 0,
    decoding: str = "as_seen",
) -> np.ndarray:
    """Decode images.

    Parameters
    ----------
    X : array-like
        Images, or a slice of them: callers go batch by batch.
    shape : tuple of int (height, width, channels)
        The shape that they must have, from :func:`image_shape_of`.
    resize : bool, default=False
        Resize files and PIL images of another size (:func:`resize_crop`) instead of refusing them.
    start : int, default=0
        Index, for messages, of the first item of X in the user's data.
    decoding : {"as_seen", "plain"}, default="as_seen"
        How to read files and PIL images, see :func:`to_pixels`.

    Returns
    -------
    images : float32 array of shape (n, height, width, channels)

    Raises
    ------
    ValueError
        If an image has another shape, cannot be read (index and path are named), or holds NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.images import load_images
    >>> float(load_images(np.full((5, 8, 8), 255, np.uint8), (8, 8, 1)).max())
    1.0
    """
    X = in_memory(as_batch(X))
    if is_items(X):
        check_array(np.zeros((len(X), 1)))  # at least one

        def unit(i: int, item: Any) -> np.ndarray:
            image = read(item, i, lambda x: pixels(x, shape, resize, decoding))
            if image.shape != tuple(shape):
                raise ValueError(
                    f"X[{i}] has shape {image.shape}, but images of shape {tuple(shape)} are "
                    f"expected, as in fit: {name_of(item)!r}. Resize it, files and PIL images with "
                    f"skaocls.images.resize_crop(image, {shape[0]}, {shape[1]}), or call fit with "
                    f"image_shape={tuple(shape[:2])}: it then resizes them, and predict does too."
                )
            return to_unit(image, f"X[{i}]")

        # of a PIL image, which may be there twice, only one thread may ask
        files = all(isinstance(item, (str, os.PathLike, bytes)) for item in X)
        return np.stack(map_in_threads(unit, range(start, start + len(X)), X, threads=files))
    X = np.asarray(X)
    if X.ndim == 2:
        if X.shape[1] != np.prod(shape):
            raise ValueError(
                f"X has {X.shape[1]} features, but {np.prod(shape)} are expected: images of shape "
                f"{tuple(shape)}."
            )
    else:
        X = X[..., None] if X.ndim == 3 else channels_last(X, tuple(shape))
        if X.shape[1:] != tuple(shape):
            raise ValueError(
                f"X has images of shape {X.shape[1:]}, but images of shape {tuple(shape)} are "
                "expected, as in fit."
            )
    return to_unit(X, "X").reshape(-1, *shape)


def to_pixels(image: Image.Image, channels: int, decoding: str = "as_seen") -> np.ndarray:
    """One PIL image in 8 bits.

    Parameters
    ----------
    image : PIL.Image.Image
    channels : {1, 3}
        Grayscale or RGB.
    decoding : {"as_seen", "plain"}, default="as_seen"
        ``"as_seen"``, as a person sees it: EXIF rotation is applied, transparency is laid over
        white, palettes are expanded, CMYK and the like are converted; 16 bits are scaled to 8.
        Images of 32-bit numbers (modes I and F) do not say what is white, and are refused.
        ``"plain"``: what ``image.convert("RGB")`` makes of it and
        nothing else, as the published numbers were made. EXIF rotation and transparency are
        ignored, and values beyond 255 are cut off.

    Returns
    -------
    pixels : uint8 array of shape (height, width, channels)

    Examples
    --------
    >>> from PIL import Image
    >>> from skaocls.images import to_pixels
    >>> to_pixels(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), 3)  # transparent: white
    array([[[255, 255, 255]]], dtype=uint8)
    """
    a = np.asarray(decoded(image, decoding).convert("L" if channels == 1 else "RGB"))
    return a.reshape(*a.shape[:2], channels)


def decoded(image: Image.Image, decoding: str) -> Image.Image:
    """In mode L or RGB; unless plain, turned as EXIF says and opaque."""
    if decoding == "plain":
        return image.convert("L" if image.mode == "L" else "RGB")
    deep = image.mode == "I" and image.format in DEEP
    image.load()  # which turns TIFF files
    if (orientation := orientation_of(image)) in TURNED:
        image = image.transpose(TURNED[orientation])
    if deep or image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(
            f"it has 32-bit numbers (mode {image.mode!r}), which do not say what is white; pass "
            "arrays instead, np.asarray(image) divided by what is white in all images, or "
            "image.convert('L') where that is 255"
        )
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def resize_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale so that the image covers (height, width), then cut out the centre.

    Box-filtered halvings while it is at least twice as large, then bicubic: the preprocessing of
    the published checkpoints.

    Parameters
    ----------
    image : PIL.Image.Image
    height, width : int

    Returns
    -------
    image : PIL.Image.Image of that size

    References
    ----------
    Sudakov, Babenko, Baranchuk, arXiv 2603.19122, experimental setup.

    Examples
    --------
    >>> from PIL import Image
    >>> from skaocls.images import resize_crop
    >>> resize_crop(Image.new("L", (640, 480)), 32, 32).size
    (32, 32)
    """
    image = covering(image, height, width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled so that it just covers (height, width)."""
    image = halved(image, height, width)
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def halved(image: Image.Image, height: int, width: int) -> Image.Image:
    """Halved while it is at least twice as large."""
    while image.width >= 2 * width and image.height >= 2 * height:
        half = image.width // 2, image.height // 2
        image = image.resize(half, Image.Resampling.BOX)
    return image


def to_unit(a: np.ndarray, name: str) -> np.ndarray:
    """Finite float32 numbers; integers of images are divided by their full scale."""
    checked = check_array(a, dtype=np.float32, allow_nd=True, input_name=name)
    if np.abs(checked).max(initial=0) > LARGEST:
        raise ValueError(
            f"{name} has numbers up to {np.abs(checked).max():.3g}, but images may have up to "
            f"{LARGEST:.0e}. Divide them by what is white."
        )
    scaled: np.ndarray = checked / np.float32(full_scale(a.dtype))
    return scaled


def full_scale(dtype: np.dtype) -> int:
    """What numbers of this type are divided by."""
    return FULL_SCALE.get(dtype.newbyteorder("="), 1)


def pixels(image: Any, shape: tuple[int, ...], resize: bool, decoding: str) -> np.ndarray:
    """One array or PIL image as (height, width, channels)."""
    height, width, channels = shape
    if isinstance(image, np.ndarray):
        return channels_last(image, tuple(shape)) if image.ndim == 3 else image[..., None]
    if resize:
        image = resize_crop(decoded(image, decoding), height, width)
    return to_pixels(image, channels, decoding)

"""Random crops for scoring, cut out of the images as they came."""

from typing import Any

import numpy as np
from PIL import Image

from skaocls.images.decoding import covering, decoded, full_scale, halved, load_images, to_pixels
from skaocls.images.inputs import as_array, as_batch, is_items, read
from skaocls.images.lazy import in_memory

LARGEST = 5, 4  # the shorter side of what a crop is cut from is at most 5 / 4 of the crop's
SHIFT_MARGIN = 0.1  # share of its size by which a small image's edges are repeated
SHIFTED_UNDER = 64  # pixels; smaller images would be blurred


def originals(
    X: Any,
    shape: tuple[int, ...],
    *,
    resize: bool = False,
    start: int = 0,
    decoding: str = "as_seen",
) -> list[np.ndarray]:
    """Decode images, but leave them as large as crops need them.

    Parameters
    ----------
    X, shape, resize, start, decoding
        As in :func:`skaocls.images.load_images`.

    Returns
    -------
    images : list of arrays (height, width, channels)
        8-bit numbers where X has them, as files and PIL images do; else what `load_images` gives.
        What is to be resized is halved as often as any crop will halve it, and not resized further.
    """
    X = in_memory(as_batch(X))
    images, size = [], scaled(shape, largest_side(shape))
    for i, item in enumerate(X, start):
        is_file = is_items(X) and not hasattr(as_array(item), "dtype")
        if is_file and resize:
            large = read(item, i, lambda x: halved(decoded(x, decoding), *size))
            image = to_pixels(large, shape[2], decoding)
        else:
            one = slice(i - start, i - start + 1)
            image = load_images(X[one], shape, resize=resize, start=i, decoding=decoding)[0]
            if is_file or as_array(item).dtype == np.uint8:
                image = np.rint(image * 255).astype(np.uint8)
        images.append(image)
    return images


def random_crop(
    image: np.ndarray, shape: tuple[int, ...], side: float, where: np.ndarray
) -> np.ndarray:
    """Resize an image and cut a window out of it, as ADM's and the paper's random crops.

    The shorter side becomes an integer between that of the window and 5 / 4 of it, by box-filtered
    halvings while it is at least twice as large, then bicubic; the window lies anywhere, also along
    the longer side. An image under 64 pixels that has the window's size already is shifted instead,
    its edges repeated: that is our own, because resizing would blur it.

    Parameters
    ----------
    image : array of shape (height, width, channels)
        From :func:`originals`.
    shape : tuple of int (height, width, channels)
        Of the window.
    side : float
        Draws the shorter side: a share in [0, 1) of the integers there are.
    where : float array of shape (2,)
        Draws top and left of the window in the same way.

    Returns
    -------
    window : float32 array of that shape

    References
    ----------
    Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233, whose code
    crops so. Sudakov, Babenko, Baranchuk, arXiv 2603.19122.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.images.crops import random_crop
    >>> photo = np.zeros((480, 640, 3), np.uint8)
    >>> random_crop(photo, (256, 256, 3), 0.5, np.array([0.1, 0.9])).shape
    (256, 256, 3)
    """
    if image.shape[:2] == tuple(shape[:2]) and min(shape[:2]) < SHIFTED_UNDER:
        large = with_margin(image)
    else:
        least = min(shape[:2])
        size = scaled(shape, least + int(side * (largest_side(shape) - least + 1)))
        planes = [covering(Image.fromarray(plane), *size) for plane in np.moveaxis(image, 2, 0)]
        large = np.stack([np.asarray(plane) for plane in planes], axis=2)
        if large.dtype != np.uint8:  # bicubic may overshoot; 8 bits are clipped by their type
            large = large.clip(image.min(), image.max())
    top, left = (
        int(share * (have - want + 1))
        for share, have, want in zip(where, large.shape[:2], shape[:2], strict=True)
    )
    window = large[top : top + shape[0], left : left + shape[1]].astype(np.float32)
    window /= np.float32(full_scale(large.dtype))
    return window


def largest_side(shape: tuple[int, ...]) -> int:
    """The largest shorter side of what a window is cut from."""
    most, least = LARGEST
    return -(-min(shape[:2]) * most // least)


def scaled(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Height and width in the proportions of the shape, with that shorter side."""
    height, width = shape[:2]
    return round(height * side / min(shape[:2])), round(width * side / min(shape[:2]))


def with_margin(image: np.ndarray) -> np.ndarray:
    """An image with its edges repeated."""
    margins = [max(1, round(SHIFT_MARGIN * s)) if s > 1 else 0 for s in image.shape[:2]]
    around = [(m - m // 2, m - m // 2) for m in margins]
    return np.pad(image, [*around, (0, 0)], mode="edge")

"""Decoding of images to float32 arrays of shape (n, height, width, channels).

8-bit values are divided by 255 and 16-bit values by 65535. Booleans become 0 and 1. Values of other
types are not scaled.
"""

import io
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from sklearn.utils import check_array

from skaocls.devices import map_in_threads
from skaocls.images.folders import has_image_suffix
from skaocls.images.input_types import (
    as_array,
    convert_input,
    is_item,
    is_items,
    object_array,
)
from skaocls.images.lazy import ArrayOrLazy, in_memory

T = TypeVar("T")
FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(bool): 1}
MAX_PATH = 4096  # largest length of a path in bytes
MAX_VALUE = 1e15  # the sum of squares of larger values would overflow float32
FORMATS_16_BIT = ("PNG", "PPM")  # Pillow may report mode I for 16-bit files of these formats
ORIENTATION = 0x0112  # EXIF tag
TRANSPOSE = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_CROP_SCALE = 1.25  # largest size of a resized image, relative to the crop that is cut from it


class BadImage(ValueError):
    """An image cannot be read. The message contains the image's index in X and the reason."""


def read_item(item: object, index: int, use: Callable[[Any], T]) -> T:
    """Open a file or convert a tensor, then return use(image). Every error becomes a BadImage."""
    try:
        if isinstance(item, (str, os.PathLike, bytes)):
            by_path = not isinstance(item, bytes)
            if by_path and os.path.exists(item) and not os.path.isfile(item):  # a pipe would block
                raise OSError("it is not a regular file")
            with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
                return use(image)
        if not is_item(item):
            raise TypeError(f"expected a path, a PIL image or an array, got {type(item).__name__}")
        return use(as_array(item))
    except Exception as exc:  # decoders raise errors of any type
        reason = f"{item_name(item)!r}: {exc}"
        if isinstance(item, bytes) and is_path(item):
            reason = f"{item!r}: bytes must be the content of a file. Decode paths: os.fsdecode(x)"
        raise BadImage(f"X[{index}] cannot be read as an image: {reason}") from exc


def is_path(content: bytes) -> bool:
    """Return whether bytes are probably the path of an image instead of its content."""
    if len(content) > MAX_PATH or b"\0" in content:
        return False
    return has_image_suffix(os.fsdecode(content)) or os.path.exists(content)


def item_name(item: object) -> str | bytes:
    """Return the path if the item is a file, otherwise the name of its type."""
    return os.fspath(item) if isinstance(item, (str, os.PathLike)) else type(item).__name__


def find_unreadable(X: object, decoding: str = "as_seen") -> dict[int, str]:
    """Find images that cannot be read.

    Parameters
    ----------
    X : array-like
        Files, bytes and PIL images. Arrays are not checked.
    decoding : {"as_seen", "plain"}, default="as_seen"
        Rules for decoding the images; :func:`skaocls.images.to_pixels` explains both.

    Returns
    -------
    reasons : dict of int to str
        For each unreadable image, its index in X and the error message.

    Examples
    --------
    >>> from skaocls.images import find_unreadable
    >>> list(find_unreadable(["missing.png"]))
    [0]
    """
    data = convert_input(X)
    return unreadable_items(data, np.arange(len(data)), decoding)


def unreadable_items(data: ArrayOrLazy, index: np.ndarray, decoding: str) -> dict[int, str]:
    """Return a dict that maps the index in X of each unreadable image to its error message."""
    reasons = {}
    for i, item in zip(index.tolist(), data) if is_items(data) else ():
        try:
            read_item(item, i, lambda x: isinstance(x, np.ndarray) or convert_mode(x, decoding))
        except BadImage as exc:
            reasons[i] = str(exc)
    return reasons


def decode_images(
    data: ArrayOrLazy,
    shape: tuple[int, ...],
    *,
    resize: bool,
    decoding: str,
    index: np.ndarray,
    allow_nan: bool = False,
) -> np.ndarray:
    """Decode data to float32 images of shape (n, height, width, channels).

    Files and PIL images of another size are resized if `resize` is True; otherwise they raise an
    error. `index` contains the positions of the images in the user's X, for error messages. If
    `allow_nan` is False, NaN raises an error.
    """
    data = in_memory(data)
    if is_items(data):
        check_array(np.zeros((len(data), 1)))  # raises scikit-learn's error if X is empty

        def decode(i: int, item: object) -> np.ndarray:
            pixels = read_item(item, i, lambda x: item_pixels(x, shape, resize, decoding))
            return to_unit(checked_pixels(pixels, shape, i, item), f"X[{i}]", allow_nan)

        return np.stack(map_items(decode, index, data))
    if data.ndim > 2:  # otherwise each row is a flattened image
        data = data[..., None] if data.ndim == 3 else channels_last(data, shape)
        if data.shape[1:] != shape:
            raise ValueError(
                f"X has images of shape {data.shape[1:]}, but images of shape {shape} are "
                "expected, as in fit."
            )
    return to_unit(data, "X", allow_nan).reshape(-1, *shape)


def checked_pixels(
    pixels: np.ndarray, shape: tuple[int, ...], index: int, item: object
) -> np.ndarray:
    """Return the pixels of an item, or raise a ValueError if they have another shape."""
    if pixels.shape == shape:
        return pixels
    raise ValueError(
        f"X[{index}] has shape {pixels.shape}, but images of shape {shape} are expected, as in "
        f"fit: {item_name(item)!r}. Resize files and PIL images with "
        f"skaocls.images.resize_crop(image, {shape[0]}, {shape[1]}), or pass "
        f"image_shape={shape[:2]} to fit. Then fit and predict resize these images."
    )


def map_items(function: Callable[..., T], index: np.ndarray, data: np.ndarray) -> list[T]:
    """Return function(index, item) of each item; use threads if all items are files."""
    # PIL images are not thread-safe, and the same PIL image may occur twice in X
    files = all(isinstance(item, (str, os.PathLike, bytes)) for item in data)
    return map_in_threads(function, index.tolist(), list(data), threads=files)


def read_items(
    data: np.ndarray, shape: tuple[int, ...], *, resize: bool, decoding: str, index: np.ndarray
) -> np.ndarray:
    """Replace files and PIL images by decoded images; the arguments are as in `decode_images`.

    `decode_images` and `decode_originals` return the same values for the result as for `data`. If
    `resize`, the result contains PIL images, which have been halved as often as possible.
    """
    if not is_items(data):
        return data
    size = scaled_size(shape, max_crop_source(shape))

    def read(i: int, item: object) -> Any:
        if hasattr(item := as_array(item), "dtype"):
            return item
        if resize:
            return read_item(item, i, lambda x: halve(convert_mode(x, decoding), *size))
        pixels = read_item(item, i, lambda x: to_pixels(x, shape[2], decoding))
        return checked_pixels(pixels, shape, i, item)

    return object_array(map_items(read, index, data))


def decode_originals(
    data: ArrayOrLazy, shape: tuple[int, ...], *, resize: bool, decoding: str, index: np.ndarray
) -> list[np.ndarray]:
    """Decode images at the size from which random crops are cut.

    If `resize`, files and PIL images are halved here as often as possible, but remain large enough
    for every random crop. Each result has shape (height, width, channels). Files, PIL images and
    8-bit arrays become 8-bit values, and all other arrays become float32.
    """
    data = in_memory(data)
    size = scaled_size(shape, max_crop_source(shape))

    def decode(row: int) -> np.ndarray:
        item, one = data[row], slice(row, row + 1)
        image: np.ndarray
        is_file = is_items(data) and not hasattr(as_array(item), "dtype")
        if is_file and resize:
            large = read_item(item, index[row], lambda x: halve(convert_mode(x, decoding), *size))
            return to_pixels(large, shape[2], decoding)
        [image] = decode_images(
            data[one], shape, resize=resize, decoding=decoding, index=index[one]
        )
        is_8_bit = is_file or as_array(item).dtype == np.uint8
        return np.rint(image * 255).astype(np.uint8) if is_8_bit else image

    return [decode(row) for row in range(len(data))]


def item_pixels(image: Any, shape: tuple[int, ...], resize: bool, decoding: str) -> np.ndarray:
    """Return one array or PIL image as an array of shape (height, width, channels)."""
    height, width, channels = shape
    if isinstance(image, np.ndarray):
        return channels_last(image, shape) if image.ndim == 3 else image[..., None]
    if resize:
        image = resize_crop(convert_mode(image, decoding), height, width)
    return to_pixels(image, channels, decoding)


def channels_last(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Move the channel axis to the end if `a` has shape (..., channels, height, width)."""
    first = a.shape[-3:] == (shape[2], *shape[:2]) and a.shape[-3:] != shape
    return np.moveaxis(a, -3, -1) if first else a


def to_pixels(image: Image.Image, channels: int, decoding: str = "as_seen") -> np.ndarray:
    """Convert one PIL image to uint8 pixels (height, width, channels), grayscale or RGB.

    ``"as_seen"`` decodes the image as an image viewer shows it. This mode applies the EXIF
    rotation, blends transparent pixels with white, scales 16-bit values to 8 bits, and converts
    palettes and color modes such as CMYK. Images of 32-bit numbers (modes I and F) raise an error,
    because the value of white is not defined for these modes. ``"plain"`` only calls
    ``image.convert("RGB")``, which ignores EXIF rotation and transparency, and clips values above
    255. Use ``"plain"`` to reproduce published results.
    """
    check_file_channels(channels)
    a = np.asarray(convert_mode(image, decoding).convert("L" if channels == 1 else "RGB"))
    return a.reshape(*a.shape[:2], channels)


def check_file_channels(channels: int) -> None:
    """Reject a number of channels to which files and PIL images cannot be decoded."""
    if channels not in (1, 3):
        raise ValueError(
            f"Files and PIL images are decoded to 1 or 3 channels, but images with {channels} "
            f"channels are expected. Pass arrays of shape (height, width, {channels}), or call fit "
            "with images of 1 or 3 channels."
        )


def convert_mode(image: Image.Image, decoding: str) -> Image.Image:
    """Convert an image to mode L or RGB by the rules of :func:`to_pixels`; drop its metadata."""
    if decoding == "plain":
        return without_metadata(image.convert("L" if image.mode == "L" else "RGB"))
    is_16_bit = image.mode == "I" and image.format in FORMATS_16_BIT
    image.load()  # Pillow rotates TIFF files here
    if (orientation := orientation_of(image)) in TRANSPOSE:
        image = image.transpose(TRANSPOSE[orientation])
    if is_16_bit or image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(
            f"it has 32-bit numbers (mode {image.mode!r}), and the value of white is not known; "
            "pass arrays instead: np.asarray(image) divided by the value of white. If white is "
            "255, you can also pass image.convert('L')"
        )
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return without_metadata(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def without_metadata(image: Image.Image) -> Image.Image:
    """Remove the metadata of a new image; EXIF data would rotate the image a second time."""
    image.info.clear()
    return image


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation from 1 to 8; return 1 (upright) if the image has none."""
    try:  # `image.getexif` would decode the whole file if it is a PNG file
        orientation = Image.Image.getexif(image).get(ORIENTATION, 1)
        return int(orientation) if orientation in range(1, 9) else 1
    except Exception:  # damaged metadata can raise errors of any type
        return 1


def resize_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize an image to the smallest size that covers (height, width), then crop its center.

    While the image is at least twice as large as the result, a box filter halves the image. After
    that, a bicubic filter resizes it to the final size. The training images of the published models
    were preprocessed in this way.

    Parameters
    ----------
    image : PIL.Image.Image
    height, width : int
        Size of the result in pixels.

    Returns
    -------
    image : PIL.Image.Image
        Image of `height` x `width` pixels.

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
    image = resize_to_cover(image, height, width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def resize_to_cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize an image to the smallest size that covers (height, width); keep its aspect ratio."""
    image = halve(image, height, width)
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def halve(image: Image.Image, height: int, width: int) -> Image.Image:
    """Halve an image while it is at least twice as large as (height, width)."""
    while image.width >= 2 * width and image.height >= 2 * height:
        half = image.width // 2, image.height // 2
        image = image.resize(half, Image.Resampling.BOX)
    return image


def max_crop_source(shape: tuple[int, ...]) -> int:
    """Return the largest length in pixels of the shorter side, if a crop is cut from the image."""
    return math.ceil(MAX_CROP_SCALE * min(shape[:2]))


def scaled_size(shape: tuple[int, ...], shorter_side: int) -> tuple[int, int]:
    """Return height and width, scaled so that the shorter of them becomes `shorter_side`."""
    height, width = shape[:2]
    least = min(height, width)
    return round(height * shorter_side / least), round(width * shorter_side / least)


def to_unit(a: np.ndarray, name: str, allow_nan: bool = False) -> np.ndarray:
    """Convert to finite float32 values; scale 8-bit and 16-bit integers to [0, 1]."""
    finite = "allow-nan" if allow_nan else True
    checked = check_array(
        a, dtype=np.float32, allow_nd=True, input_name=name, ensure_all_finite=finite
    )
    largest = np.fmax.reduce(np.abs(checked), axis=None, initial=0)  # ignores NaN
    if largest > MAX_VALUE:
        raise ValueError(
            f"{name} has numbers up to {largest:.3g}, but images may have up to "
            f"{MAX_VALUE:.0e} as the largest number. Divide the images by the value of white."
        )
    scaled: np.ndarray = checked / np.float32(full_scale(a.dtype))
    return scaled


def full_scale(dtype: np.dtype) -> int:
    """Return the number by which images of this dtype are divided: 255, 65535 or 1."""
    return FULL_SCALE.get(dtype.newbyteorder("="), 1)

"""What counts as images: arrays, tensors, files and PIL images."""

import io
import os
import warnings
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from sklearn.utils import check_array

from skaocls.images.lazy import Lazy, Mapped, is_mapped

T = TypeVar("T")
GRAY_MODES = ("1", "L", "LA", "La", "I", "F")
COLOURS = (1, 3, 4)  # channels of gray, RGB and RGBA
NOT_ARRAYS = (str, os.PathLike, bytes, io.IOBase, Image.Image)
SHOWN = 5  # images that a message names
ORIENTATION = 0x0112  # EXIF's tag


class BadImage(ValueError):
    """One image that cannot be read: its index and why, in words."""


def as_batch(X: Any) -> Any:
    """X as something to slice, if it holds images.

    Parameters
    ----------
    X : object
        Arrays and torch tensors (n, height, width[, channels]) or (n, channels, height, width);
        lists, arrays, Series or one-column data frames of paths; lists of PIL images, arrays,
        or the content of image files, as bytes or in files that are open for reading them. Arrays
        that are mapped from a file stay there.

    Returns
    -------
    batch : ndarray or object
        A numeric array of 3 or 4 dimensions, or a 1-D object array of paths, bytes, PIL images
        and arrays; either may be :class:`skaocls.images.lazy.Lazy`. What holds no images comes
        back as it is (tensors as arrays). Channels are where they were: :func:`image_shape_of`
        finds them.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.images import as_batch
    >>> as_batch([["a.png"], ["b.png"]])
    array(['a.png', 'b.png'], dtype=object)
    """
    if isinstance(X, Lazy):
        return X
    if hasattr(X, "detach"):  # a torch tensor
        return tensor_to_array(X)
    table = X
    if hasattr(X, "to_numpy"):  # pandas, polars
        table = X.to_numpy() if len(getattr(X, "columns", "1")) == 1 else X
    elif isinstance(X, (list, tuple)):
        if any(is_item(x) for x in X):
            alike = {(type(x), getattr(x, "shape", None), getattr(x, "dtype", None)) for x in X}
            if len(alike) > 1 or isinstance(X[0], NOT_ARRAYS):
                return object_array(X)
            return np.stack([as_array(x) for x in X])
        try:
            table = np.asarray(X)
        except ValueError:  # ragged rows
            return X
    if not isinstance(table, np.ndarray):
        return X
    if table.dtype.kind in "OUT" and (table.ndim == 1 or table.shape[1:] == (1,)):
        items = object_array(table.ravel().tolist())
        return items if any(is_item(x) for x in items) else X
    if table.ndim not in (3, 4):
        return X
    return Mapped(table) if is_mapped(table) else table


def holds_images(batch: Any) -> bool:
    """Whether what :func:`as_batch` returned is images."""
    if isinstance(batch, Lazy):
        return batch.ndim != 2
    if is_items(batch):
        return any(is_item(x) for x in batch)
    return isinstance(batch, np.ndarray) and batch.ndim in (3, 4)


def image_shape_of(
    X: Any, image_shape: tuple[int, ...] | None = None, decoding: str = "as_seen"
) -> tuple[int, ...]:
    """The shape that all images in X have; of files only the headers are read.

    Parameters
    ----------
    X : array-like
        Images: arrays, tensors, files, PIL images; flat rows with `image_shape`.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        Shape of flat rows; size to which files and PIL images are to be resized.
    decoding : {"as_seen", "plain"}, default="as_seen"
        Whether EXIF rotation counts, see :func:`skaocls.images.to_pixels`.

    Returns
    -------
    shape : tuple of int (height, width, channels)
        Files and PIL images have one channel if all of them are grayscale, else three.

    Raises
    ------
    ValueError
        If sizes differ and no `image_shape` is given, if arrays do not have that shape, if
        something is no image.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.images import image_shape_of
    >>> image_shape_of(np.zeros((5, 8, 6)))
    (8, 6, 1)
    >>> image_shape_of(np.zeros((5, 64)), (8, 8))
    (8, 8, 1)
    """
    wanted = check_image_shape(image_shape)
    X = as_batch(X)
    numbers: Any = range(len(X))
    if isinstance(X, Lazy):
        if X.shape is None:  # a few tell
            X, numbers = object_array(X.sample()), X.looked_at()
    elif not is_items(X):
        X = np.asarray(X)
    if not is_items(X):
        if X.ndim == 4:
            shape = shape_of_array(X.shape[1:], wanted)
        else:
            shape = (*wanted, 1)[:3] if wanted and X.ndim == 2 else (*X.shape[1:], 1)[:3]
        if wanted and (
            shape[: len(wanted)] != wanted or (X.ndim == 2 and X.shape[1] != np.prod(shape))
        ):
            raise ValueError(
                f"X has shape {X.shape}, which is not n images of image_shape={wanted}. "
                "Arrays are not resized."
            )
        return shape
    check_array(np.zeros((len(X), 1)))  # at least one
    files = not all(isinstance(as_array(item), np.ndarray) for item in X)
    if files and wanted and len(wanted) == 3 and wanted[2] not in (1, 3):
        raise ValueError(f"image_shape={wanted}: image files have 1 or 3 channels.")
    first: tuple[int, ...] = ()
    most, damaged = 1, []
    arrays: dict[tuple[int, ...], int] = {}
    for i, item in zip(numbers, X):
        use = partial(header, decoding=decoding, wanted=wanted)
        (height, width, channels, is_array), is_damaged = read(item, i, both(use))
        if is_damaged:
            damaged.append(f"X[{i}] {name_of(item)!r}")
        first = first or (height, width)
        if wanted is None and (height, width) != first:
            raise ValueError(
                f"Images have different sizes: {first} at index 0, {(height, width)} at index {i}. "
                "Pass image_shape=(height, width) to resize files and PIL images; arrays are not "
                "resized."
            )
        most = max(most, channels)
        if is_array:
            arrays.setdefault((height, width, channels), i)
    if damaged:
        warnings.warn(
            f"EXIF metadata of {len(damaged)} images cannot be understood, and what is not is "
            f"ignored: {shortened(damaged)}.",
            UserWarning,
            stacklevel=2,
        )
    shape = (*(wanted or first), most)[:3]
    for seen, i in arrays.items():
        if seen != shape:
            raise ValueError(
                f"X[{i}] is an array of shape {seen}, but images of shape {shape} are expected. "
                "Arrays are neither resized nor converted."
            )
    return shape


def check_image_shape(image_shape: Any) -> tuple[int, ...] | None:
    """image_shape as a tuple of 2 or 3 positive ints, or None."""
    if image_shape is None:
        return None
    shape = tuple(image_shape) if np.iterable(image_shape) else ()
    if len(shape) not in (2, 3) or not all(isinstance(s, Integral) and int(s) >= 1 for s in shape):
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width) or (height, width, channels), "
            "positive integers."
        )
    return tuple(int(s) for s in shape)


def is_item(x: Any) -> bool:
    """Whether x stands for one image: a file, a PIL image, an array of 2 or 3 dimensions."""
    if isinstance(x, NOT_ARRAYS):
        return True
    return (isinstance(x, np.ndarray) or hasattr(x, "detach")) and x.ndim in (2, 3)


def is_items(X: Any) -> bool:
    return isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1


def object_array(items: Any) -> np.ndarray:
    out = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        out[i] = content_of(item) if isinstance(item, io.IOBase) else item
    return out


def content_of(file: Any) -> bytes:
    """All bytes of an open file, from its beginning."""
    file.seek(0)
    content = file.read()
    if not isinstance(content, bytes):
        raise TypeError(f"X has a file that was opened as text: {file!r}. Open it with 'rb'.")
    return content


def as_array(item: Any) -> Any:
    """One image; a tensor as an array."""
    return tensor_to_array(item) if hasattr(item, "detach") else item


def tensor_to_array(x: Any) -> np.ndarray:
    try:
        x = x.detach().cpu()
        a: np.ndarray = (x.float() if x.is_floating_point() else x).numpy()
    except (NotImplementedError, TypeError) as exc:  # sparse, or without numbers
        raise TypeError(f"X has a tensor that cannot become an array: {exc}") from exc
    return a


def shape_of_array(
    shape: tuple[int, ...], wanted: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """(height, width, channels) of one array of three dimensions, channels last or first.

    What `wanted` fits, decides. Without it, where the number of channels is a usual one, and which
    two sides make a square; where these disagree or say nothing, which side is far shorter.

    Raises
    ------
    ValueError
        If it may be both.
    """
    last, first = shape, (*shape[1:], shape[0])
    if wanted is not None:
        fits = [s for s in (last, first) if s[: len(wanted)] == wanted]
        if len(set(fits)) < 2 or len(wanted) == 3:  # of two, a cube, the first
            return (fits or [last])[0]
    elif last[2] == first[2] == 1:  # a line
        return last
    else:
        usual = [s[2] in COLOURS for s in (last, first)]
        square = [s[0] == s[1] > 1 for s in (last, first)]
        short = [not any(usual) and 2 * s[2] <= min(s[:2]) for s in (last, first)]
        signs = [a - b for a, b in (usual, square) if a != b] or [short[0] - short[1]]
        if len(set(signs)) == 1 and signs[0]:
            return last if signs[0] > 0 else first
    raise ValueError(
        f"X has images of shape {shape}, which may be (height, width, channels) or (channels, "
        f"height, width). Pass image_shape={last} if channels come last, image_shape={first} if "
        "they come first."
    )


def channels_last(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array (..., channels, height, width) as (..., height, width, channels), if it is one."""
    first = a.shape[-3:] == (shape[2], *shape[:2]) and a.shape[-3:] != shape
    return np.moveaxis(a, -3, -1) if first else a


def header(
    image: Any, decoding: str = "as_seen", wanted: tuple[int, ...] | None = None
) -> tuple[int, int, int, bool]:
    """Height and width as decoded, channels, and whether the image is an array."""
    if isinstance(image, np.ndarray):
        height, width, channels = (
            shape_of_array(image.shape, wanted) if image.ndim == 3 else (*image.shape, 1)
        )
        return height, width, channels, True
    width, height = image.size
    # Pillow turns the size of TIFF files itself, since some version; their tags tell
    tags = getattr(image, "tag_v2", {})
    as_stored = (tags.get(256, width), tags.get(257, height)) == (width, height)
    turned = as_stored and (decoding == "as_seen" or tags)
    if turned and orientation_of(image) in (5, 6, 7, 8):
        height, width = width, height
    gray = image.mode in GRAY_MODES or image.mode.startswith("I;16")
    return height, width, 1 if gray else 3, False


def exif_of(image: Image.Image) -> Any:
    """EXIF metadata, or None if they cannot be read."""
    try:
        return Image.Image.getexif(image)  # PNG's own getexif would decode the whole file
    except Exception:  # damaged ones raise all sorts
        return None


def orientation_of(image: Image.Image) -> int:
    """How EXIF says that the image is to be turned, 1 ... 8; 1 if it says nothing."""
    try:
        found = (exif_of(image) or {}).get(ORIENTATION, 1)
        return int(found) if found in range(1, 9) else 1
    except Exception:
        return 1


def both(use: Callable[[Any], T]) -> Callable[[Any], tuple[T, bool]]:
    """What `use` says of an image, and whether its metadata are damaged."""
    return lambda image: (use(image), metadata_is_damaged(image))


def metadata_is_damaged(image: Any) -> bool:
    """Whether an image has EXIF metadata such as could not be written again."""
    if not getattr(image, "info", {}).get("exif"):
        return False
    try:
        exif_of(image).tobytes()
    except Exception:
        return True
    return False


def shortened(names: list[str]) -> str:
    """The first few of a list, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def name_of(item: Any) -> str | bytes:
    """The path of a file, the type of anything else."""
    return os.fspath(item) if isinstance(item, (str, os.PathLike)) else type(item).__name__


def read(item: Any, index: int, use: Callable[[Any], T]) -> T:
    """use(image) of what item stands for; a failure names its index and path."""
    try:
        named = isinstance(item, (str, os.PathLike))
        if named and os.path.exists(item) and not os.path.isfile(item):  # pipes are waited for
            raise OSError("it is no file")
        if isinstance(item, (str, os.PathLike, bytes)):
            with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
                return use(image)
        if not is_item(item):
            raise TypeError(f"expected a path, a PIL image or an array, got {type(item).__name__}")
        return use(as_array(item))
    except Exception as exc:  # decoders raise all sorts
        name = name_of(item)
        raise BadImage(f"X[{index}] cannot be read as an image: {name!r}: {exc}") from exc

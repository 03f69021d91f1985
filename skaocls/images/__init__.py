"""Input data: arrays, tensors, files and PIL images become float32 (n, height, width, channels).

``inputs`` converts X to one form, ``shapes`` infers the image shape, ``reader`` validates the data,
``batch`` carries them, ``decoding`` makes pixels of files and PIL images, ``lazy`` reads data larger
than memory, ``folders`` finds files, and ``views`` makes random views and crops.
"""

from typing import Any

import numpy as np

from skaocls.images.batch import Batch
from skaocls.images.decoding import find_unreadable, resize_crop, to_pixels
from skaocls.images.folders import load_image_folder
from skaocls.images.inputs import convert_input
from skaocls.images.reader import Reader

__all__ = ["find_unreadable", "load_image_folder", "load_images", "resize_crop", "to_pixels"]


def load_images(
    X: Any, shape: tuple[int, int, int], *, resize: bool = False, decoding: str = "as_seen"
) -> np.ndarray:
    """Decode images.

    Parameters
    ----------
    X : array-like of images
        Arrays, tensors, files or PIL images.
    shape : tuple of int (height, width, channels)
        Shape of every image.
    resize : bool, default=False
        Whether files and PIL images of another size are resized (:func:`resize_crop`). If False,
        they are an error.
    decoding : {"as_seen", "plain"}, default="as_seen"
        How files and PIL images are decoded, see :func:`to_pixels`.

    Returns
    -------
    images : float32 array of shape (n, height, width, channels)
        8-bit and 16-bit values are scaled to [0, 1].

    Raises
    ------
    ValueError
        If an image has another shape, cannot be read, or contains NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.images import load_images
    >>> float(load_images(np.full((5, 8, 8), 255, np.uint8), (8, 8, 1)).max())
    1.0
    """
    reader = Reader("load_images", shape if resize else None, shape, 0, decoding=decoding)
    return Batch(reader, convert_input(X)).images()

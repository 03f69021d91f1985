"""Images in: arrays, tensors, files and PIL images become (n, height, width, channels).

``inputs`` says what counts as images, ``advice`` what to do with what does not, ``folders`` finds
files, ``decoding`` makes numbers of images, ``reader`` remembers what `fit` saw, ``augmentation``
moves and turns them for training.
"""

from skaocls.images.decoding import load_images, resize_crop, to_pixels
from skaocls.images.folders import load_image_folder
from skaocls.images.inputs import as_batch, holds_images, image_shape_of
from skaocls.images.reader import find_unreadable

__all__ = [
    "as_batch",
    "find_unreadable",
    "holds_images",
    "image_shape_of",
    "load_image_folder",
    "load_images",
    "resize_crop",
    "to_pixels",
]

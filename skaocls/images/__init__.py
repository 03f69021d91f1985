"""Conversion of arrays, tensors, files and PIL images to float32 (n, height, width, channels).

``input_types`` converts X to one form, ``shapes`` infers the image shape, ``reader`` validates X,
and ``batch`` holds the validated data. ``decoding`` converts files and PIL images to pixels.
``lazy`` handles data larger than memory, ``folders`` lists image files, and ``augmentation`` makes
random views and crops.
"""

from skaocls.images.decoding import find_unreadable, resize_crop, to_pixels
from skaocls.images.folders import load_image_folder

__all__ = ["find_unreadable", "load_image_folder", "resize_crop", "to_pixels"]

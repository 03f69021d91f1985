"""Input data: arrays, tensors, files and PIL images become float32 (n, height, width, channels).

``inputs`` converts X to one form, ``shapes`` infers the image shape, ``reader`` validates the data,
and ``batch`` holds them. ``decoding`` converts files and PIL images to pixels, ``lazy`` reads data
larger than memory, ``folders`` finds files, and ``views`` makes random views and crops.
"""

from skaocls.images.decoding import find_unreadable, resize_crop, to_pixels
from skaocls.images.folders import load_image_folder

__all__ = ["find_unreadable", "load_image_folder", "resize_crop", "to_pixels"]

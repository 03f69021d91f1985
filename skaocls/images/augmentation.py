"""Random views and crops of images, for training and for scoring."""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from skaocls.devices import own_torch_state
from skaocls.images.decoding import full_scale, max_crop_source, resize_to_cover, scaled_size

# Limits of the random transformations
MAX_SHIFT = 0.125  # as a fraction of the image's height and width
MAX_ROTATION = math.radians(10.0)
MAX_STRETCH = 0.1  # as a fraction of the image's size
MAX_SHEAR = 0.1

# Random crops
SHIFT_MARGIN = 0.1  # pixels added to each axis of a small image, as a fraction of the axis length
SHIFTED_BELOW = 64  # pixels; smaller images are only shifted, because resizing would blur them


@own_torch_state()
def random_views(
    images: np.ndarray,
    rng: np.random.RandomState,
    *,
    strength: float = 1.0,
    same: bool = False,
) -> np.ndarray:
    """Apply a small random affine transformation to each image.

    `images` are floats of shape (n, height, width, channels). Positions outside an image get the
    value of the nearest edge pixel. `strength` multiplies the largest shift, rotation, stretch and
    shear. If `same`, all images get one common transformation. Flips and color changes are not
    used, because they can change the meaning of letters, digits and other images.
    """
    n = 1 if same else len(images)
    angle, stretch, slant = (
        torch.from_numpy(rng.uniform(-strength * limit, strength * limit, n)).float()
        for limit in (MAX_ROTATION, MAX_STRETCH, MAX_SHEAR)
    )
    # coordinates in affine_grid range from -1 to 1, so the image is 2 units wide
    limit = 2 * strength * MAX_SHIFT
    dx, dy = torch.from_numpy(rng.uniform(-limit, limit, (2, n))).float()
    size = 1 + stretch
    rows = [
        torch.stack([size * angle.cos(), -size * angle.sin() + slant, dx], 1),
        torch.stack([size * angle.sin(), size * angle.cos(), dy], 1),
    ]
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).permute(0, 3, 1, 2)
    shape = pixels.shape
    grid = F.affine_grid(torch.stack(rows, 1), [n, *shape[1:]], align_corners=False)
    # if all images get the same transformation, they are the channels of one image
    pixels = pixels.reshape(n, -1, *shape[2:])
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return moved.view(shape).permute(0, 2, 3, 1).numpy()


def random_crop(
    image: np.ndarray, shape: tuple[int, ...], size: float, position: np.ndarray
) -> np.ndarray:
    """Resize an image, and return a window of the given shape as float32.

    `image` comes from :meth:`skaocls.images.batch.Batch.originals`. After resizing, the shorter
    side of the image is 1 to 5/4 times the shorter side of the window. `size` in [0, 1) selects
    this factor. Large images are first halved with a box filter, and then resized with a bicubic
    filter. The two numbers of `position`, in [0, 1), select the top and left edge of the window in
    the resized image. The published code of arXiv 2105.05233 crops images in the same way.

    This function adds one exception. If image and window have the same size, and the shorter side
    is below 64 pixels, resizing would blur the image. The image is then padded by repeating its
    edge pixels, and the window is cut from the padded image.
    """
    if image.shape[:2] == tuple(shape[:2]) and min(shape[:2]) < SHIFTED_BELOW:
        large = pad_edges(image)
    else:
        least = min(shape[:2])
        shorter_side = least + int(size * (max_crop_source(shape) - least + 1))
        target = scaled_size(shape, shorter_side)
        planes = [resize_to_cover(Image.fromarray(x), *target) for x in np.moveaxis(image, 2, 0)]
        large = np.stack([np.asarray(plane) for plane in planes], axis=2)
        if large.dtype != np.uint8:  # a bicubic filter overshoots, and Pillow clips only 8-bit data
            large = large.clip(image.min(), image.max())
    top, left = (
        int(fraction * (available - wanted + 1))
        for fraction, available, wanted in zip(position, large.shape[:2], shape[:2], strict=True)
    )
    window = large[top : top + shape[0], left : left + shape[1]].astype(np.float32)
    window /= np.float32(full_scale(large.dtype))
    return window


def pad_edges(image: np.ndarray) -> np.ndarray:
    margins = [max(1, round(SHIFT_MARGIN * s)) if s > 1 else 0 for s in image.shape[:2]]
    padding = [(m - m // 2, m - m // 2) for m in margins]
    return np.pad(image, [*padding, (0, 0)], mode="edge")

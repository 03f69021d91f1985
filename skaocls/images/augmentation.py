"""Random views of images for training, and crops for scoring."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from skaocls.devices import own_torch_state

CROP_MARGIN = 0.1  # share of its size by which an image is larger than what is cropped from it
ENLARGED_FROM = 64  # pixels; smaller images would be blurred


@own_torch_state()
def random_views(
    images: np.ndarray,
    rng: np.random.RandomState,
    *,
    shift: float = 0.125,
    rotation: float = 10.0,
    scale: float = 0.1,
    shear: float = 0.1,
) -> np.ndarray:
    """Move, turn, stretch and shear each image a little; what appears at the edges repeats them.

    No flips and no colours: they change the meaning of letters, digits and many other things.

    Parameters
    ----------
    images : float array of shape (n, height, width, channels)
    rng : RandomState
        Draws one transformation for each image.
    shift : float, default=0.125
        Largest shift, as a share of height and width.
    rotation : float, default=10.0
        Largest turn, in degrees.
    scale, shear : float, default=0.1
        Largest relative change of size, and largest shear.

    Returns
    -------
    views : float32 array of shape (n, height, width, channels)

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.images.augmentation import random_views
    >>> images = np.random.RandomState(0).rand(5, 8, 8, 1)
    >>> random_views(images, np.random.RandomState(0)).shape
    (5, 8, 8, 1)
    """
    n = len(images)
    angle, stretch, slant = (
        torch.from_numpy(rng.uniform(-limit, limit, n)).float()
        for limit in (math.radians(rotation), scale, shear)
    )
    # affine_grid counts from -1 to 1: the whole image is 2 wide
    dx, dy = torch.from_numpy(rng.uniform(-2 * shift, 2 * shift, (2, n))).float()
    size = 1 + stretch
    rows = [
        torch.stack([size * angle.cos(), -size * angle.sin() + slant, dx], 1),
        torch.stack([size * angle.sin(), size * angle.cos(), dy], 1),
    ]
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).permute(0, 3, 1, 2)
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1).numpy()


@own_torch_state()
def enlarged(images: np.ndarray) -> np.ndarray:
    """Images with the margin that random crops need; small ones get it by repeating their edges."""
    margins = [max(1, round(CROP_MARGIN * s)) if s > 1 else 0 for s in images.shape[1:3]]
    if min(images.shape[1:3]) < ENLARGED_FROM:
        before = [(m - m // 2, m - m // 2) for m in margins]
        return np.pad(images, [(0, 0), *before, (0, 0)], mode="edge")
    size = [s + m for s, m in zip(images.shape[1:3], margins, strict=True)]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    large = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    return large.permute(0, 2, 3, 1).numpy()


def cropped(images: np.ndarray, shape: Sequence[int], where: np.ndarray) -> np.ndarray:
    """The window of that shape whose corner lies at the share `where` of the margin."""
    top, left = (
        int(share * (have - want + 1))
        for share, have, want in zip(where, images.shape[1:3], shape[:2], strict=True)
    )
    return images[:, top : top + shape[0], left : left + shape[1]]

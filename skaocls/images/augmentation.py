"""Random views of images, for training and for scoring."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from skaocls.devices import own_torch_state


@own_torch_state()
def random_views(
    images: np.ndarray,
    rng: np.random.RandomState,
    *,
    shift: float = 0.125,
    rotation: float = 10.0,
    scale: float = 0.1,
    shear: float = 0.1,
    share: float = 1.0,
    alike: bool = False,
) -> np.ndarray:
    """Move, turn, stretch and shear each image a little; what appears at the edges repeats them.

    No flips and no colours: they change the meaning of letters, digits and many other things.

    Parameters
    ----------
    images : float array of shape (n, height, width, channels)
    rng : RandomState
        Draws the transformations.
    shift : float, default=0.125
        Largest shift, as a share of height and width.
    rotation : float, default=10.0
        Largest turn, in degrees.
    scale, shear : float, default=0.1
        Largest relative change of size, and largest shear.
    share : float, default=1.0
        Share of these limits.
    alike : bool, default=False
        Whether all images get the same transformation, else each one of its own.

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
    n = 1 if alike else len(images)
    angle, stretch, slant = (
        torch.from_numpy(rng.uniform(-share * limit, share * limit, n)).float()
        for limit in (math.radians(rotation), scale, shear)
    )
    # affine_grid counts from -1 to 1: the whole image is 2 wide
    far = 2 * share * shift
    dx, dy = torch.from_numpy(rng.uniform(-far, far, (2, n))).float()
    size = 1 + stretch
    rows = [
        torch.stack([size * angle.cos(), -size * angle.sin() + slant, dx], 1),
        torch.stack([size * angle.sin(), size * angle.cos(), dy], 1),
    ]
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).permute(0, 3, 1, 2)
    grid = F.affine_grid(torch.stack(rows, 1), [n, *pixels.shape[1:]], align_corners=False)
    grid = grid.expand(len(images), -1, -1, -1)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1).numpy()

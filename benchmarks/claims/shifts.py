"""Changes of images between training and test, each in five severities.

A shift is a function of images, float32 in [0, 1] of shape (n, height, width, channels), a
severity from 1 to 5 and a seed. Sizes are shares of the image, so it suits 8 x 8 and 32 x 32
pixels alike. What becomes of an image depends on its index, not on the others.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage


def image_by_image(change):
    """Make a shift of a change of one image, given a random generator of its own."""

    def shift(images, severity, seed=0):
        if severity not in (1, 2, 3, 4, 5):
            raise ValueError(f"severity must be 1, 2, 3, 4 or 5, not {severity!r}.")
        shifted = [
            change(image, severity, np.random.default_rng([seed, i]))
            for i, image in enumerate(images)
        ]
        return np.clip(shifted, 0, 1, dtype=np.float32)

    shift.__name__, shift.__doc__ = change.__name__, change.__doc__
    return shift


@image_by_image
def gaussian_noise(image, severity, rng):
    """Noise of every pixel and channel on its own."""
    return image + (0.05, 0.1, 0.16, 0.23, 0.32)[severity - 1] * rng.normal(size=image.shape)


@image_by_image
def gaussian_blur(image, severity, rng):
    """Out of focus."""
    # strokes are wider in larger images, but not quite in proportion
    sigma = (0.2 + 0.12 * severity) * (len(image) / 8) ** 0.85
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


@image_by_image
def contrast(image, severity, rng):
    """Towards the image's mean."""
    keep = (0.75, 0.55, 0.4, 0.25, 0.15)[severity - 1]
    return keep * image + (1 - keep) * image.mean()


@image_by_image
def jpeg(image, severity, rng):
    """Saved as JPEG of a low quality."""
    pixels = np.round(image * 255).astype(np.uint8)
    file = io.BytesIO()
    quality = (50, 30, 18, 10, 5)[severity - 1]
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
        file, format="JPEG", quality=quality
    )
    return np.asarray(Image.open(file), dtype=np.float32).reshape(image.shape) / 255


@image_by_image
def occlusion(image, severity, rng):
    """A square somewhere, as the image's mean."""
    side = round((0.15, 0.25, 0.35, 0.45, 0.57)[severity - 1] * len(image))
    top, left = (rng.random(2) * (np.array(image.shape[:2]) - side + 1)).astype(int)
    hidden = image.copy()
    hidden[top : top + side, left : left + side] = image.mean((0, 1))
    return hidden


@image_by_image
def translation(image, severity, rng):
    """Moved in some direction; the edge is repeated."""
    angle = rng.uniform(0, 2 * np.pi)
    distance = severity / 16 * len(image)
    move = distance * np.sin(angle), distance * np.cos(angle), 0
    return ndimage.shift(image, move, order=1, mode="nearest")


@image_by_image
def inversion(image, severity, rng):
    """Towards the negative; past half of the way without the grey in the middle."""
    share = (0.1, 0.25, 0.75, 0.9, 1.0)[severity - 1]
    return (1 - share) * image + share * (1 - image)


@image_by_image
def outline(image, severity, rng):
    """Towards a sketch of the edges, dark on white paper if the image is light, else reverse."""
    share = severity / 5
    # differences of neighbours, not Sobel's: the two edges of a thin stroke stay apart
    slopes = [np.diff(image, axis=axis, append=image.take([-1], axis)) for axis in (0, 1)]
    edges = np.hypot(*slopes).max(-1, keepdims=True).clip(0, 1)
    sketch = 1 - edges if np.median(image) > 0.5 else edges
    return (1 - share) * image + share * sketch


SHIFTS = {
    shift.__name__: shift
    for shift in (
        gaussian_noise, gaussian_blur, contrast, jpeg, occlusion, translation, inversion, outline
    )
}  # fmt: skip

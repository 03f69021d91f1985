"""Distribution shifts: changes of the test images, each in five severities.

A shift is a function of images, float32 in [0, 1] of shape (n, height, width, channels), a severity
from 1 to 5 and a seed. Sizes are relative to the image, so a shift suits 8 x 8 and 32 x 32 pixels.
The result for an image depends on its index, not on other images.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage


def image_by_image(change):
    """Make a shift from a function that changes one image with a random generator."""

    def shift(images, severity, seed=0):
        if severity not in (1, 2, 3, 4, 5):
            raise ValueError(f"severity must be 1, 2, 3, 4 or 5, but is {severity!r}.")
        shifted = [
            change(image, severity, np.random.default_rng([seed, i]))
            for i, image in enumerate(images)
        ]
        return np.clip(shifted, 0, 1, dtype=np.float32)

    shift.__name__, shift.__doc__ = change.__name__, change.__doc__
    return shift


@image_by_image
def gaussian_noise(image, severity, rng):
    """Add independent noise to every pixel and channel."""
    return image + (0.05, 0.1, 0.16, 0.23, 0.32)[severity - 1] * rng.normal(size=image.shape)


@image_by_image
def gaussian_blur(image, severity, rng):
    """Blur the image."""
    # strokes grow less than in proportion to the image
    sigma = (0.2 + 0.12 * severity) * (len(image) / 8) ** 0.85
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


@image_by_image
def contrast(image, severity, rng):
    """Reduce the contrast around the mean of the image."""
    keep = (0.75, 0.55, 0.4, 0.25, 0.15)[severity - 1]
    return keep * image + (1 - keep) * image.mean()


@image_by_image
def jpeg(image, severity, rng):
    """Compress as JPEG of low quality."""
    pixels = np.round(image * 255).astype(np.uint8)
    file = io.BytesIO()
    quality = (50, 30, 18, 10, 5)[severity - 1]
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
        file, format="JPEG", quality=quality
    )
    return np.asarray(Image.open(file), dtype=np.float32).reshape(image.shape) / 255


@image_by_image
def occlusion(image, severity, rng):
    """Hide a square at a random position with the mean of the image."""
    side = round((0.15, 0.25, 0.35, 0.45, 0.57)[severity - 1] * len(image))
    top, left = (rng.random(2) * (np.array(image.shape[:2]) - side + 1)).astype(int)
    hidden = image.copy()
    hidden[top : top + side, left : left + side] = image.mean((0, 1))
    return hidden


@image_by_image
def translation(image, severity, rng):
    """Translate in a random direction, and repeat the edge."""
    angle = rng.uniform(0, 2 * np.pi)
    distance = severity / 16 * len(image)
    move = distance * np.sin(angle), distance * np.cos(angle), 0
    return ndimage.shift(image, move, order=1, mode="nearest")


@image_by_image
def inversion(image, severity, rng):
    """Blend with the negative; the shares skip the grey image at one half."""
    share = (0.1, 0.25, 0.75, 0.9, 1.0)[severity - 1]
    return (1 - share) * image + share * (1 - image)


@image_by_image
def outline(image, severity, rng):
    """Blend with the edges, dark on white for light images and white on black for dark ones."""
    share = severity / 5
    # differences of neighbours keep the two edges of a thin stroke apart, unlike Sobel's filter
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

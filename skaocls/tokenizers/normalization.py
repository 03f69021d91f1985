"""Normalization of images, which makes tokens independent of brightness, contrast and polarity.

Statistics are the mean and the contrast (standard deviation) of each channel. The statistics of n
images have shape (n, 2, channels). All normalized images have the same statistics, called the
reference, of shape (2, channels). If the normalization includes polarity, images with negative
skewness (dark objects on a light background) have a negative contrast.
"""

import numpy as np

# Normalizations, sorted by the number of image properties that they remove
NORMALIZATIONS = ("image", "image+polarity", "channel", "channel+polarity")

# Limits that handle rounding errors and noise; the exact values hardly change the results.
MIN_CONTRAST = 0.1  # relative to the typical contrast; limits noise in almost uniform images
ROUNDING = 1e-5  # contrasts up to this fraction of the largest mean count as zero
MIN_SKEWNESS = 1e-3  # if the skewness is above -MIN_SKEWNESS, the polarity is positive


def image_statistics(
    images: np.ndarray, normalize: str, valid: np.ndarray | None = None
) -> np.ndarray:
    """Compute the statistics of images (n, height, width, channels).

    With ``"image"``, all channels get the same statistics. With ``"channel"``, each channel gets
    its own statistics. `valid` (n, height, width) marks the pixels that are used, at least one in
    each image. If `valid` is None, all pixels are used.
    """
    n, channels = len(images), images.shape[-1]
    pixels = images.reshape(n, -1, channels).astype(np.float64)
    weights = np.full((n, 1, 1), 1 / pixels.shape[1])
    if valid is not None:
        weights = valid.reshape(n, -1, 1) / valid.reshape(n, -1, 1).sum(1, keepdims=True)

    def average(numbers: np.ndarray) -> np.ndarray:
        means: np.ndarray = (weights * numbers).sum(1)
        if not normalize.startswith("channel"):
            means = means.mean(1, keepdims=True).repeat(channels, axis=1)
        return means

    mean = average(pixels)
    pixels -= mean[:, None]
    contrast = np.sqrt(average(pixels**2))
    if normalize.endswith("polarity"):
        gray = pixels.mean(2, keepdims=True)
        scale = (weights * gray**2).sum((1, 2)) ** 1.5
        is_dark = (weights * gray**3).sum((1, 2)) < -MIN_SKEWNESS * scale
        contrast[is_dark] *= -1
    return np.stack([mean, contrast], axis=1)


def typical_statistics(statistics: np.ndarray) -> np.ndarray:
    """Return the median over non-uniform images, or mean 0 and contrast 1 if all are uniform."""
    means, contrasts = np.moveaxis(statistics, 1, 0)
    varied = abs(contrasts) > ROUNDING * max(abs(means).max(), np.finfo(float).tiny)
    typical = np.empty(statistics.shape[1:])
    for channel, rows in enumerate(varied.T):
        typical[:, channel] = 0, 1
        if rows.any():
            contrast = contrasts[rows, channel]
            sign = 1 if (contrast > 0).mean() >= 0.5 else -1
            typical[:, channel] = np.median(means[rows, channel]), sign * np.median(abs(contrast))
    return typical


def limit_contrast(statistics: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Raise each contrast to at least MIN_CONTRAST times the contrast of the reference."""
    mean, contrast = np.moveaxis(statistics, 1, 0)
    limited = np.maximum(abs(contrast), MIN_CONTRAST * abs(reference[1]))
    return np.stack([mean, np.where(contrast < 0, -limited, limited)], axis=1)


def extrapolate_statistics(
    statistics: np.ndarray,
    valid: np.ndarray,
    training: tuple[np.ndarray, np.ndarray],
    reference: np.ndarray,
    normalize: str,
) -> np.ndarray:
    """Estimate the statistics of whole images from the statistics of their valid pixels.

    The estimate assumes that valid pixels differ from the whole image in the same way as in an
    average training image. `training` contains the mean and the standard deviation of each pixel
    over the normalized training images.
    """
    mean, std = (x[None].repeat(len(valid), axis=0).astype(np.float64) for x in training)
    part_mean, std_of_means = np.moveaxis(
        image_statistics(mean, normalize.split("+")[0], valid), 1, 0
    )
    std_statistics = image_statistics(std, normalize.split("+")[0], valid)
    # total variance = variance of the pixel means + mean of the pixel variances
    contrast = np.sqrt(std_of_means**2 + (std_statistics**2).sum(1))
    contrast = np.maximum(contrast, MIN_CONTRAST * abs(reference[1]))
    signed, factor = statistics[:, 1] * np.sign(reference[1]), abs(reference[1]) / contrast
    return np.stack(
        [
            statistics[:, 0] + (reference[0] - part_mean) / contrast * signed,
            statistics[:, 1] * factor,
        ],
        axis=1,
    )


def match_statistics(images: np.ndarray, current: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rescale images (n, ..., channels) so that their statistics `current` become `target`."""
    inner = (1,) * (images.ndim - 2)
    (mean, contrast), (target_mean, target_contrast) = (
        np.moveaxis(x.reshape(-1, 2, *inner, x.shape[-1]), 1, 0) for x in (current, target)
    )
    factor = target_contrast / contrast
    offset = target_mean - mean * factor
    matched: np.ndarray = images * factor.astype(np.float32) + offset.astype(np.float32)
    return matched.astype(np.float32, copy=False)

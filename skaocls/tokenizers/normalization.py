"""Normalization of images: brightness, contrast and polarity, on which tokens need not depend."""

import numpy as np

# What is normalized, from least to most
NORMALIZATIONS = ("image", "image+polarity", "channel", "channel+polarity")

# Constants of floating-point robustness and noise; results do not depend on their exact values.
MIN_CONTRAST = 0.1  # of the typical contrast; keeps noise in almost uniform images small
ROUNDING = 1e-5  # contrast, relative to the largest mean, that counts as zero
MIN_SKEWNESS = 1e-3  # below it, polarity counts as positive


def image_statistics(
    images: np.ndarray, normalize: str, valid: np.ndarray | None = None
) -> np.ndarray:
    """Compute mean and contrast of each image.

    Parameters
    ----------
    images : float array of shape (n, height, width, channels)
    normalize : str
        One of :data:`NORMALIZATIONS`. ``"image"`` shares statistics between channels,
        ``"channel"`` has separate ones. With ``"+polarity"``, contrast is negative if the few
        pixels that stand out are dark (negative skewness).
    valid : bool array of shape (n, height, width), default=None
        Pixels that count, at least one in each image. None is all.

    Returns
    -------
    statistics : float64 array of shape (n, 2, channels)
        Means, and contrasts: standard deviations, with a sign if polarity is normalized.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.tokenizers.normalization import image_statistics
    >>> stroke = np.zeros((1, 2, 2, 1))
    >>> stroke[0, 0, 0] = 4
    >>> image_statistics(stroke, "image").round(2).tolist()
    [[[1.0], [1.73]]]
    >>> image_statistics(5 - stroke, "image+polarity").round(2).tolist()
    [[[4.0], [-1.73]]]
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
    """Return the median (2, channels) over images that are not uniform; mean 0, contrast 1 if none.

    `statistics` are those of each image, (n, 2, channels).
    """
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
    """Raise each contrast to at least a fraction of the reference's."""
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
    """Estimate the statistics of whole images from those of a part.

    The estimate assumes that the whole differs from the part as it does in training images, on
    average.

    Parameters
    ----------
    statistics : array of shape (n, 2, channels)
        Statistics of the parts.
    valid : bool array of shape (n, height, width)
        Pixels of the parts.
    training : two arrays of shape (height, width, channels)
        Mean and standard deviation of normalized training images, pixel by pixel.
    reference : array of shape (2, channels)
        Statistics of normalized images.
    normalize : str
        One of :data:`NORMALIZATIONS`.
    """
    mean, std = (x[None].repeat(len(valid), axis=0).astype(np.float64) for x in training)
    part_mean, std_of_means = np.moveaxis(
        image_statistics(mean, normalize.split("+")[0], valid), 1, 0
    )
    std_statistics = image_statistics(std, normalize.split("+")[0], valid)
    # over images and pixels: the variance of the means, plus the mean of the variances
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
    """Change images (n, ..., channels) linearly, so that statistics `current` become `target`.

    Statistics have shape (n, 2, channels) or (2, channels). The result is float32.
    """
    inner = (1,) * (images.ndim - 2)
    (mean, contrast), (target_mean, target_contrast) = (
        np.moveaxis(x.reshape(-1, 2, *inner, x.shape[-1]), 1, 0) for x in (current, target)
    )
    factor = target_contrast / contrast
    offset = target_mean - mean * factor
    matched: np.ndarray = images * factor.astype(np.float32) + offset.astype(np.float32)
    return matched.astype(np.float32, copy=False)

"""The light of images: brightness, contrast and polarity, which tokens need not care about."""

import numpy as np

# From the least to the most that is taken off
NORMALIZATIONS = ("image", "image+polarity", "channel", "channel+polarity")
# Of the typical contrast: images with less are taken to have that, or noise in flat ones were all
LEAST = 0.1
FLAT = 1e-5  # contrast, as a share of the largest mean, that is rounding
EVEN = 1e-3  # skewness that is none


def light_of(images: np.ndarray, normalize: str, known: np.ndarray | None = None) -> np.ndarray:
    """Mean and contrast of each image.

    Parameters
    ----------
    images : float array of shape (n, height, width, channels)
    normalize : str
        One of :data:`NORMALIZATIONS`: whether all channels have the same light or each its own,
        and whether contrast has a sign: negative if the few pixels that stand out are dark
        (negative skewness).
    known : bool array of shape (n, height, width), default=None
        Pixels that count, at least one in each image; None is all.

    Returns
    -------
    light : float64 array of shape (n, 2, channels)
        Means, and contrasts: standard deviations, with a sign where polarity is taken off.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.tokenizers.normalization import light_of
    >>> stroke = np.zeros((1, 2, 2, 1))
    >>> stroke[0, 0, 0] = 4
    >>> light_of(stroke, "image").round(2).tolist()
    [[[1.0], [1.73]]]
    >>> light_of(5 - stroke, "image+polarity").round(2).tolist()
    [[[4.0], [-1.73]]]
    """
    n, channels = len(images), images.shape[-1]
    pixels = images.reshape(n, -1, channels).astype(np.float64)
    shares = np.full((n, 1, 1), 1 / pixels.shape[1])
    if known is not None:
        shares = known.reshape(n, -1, 1) / known.reshape(n, -1, 1).sum(1, keepdims=True)

    def mean(numbers: np.ndarray) -> np.ndarray:
        means: np.ndarray = (shares * numbers).sum(1)
        if not normalize.startswith("channel"):
            means = means.mean(1, keepdims=True).repeat(channels, axis=1)
        return means

    centre = mean(pixels)
    pixels -= centre[:, None]
    contrast = np.sqrt(mean(pixels**2))
    if normalize.endswith("polarity"):
        gray = pixels.mean(2, keepdims=True)
        spread = (shares * gray**2).sum((1, 2)) ** 1.5
        dark = (shares * gray**3).sum((1, 2)) < -EVEN * spread
        contrast[dark] *= -1
    return np.stack([centre, contrast], axis=1)


def typical_light(light: np.ndarray) -> np.ndarray:
    """The median, (2, channels), over images that are not flat; mean 0, contrast 1 if all are."""
    means, contrasts = np.moveaxis(light, 1, 0)
    shown = abs(contrasts) > FLAT * max(abs(means).max(), np.finfo(float).tiny)
    typical = np.empty(light.shape[1:])
    for channel, some in enumerate(shown.T):
        typical[:, channel] = 0, 1
        if some.any():
            contrast = contrasts[some, channel]
            sign = 1 if (contrast > 0).mean() >= 0.5 else -1
            typical[:, channel] = np.median(means[some, channel]), sign * np.median(abs(contrast))
    return typical


def steady(light: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The light with no less contrast than a share of the reference's."""
    mean, contrast = np.moveaxis(light, 1, 0)
    least = np.maximum(abs(contrast), LEAST * abs(reference[1]))
    return np.stack([mean, np.where(contrast < 0, -least, least)], axis=1)


def light_of_the_whole(
    light: np.ndarray,
    known: np.ndarray,
    images: tuple[np.ndarray, np.ndarray],
    reference: np.ndarray,
    normalize: str,
) -> np.ndarray:
    """The light of images of which a part is known, as far as the part tells.

    As much brighter and richer in contrast than the part as the whole of training images is on
    average.

    Parameters
    ----------
    light : array of shape (n, 2, channels)
        That of the parts.
    known : bool array of shape (n, height, width)
        The parts.
    images : two arrays of shape (height, width, channels)
        Mean and standard deviation of training images, pixel by pixel, in the light `reference`.
    reference : array of shape (2, channels)
    normalize : str

    Returns
    -------
    light : float64 array of shape (n, 2, channels)
    """
    mean, spread = (x[None].repeat(len(known), axis=0).astype(np.float64) for x in images)
    (part, within) = np.moveaxis(light_of(mean, normalize.split("+")[0], known), 1, 0)
    around = light_of(spread, normalize.split("+")[0], known)
    # over images and places: the spread of their means, and the mean of their variances
    contrast = np.sqrt(within**2 + (around**2).sum(1))
    contrast = np.maximum(contrast, LEAST * abs(reference[1]))
    own, times = light[:, 1] * np.sign(reference[1]), abs(reference[1]) / contrast
    return np.stack(
        [light[:, 0] + (reference[0] - part) / contrast * own, light[:, 1] * times], axis=1
    )


def relit(numbers: np.ndarray, light: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Images under another light.

    Parameters
    ----------
    numbers : float array of shape (n, ..., channels)
        Images, or their pixels in any arrangement.
    light, other : float arrays of shape (n, 2, channels) or (2, channels)
        What they have, and what they shall have.

    Returns
    -------
    numbers : float32 array of shape (n, ..., channels)
    """
    middle = (1,) * (numbers.ndim - 2)
    (mean, contrast), (onto, by) = (
        np.moveaxis(x.reshape(-1, 2, *middle, x.shape[-1]), 1, 0) for x in (light, other)
    )
    share = by / contrast
    lit: np.ndarray = numbers * share.astype(np.float32) + (onto - mean * share).astype(np.float32)
    return lit.astype(np.float32, copy=False)

"""Functions that plot images."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

# Gray images are plotted as dark ink on white paper if more than this fraction of pixels is empty.
EMPTY_SHARE = 1 / 3
# Keyword arguments of matplotlib for labels, in which "$" must not start a formula
PLAIN = {"parse_math": False, "usetex": False}


def printable(label):
    """Return a label as text. Replace bytes of file names that are not valid text."""
    return str(label).encode("utf-8", "backslashreplace").decode("utf-8")


def check_images(clf, caller):
    """Raise an error if the classifier is not fitted, or if it was not fitted on images."""
    check_is_fitted(clf)
    if clf.image_shape_ is None:
        kind = "tabular data" if clf.model_.reader.grid is None else "tokens"
        raise ValueError(f"{caller} plots images, but the classifier was fitted on {kind}.")


class ImagePlotter:
    """Plot images that share one color scale.

    Gray images use the whole scale from black to white. If more than a third of all pixels are
    empty, these pixels are white and the ink is dark. RGB images are rescaled only if their values
    exceed [0, 1]. For images with other numbers of channels, the mean over the channels is plotted.
    """

    def __init__(self, images):
        images = average_channels(images)
        self.low, self.high = min(0.0, images.min()), images.max()
        if images.ndim == 4:
            self.high = max(1.0, self.high)
        empty = images <= self.low + 0.1 * (self.high - self.low)
        self.cmap = "gray_r" if empty.mean() > EMPTY_SHARE else "gray"

    def __call__(self, ax, image):
        image = average_channels(np.asarray(image)[None])[0]
        scale = (self.high - self.low) or 1.0
        scaled = np.clip((image - self.low) / scale, 0, 1)
        return ax.imshow(scaled, cmap=self.cmap, vmin=0, vmax=1)


def average_channels(images):
    images = np.asarray(images, dtype=np.float64)
    return images.mean(-1) if images.ndim == 4 and images.shape[-1] != 3 else images


def check_axes(ax, shape):
    """Raise a ValueError if `ax` is neither None nor a grid of axes of this shape."""
    from matplotlib.axes import Axes

    if ax is None:
        return
    axes = np.asarray(ax, dtype=object)
    if not all(isinstance(one, Axes) for one in axes.flat):
        raise ValueError(f"ax must be None or contain matplotlib axes, got {ax!r:.80}.")
    if axes.size != shape[0] * shape[1]:
        raise ValueError(f"ax has {axes.size} axes, but {shape[0]} x {shape[1]} are needed.")


def axes_grid(ax, shape, figsize):
    """Return a grid of axes without ticks. If `ax` is None, create a new figure with axes."""
    import matplotlib.pyplot as plt

    check_axes(ax, shape)
    if ax is None:
        _, ax = plt.subplots(*shape, figsize=figsize, squeeze=False, layout="constrained")
    axes = np.asarray(ax, dtype=object)
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
    return axes.reshape(shape)

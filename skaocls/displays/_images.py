"""What displays of images share."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

PAPER = 1 / 3  # share of empty pixels from which gray images are ink on paper


def images_of(clf, X, caller):
    """X as the classifier reads it, (n, height, width, channels)."""
    check_images(clf, caller)
    reader = clf.model_.reader
    return reader.open(X).images()


def check_images(clf, caller):
    """Refuse a classifier that is not fitted, or not on images."""
    check_is_fitted(clf)
    if clf.image_shape_ is None:
        what = "tabular data" if clf.model_.reader.grid is None else "tokens"
        raise ValueError(f"{caller} draws images, but the classifier was fitted on {what}.")


class Look:
    """How to draw images, so that what belongs together is drawn on one scale.

    Gray images fill the scale from black to white, colours only where they leave [0, 1]. Gray
    images that are mostly empty are ink, and drawn dark on white paper. Of other numbers of
    channels, the mean is drawn.
    """

    def __init__(self, images, cmap=None):
        images = self._channels(images)
        self.low, self.high = min(0.0, images.min()), images.max()
        if images.ndim == 4:
            self.high = max(1.0, self.high)
        if cmap is None:
            empty = images <= self.low + 0.1 * (self.high - self.low)
            cmap = "gray_r" if empty.mean() > PAPER else "gray"
        self.cmap = cmap

    def __call__(self, ax, image):
        image = self._channels(np.asarray(image)[None])[0]
        span = (self.high - self.low) or 1.0
        picture = np.clip((image - self.low) / span, 0, 1)
        return ax.imshow(picture, cmap=self.cmap, vmin=0, vmax=1)

    @staticmethod
    def _channels(images):
        images = np.asarray(images, dtype=np.float64)
        return images.mean(-1) if images.ndim == 4 and images.shape[-1] != 3 else images


def axes_grid(ax, shape, size):
    """Axes of that shape, without ticks: the given ones, or those of a new figure."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    axes = np.asarray(ax, dtype=object)
    if axes.size != shape[0] * shape[1]:
        raise ValueError(f"ax holds {axes.size} axes, but {shape[0]} x {shape[1]} are needed.")
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
    return axes.reshape(shape)

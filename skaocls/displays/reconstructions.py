"""Plots of images with their tokens and reconstructions, and of samples."""

from collections.abc import Callable
from numbers import Integral

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from skaocls.displays._images import (
    PLAIN,
    ImagePlotter,
    axes_grid,
    check_axes,
    check_images,
    printable,
)
from skaocls.fitted.generation import check_decodable

CONSTRAINTS = {"n_per_class": [Interval(Integral, 1, None, closed="left")]}
GOLDEN_RATIO = (5**0.5 - 1) / 2
PANEL_INCHES = 1.15  # width and height of each plotted image
MIN_FONT_SIZE = 5  # in points; token numbers are omitted if they would be smaller


class ReconstructionDisplay:
    """Plot images with their tokens and decoded images, or plot images in one row per class.

    Use :meth:`from_estimator` or :meth:`from_samples` to compute and plot images. To plot images
    that you already have, create a display and call :meth:`plot`. All parameters are stored as
    attributes.

    Parameters
    ----------
    images : array-like of shape (n_images, height, width[, channels])
        Gray or RGB images.
    codes : int array-like of shape (n_images, rows, cols), default=None
        Tokens of the images.
    decoded : array-like of shape (n_images, height, width[, channels]), default=None
        Images decoded from the tokens.
    labels : array-like of shape (n_images,), default=None
        Labels of the images. If labels are given, the images of each class form a row. Every class
        must have the same number of images.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, of shape (n_rows, n_columns)
        Axes of the plots.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    artists_ : ndarray of matplotlib AxesImage, of shape (n_rows, n_columns)
        Plotted images and tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.displays import ReconstructionDisplay
    >>> ReconstructionDisplay(np.eye(4).reshape(2, 2, 4), labels=["a", "b"]).plot().axes_.shape
    (2, 1)
    """

    def __init__(self, images, codes=None, decoded=None, labels=None):
        self.images = images
        self.codes = codes
        self.decoded = decoded
        self.labels = labels

    @classmethod
    def from_estimator(cls, clf, X, *, ax=None):
        """Plot a few images, their tokens, and the images that are decoded from the tokens.

        Parameters
        ----------
        clf : AnyOrderARClassifier
            Classifier fitted on images.
        X : array-like
            A few images.
        ax : array-like of matplotlib Axes, of 3 x n_images, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        display : ReconstructionDisplay
            The display, after :meth:`plot` was called.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skaocls import AnyOrderARClassifier
        >>> from skaocls.displays import ReconstructionDisplay
        >>> X, y = load_digits(n_class=3, return_X_y=True)
        >>> clf = AnyOrderARClassifier(image_shape=(8, 8), max_iter=5, n_orders=4, random_state=0)
        >>> display = ReconstructionDisplay.from_estimator(clf.fit(X[:200], y[:200]), X[200:205])
        >>> display.codes.shape
        (5, 4, 4)
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        check_images(clf, cls.__name__)
        batch = clf.model_.reader.open(X)
        check_decodable(clf.model_)
        check_axes(ax, (3, len(batch)))
        images = batch.images()
        tokenizer, options = clf.tokenizer_, {}
        if hasattr(tokenizer, "image_statistics"):  # restore the brightness and colours of X
            options["statistics"] = tokenizer.image_statistics(images)
        codes = tokenizer.transform(images)
        return cls(images, codes, tokenizer.inverse_transform(codes, **options)).plot(ax)

    @classmethod
    def from_samples(cls, clf, *, n_per_class=8, random_state=None, ax=None):
        """Plot images sampled by a classifier, one row per class.

        To sample with other options, call ``clf.sample`` and plot its result with
        ``ReconstructionDisplay(images, labels=y).plot()``.

        Parameters
        ----------
        clf : AnyOrderARClassifier
            Classifier fitted on images.
        n_per_class : int, default=8
            Number of images of each class.
        random_state : int, RandomState instance or None, default=None
            Random state that is passed to ``clf.sample``.
        ax : array-like of matplotlib Axes, of n_classes x n_per_class, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        display : ReconstructionDisplay
            The display, after :meth:`plot` was called.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skaocls import AnyOrderARClassifier
        >>> from skaocls.displays import ReconstructionDisplay
        >>> X, y = load_digits(n_class=3, return_X_y=True)
        >>> clf = AnyOrderARClassifier(image_shape=(8, 8), max_iter=5, n_orders=4, random_state=0)
        >>> clf = clf.fit(X[:200], y[:200])
        >>> ReconstructionDisplay.from_samples(clf, n_per_class=4, random_state=0).axes_.shape
        (3, 4)
        """
        check_matplotlib_support(f"{cls.__name__}.from_samples")
        check_images(clf, cls.__name__)
        validate_parameter_constraints(
            CONSTRAINTS, {"n_per_class": n_per_class}, f"{cls.__name__}.from_samples"
        )
        check_axes(ax, (len(clf.classes_), n_per_class))
        columns = np.repeat(np.arange(len(clf.classes_)), n_per_class)
        y = clf.classes_[columns]
        images = clf.sample(len(y), y=y, random_state=random_state)
        names = getattr(clf, "class_names_", clf.classes_)
        return cls(images, labels=names[columns]).plot(ax)

    def plot(self, ax=None):
        """Plot the images.

        Parameters
        ----------
        ax : array-like of matplotlib Axes, of n_rows x n_columns, default=None
            Axes to plot on. If None, a new figure is created.

        Returns
        -------
        self : ReconstructionDisplay
            The display, with attributes `axes_`, `figure_` and `artists_`.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        images = np.asarray(self.images)
        plot_image = ImagePlotter(images)
        rows: list[tuple[str, Callable[..., object], np.ndarray]]
        if self.labels is not None:
            labels = np.asarray(self.labels)
            names = labels[np.sort(np.unique(labels, return_index=True)[1])]  # as they appear
            rows = [(printable(name), plot_image, images[labels == name]) for name in names]
        else:
            rows = [("image", plot_image, images)]
            if self.codes is not None:
                codes = np.asarray(self.codes)
                rows.append(("tokens", CodesPlotter(codes), codes))
            if self.decoded is not None:
                rows.append(("decoded", plot_image, np.asarray(self.decoded)))
        shape = len(rows), len(rows[0][2])
        axes = axes_grid(ax, shape, (PANEL_INCHES * shape[1] + 0.8, PANEL_INCHES * shape[0] + 0.1))
        self.artists_ = np.empty(shape, dtype=object)
        for i, (name, plot_one, panels) in enumerate(rows):
            axes[i, 0].set_ylabel(name, fontsize=11, rotation=0, ha="right", va="center", **PLAIN)
            for j, panel in enumerate(panels):
                self.artists_[i, j] = plot_one(axes[i, j], panel)
        self.axes_, self.figure_ = axes, axes[0, 0].figure
        return self


class CodesPlotter:
    """Plot grids of codes. Each code has its own color, and a number if the font is large enough.

    Codes with consecutive numbers get clearly different colors, because they need not be similar.
    """

    def __init__(self, codes):
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        self.n_codes = int(codes.max()) + 1
        # The most frequent code is often the background. It gets the first color, which is almost
        # white.
        place = np.arange(self.n_codes) - np.bincount(codes.ravel()).argmax()
        self.cmap = ListedColormap(colormaps["twilight"]((place * GOLDEN_RATIO) % 1))
        self.fontsize = (
            72 * PANEL_INCHES / codes.shape[2] / (0.7 * max(3, len(str(codes.max()))) + 0.6)
        )

    def __call__(self, ax, codes):
        artist = ax.imshow(codes, cmap=self.cmap, vmin=0, vmax=self.n_codes - 1)
        if self.fontsize < MIN_FONT_SIZE:
            return artist
        for (row, column), code in np.ndenumerate(codes):
            is_light = self.cmap(int(code))[:3] @ np.array([0.299, 0.587, 0.114]) > 0.5
            ax.text(
                column,
                row,
                str(code),
                ha="center",
                va="center",
                fontsize=self.fontsize,
                color="black" if is_light else "white",
            )
        return artist

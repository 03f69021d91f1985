"""Images, their tokens, and what tokens decode to."""

from typing import Any

import numpy as np
from sklearn.utils import check_consistent_length
from sklearn.utils._optional_dependencies import check_matplotlib_support

from skaocls.displays._images import Look, axes_grid, check_images, images_of

GOLDEN = (5**0.5 - 1) / 2
PANEL = 1.15  # inches
SMALLEST = 5  # points, of the numbers in tokens


class ReconstructionDisplay:
    """Images above their tokens above what these decode to; or images class by class.

    Use :meth:`from_estimator`, :meth:`from_predictions` or :meth:`from_samples`; parameters are
    kept as attributes.

    Parameters
    ----------
    images : array-like of shape (n_images, height, width[, channels])
        Gray or RGB.
    codes : int array-like of shape (n_images, rows, cols), default=None
        Their tokens.
    decoded : array-like of shape (n_images, height, width[, channels]), default=None
        What these decode to.
    labels : array-like of shape (n_images,), default=None
        Given, images of one class make a row; of each class there are as many.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, of shape (n_rows, n_columns)
    figure_ : matplotlib Figure
    artists_ : ndarray of matplotlib AxesImage, of shape (n_rows, n_columns)

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skaocls import PatchTokenizer
    >>> from skaocls.displays import ReconstructionDisplay
    >>> images = load_digits().images[:5]
    >>> tokenizer = PatchTokenizer(n_codes=16, random_state=0).fit(images)
    >>> codes = tokenizer.transform(images)
    >>> decoded = tokenizer.inverse_transform(codes)
    >>> ReconstructionDisplay(images, codes, decoded).plot().axes_.shape
    (3, 5)
    """

    def __init__(self, images, codes=None, decoded=None, labels=None):
        self.images = images
        self.codes = codes
        self.decoded = decoded
        self.labels = labels

    @classmethod
    def from_estimator(cls, clf, X, *, ax=None, **kwargs):
        """Draw a few images as a classifier's tokenizer sees them.

        Parameters
        ----------
        clf : AnyOrderARClassifier
            Fitted, on images.
        X : array-like
            A few images.
        ax : array-like of matplotlib Axes, of 3 x n_images, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        display : ReconstructionDisplay

        Raises
        ------
        ValueError
            If the classifier was fitted on tabular data.

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
        images = images_of(clf, X, cls.__name__)
        codes = clf.tokenizer_.transform(images)
        decoded = clf.tokenizer_.inverse_transform(codes)
        return cls.from_predictions(images, codes, decoded, ax=ax, **kwargs)

    @classmethod
    def from_predictions(cls, images, codes, decoded, *, ax=None, **kwargs):
        """Draw images, tokens and decoded images.

        Parameters
        ----------
        images : array-like of shape (n_images, height, width[, channels])
            Gray or RGB.
        codes : int array-like of shape (n_images, rows, cols)
            ``tokenizer.transform(images)``.
        decoded : array-like of shape (n_images, height, width[, channels])
            ``tokenizer.inverse_transform(codes)``.
        ax : array-like of matplotlib Axes, of 3 x n_images, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        display : ReconstructionDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_predictions")
        check_consistent_length(images, codes, decoded)
        return cls(images, codes, decoded).plot(ax, **kwargs)

    @classmethod
    def from_samples(cls, clf, *, n_per_class=8, random_state=None, ax=None, **kwargs):
        """Draw images that a classifier's prior makes up, a row for each class.

        For other options of ``clf.sample``, draw ``ReconstructionDisplay(images, labels=y)``.

        Parameters
        ----------
        clf : AnyOrderARClassifier
            Fitted, on images.
        n_per_class : int, default=8
            Images of each class.
        random_state : int, RandomState instance or None, default=None
            Of ``clf.sample``.
        ax : array-like of matplotlib Axes, of n_classes x n_per_class, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        display : ReconstructionDisplay

        Raises
        ------
        ValueError
            If the classifier was fitted on tabular data.

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
        columns = np.repeat(np.arange(len(clf.classes_)), n_per_class)
        y = clf.classes_[columns]
        images = clf.sample(len(y), y=y, random_state=random_state)
        names = getattr(clf, "class_names_", clf.classes_)
        return cls(images, labels=names[columns]).plot(ax, **kwargs)

    def plot(self, ax=None, *, cmap=None, codes_cmap="twilight"):
        """Draw.

        Parameters
        ----------
        ax : array-like of matplotlib Axes, of n_rows x n_columns, default=None
            Where to draw; None makes a figure.
        cmap : str or matplotlib Colormap, default=None
            Colours of gray images; None is black on white for ink on empty paper, else white on
            black.
        codes_cmap : str or matplotlib Colormap, default="twilight"
            Colours from which codes take theirs. Neighbouring codes are far apart in them: they
            have nothing to do with each other.

        Returns
        -------
        self : ReconstructionDisplay
            With its `axes_`, `figure_` and artists.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        images = np.asarray(self.images)
        rows: list[tuple[str, Any, np.ndarray]]
        look = Look(images, cmap)
        if self.labels is not None:
            labels = np.asarray(self.labels)
            names = list(dict.fromkeys(labels.tolist()))  # in the order given
            rows = [(str(name), look, images[labels == name]) for name in names]
        else:
            rows = [("image", look, images)]
            if self.codes is not None:
                codes = np.asarray(self.codes)
                rows.append(("tokens", CodesLook(codes, codes_cmap), codes))
            if self.decoded is not None:
                rows.append(("decoded", look, np.asarray(self.decoded)))
        shape = len(rows), len(rows[0][2])
        axes = axes_grid(ax, shape, (PANEL * shape[1] + 0.8, PANEL * shape[0] + 0.1))
        self.artists_ = np.empty(shape, dtype=object)
        for i, (name, draw, pictures) in enumerate(rows):
            axes[i, 0].set_ylabel(name, fontsize=11, rotation=0, ha="right", va="center")
            for j, picture in enumerate(pictures):
                self.artists_[i, j] = draw(axes[i, j], picture)
        self.axes_, self.figure_ = axes, axes[0, 0].figure
        return self


class CodesLook:
    """How to draw grids of codes: a colour for each, and numbers where there is room."""

    def __init__(self, codes, cmap):
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        self.n_codes = int(codes.max()) + 1
        # the most frequent one, often the background, comes first: twilight begins almost white
        place = np.arange(self.n_codes) - np.bincount(codes.ravel()).argmax()
        self.cmap = ListedColormap(colormaps.get_cmap(cmap)((place * GOLDEN) % 1))
        self.fontsize = 72 * PANEL / codes.shape[2] / (0.7 * max(3, len(str(codes.max()))) + 0.6)

    def __call__(self, ax, codes):
        artist = ax.imshow(codes, cmap=self.cmap, vmin=0, vmax=self.n_codes - 1)
        if self.fontsize < SMALLEST:
            return artist
        for (row, column), code in np.ndenumerate(codes):
            light = self.cmap(int(code))[:3] @ np.array([0.299, 0.587, 0.114]) > 0.5
            ax.text(
                column,
                row,
                str(code),
                ha="center",
                va="center",
                fontsize=self.fontsize,
                color="black" if light else "white",
            )
        return artist

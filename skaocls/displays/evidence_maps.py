"""Plots of evidence maps."""

from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_consistent_length
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

CONSTRAINTS = {
    "n_classes": [Interval(Integral, 1, None, closed="left")],
    "significance": [Interval(Real, 0, None, closed="left")],
}
INSIGNIFICANT_ALPHA = 0.35  # opacity of evidence that may be due to chance


class EvidenceDisplay:
    """Plot images with maps that show how strongly each part of an image supports a class.

    Use :meth:`from_estimator` to compute and plot evidence maps. To plot maps that you already
    have, create a display and call :meth:`plot`. All parameters are stored as attributes.

    Parameters
    ----------
    images : array-like of shape (n_images, height, width[, channels])
        Gray or RGB images.
    evidence_maps : array-like of shape (n_images, n_classes, height, width)
        Evidence in nats for a few classes of each image. ``clf.explain(X, y).maps`` contains the
        evidence for one class of each image.
    labels : array-like of shape (n_images, n_classes)
        Labels of the classes in `evidence_maps`.
    proba : array-like of shape (n_images, n_classes), default=None
        Probabilities of the classes in `evidence_maps`.
    standard_errors : array-like of shape (n_images, n_classes, height, width), default=None
        Standard errors of the evidence maps, see ``clf.explain(X, y).maps_standard_error``.
    rivals : array-like of shape (n_images, n_classes), default=None
        Label of the rival class with which each class is compared.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, of shape (n_images, 1 + n_classes)
        Axes of the plots.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    images_ : ndarray of matplotlib AxesImage, of shape (n_images,)
        Plotted images.
    maps_ : ndarray of matplotlib AxesImage, of shape (n_images, n_classes)
        Plotted evidence maps.
    colorbar_ : matplotlib Colorbar
        Color bar of the evidence maps.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.displays import EvidenceDisplay
    >>> image, evidence = np.eye(4), np.eye(4) - 0.1
    >>> display = EvidenceDisplay([image], [[evidence, -evidence]], [["\\\\", "/"]]).plot()
    >>> display.axes_.shape
    (1, 3)
    """

    def __init__(
        self, images, evidence_maps, labels, proba=None, *, standard_errors=None, rivals=None
    ):
        self.images = images
        self.evidence_maps = evidence_maps
        self.labels = labels
        self.proba = proba
        self.standard_errors = standard_errors
        self.rivals = rivals

    @classmethod
    def from_estimator(cls, clf, X, *, n_classes=3, rival=None, ax=None, significance=2.0):
        """For a few images, plot the evidence for the most probable classes.

        Parameters
        ----------
        clf : AnyOrderARClassifier
            Classifier fitted on images.
        X : array-like
            A few images.
        n_classes : int, default=3
            Number of classes to plot for each image, beginning with the most probable class.
        rival : "runner-up", label, array-like of shape (n_images,) or None, default=None
            Rival class of all images or of each image, as in
            :meth:`skaocls.AnyOrderARClassifier.explain`. ``"runner-up"`` is the most probable other
            class. If labels are given, no maps are plotted for these rival classes. If None,
            evidence is log p(token | class) minus log p(token).
        ax, significance : array-like and float
            See :meth:`plot`.

        Returns
        -------
        display : EvidenceDisplay
            The display, after :meth:`plot` was called.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skaocls import AnyOrderARClassifier
        >>> from skaocls.displays import EvidenceDisplay
        >>> X, y = load_digits(n_class=3, return_X_y=True)
        >>> clf = AnyOrderARClassifier(image_shape=(8, 8), max_iter=5, n_orders=4, random_state=0)
        >>> display = EvidenceDisplay.from_estimator(clf.fit(X[:200], y[:200]), X[200:202])
        >>> display.evidence_maps.shape
        (2, 3, 8, 8)
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        check_images(clf, cls.__name__)
        batch = clf.model_.reader.open(X)
        runner_up, given = isinstance(rival, str) and rival == "runner-up", None
        if rival is not None and not runner_up:
            given = clf.model_.columns(rival, len(batch), "rival")[:, None]
        options = {"n_classes": n_classes, "significance": significance}
        validate_parameter_constraints(CONSTRAINTS, options, f"{cls.__name__}.from_estimator")
        n_classes = min(n_classes, len(clf.classes_) - (given is not None))
        if n_classes < 1 or (runner_up and len(clf.classes_) < 2):
            raise ValueError("A rival needs at least two classes, but the classifier has only one.")
        check_axes(ax, (len(batch), 1 + n_classes))
        images, names = batch.images(), getattr(clf, "class_names_", clf.classes_)
        *_, proba = clf.staged_predict_proba(batch)  # early stopping would only find the best class
        ranked, rivals = (-proba).argsort(1, kind="stable"), None  # columns of `proba`
        if runner_up:
            best, second = ranked[:, :1], ranked[:, 1:2]
            rivals = np.where(ranked == best, second, best)
        elif given is not None:
            ranked = ranked[ranked != given].reshape(len(ranked), -1)
            rivals = np.broadcast_to(given, ranked.shape)
        ranked = ranked[:, :n_classes]
        others = [None] * ranked.shape[1]
        if rivals is not None:
            rivals = rivals[:, :n_classes]
            others = clf.classes_[rivals.T]
        columns = zip(clf.classes_[ranked.T], others)
        evidence = [clf.explain(batch, y, other) for y, other in columns]
        display = cls(
            images,
            np.stack([e.maps for e in evidence], axis=1),
            names[ranked],
            np.take_along_axis(proba, ranked, 1),
            standard_errors=np.stack([e.maps_standard_error for e in evidence], axis=1),
            rivals=None if rivals is None else names[rivals],
        )
        return display.plot(ax, significance=significance)

    def plot(self, ax=None, *, significance=2.0):
        """Plot each image with its evidence maps in one row.

        Blue is evidence for a class, red is evidence against the class. All maps use the same color
        scale.

        Parameters
        ----------
        ax : array-like of matplotlib Axes, of n_images x (1 + n_classes), default=None
            Axes to plot on. If None, a new figure is created.
        significance : float, default=2.0
            Evidence below this number of standard errors is plotted pale, because the random choice
            of orders may be the cause. If 0, all evidence is opaque.

        Returns
        -------
        self : EvidenceDisplay
            The display, with attributes `axes_`, `figure_`, `images_`, `maps_` and `colorbar_`.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        check_consistent_length(self.images, self.evidence_maps, self.labels, self.proba)
        images, maps, labels = (
            np.asarray(a) for a in (self.images, self.evidence_maps, self.labels)
        )
        n_images, n_classes = maps.shape[:2]
        alpha = np.ones(maps.shape)
        if self.standard_errors is not None:  # NaN for a single order: nothing is pale
            insignificant = np.abs(maps) < significance * np.asarray(self.standard_errors)
            alpha[insignificant] = INSIGNIFICANT_ALPHA
        limit = np.abs(maps).max() or 1.0
        figsize = (1.8 * (1 + n_classes) + 1, 2.2 * n_images + 0.1)
        axes = axes_grid(ax, (n_images, 1 + n_classes), figsize)
        plot_image = ImagePlotter(images)
        self.images_ = np.empty(n_images, dtype=object)
        self.maps_ = np.empty((n_images, n_classes), dtype=object)
        for i, image in enumerate(images):
            self.images_[i] = plot_image(axes[i, 0], image)
            for j in range(n_classes):
                self.maps_[i, j] = axes[i, 1 + j].imshow(
                    maps[i, j], cmap="RdBu", vmin=-limit, vmax=limit, alpha=alpha[i, j]
                )
                plot_outline(axes[i, 1 + j], image)
                title = printable(labels[i, j])
                if self.rivals is not None:
                    title += f" rather than {printable(np.asarray(self.rivals)[i, j])}"
                if self.proba is not None:
                    title += f"\np = {np.asarray(self.proba)[i, j]:.2f}"
                axes[i, 1 + j].set_title(title, fontsize=10, **PLAIN)
        self.axes_, self.figure_ = axes, axes[0, 0].figure
        self.colorbar_ = self.figure_.colorbar(
            self.maps_[0, 0],
            ax=list(axes.flat),
            label="nats for the class",
            shrink=min(1.0, 4 * self.figure_.dpi / self.figure_.bbox.height),  # at most 4 inches
            aspect=20,
        )
        return self


def plot_outline(ax, image):
    """Plot a contour line of an image, halfway between the smallest and the largest value."""
    gray = image if image.ndim == 2 else image.mean(-1)
    if gray.min() == gray.max():
        return
    limits = ax.axis()
    gray = np.pad(gray, 1, mode="edge")  # contours end at pixel centers, images at pixel edges
    rows, columns = (np.arange(-1, size - 1) for size in gray.shape)
    middle = (gray.min() + gray.max()) / 2
    ax.contour(columns, rows, gray, levels=[middle], colors="0.15", linewidths=1, alpha=0.8)
    ax.axis(limits)

"""Evidence maps beside their images."""

import numpy as np
from sklearn.utils import check_consistent_length
from sklearn.utils._optional_dependencies import check_matplotlib_support

from skaocls.displays._images import Look, axes_grid, images_of

PALE = 0.35  # opacity of what may be chance


class EvidenceDisplay:
    """Images, and which of their parts speak for which class.

    Use :meth:`from_estimator` or :meth:`from_predictions`; parameters are kept as attributes.

    Parameters
    ----------
    images : array-like of shape (n_images, height, width[, channels])
        Gray or RGB.
    evidence_maps : array-like of shape (n_images, n_classes, height, width)
        In nats, of a few classes for each image.
    labels : array-like of shape (n_images, n_classes)
        Those classes.
    proba : array-like of shape (n_images, n_classes), default=None
        Their probabilities.
    standard_errors : array-like of shape (n_images, n_classes, height, width), default=None
        Of the evidence.
    rivals : array-like of shape (n_images, n_classes), default=None
        Classes that they are weighed against.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, of shape (n_images, 1 + n_classes)
    figure_ : matplotlib Figure
    images_ : ndarray of matplotlib AxesImage, of shape (n_images,)
    maps_ : ndarray of matplotlib AxesImage, of shape (n_images, n_classes)
    colorbar_ : matplotlib Colorbar

    See Also
    --------
    skaocls.AnyOrderARClassifier.explain : The numbers.

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
    def from_estimator(cls, clf, X, *, n_classes=3, rival=None, ax=None, **kwargs):
        """Explain the most probable classes of a few images, and draw that.

        Parameters
        ----------
        clf : AnyOrderARClassifier
            Fitted, on images.
        X : array-like
            A few images.
        n_classes : int, default=3
            Classes for each image, the most probable ones.
        rival : "runner-up", array-like of shape (n_images,) or None, default=None
            What to weigh them against, as in :meth:`skaocls.AnyOrderARClassifier.explain`: the most
            probable of the other classes, given classes (which are not drawn themselves), or none.
        ax : array-like of matplotlib Axes, of n_images x (1 + n_classes), default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        display : EvidenceDisplay

        Raises
        ------
        ValueError
            If the classifier was fitted on tabular data, or has not seen a rival.

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
        images = images_of(clf, X, cls.__name__)
        proba = clf.predict_proba(X)
        names = getattr(clf, "class_names_", clf.classes_)
        rank, against = (-proba).argsort(1, kind="stable"), None
        if isinstance(rival, str) and rival == "runner-up":
            best, second = rank[:, :1], rank[:, 1:2]
            against = np.where(rank == best, second, best)
        elif rival is not None:
            check_consistent_length(images, rival)
            given = clf.model_.columns(rival, "rival")[:, None]
            rank = rank[rank != given].reshape(len(rank), -1)
            against = np.broadcast_to(given, rank.shape)
        rank = rank[:, :n_classes]
        found = []
        for j in range(rank.shape[1]):
            other = None if against is None else clf.classes_[against[:, j]]
            found.append(clf.explain(X, clf.classes_[rank[:, j]], other))
        return cls.from_predictions(
            images,
            np.stack([evidence.maps for evidence in found], axis=1),
            names[rank],
            np.take_along_axis(proba, rank, 1),
            standard_errors=np.stack([evidence.maps_standard_error for evidence in found], axis=1),
            rivals=None if against is None else names[against[:, : rank.shape[1]]],
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        images,
        evidence_maps,
        labels,
        proba=None,
        *,
        standard_errors=None,
        rivals=None,
        ax=None,
        **kwargs,
    ):
        """Draw evidence that is computed already.

        Parameters
        ----------
        images : array-like of shape (n_images, height, width[, channels])
            Gray or RGB.
        evidence_maps : array-like of shape (n_images, n_classes, height, width)
            ``clf.explain(X, y).maps`` of a few classes.
        labels : array-like of shape (n_images, n_classes)
            Those classes.
        proba : array-like of shape (n_images, n_classes), default=None
            Their probabilities.
        standard_errors : array-like of shape (n_images, n_classes, height, width), default=None
            ``clf.explain(X, y).maps_standard_error``.
        rivals : array-like of shape (n_images, n_classes), default=None
            Classes that they are weighed against.
        ax : array-like of matplotlib Axes, of n_images x (1 + n_classes), default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        display : EvidenceDisplay
        """
        check_matplotlib_support(f"{cls.__name__}.from_predictions")
        check_consistent_length(images, evidence_maps, labels, proba, standard_errors, rivals)
        display = cls(
            images, evidence_maps, labels, proba, standard_errors=standard_errors, rivals=rivals
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, *, significance=2.0, limit=None, cmap="RdBu", image_cmap=None):
        """Draw.

        Parameters
        ----------
        ax : array-like of matplotlib Axes, of n_images x (1 + n_classes), default=None
            Where to draw; None makes a figure.
        significance : float, default=2.0
            Evidence of fewer standard errors is paler: another draw of orders might not show it. 0
            makes nothing paler.
        limit : float, default=None
            Evidence in nats at both ends of the colours; None is the largest there is.
        cmap : str or matplotlib Colormap, default="RdBu"
            Colours from evidence against the class to evidence for it.
        image_cmap : str or matplotlib Colormap, default=None
            Colours of gray images; None is black on white for ink on empty paper, else white on
            black.

        Returns
        -------
        self : EvidenceDisplay
            With its `axes_`, `figure_` and artists.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        images, maps, labels = (
            np.asarray(a) for a in (self.images, self.evidence_maps, self.labels)
        )
        n_images, n_classes = maps.shape[:2]
        opacity = np.ones(maps.shape)
        if self.standard_errors is not None:  # nan, with one order, is no reason to doubt
            opacity[np.abs(maps) < significance * np.asarray(self.standard_errors)] = PALE
        limit = limit or np.abs(maps).max() or 1.0
        size = (1.8 * (1 + n_classes) + 1, 2.2 * n_images + 0.1)
        axes = axes_grid(ax, (n_images, 1 + n_classes), size)
        look = Look(images, image_cmap)
        self.images_ = np.empty(n_images, dtype=object)
        self.maps_ = np.empty((n_images, n_classes), dtype=object)
        for i, image in enumerate(images):
            self.images_[i] = look(axes[i, 0], image)
            for j in range(n_classes):
                self.maps_[i, j] = axes[i, 1 + j].imshow(
                    maps[i, j], cmap=cmap, vmin=-limit, vmax=limit, alpha=opacity[i, j]
                )
                outline(axes[i, 1 + j], image)
                title = str(labels[i, j])
                if self.rivals is not None:
                    title += f" rather than {np.asarray(self.rivals)[i, j]}"
                if self.proba is not None:
                    title += f"\np = {np.asarray(self.proba)[i, j]:.2f}"
                axes[i, 1 + j].set_title(title, fontsize=10)
        self.axes_, self.figure_ = axes, axes[0, 0].figure
        self.colorbar_ = self.figure_.colorbar(
            self.maps_[0, 0],
            ax=list(axes.flat),
            label="nats for the class",
            shrink=min(1.0, 4 * self.figure_.dpi / self.figure_.bbox.height),  # 4 inches at most
            aspect=20,
        )
        return self


def outline(ax, image):
    """What lies beneath the map: the contour half-way between the image's extremes."""
    gray = image if image.ndim == 2 else image.mean(-1)
    if gray.min() == gray.max():
        return
    limits = ax.axis()
    gray = np.pad(gray, 1, mode="edge")  # contours run from pixel centres, but pixels have margins
    rows, columns = (np.arange(-1, size - 1) for size in gray.shape)
    middle = (gray.min() + gray.max()) / 2
    ax.contour(columns, rows, gray, levels=[middle], colors="0.15", linewidths=1, alpha=0.8)
    ax.axis(limits)

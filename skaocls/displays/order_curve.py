"""Plot of the score against the number of orders."""

from collections.abc import Iterator
from numbers import Real

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from skaocls.displays._images import PLAIN, check_axes, printable
from skaocls.fitted.labels import label_array

# Colors of Okabe and Ito, which color-blind people can tell apart
CURVE_COLOR = "#0072B2"
BASELINE_COLORS = ["#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00"]
BASELINE_STYLES = ["--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (8, 3))]


class OrderCurveDisplay:
    """Plot the score of a classifier against the number of orders over which it averages.

    Use :meth:`from_estimator` or :meth:`from_predictions` to create a display. All parameters are
    stored as attributes. To choose `n_orders`, see
    :func:`skaocls.order_selection.smallest_n_orders`.

    Parameters
    ----------
    scores : array-like of shape (n_orders,)
        Scores with 1, 2, ..., `n_orders` orders.
    std_scores : array-like of shape (n_orders,), default=None
        Standard errors of the scores. They are plotted as a band.
    baselines : dict of str to float, default=None
        Scores of other models. They are plotted as horizontal lines.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the plot.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    line_ : matplotlib Line2D
        Curve of the scores.
    fill_ : matplotlib PolyCollection or None
        Band of standard errors. If `std_scores` is None, `fill_` is None.
    baseline_lines_ : dict of str to matplotlib Line2D
        Lines of the baselines.

    Examples
    --------
    >>> from skaocls.displays import OrderCurveDisplay
    >>> display = OrderCurveDisplay([0.8, 0.9, 0.92], baselines={"SVC": 0.91}).plot()
    >>> display.line_.get_xdata()
    array([1, 2, 3])
    """

    def __init__(self, scores, *, std_scores=None, baselines=None):
        self.scores = scores
        self.std_scores = std_scores
        self.baselines = baselines

    @classmethod
    def from_estimator(cls, clf, X, y, *, baselines=None, ax=None, name=None, **kwargs):
        """Plot the accuracy of a classifier with 1, 2, ..., `n_orders` orders.

        Each order is scored only once, and its scores are reused for all points of the curve.

        Parameters
        ----------
        clf : AnyOrderARClassifier
            Fitted classifier.
        X : array-like
            Test data.
        y : array-like of shape (n_samples,)
            True labels.
        baselines : dict of str to float or classifier, default=None
            Accuracies of other models, or fitted classifiers that are scored on the same data.
            Scikit-learn classifiers get each image as a flat row of pixel values.
        ax, name, **kwargs : optional
            See :meth:`plot`. The default of `name` is the class name of the classifier.

        Returns
        -------
        display : OrderCurveDisplay
            The display, after :meth:`plot` was called.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.svm import SVC
        >>> from skaocls import AnyOrderARClassifier
        >>> from skaocls.displays import OrderCurveDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = AnyOrderARClassifier(max_iter=20, n_orders=8, random_state=0).fit(X[::2], y[::2])
        >>> baselines = {"SVC": SVC().fit(X[::2], y[::2])}
        >>> display = OrderCurveDisplay.from_estimator(clf, X, y, baselines=baselines)
        >>> display.scores.shape
        (8,)
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        check_is_fitted(clf)
        check_plot(ax, kwargs)
        X = list(X) if isinstance(X, Iterator) else X  # an iterator yields its images only once
        batch = clf.model_.reader.open(X)
        y_true = clf.model_.true_labels(batch, y)
        for label, model in (baselines or {}).items():
            if not (hasattr(model, "score") or isinstance(model, Real)):
                raise TypeError(
                    f"baselines[{label!r}] must be a number or a fitted classifier, got {model!r}."
                )
        scores = {
            label: model.score(X if hasattr(model, "staged_score") else flat_rows(clf, X), y)
            if hasattr(model, "score")
            else model
            for label, model in (baselines or {}).items()
        }
        staged, name = list(clf.staged_predict(batch)), name or type(clf).__name__
        return cls.from_predictions(y_true, staged, baselines=scores, ax=ax, name=name, **kwargs)

    @classmethod
    def from_predictions(
        cls, y_true, staged_y_pred, *, baselines=None, ax=None, name=None, **kwargs
    ):
        """Plot the accuracy of given predictions with 1, 2, ... orders.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        staged_y_pred : array-like of shape (n_orders, n_samples)
            Predictions with 1, 2, ... orders, such as ``list(clf.staged_predict(X))``.
        baselines : dict of str to float, default=None
            Scores of other models.
        ax, name, **kwargs : optional
            See :meth:`plot`.

        Returns
        -------
        display : OrderCurveDisplay
            The display, after :meth:`plot` was called. The `std_scores` of the display are binomial
            standard errors, ``sqrt(accuracy * (1 - accuracy) / n_samples)``.
        """
        y_true = label_array(y_true, "y_true")
        staged = [label_array(predicted, "staged_y_pred") for predicted in staged_y_pred]
        scores = np.array([accuracy_score(y_true, predicted) for predicted in staged])
        errors = np.sqrt(scores * (1 - scores) / len(y_true))
        display = cls(scores, std_scores=errors, baselines=baselines)
        return display.plot(ax, name=name, **kwargs)

    def plot(self, ax=None, *, name=None, **kwargs):
        """Plot the curve, its standard errors and the baselines.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on. If None, a new figure is created.
        name : str, default=None
            Name of the curve in the legend.
        **kwargs : dict
            Keyword arguments of matplotlib's ``plot`` for the curve.

        Returns
        -------
        self : OrderCurveDisplay
            The display, with attributes `ax_`, `figure_`, `line_` and the other artists.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import MaxNLocator

        if ax is None:
            _, ax = plt.subplots(figsize=(7, 4.6), layout="constrained")
        scores = np.asarray(self.scores)
        orders = np.arange(1, len(scores) + 1)
        style = {"color": CURVE_COLOR, "marker": "o", "markersize": 5, "linewidth": 2}
        (self.line_,) = ax.plot(orders, scores, **(style | {"label": legend_label(name)} | kwargs))
        self.fill_ = None
        if self.std_scores is not None:
            std = np.asarray(self.std_scores)
            self.fill_ = ax.fill_between(
                orders,
                scores - std,
                scores + std,
                color=self.line_.get_color(),
                alpha=0.2,
                linewidth=0,
                label="± 1 standard error",
            )
        self.baseline_lines_ = {}
        # the legend lists the baselines from the highest line to the lowest
        ranked = sorted((self.baselines or {}).items(), key=lambda item: -item[1])
        for i, (label, score) in enumerate(ranked):
            self.baseline_lines_[label] = ax.axhline(
                score,
                color=BASELINE_COLORS[i % len(BASELINE_COLORS)],
                linestyle=BASELINE_STYLES[i % len(BASELINE_STYLES)],
                linewidth=1.5,
                label=legend_label(f"{label} ({score:.3f})"),
                zorder=1.5,  # behind the curve
            )
        ax.set(xlabel="Orders averaged over", ylabel="Accuracy")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.grid(alpha=0.25)
        if ax.get_legend_handles_labels()[1]:
            legend = ax.legend(loc="best", framealpha=0.95)
            plt.setp(legend.get_texts(), **PLAIN)
        self.ax_, self.figure_ = ax, ax.figure
        return self


def check_plot(ax, kwargs):
    """Raise an error if `ax` or a keyword argument of the line is invalid."""
    from matplotlib.figure import Figure

    check_axes(ax, (1, 1))
    Figure().add_subplot().plot([], [], **kwargs)


def legend_label(name):
    """Return a label for the legend. Matplotlib omits labels that start with an underscore."""
    if name is None:
        return None
    name = printable(name)
    return f" {name}" if name.startswith("_") else name


def flat_rows(clf, X):
    """Convert X for scikit-learn's classifiers: flatten each image, but do not change tables."""
    reader = clf.model_.reader
    batch = reader.open(X)
    if reader.image_shape is None:
        return X
    images = batch.images() if batch.data.dtype == object else batch.values()
    return images.reshape(len(images), -1)

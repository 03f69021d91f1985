"""Choosing how many orders are enough."""

import numpy as np


def smallest_n_orders(clf, X, y):
    """The fewest orders whose accuracy is within one standard error of the best.

    One pass over the validation data, up to the classifier's `n_orders`. The standard error is that
    of the best accuracy.

    Parameters
    ----------
    clf : AnyOrderARClassifier
        Fitted; it is not changed.
    X : array-like
        Validation images, not those of `fit`.
    y : array-like of shape (n_samples,)
        Their labels.

    Returns
    -------
    n_orders : int
        For ``clf.set_params(n_orders=...)``.

    References
    ----------
    Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", 1984, section 3.4.3,
    for the rule of one standard error.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skaocls import AnyOrderARClassifier
    >>> from skaocls.selection import smallest_n_orders
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = AnyOrderARClassifier(max_iter=20, n_orders=8, random_state=0).fit(X[::2], y[::2])
    >>> 1 <= smallest_n_orders(clf, X[1::2], y[1::2]) <= 8
    True
    """
    right = np.array(
        [predicted == np.asarray(y) for predicted in clf.staged_predict(X)], dtype=float
    )
    best = right[right.mean(1).argmax()]
    error = best.std(ddof=1) / np.sqrt(len(best))
    return int((right.mean(1) >= best.mean() - error).argmax()) + 1

"""Select the number of orders with validation data."""

import numpy as np
from sklearn.utils.validation import check_is_fitted


def smallest_n_orders(clf, X, y):
    """Select the smallest number of orders whose accuracy is close to the best accuracy.

    "Close" means that the accuracy is at most one standard error below the best accuracy. The
    function scores each validation image only once, in all orders of the classifier.

    Parameters
    ----------
    clf : AnyOrderARClassifier
        A fitted classifier. This function does not change the classifier.
    X : array-like
        Validation images. They should not be training images.
    y : array-like of shape (n_samples,)
        True labels of the images.

    Returns
    -------
    n_orders : int
        Selected number of orders, for use in ``clf.set_params(n_orders=...)``.

    References
    ----------
    Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", 1984, section 3.4.3,
    for the one-standard-error rule.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skaocls import AnyOrderARClassifier
    >>> from skaocls.order_selection import smallest_n_orders
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = AnyOrderARClassifier(max_iter=20, n_orders=8, random_state=0).fit(X[::2], y[::2])
    >>> 1 <= smallest_n_orders(clf, X[1::2], y[1::2]) <= 8
    True
    """
    check_is_fitted(clf)
    batch = clf.model_.reader.open(X)
    y = clf.model_.true_labels(batch, y)
    if len(y) < 2:
        raise ValueError("X has one image, but the standard error needs at least two images.")
    correct = np.array([predicted == y for predicted in clf.staged_predict(batch)])
    accuracy = correct.mean(1)
    best = correct[accuracy.argmax()]
    standard_error = best.std(ddof=1) / np.sqrt(len(best))
    return int((accuracy >= best.mean() - standard_error).argmax()) + 1

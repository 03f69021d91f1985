"""The experiments: each returns the result of one contestant, task and seed as a dict."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skaocls.scoring.aggregation import joint_log_proba

from .. import common
from .contestants import CHARACTERS, load, make
from .data import unseen_fonts
from .measures import TABLE_ORDERS, measure_settings, relative_drop, use_fast_search
from .shifts import SHIFTS
from .shortcuts import with_shortcut

AGREEMENT = 0.95  # share of training images whose mark agrees with the class
SEVERITIES = (1, 2, 3, 4, 5)
N_HELD_OUT = 300
TEST_MARKS = 1000  # added to the seed of the marks


def images(task, seed, n_train=None, n_test=None, fonts=None):
    """Return the first training images and labels, and the first test images and labels."""
    X, y, X_test, y_test = load(task, seed, fonts)
    return X[:n_train], y[:n_train], X_test[:n_test], y_test[:n_test]


def fitted(contestant, seed, params, X, y):
    """Train a contestant, and return it with the seconds of the training."""
    model = make(contestant, seed, params)
    with warnings.catch_warnings():  # the number of epochs is fixed
        warnings.simplefilter("ignore", ConvergenceWarning)
        seconds, _ = common.timed(model.fit, X, y)
    return model, seconds


def standard(task, seed, contestant, params, n_train=None, n_test=None, n_shifted=200, fonts=None):
    """Train on the task's images; test on similar images and under every shift.

    Returns
    -------
    row : dict
        The result of :func:`measures.measure_settings`; ``"shifts"``: accuracy at each severity on
        the first `n_shifted` test images, with fast search; ``"unshifted"``: accuracy on these
        images without a shift; for glyphs also ``"unseen_fonts"``.
    """
    X, y, X_test, y_test = images(task, seed, n_train, n_test, fonts)
    model, seconds = fitted(contestant, seed, params, X, y)
    row = {"fit_seconds": seconds, "n_test": len(y_test)}
    row |= measure_settings(model, X_test, y_test)
    use_fast_search(model)
    X_test, y_test = X_test[:n_shifted], y_test[:n_shifted]
    row["unshifted"] = accuracy(model, X_test, y_test)
    row["n_shifted"] = len(y_test)
    row["shifts"] = dict(zip(SHIFTS, shifts(model, X_test, y_test, seed)))
    if task == "glyphs":
        unseen, labels = unseen_fonts(seed, characters=CHARACTERS, folder=fonts)
        row["unseen_fonts"] = accuracy(model, unseen[:n_test], labels[:n_test])
    return row


def shortcut(task, seed, contestant, params, kind, n_train=None, n_test=None):
    """Train on images with a mark that mostly shows the class; test on images where it does not.

    Returns
    -------
    row : dict
        Accuracy on test images whose mark agrees as in training (``"agreeing"``), stands for a
        random class (``"random"``), or always for another class (``"conflicting"``), and the share
        of the latter that is predicted to be of the mark's class (``"fooled"``).
    """
    X, y, X_test, y_test = images(task, seed, n_train, n_test)
    n_classes = y.max() + 1
    marked, _ = with_shortcut(X, y, n_classes, AGREEMENT, kind, seed)
    model, seconds = fitted(contestant, seed, params, marked, y)
    use_fast_search(model)
    row = {"fit_seconds": seconds, "n_test": len(y_test)}
    for name, agreement in (
        ("agreeing", AGREEMENT), ("random", 1 / n_classes), ("conflicting", "reversed")
    ):  # fmt: skip
        marked, marks = with_shortcut(X_test, y_test, n_classes, agreement, kind, seed + TEST_MARKS)
        predicted = model.predict(marked)
        row[name] = float((predicted == y_test).mean())
    row["fooled"] = float((predicted == marks).mean())
    return row


def remedy(
    task, seed, contestant, params, variant, settings, kind=None,
    n_train=None, n_test=None, n_shifted=100, fonts=None,
):  # fmt: skip
    """Train our classifier with changed parameters, and predict with several settings.

    Parameters
    ----------
    variant : str
        Name of the change.
    settings : list of dict
        Parameters to set after training.
    kind : str, default=None
        Shortcut to train with. Accuracy is then measured on conflicting images, without shifts.

    Returns
    -------
    row : dict
        ``"results"``: for each setting, ``"accuracy"`` with all orders, mean accuracy of a
        ``"single"`` one, and mean ``"drop"`` over the shifts.
    """
    X, y, X_test, y_test = images(task, seed, n_train, n_test, fonts)
    if kind is not None:
        n_classes = y.max() + 1
        X, _ = with_shortcut(X, y, n_classes, AGREEMENT, kind, seed)
        X_test, _ = with_shortcut(X_test, y_test, n_classes, "reversed", kind, seed + TEST_MARKS)
    model, seconds = fitted(contestant, seed, params, X, y)
    model.set_params(n_orders=min(TABLE_ORDERS, model.n_orders))
    unchanged = model.get_params(deep=False)
    rows = []
    for setting in settings:
        model.set_params(**unchanged | setting)
        ll = common.log_likelihoods(model, X_test)
        joint = joint_log_proba(ll, model.class_log_prior_, model.aggregation)
        right = joint.argmax(1) == y_test
        single = (ll + model.class_log_prior_).argmax(2) == y_test[:, None]
        row = {"setting": setting, "accuracy": float(right.mean()), "single": float(single.mean())}
        if kind is None:
            use_fast_search(model)
            shifted, labels = X_test[:n_shifted], y_test[:n_shifted]
            row["drop"] = relative_drop(
                right[:n_shifted].mean(), shifts(model, shifted, labels, seed)
            )
        rows.append(row)
    return {"fit_seconds": seconds, "results": rows}


def tune(task, seed, contestant, params, variant, fonts=None):
    """Train on three quarters of the training images, and test on up to `N_HELD_OUT` others."""
    X, y, *_ = load(task, seed, fonts)
    X, X_held, y, y_held = train_test_split(X, y, test_size=0.25, stratify=y, random_state=seed)
    model, seconds = fitted(contestant, seed, params, X, y)
    use_fast_search(model)
    return {
        "fit_seconds": seconds,
        "accuracy": accuracy(model, X_held[:N_HELD_OUT], y_held[:N_HELD_OUT]),
    }


def shifts(model, X, labels, seed):
    """Return the accuracy at each severity of each shift."""
    return [
        [accuracy(model, shift(X, severity, seed), labels) for severity in SEVERITIES]
        for shift in SHIFTS.values()
    ]


def accuracy(model, X, labels):
    return float(np.mean(model.predict(X) == labels))


EXPERIMENTS = {"standard": standard, "shortcut": shortcut, "remedy": remedy, "tune": tune}

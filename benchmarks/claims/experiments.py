"""The experiments: what one contestant does on one task with one seed, as a dict for JSON."""

import time
import warnings

import numpy as np
from contestants import CHARACTERS, load, make
from data import unseen_fonts
from measures import SHOWN_ORDERS, clean, ready, relative_drop
from shifts import SHIFTS
from shortcuts import with_shortcut
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

AGREEMENT = 0.95  # of mark and class in training
SEVERITIES = (1, 2, 3, 4, 5)
HELD_OUT = 300
TEST_MARKS = 1000  # added to the seed


def images(task, seed, n_train=None, n_test=None, fonts=None):
    """The first of the task's training images, their labels, of its test images and theirs."""
    X, y, X_test, y_test = load(task, seed, fonts)
    return X[:n_train], y[:n_train], X_test[:n_test], y_test[:n_test]


def fitted(contestant, seed, params, X, y):
    """The trained contestant, and how many seconds that took."""
    model = make(contestant, seed, params)
    start = time.perf_counter()
    with warnings.catch_warnings():  # training is as long as its budget
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    return model, time.perf_counter() - start


def standard(task, seed, contestant, params, n_train=None, n_test=None, n_shifted=200, fonts=None):
    """Train on the task's images; test on others like them, and under every shift.

    Returns
    -------
    row : dict
        What :func:`measures.clean` finds; ``"shifts"``: accuracy at each severity, with the
        setting that :func:`measures.ready` chooses, on the first `n_shifted` test images;
        ``"unshifted"``: on those as they are; glyphs also in ``"unseen_fonts"``.
    """
    X, y, X_test, y_test = images(task, seed, n_train, n_test, fonts)
    model, seconds = fitted(contestant, seed, params, X, y)
    row = {"fit_seconds": seconds, "n_test": len(y_test)}
    row |= clean(model, X_test, y_test)
    ready(model)
    some, labels = X_test[:n_shifted], y_test[:n_shifted]
    row["unshifted"] = accuracy(model, some, labels)
    row["n_shifted"] = len(labels)
    row["shifts"] = dict(zip(SHIFTS, shifts(model, some, labels, seed)))
    if task == "glyphs":
        unseen, labels = unseen_fonts(seed, characters=CHARACTERS, folder=fonts)
        row["unseen_fonts"] = accuracy(model, unseen[:n_test], labels[:n_test])
    return row


def shortcut(task, seed, contestant, params, kind, n_train=None, n_test=None):
    """Train on images with a mark that mostly tells the class; test where it does not.

    Returns
    -------
    row : dict
        Accuracy on test images whose mark agrees as in training, ``"agreeing"``, stands for a
        random class, ``"random"``, and always for another one, ``"conflicting"``; of the last,
        ``"fooled"`` is the share that is taken for the mark's class.
    """
    X, y, X_test, y_test = images(task, seed, n_train, n_test)
    n_classes = y.max() + 1
    marked, _ = with_shortcut(X, y, n_classes, AGREEMENT, kind, seed)
    model, seconds = fitted(contestant, seed, params, marked, y)
    ready(model)
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
    task, seed, contestant, params, variant, readings, kind=None,
    n_train=None, n_test=None, n_shifted=100, fonts=None,
):  # fmt: skip
    """Train ours with a change of its settings, named `variant`, and read it in several ways.

    Parameters
    ----------
    readings : list of dict
        Parameters that are set after training.
    kind : str, default=None
        A shortcut to train with: then accuracy is that on conflicting images, and there is no
        shift.

    Returns
    -------
    row : dict
        ``"readings"``: for each, ``"accuracy"`` with all orders and that of a ``"single"`` one in
        the mean, and the ``"drop"`` in the mean of the shifts.
    """
    X, y, X_test, y_test = images(task, seed, n_train, n_test, fonts)
    if kind is not None:
        n_classes = y.max() + 1
        X, _ = with_shortcut(X, y, n_classes, AGREEMENT, kind, seed)
        X_test, _ = with_shortcut(X_test, y_test, n_classes, "reversed", kind, seed + TEST_MARKS)
    model, seconds = fitted(contestant, seed, params, X, y)
    model.set_params(n_orders=min(SHOWN_ORDERS, model.n_orders))
    usual = model.get_params(deep=False)
    rows = []
    for reading in readings:
        model.set_params(**usual | reading)
        ll = np.concatenate(list(model._log_likelihoods(X_test)))
        joint = model._joint_log_proba(ll)
        right = joint.argmax(1) == y_test
        single = (ll + model.class_log_prior_).argmax(2) == y_test[:, None]
        row = {"reading": reading, "accuracy": float(right.mean()), "single": float(single.mean())}
        if kind is None:
            ready(model)
            shifted, labels = X_test[:n_shifted], y_test[:n_shifted]
            row["drop"] = relative_drop(
                right[:n_shifted].mean(), shifts(model, shifted, labels, seed)
            )
        rows.append(row)
    return {"fit_seconds": seconds, "readings": rows}


def tune(task, seed, contestant, params, variant, fonts=None):
    """Train on three quarters of the training images, test on up to `HELD_OUT` of the others."""
    X, y, *_ = load(task, seed, fonts)
    X, X_held, y, y_held = train_test_split(X, y, test_size=0.25, stratify=y, random_state=seed)
    model, seconds = fitted(contestant, seed, params, X, y)
    ready(model)
    return {
        "fit_seconds": seconds,
        "accuracy": accuracy(model, X_held[:HELD_OUT], y_held[:HELD_OUT]),
    }


def shifts(model, X, labels, seed):
    """Accuracy at each severity of each shift."""
    return [
        [accuracy(model, shift(X, severity, seed), labels) for severity in SEVERITIES]
        for shift in SHIFTS.values()
    ]


def accuracy(model, X, labels):
    return float(np.mean(model.predict(X) == labels))


EXPERIMENTS = {"standard": standard, "shortcut": shortcut, "remedy": remedy, "tune": tune}

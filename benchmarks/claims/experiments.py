"""The experiments: what one contestant does on one task with one seed, as a dict for JSON."""

import time
import warnings

import numpy as np
from contestants import CHARACTERS, load, make
from data import unseen_fonts
from measures import SHOWN_ORDERS, clean, fixed_orders, ready, relative_drop
from shifts import SHIFTS
from shortcuts import with_shortcut
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

AGREEMENT = 0.95  # of mark and class in training
SEVERITIES = (1, 2, 3, 4, 5)
HELD_OUT = 300


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
        ``"points"``: see :func:`measures.clean`. ``"shifts"``: accuracy at each severity, with the
        setting that :func:`measures.ready` chooses, on the first `n_shifted` test images;
        ``"unshifted"``: on those as they are. ``"fixed_orders"``: of the any-order prior.
    """
    X, y, X_test, y_test = load(task, seed, fonts)
    model, seconds = fitted(contestant, seed, params, X[:n_train], y[:n_train])
    X_test, y_test = X_test[:n_test], y_test[:n_test]
    row = {"fit_seconds": seconds, "n_test": len(y_test)}
    row["points"] = clean(model, X_test, y_test)
    if contestant == "any-order AR":
        row["fixed_orders"] = fixed_orders(model, X_test, y_test)
    ready(model)
    some, labels = X_test[:n_shifted], y_test[:n_shifted]
    row["unshifted"] = accuracy(model, some, labels)
    row["n_shifted"] = len(labels)
    row["shifts"] = {
        name: [accuracy(model, shift(some, severity, seed), labels) for severity in SEVERITIES]
        for name, shift in SHIFTS.items()
    }
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
    X, y, X_test, y_test = load(task, seed)
    X, y, X_test, y_test = X[:n_train], y[:n_train], X_test[:n_test], y_test[:n_test]
    n_classes = y.max() + 1
    marked, _ = with_shortcut(X, y, n_classes, AGREEMENT, kind, seed)
    model, seconds = fitted(contestant, seed, params, marked, y)
    ready(model)
    row = {"fit_seconds": seconds, "n_test": len(y_test)}
    for name, agreement in (
        ("agreeing", AGREEMENT), ("random", 1 / n_classes), ("conflicting", "reversed")
    ):  # fmt: skip
        images, marks = with_shortcut(X_test, y_test, n_classes, agreement, kind, seed + 1000)
        predicted = model.predict(images)
        row[name] = float((predicted == y_test).mean())
    row["fooled"] = float((predicted == marks).mean())
    return row


def remedy(task, seed, contestant, params, variant, **sizes):
    """Train ours with a change of its settings, named `variant`.

    Returns
    -------
    row : dict
        ``"accuracy"`` and that of a ``"single"`` order on average; ``"drop"``: share of the
        accuracy that the shifts take, in the mean.
    """
    row = standard(task, seed, contestant, params, **sizes)
    read = [p for p in row["points"] if "search" not in p and p["orders"] <= SHOWN_ORDERS]
    most = max(p["orders"] for p in read)
    found = [p for p in read if p["orders"] == most]
    return {
        "fit_seconds": row["fit_seconds"],
        "accuracy": found[0]["accuracy"],  # of the first aggregation, the default
        "single": float(np.mean(row["fixed_orders"]["random"])),
        "drop": relative_drop(row["unshifted"], list(row["shifts"].values())),
    }


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


def accuracy(model, X, labels):
    return float(np.mean(model.predict(X) == labels))


EXPERIMENTS = {"standard": standard, "shortcut": shortcut, "remedy": remedy, "tune": tune}

"""Measures of a fitted contestant: accuracy against cost, calibration, and single orders."""

import numpy as np
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold

from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba
from skaocls.scoring.calibration import expected_calibration_error, fit_temperature

from .. import common
from .flops import ar_flops, ar_parts, flops_per_image

N_ORDERS = (1, 2, 4, 8, 16, 20, 32)
TABLE_ORDERS, TABLE_TIMESTEPS = 20, 32  # settings in tables with one row per contestant
FAST_TIMESTEPS = 16  # under shift and for tuning, with elimination
FAST_MASKS = 16
STOPPED_ORDERS = (4, 8, 20)
ELIMINATION_STEPS = (4, 8, 16, 32)
EARLY_STOPPED, ELIMINATION = "early-stopped", "elimination"
MIN_PROBA = 1e-12


def point(log_joint, labels, flops, seconds, **setting):
    """Return accuracy, calibration and cost of one setting.

    Parameters
    ----------
    log_joint : array of shape (n, n_classes)
        Log posterior up to a constant for each image.
    labels : int array of shape (n,)
    flops, seconds : float
        Cost per image.
    **setting
        Added to the result.
    """
    n_classes = log_joint.shape[1]
    tempered = np.empty_like(log_joint)
    uniform = np.zeros(n_classes)
    # the temperature of each half is fitted on the other half
    for fit, apply in KFold(2, shuffle=True, random_state=0).split(log_joint):
        temperature = fit_temperature(
            log_joint[fit][:, None], labels[fit], uniform, AGGREGATIONS[0]
        )
        tempered[apply] = log_joint[apply] / temperature
    row = {**setting, "accuracy": float((log_joint.argmax(1) == labels).mean())}
    row |= {"flops": float(flops), "seconds": seconds}
    for suffix, values in (("", log_joint), ("_tempered", tempered)):
        proba = np.exp(values - values.max(1, keepdims=True)).clip(MIN_PROBA)
        proba /= proba.sum(1, keepdims=True)
        row[f"nll{suffix}"] = float(log_loss(labels, proba, labels=np.arange(n_classes)))
        row[f"ece{suffix}"] = expected_calibration_error(proba, labels)
    return row


def measure_settings(model, X, labels):
    """Return accuracy, calibration and cost of a contestant, at all of its settings.

    Returns
    -------
    row : dict
        ``"points"``: list of results of :func:`point`; for the any-order prior also
        ``"fixed_orders"``, the result of :func:`fixed_orders`.
    """
    name = type(model).__name__
    if name == "AnyOrderARClassifier":
        seconds, ll = common.timed(common.log_likelihoods, model, X)
        row = {"points": ar_points(model, X, labels, ll, seconds / len(X))}
        if ll.shape[1] > 1:
            row["fixed_orders"] = fixed_orders(model, X, labels, ll)
        return row
    if name == "DiffusionClassifier":
        return {"points": diffusion_points(model, X, labels)}
    if name == "MaskedClassifier":
        return {"points": staged_points(model, X, labels, "masks", model.staged_masks())}
    flops = flops_per_image(getattr(model, "estimator_", model), X.shape[1:])
    seconds, predicted = common.timed(model.predict, X)
    seconds /= len(X)
    if name == "OnViews" and not hasattr(model.estimator_, "predict_proba"):
        right = float((predicted == labels).mean())
        return {"points": [{"accuracy": right, "flops": float(flops), "seconds": seconds}]}
    log_proba = np.log(model.predict_proba(X).clip(MIN_PROBA))
    return {"points": [point(log_proba, labels, flops, seconds)]}


def ar_points(clf, X, labels, ll, seconds):
    """Measure our classifier: numbers of orders, aggregations, and early-stopped scoring."""
    points = []
    for k in (k for k in N_ORDERS if k <= ll.shape[1]):
        cost = flops_per_image(clf, X.shape[1:]) * k / ll.shape[1], seconds * k / ll.shape[1]
        for how in AGGREGATIONS if ll.shape[1] > 1 else AGGREGATIONS[:1]:
            joint = joint_log_proba(ll[:, :k], clf.class_log_prior_, how)
            points.append(point(joint, labels, *cost, orders=k, aggregation=how))
    unchanged = {"search": clf.search, "n_orders": clf.n_orders}
    for k in (k for k in STOPPED_ORDERS if k <= ll.shape[1] and ll.shape[1] > 1):
        clf.set_params(n_orders=k, search="auto")
        seconds, (joint, stats) = common.timed(clf.predict_joint_log_proba, X, return_stats=True)
        share = stats["evaluations"].mean() / stats["exhaustive_evaluations"]
        exhaustive = joint_log_proba(ll[:, :k], clf.class_log_prior_, AGGREGATIONS[0])
        setting = {"orders": k, "search": EARLY_STOPPED, "evaluations": float(share)}
        setting["agrees"] = float((exhaustive.argmax(1) == joint.argmax(1)).mean())
        cost = stopped_flops(clf, k, share), seconds / len(X)
        points.append(point(joint, labels, *cost, **setting))
    clf.set_params(**unchanged)
    return points


def stopped_flops(clf, n_orders, share):
    """Return an upper bound of the operations of early-stopped scoring.

    `share` is the share of token evaluations that were made. The work of an order that does not
    depend on the class is counted for every token that any class has read.
    """
    n_classes = len(clf.classes_)
    if clf.model_.readings == 1:  # one pass of the trunk serves all classes
        return share * ar_flops(clf.prior_, n_orders, n_classes)
    per_order, per_class = ar_parts(clf.prior_)
    return n_orders * (min(1.0, share * n_classes) * per_order + share * n_classes * per_class)


def diffusion_points(clf, X, labels):
    """Measure the diffusion classifier: numbers of steps, with and without elimination."""
    n_timesteps = clf.n_timesteps
    points = staged_points(clf, X, labels, "steps", clf.staged_timesteps())
    for steps in (steps for steps in ELIMINATION_STEPS if steps <= n_timesteps):
        clf.set_params(adaptive=True, n_timesteps=steps)
        seconds, proba = common.timed(clf.predict_proba, X)
        cost = flops_per_image(clf, X.shape[1:]), seconds / len(X)
        setting = {"steps": steps, "search": ELIMINATION}
        points.append(point(np.log(proba.clip(MIN_PROBA)), labels, *cost, **setting))
    clf.set_params(adaptive=False, n_timesteps=n_timesteps)
    return points


def staged_points(clf, X, labels, unit, counts):
    """Measure several numbers of timesteps or masks in one pass over all of them."""
    flops = flops_per_image(clf, X.shape[1:])
    seconds, staged = common.timed(lambda: list(clf.staged_predict_proba(X)))
    seconds /= len(X)
    points = []
    for count, proba in zip(counts, staged):
        cost = flops * count / counts[-1], seconds * count / counts[-1]
        points.append(point(np.log(proba.clip(MIN_PROBA)), labels, *cost, **{unit: count}))
    return points


def use_fast_search(model):
    """Set the orders, timesteps or masks of the tables, with the cheaper search."""
    name = type(model).__name__
    if name == "AnyOrderARClassifier":
        several = len(model.orders_) > 1
        search = "auto" if several else "exhaustive"
        return model.set_params(n_orders=min(TABLE_ORDERS, model.n_orders), search=search)
    if name == "DiffusionClassifier":
        steps = min(FAST_TIMESTEPS, model.n_timesteps)
        return model.set_params(n_timesteps=steps, adaptive=True)
    if name == "MaskedClassifier":
        return model.set_params(n_masks=min(FAST_MASKS, model.n_masks))
    return model


def fixed_orders(clf, X, labels, ll):
    """Measure the any-order prior with one order: named ones, and each of the random ones.

    Parameters
    ----------
    ll : array of shape (n, n_orders, n_classes)
        log p(tokens | class, order) for the random orders.

    Returns
    -------
    row : dict
        Accuracy with each order, and the share of images for which two random orders predict
        different classes.
    """
    unchanged = {"order": clf.order, "n_orders": clf.n_orders}
    columns = (ll + clf.class_log_prior_).argmax(2)
    different = [
        (columns[:, i] != columns[:, j]).mean() for j in range(columns.shape[1]) for i in range(j)
    ]
    row = {"disagreement": float(np.mean(different))}
    row["random"] = (columns == labels[:, None]).mean(0).tolist()
    for name, order in named_orders(*clf.prior_.grid).items():
        clf.set_params(order=order[None], n_orders=1)
        row[name] = float((clf.predict(X) == labels).mean())
    clf.set_params(**unchanged)
    return row


def relative_drop(before, after):
    """Return the share of accuracy that is lost; 0 if the accuracy was 0."""
    return float((before - np.mean(after)) / before) if before else 0.0


def named_orders(rows, cols):
    """Return four orders of a grid by name."""
    raster = np.arange(rows * cols).reshape(rows, cols)
    snake = np.where(np.arange(rows)[:, None] % 2, raster[:, ::-1], raster)
    rest, spiral = raster, []
    while rest.size:
        spiral.extend(rest[0])
        rest = np.rot90(rest[1:])
    y, x = np.indices((rows, cols))
    distance = np.hypot(y - (rows - 1) / 2, x - (cols - 1) / 2)
    centre_out = distance.round(9).ravel().argsort(kind="stable")
    named = {"raster": raster, "snake": snake, "spiral": spiral, "centre-out": centre_out}
    return {name: np.ravel(order) for name, order in named.items()}

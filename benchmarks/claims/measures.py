"""What is measured of a fitted contestant: accuracy against cost, calibration, shifts, orders."""

import time

import numpy as np
from flops import ar_flops, ar_parts, flops_per_image
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold

from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba
from skaocls.scoring.calibration import expected_calibration_error, fit_temperature

N_ORDERS = (1, 2, 4, 8, 16, 20, 32)
SHOWN_ORDERS, SHOWN_TIMESTEPS = 20, 32  # where one number is shown
SHIFTED_TIMESTEPS = 16  # under shift and for tuning, with elimination
SHIFTED_MASKS = 16
RACED = (4, 8, 20)
ELIMINATED = (4, 8, 16, 32)
SMALLEST = 1e-12  # probability, as in scikit-learn's log loss


def point(log_joint, labels, flops, seconds, **what):
    """Accuracy, calibration and cost of one setting.

    Parameters
    ----------
    log_joint : array of shape (n, n_classes)
        Log posterior but for a constant.
    labels : int array of shape (n,)
    flops : float
        Of one image.
    seconds : float
        Of one image.
    **what
        The setting.
    """
    n_classes = log_joint.shape[1]
    tempered = np.empty_like(log_joint)
    nothing, how = np.zeros(n_classes), "mean_log_likelihood"
    # the temperature for either half is that of the other
    for fit, apply in KFold(2, shuffle=True, random_state=0).split(log_joint):
        temperature = fit_temperature(log_joint[fit][:, None], labels[fit], nothing, how)
        tempered[apply] = log_joint[apply] / temperature
    row = {**what, "accuracy": float((log_joint.argmax(1) == labels).mean())}
    row |= {"flops": float(flops), "seconds": seconds}
    for suffix, values in (("", log_joint), ("_tempered", tempered)):
        proba = np.exp(values - values.max(1, keepdims=True)).clip(SMALLEST)
        proba /= proba.sum(1, keepdims=True)
        row[f"nll{suffix}"] = float(log_loss(labels, proba, labels=np.arange(n_classes)))
        row[f"ece{suffix}"] = expected_calibration_error(proba, labels)
    return row


def clean(model, X, labels):
    """Accuracy, calibration and cost of a contestant, at all of its settings.

    Returns
    -------
    row : dict
        ``"points"``: a list of what :func:`point` returns; of the any-order prior also
        ``"fixed_orders"``.
    """
    name = type(model).__name__
    if name == "AnyOrderARClassifier":
        ll, seconds = timed_reading(model, X)
        row = {"points": ar_points(model, X, labels, ll, seconds)}
        if ll.shape[1] > 1:
            row["fixed_orders"] = fixed_orders(model, X, labels, ll)
        return row
    if name == "DiffusionClassifier":
        return {"points": diffusion_points(model, X, labels)}
    if name == "MaskedClassifier":
        return {"points": staged_points(model, X, labels, "masks", model.staged_masks())}
    flops = flops_per_image(getattr(model, "estimator_", model), X.shape[1:])
    start = time.perf_counter()
    predicted = model.predict(X)
    seconds = (time.perf_counter() - start) / len(X)
    if name == "OnViews" and not hasattr(model.estimator_, "predict_proba"):
        right = float((predicted == labels).mean())
        return {"points": [{"accuracy": right, "flops": float(flops), "seconds": seconds}]}
    log_proba = np.log(model.predict_proba(X).clip(SMALLEST))
    return {"points": [point(log_proba, labels, flops, seconds)]}


def ar_points(clf, X, labels, ll, seconds):
    """Ours: each number of orders and each aggregation, and races."""
    points = []
    for k in (k for k in N_ORDERS if k <= ll.shape[1]):
        cost = flops_per_image(clf, X.shape[1:]) * k / ll.shape[1], seconds * k / ll.shape[1]
        for how in AGGREGATIONS if ll.shape[1] > 1 else AGGREGATIONS[:1]:
            joint = joint_log_proba(ll[:, :k], clf.class_log_prior_, how)
            points.append(point(joint, labels, *cost, orders=k, aggregation=how))
    most = clf.n_orders
    for k in (k for k in RACED if k <= ll.shape[1] and ll.shape[1] > 1):
        clf.set_params(search="racing", n_orders=k)
        start = time.perf_counter()
        joint, stats = clf.predict_joint_log_proba(X, return_stats=True)
        seconds = (time.perf_counter() - start) / len(X)
        share = stats["evaluations"].mean() / stats["exhaustive_evaluations"]
        exhaustive = joint_log_proba(ll[:, :k], clf.class_log_prior_, AGGREGATIONS[0])
        what = {"orders": k, "search": "racing", "evaluations": float(share)}
        what["agrees"] = float((exhaustive.argmax(1) == joint.argmax(1)).mean())
        points.append(point(joint, labels, race_flops(clf, k, share), seconds, **what))
    clf.set_params(search="exhaustive", n_orders=most)
    return points


def timed_reading(clf, X):
    """log p(tokens | class, order), (n, n_orders, n_classes), and seconds for an image."""
    start = time.perf_counter()
    ll = np.concatenate(list(clf._log_likelihoods(X)))
    return ll, (time.perf_counter() - start) / len(X)


def race_flops(clf, n_orders, share):
    """At most: an order's own work counts for each token that some class has read in it."""
    n_classes = len(clf.classes_)
    if clf.model_.readings == 1:  # what races are orders: a trunk that is read serves all classes
        return share * ar_flops(clf.prior_, n_orders, n_classes)
    pair, lane = ar_parts(clf.prior_)
    return n_orders * (min(1.0, share * n_classes) * pair + share * n_classes * lane)


def diffusion_points(clf, X, labels):
    """The diffusion classifier: each number of steps, with and without elimination."""
    most = clf.n_timesteps
    points = staged_points(clf, X, labels, "steps", clf.staged_timesteps())
    for steps in (steps for steps in ELIMINATED if steps <= most):
        clf.set_params(adaptive=True, n_timesteps=steps)
        start = time.perf_counter()
        proba = clf.predict_proba(X).clip(SMALLEST)
        seconds = (time.perf_counter() - start) / len(X)
        flops = flops_per_image(clf, X.shape[1:])
        points.append(
            point(np.log(proba), labels, flops, seconds, steps=steps, search="elimination")
        )
    clf.set_params(adaptive=False, n_timesteps=most)
    return points


def staged_points(clf, X, labels, unit, counts):
    """What is found after each of some counts of timesteps or masks, in one pass over them all."""
    flops = flops_per_image(clf, X.shape[1:])
    start = time.perf_counter()
    staged = list(clf.staged_predict_proba(X))
    seconds = (time.perf_counter() - start) / len(X)
    points = []
    for count, proba in zip(counts, staged):
        cost = flops * count / counts[-1], seconds * count / counts[-1]
        points.append(point(np.log(proba.clip(SMALLEST)), labels, *cost, **{unit: count}))
    return points


def ready(model):
    """The model, set to answer as it would be used: the orders or steps shown, cheap search."""
    name = type(model).__name__
    if name == "AnyOrderARClassifier":
        search = "racing" if len(model.orders_) > 1 else "exhaustive"
        return model.set_params(n_orders=min(SHOWN_ORDERS, model.n_orders), search=search)
    if name == "DiffusionClassifier":
        steps = min(SHIFTED_TIMESTEPS, model.n_timesteps)
        return model.set_params(n_timesteps=steps, adaptive=True)
    if name == "MaskedClassifier":
        return model.set_params(n_masks=min(SHIFTED_MASKS, model.n_masks))
    return model


def fixed_orders(clf, X, labels, ll):
    """The any-order prior read in one order: those with a name, and each of the random ones.

    Parameters
    ----------
    ll : array of shape (n, n_orders, n_classes)
        log p(tokens | class, order) in the random ones.

    Returns
    -------
    row : dict
        Accuracy in each order, and the share of images on which two random ones disagree.
    """
    drawn = clf.order, clf.n_orders
    answers = (ll + clf.class_log_prior_).argmax(2)
    different = [
        (answers[:, i] != answers[:, j]).mean() for j in range(answers.shape[1]) for i in range(j)
    ]
    row = {"disagreement": float(np.mean(different))}
    row["random"] = (answers == labels[:, None]).mean(0).tolist()
    for name, path in named_orders(*clf.prior_.grid).items():
        clf.set_params(order=path[None], n_orders=1)
        row[name] = float((clf.predict(X) == labels).mean())
    clf.set_params(order=drawn[0], n_orders=drawn[1])
    return row


def relative_drop(before, after):
    """Share of an accuracy that is lost; none of one that was 0."""
    return float((before - np.mean(after)) / before) if before else 0.0


def named_orders(rows, cols):
    """Row by row, row by row there and back, from the corner inwards, and from the centre out."""
    places = np.arange(rows * cols).reshape(rows, cols)
    snake = np.where(np.arange(rows)[:, None] % 2, places[:, ::-1], places)
    rest, spiral = places, []
    while rest.size:
        spiral.extend(rest[0])
        rest = np.rot90(rest[1:])
    y, x = np.indices((rows, cols))
    distance = np.hypot(y - (rows - 1) / 2, x - (cols - 1) / 2)
    centre_out = distance.round(9).ravel().argsort(kind="stable")
    named = {"raster": places, "snake": snake, "spiral": spiral, "centre-out": centre_out}
    return {name: np.ravel(path) for name, path in named.items()}

"""Compare predictions that are computed in different settings.

    python -m benchmarks.reliability.same_predictions

Small classifiers of digits and of a table, with both architectures and both searches, predict the
same samples in each setting. The reference predicts all samples at once, with one thread, in one
process. Writes the largest differences to ``same_predictions.md``, and fails if they are too large.
"""

import contextlib
import copy
import io
import multiprocessing
import pickle
import tempfile
from unittest.mock import patch

import joblib
import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skaocls import AnyOrderARClassifier
from skaocls.training import checkpoints

from .. import common

N_TEST = 70
TOLERANCE = 1e-6
DATA = ["digits", "wine"]


def load(name):
    """Return training data, labels and test data."""
    X, y = load_digits(return_X_y=True) if name == "digits" else load_wine(return_X_y=True)
    if name == "digits":
        X = (X / 16).reshape(-1, 8, 8)
    shuffled = np.random.RandomState(0).permutation(len(X))
    train, test = shuffled[:-N_TEST], shuffled[-N_TEST:]
    return X[train[:600]], y[train[:600]], X[test]


def joint(clf, X):
    return clf.predict_joint_log_proba(X)


def in_batches(clf, X, size):
    return np.concatenate([joint(clf, X[i : i + size]) for i in range(0, len(X), size)])


def with_threads(clf, X, n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return joint(clf, X)
    finally:
        torch.set_num_threads(before)


def in_spawned_process(jobs):
    """Predict all jobs in one new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.starmap(joint, jobs)


def in_loky_workers(clf, X):
    half = len(X) // 2
    calls = (joblib.delayed(joint)(clf, part) for part in (X[:half], X[half:]))
    return np.concatenate(joblib.Parallel(2, backend="loky")(calls))


def in_context(clf, X, context):
    with context:
        return joint(clf, X)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def dumped_by_joblib(clf, X):
    file = io.BytesIO()
    joblib.dump(clf, file)
    return joint(joblib.load(file), X)


def saved_and_loaded(clf, X):
    with tempfile.TemporaryDirectory() as folder:
        clf.save_pretrained(folder)
        return joint(AnyOrderARClassifier.from_pretrained(folder), X)


def with_memory(clf, X):
    with tempfile.TemporaryDirectory() as folder:
        cached = copy.copy(clf).set_params(memory=folder)
        joint(cached, X)
        return joint(cached, X)


def in_pipeline(clf, X):
    """Transform in a pipeline, and add the class prior."""
    return make_pipeline(FunctionTransformer(), clf).transform(X) + clf.class_log_prior_


class Interrupted(Exception):
    pass


def fit_resumed_twice(clf, X, train):
    """Interrupt a fit twice after some checkpoints, and let it continue from them."""
    save = checkpoints.Checkpoints.save_if_due
    with tempfile.TemporaryDirectory() as folder:
        resumed = clone(clf).set_params(checkpoint_dir=folder)
        for n_saves in (3, 5):
            count = iter(range(n_saves, -1, -1))

            def save_and_stop(self, state, count=count):
                save(self, state)
                if not next(count):
                    raise Interrupted

            with (
                patch.object(checkpoints, "INTERVAL_FACTOR", 0),
                patch.object(checkpoints.Checkpoints, "save_if_due", save_and_stop),
                contextlib.suppress(Interrupted),
            ):
                resumed.fit(*train)
                raise RuntimeError("The fit ended before it was interrupted.")
        return joint(resumed.fit(*train), X)


def predictions(clf, X, train):
    """Yield the name of each setting and its predictions."""
    shuffled = np.random.RandomState(1).permutation(len(X))
    yield from ((f"batches of {n}", in_batches(clf, X, n)) for n in (1, 7, 64))
    yield "images in another order", joint(clf, X[shuffled])[np.argsort(shuffled)]
    yield "2 threads", with_threads(clf, X, 2)
    yield "pickled", joint(pickle.loads(pickle.dumps(clf)), X)
    yield "dumped by joblib", dumped_by_joblib(clf, X)
    yield "saved and loaded", saved_and_loaded(clf, X)
    if clf.search == "exhaustive":  # `transform`, and predictions with `memory`, read all orders
        yield "in a pipeline", in_pipeline(clf, X)
        yield "with `memory`", with_memory(clf, X)
    yield "two loky workers", in_loky_workers(clf, X)
    yield "fit resumed twice", fit_resumed_twice(clf, X, train)
    for name in ("float64", "bfloat16", "float16"):
        yield f"default dtype {name}", in_context(clf, X, default_dtype(getattr(torch, name)))
    yield "autocast", in_context(clf, X, torch.autocast("cpu", dtype=torch.bfloat16))
    yield "inference mode", in_context(clf, X, torch.inference_mode())
    yield "Fortran-ordered array", joint(clf, np.asfortranarray(X))
    yield "strided array", joint(clf, np.repeat(X[::-1], 2, axis=-1)[::-1, ..., ::2])
    yield "tensor", joint(clf, torch.from_numpy(X))
    yield "list", joint(clf, list(X))


def differences(found, expected):
    """Return the largest differences of log p(x, y), absolute and relative, and of p(y | x)."""
    proba = [np.exp(a - np.logaddexp.reduce(a, 1)[:, None]) for a in (found, expected)]
    nats = np.abs(found - expected)
    return nats.max(), (nats / np.abs(expected)).max(), np.abs(proba[0] - proba[1]).max()


def classifiers(data, epochs):
    """Yield fitted classifiers with their test data and training data."""
    for name in data:
        X, y, X_test = load(name)
        for architecture in common.ARCHITECTURES.values():
            clf = AnyOrderARClassifier(
                {"architecture": architecture, "dim": 64, "n_layer": 2, "n_head": 2},
                max_iter=epochs,
                augmentation=None,
                n_orders=8,
                tol=10.0,
                precision="float32",
                random_state=0,
            ).fit(X, y)
            for search in ("exhaustive", "auto"):
                print(name, architecture, search, flush=True)
                yield copy.copy(clf).set_params(search=search), X_test, (X, y)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results, jobs, expected = {}, [], []
    for clf, X, train in classifiers(args.data, args.epochs):
        jobs.append((clf, X))
        expected.append(joint(clf, X))
        for setting, found in predictions(clf, X, train):
            results.setdefault(setting, []).append(differences(found, expected[-1]))
            print(setting, *(f"{x:.1e}" for x in results[setting][-1]), flush=True)
    for found, wanted in zip(in_spawned_process(jobs), expected):
        results.setdefault("a process started by `spawn`", []).append(differences(found, wanted))
    rows = []
    for setting, found in results.items():
        largest = np.max(found, axis=0)
        rows.append([setting, *("0" if x == 0 else f"{x:.1e}" for x in largest)])
    text = common.page(
        "Predictions in different settings",
        "Measured with `python -m benchmarks.reliability.same_predictions --data "
        f"{' '.join(args.data)} --epochs {args.epochs}` on {common.machine()}, torch "
        f"{torch.__version__}. The reference predicts all samples at once, with one thread, in one "
        "process. The table contains the largest differences from the reference. Each number in "
        f"the table is a maximum over all data sets ({N_TEST} samples each), architectures (shared "
        "trunk and published) and searches (exhaustive and early-stopped). All runs use 8 orders "
        "and float32. The column *nats* is the difference of log p(x, y) from the "
        "reference, in nats. "
        "*Relative* is this difference divided by the absolute value of log p(x, y). "
        "*Probability* is the difference between the two values of p(y | x).",
        common.table(["setting", "nats", "relative", "probability"], rows),
    )
    common.write_page(args.output / "same_predictions.md", text)
    largest = np.max([np.max(found, axis=0) for found in results.values()], axis=0)
    if max(largest[1:]) > TOLERANCE:
        raise SystemExit(f"The largest differences are {largest}; {TOLERANCE} is allowed.")


if __name__ == "__main__":
    main()

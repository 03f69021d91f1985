"""Time of early-stopped relative to exhaustive scoring, with barely trained priors.

    python -m benchmarks.speed.early_stopping

Barely trained priors are the worst case, because most images are decided late. Both architectures
score 64 digits in 20 orders under 2, 10 and 200 classes; the labels of 200 classes are random. The
two methods run alternately, in one thread. The ratio is that of the shortest CPU times. Writes
``early_stopping.md``.
"""

import time
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skaocls import AnyOrderARClassifier
from skaocls.scoring.early_stopping import score_until_decided
from skaocls.scoring.exhaustive import log_likelihoods

from .. import common

N_CLASSES, N_IMAGES, N_ORDERS = (2, 10, 200), 64, 20
HEADS = ("prior", "classes", "exhaustive, ms per image", "early-stopped", "ratio",
         "fraction of token evaluations", "same class")  # fmt: skip


def barely_trained(architecture, n_classes):
    """Return a classifier after one epoch, and the tokens of test images."""
    X, X_test, y, _ = common.digits()
    if n_classes > 10:
        y = np.random.RandomState(0).permutation(len(X))
    prior = common.SMALL_PRIOR | {"architecture": architecture}
    clf = AnyOrderARClassifier(
        prior, n_orders=N_ORDERS, max_iter=1, random_state=0, precision="float32"
    ).fit(X, y % n_classes)
    return clf, common.codes_of(clf, X_test[:N_IMAGES])


def cpu_seconds(function, *args):
    start = time.process_time()
    result = function(*args)
    return time.process_time() - start, result


def measure(name, n_classes, limit):
    """Return a table row; `limit` is the CPU time of all runs in seconds."""
    clf, codes = barely_trained(common.ARCHITECTURES[name], n_classes)
    args = clf.prior_, codes, clf.orders_, np.arange(n_classes)
    log_prior = clf.class_log_prior_
    cpu_seconds(score_until_decided, *args[:1], codes[:2], *args[2:], log_prior)  # warm up
    exhaustive, stopped = [], []
    while not exhaustive or sum(exhaustive) + sum(stopped) < limit:
        seconds, ll = cpu_seconds(log_likelihoods, *args)
        exhaustive.append(seconds)
        seconds, result = cpu_seconds(score_until_decided, *args, log_prior)
        stopped.append(seconds)
    classes = [(a.mean(1) + log_prior).argmax(1) for a in (ll, result.log_likelihood)]
    share = result.evaluations.mean() / (clf.orders_.size * clf.prior_.readings(n_classes))
    ms = [f"{1e3 * min(a) / N_IMAGES:.1f}" for a in (exhaustive, stopped)]
    same = f"{(classes[0] == classes[1]).sum()} of {N_IMAGES}"
    ratio = f"{min(stopped) / min(exhaustive):.2f}"
    return name, n_classes, *ms, ratio, f"{share:.2f}", same


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=N_CLASSES)
    parser.add_argument("--cpu-seconds", type=float, default=4, help="for each row")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = [
            measure(name, n, args.cpu_seconds)
            for name in common.ARCHITECTURES
            for n in args.classes
        ]
    about = (
        f"Measured with `python -m benchmarks.speed.early_stopping` on {common.machine()}. The "
        f"benchmark scores {N_IMAGES} digits with 16 tokens each in {N_ORDERS} orders. The priors "
        "were trained for one epoch. Each time is the shortest CPU time of several runs."
    )
    text = common.page("Time of early-stopped scoring", about, common.table(HEADS, rows))
    common.write_page(args.output / "early_stopping.md", text)


if __name__ == "__main__":
    main()

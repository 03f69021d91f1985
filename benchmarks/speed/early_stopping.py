"""Time of early stopping relative to exhaustive scoring, with barely trained priors.

    python -m benchmarks.speed.early_stopping

Barely trained priors are the worst case: most images are decided late. Both architectures score 64
digits in 20 orders under 2, 10 and 200 classes; the labels of 200 classes are random. The two
methods run alternately, in one thread, and the ratio is that of the smallest processor times.
Writes ``early_stopping.md``.
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
SECONDS = 4  # of processor time for each case, at least one run of each method
HEADS = ("prior", "classes", "exhaustive, ms per image", "early stopping", "ratio",
         "share of token evaluations", "same class")  # fmt: skip


def barely_trained(architecture, n_classes):
    """Return a classifier after one epoch, and the tokens of test images."""
    X, X_test, y, _ = common.digits()
    y = (
        y % n_classes
        if n_classes <= 10
        else np.random.RandomState(0).permutation(len(X)) % n_classes
    )
    prior = common.SMALL_PRIOR | {"architecture": architecture}
    clf = AnyOrderARClassifier(
        prior, n_orders=N_ORDERS, max_iter=1, random_state=0, precision="float32"
    ).fit(X, y % n_classes)
    return clf, common.codes_of(clf, X_test[:N_IMAGES])


def processor_seconds(function, *args):
    start = time.process_time()
    result = function(*args)
    return time.process_time() - start, result


def measure(name, n_classes):
    """Return a table row."""
    clf, codes = barely_trained(common.ARCHITECTURES[name], n_classes)
    args = clf.prior_, codes, clf.orders_, np.arange(n_classes)
    log_prior = clf.class_log_prior_
    processor_seconds(score_until_decided, *args[:1], codes[:2], *args[2:], log_prior)  # warm up
    exhaustive, stopped = [], []
    while not exhaustive or sum(exhaustive) + sum(stopped) < SECONDS:
        seconds, ll = processor_seconds(log_likelihoods, *args)
        exhaustive.append(seconds)
        seconds, result = processor_seconds(score_until_decided, *args, log_prior)
        stopped.append(seconds)
    classes = [(a.mean(1) + log_prior).argmax(1) for a in (ll, result.log_likelihood)]
    share = result.evaluations.mean() / (clf.orders_.size * clf.prior_.readings(n_classes))
    ms = [f"{1e3 * min(a) / N_IMAGES:.1f}" for a in (exhaustive, stopped)]
    same = f"{(classes[0] == classes[1]).sum()} of {N_IMAGES}"
    ratio = f"{min(stopped) / min(exhaustive):.2f}"
    return name, n_classes, *ms, ratio, f"{share:.2f}", same


def main():
    args = common.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = [measure(name, n) for name in common.ARCHITECTURES for n in N_CLASSES]
    about = (
        f"`python -m benchmarks.speed.early_stopping`; {common.machine()}. {N_IMAGES} digits, "
        f"16 tokens, {N_ORDERS} orders, priors trained for one epoch; smallest processor times."
    )
    text = common.page("Early stopping", about, common.table(HEADS, rows))
    common.write_page(args.output / "early_stopping.md", text)


if __name__ == "__main__":
    main()

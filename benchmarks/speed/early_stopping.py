"""Time of early-stopped scoring: relative to exhaustive scoring, and of default classifiers.

    python -m benchmarks.speed.early_stopping --tasks digits animals --before /tmp/before

*Barely trained priors* are the worst case, because most images are decided late. Both architectures
score 64 digits in 20 orders under 2, 10 and 200 classes; the labels of 200 classes are random. The
two methods run alternately, in one thread. The ratio is that of the shortest CPU times.

*Default classifiers* are fitted to at most 2000 images of the tasks, and kept in
``benchmarks/cache``. This checkout and another checkout predict alternately, each in a process of
its own with one thread. Their classes are compared with exhaustive scoring.

Writes ``early_stopping.md``.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from itertools import chain
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skaocls import AnyOrderARClassifier
from skaocls.scoring.early_stopping import score_until_decided
from skaocls.scoring.exhaustive import log_likelihoods

from .. import common
from ..quality.tasks import sources

N_CLASSES, N_IMAGES, N_ORDERS = (2, 10, 200), 64, 20
HEADS = ("prior", "classes", "exhaustive, ms per image", "early-stopped", "ratio",
         "fraction of token evaluations", "same class")  # fmt: skip
N_TRAIN, N_TEST, ROUNDS, CALLS = 2000, 400, 2, 2
TASK_HEADS = ("task", "tokens", "codes", "checkout", "ms per image", "ratio", "orders per image",
              "same class as exhaustive scoring")  # fmt: skip
# Runs in the other checkout, too, so it only uses the public interface
PREDICT = """
import json, sys, time
import joblib, numpy as np, torch
torch.set_num_threads(1)
clf, X, n_calls = joblib.load(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3])
clf.predict(X[:64])
seconds = []
for _ in range(n_calls):
    start = time.process_time()
    joint, stats = clf.predict_joint_log_proba(X, return_stats=True)
    seconds.append(time.process_time() - start)
orders = stats["evaluations"].mean() / clf.prior_.n_tokens
found = clf.classes_[joint.argmax(1)]
print(json.dumps([1e3 * min(seconds) / len(X), orders, found.tolist()]))
"""


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


def default_classifier(task, fonts, cache):
    """Fit the default classifier to a task, or load it. Return its file and a file of images."""
    cache.mkdir(parents=True, exist_ok=True)
    files = [cache / f"default-{task}{suffix}" for suffix in (".joblib", ".npy")]
    X, y, X_test, _ = sources.load_task(task, 0, fonts)
    np.save(files[1], X_test[:N_TEST])
    if not files[0].exists():
        rows = np.random.RandomState(0).permutation(len(X))[:N_TRAIN]
        clf = AnyOrderARClassifier(random_state=0, device="cpu").fit(X[rows], y[rows])
        joblib.dump(clf, files[0])
    return files


def predict_in(root, files):
    """Return ms per image, orders per image and the classes that the package in a folder finds."""
    command = [sys.executable, "-c", PREDICT, *(str(f.resolve()) for f in files), str(CALLS)]
    # "python -c" imports from the current folder first
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, env=env, cwd=root, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measure_task(task, roots, fonts, cache):
    """Return one table row for each checkout. `roots` maps its name to its folder."""
    files = default_classifier(task, fonts, cache)
    clf, X = joblib.load(files[0]), np.load(files[1])
    exhaustive = clf.set_params(search="exhaustive").predict(X)
    runs = {name: [] for name in roots}
    for _ in range(ROUNDS):
        for name, root in roots.items():
            runs[name].append(predict_in(root, files))
    first, rows = min(runs[next(iter(roots))])[0], []
    for name, found in runs.items():
        ms, orders, classes = min(found)
        same = f"{(np.array(classes) == exhaustive).sum()} of {len(X)}"
        sizes = clf.prior_.n_tokens, clf.tokenizer_.n_codes_
        rows.append((task, *sizes, name, f"{ms:.2f}", f"{ms / first:.2f}", f"{orders:.2f}", same))
    return rows


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=N_CLASSES)
    parser.add_argument("--cpu-seconds", type=float, default=4, help="for each row")
    parser.add_argument("--tasks", nargs="*", default=(), choices=sources.IMAGES)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--fonts", type=Path, help="folder of the fonts of the task glyphs")
    parser.add_argument("--cache", type=Path, default=common.CACHE)
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
        "were trained for one epoch. Each time is the shortest CPU time of several runs. Other "
        "processes used the machine at the same time, so only the ratios are reliable."
    )
    roots = {"before": args.before} if args.before else {}
    roots["now"] = common.ROOT
    blocks = [common.table(HEADS, rows)]
    if args.tasks:
        found = [measure_task(task, roots, args.fonts, args.cache) for task in args.tasks]
        blocks += [
            f"Fitted classifiers, up to {N_TEST} test images. Each time is the shortest CPU time "
            f"of {ROUNDS * CALLS} calls of `predict_joint_log_proba`. Checkouts run alternately.",
            common.table(TASK_HEADS, chain.from_iterable(found)),
        ]
    text = common.page("Time of early-stopped scoring", about, *blocks)
    common.write_page(args.output / "early_stopping.md", text)


if __name__ == "__main__":
    main()

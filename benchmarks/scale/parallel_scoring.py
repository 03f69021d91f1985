"""Scoring with two joblib workers: speed-up, overhead, and the job size from which it is faster.

    OMP_NUM_THREADS=1 python -m benchmarks.scale.parallel_scoring

All variants are timed alternately, with one thread for each process. The upper bound on this
machine is the speed-up of two independent processes, each with half of the images. Writes
``parallel_scoring.json`` and ``parallel_scoring.md``.
"""

import os
import statistics
import subprocess
import sys

import joblib
import numpy as np
import torch
from joblib.parallel import get_active_backend
from sklearn.datasets import load_digits

from skaocls import AnyOrderARClassifier
from skaocls.fitted.joblib_workers import map_pieces, pack_model, split_work
from skaocls.fitted.prediction import images_per_batch

from .. import common

SIZES = (4, 16, 64, 256, 1024)  # images of jobs that may be too small for two processes
ONE, LOKY, DASK = "one process", "loky, 2 processes", "Dask, 2 workers"


def make_job(n_images):
    """Return a barely trained classifier of the default size for digits, and images."""
    data = load_digits()
    clf = AnyOrderARClassifier(max_iter=1, augmentation=None, random_state=0, tol=10.0)
    clf.fit(data.images, data.target)
    return clf, np.resize(data.images, (n_images, 8, 8))


def one_process(clf, X):
    return clf.set_params(n_jobs=None).predict_joint_log_proba(X)


def with_loky(clf, X):
    with joblib.parallel_config("loky", n_jobs=2):
        return clf.set_params(n_jobs=2).predict_joint_log_proba(X)


def with_dask(clf, X):
    with joblib.parallel_config("dask"):
        return clf.set_params(n_jobs=None).predict_joint_log_proba(X)


def empty_task(model):
    """Do nothing, so that only the overhead is timed."""


def no_arguments(piece):
    return ()


def overhead(clf, n_tasks):
    """Return the seconds of each empty task, and of a call with two of them."""
    many, _ = common.timed(
        list, map_pieces(empty_task, clf.model_, range(n_tasks), no_arguments, 2)
    )
    two, _ = common.timed(list, map_pieces(empty_task, clf.model_, range(2), no_arguments, 2))
    return (many - two) / (n_tasks - 2), two


def independent_processes(n_images):
    """Return the seconds of one process, and of two that score half of the images each."""

    def run(*amounts):
        command = [sys.executable, "-m", "benchmarks.scale.parallel_scoring", "--score"]
        started = [
            subprocess.Popen([*command, str(n)], cwd=common.ROOT, stdout=subprocess.PIPE, text=True)
            for n in amounts
        ]
        return max(float(p.communicate()[0]) for p in started)

    return run(n_images), run(n_images // 2, n_images // 2)


def compare(clf, X, variants, repeats):
    """Return the seconds of each variant, and the largest difference from one process."""
    seconds, difference = {name: [] for name in variants}, dict.fromkeys(variants, 0.0)
    exact = one_process(clf, X)
    for _ in range(repeats):
        for name, score in variants.items():
            taken, found = common.timed(score, clf, X)
            seconds[name].append(taken)
            difference[name] = max(difference[name], float(np.abs(found - exact).max()))
    return seconds, difference


def transfer_sizes(clf, X):
    """Return the bytes that are sent to and from a worker."""
    model = clf.model_
    pieces = split_work(len(X), len(clf.orders_), 2, batch_size=images_per_batch(model))
    images = pieces[0].images
    _, pickled, buffers = pack_model(model, get_active_backend()[0])
    return {
        "weights": sum(buffer.nbytes for buffer in buffers),
        "the rest of the model, with each task": len(pickled),
        "images of a task": X[images].nbytes,
        "orders of a task": clf.orders_.nbytes,
        "result of a task": 8 * images.stop * len(clf.orders_) * len(clf.classes_),
        "tasks": len(pieces),
    }


def measure(args):
    from dask.distributed import Client, LocalCluster

    clf, X = make_job(args.images)
    record = {"machine": common.machine(), "images": args.images, "load": os.getloadavg()[0]}
    record["bytes"] = transfer_sizes(clf, X)
    record["start"] = common.timed(with_loky, clf, X[:64])[0]
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster):
        with_dask(clf, X[:64])
        variants = {ONE: one_process, LOKY: with_loky, DASK: with_dask}
        record["seconds"], record["difference"] = compare(clf, X, variants, args.repeats)
        record["small"] = {}
        for n in (n for n in SIZES if n <= args.images):
            record["small"][n], _ = compare(clf, X[:n], variants, 2 * args.repeats + 1)
        record["overhead"] = {}
        for name, backend in ((LOKY, "loky"), (DASK, "dask")):
            with joblib.parallel_config(backend):
                runs = [overhead(clf, args.tasks) for _ in range(args.repeats)]
            task, call = (statistics.median(a) for a in zip(*runs))
            record["overhead"][name] = {"task": task, "call": call}
    record["independent"] = [independent_processes(args.images) for _ in range(args.repeats)]
    return record


def break_even(record):
    """Return a line for each backend about the size from which it is faster."""
    lines = []
    for name in list(record["seconds"])[1:]:
        faster = [
            (n, statistics.median(seconds[ONE]))
            for n, seconds in record["small"].items()
            if statistics.median(seconds[name]) < statistics.median(seconds[ONE])
        ]
        if faster:
            n, seconds = faster[0]
            lines.append(
                f"- {name}: faster than one process for jobs of {n} images or more. One process "
                f"scores {n} images in {seconds:.2f} s."
            )
        else:
            lines.append(f"- {name}: not faster for any of these sizes.")
    return lines


def page(record, command):
    seconds, small = record["seconds"], record["small"]
    ratios = {
        name: [a / b for a, b in zip(seconds[ONE], values)] for name, values in seconds.items()
    }
    bound = statistics.median(a / b for a, b in record["independent"])
    speed = [
        [name, f"{statistics.median(seconds[name]):.2f}",
         f"{statistics.median(r):.2f} ({min(r):.2f}, {max(r):.2f})",
         f"{record['difference'][name]:.1g}"]
        for name, r in ratios.items()
    ]  # fmt: skip
    costs = [
        [name, f"{1e3 * cost['task']:.1f}", f"{1e3 * cost['call']:.0f}"]
        for name, cost in record["overhead"].items()
    ]
    sizes = [[n, *(f"{statistics.median(s[name]):.3f}" for name in s)] for n, s in small.items()]
    sent = [[what, f"{n:,}"] for what, n in record["bytes"].items() if what != "tasks"]
    return common.page(
        "Scoring by two processes",
        f"Measured with `{command}` on {record['machine']} for each process, two processors. The "
        f"load average of the machine before the run was {record['load']:.1f}. The job is to score "
        f"{record['images']} images of 16 tokens in 20 orders for 10 classes. The prior has the "
        "default size for digits. The variants run alternately, and the times are medians. "
        "*Largest difference* is the largest difference from the results of one process.",
        common.table(
            ["", "seconds", "speed-up, median (lowest, highest)", "largest difference"], speed
        ),
        f"Two independent processes that score half of the images each are {bound:.2f} times as "
        "fast as one process that scores all images. A higher speed-up was not possible on this "
        "machine, because other programs also used it.",
        common.table(["", "ms per empty task", "ms per call with two empty tasks"], costs),
        f"The first call took {record['start']:.1f} s, because it included the start of the loky "
        "processes.",
        "The next table contains the seconds that small jobs take if the worker processes are "
        "already running:",
        common.table(["images", *seconds], sizes),
        break_even(record),
        "The next table contains the bytes that the client and a worker send to each other:",
        common.table(["", "bytes"], sent),
        f"The classifier divides the job into {record['bytes']['tasks']} tasks.",
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--score", type=int, help="time one process for so many images")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.score:
        clf, X = make_job(args.score)
        one_process(clf, X[:64])
        print(common.timed(one_process, clf, X)[0])
        return
    record = common.write_json(args.output / "parallel_scoring.json", measure(args))
    command = " ".join(["python -m benchmarks.scale.parallel_scoring", *(argv or sys.argv[1:])])
    common.write_page(args.output / "parallel_scoring.md", page(record, command))


if __name__ == "__main__":
    main()

"""Scoring shared out by joblib: what two processes gain, what a task costs, from when it pays.

    OMP_NUM_THREADS=1 python benchmarks/scaleout.py

Each number is taken from runs in turn, one thread for each process. Beside the gain stands what
the machine itself allows: two processes that know nothing of each other, each with half the work.
Writes ``results/scaleout.json`` and ``results/scaleout.md`` beside this script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import joblib
import numpy as np
import torch
from digits import HERE, machine
from joblib.parallel import get_active_backend
from sklearn.datasets import load_digits

from skaocls import AnyOrderARClassifier
from skaocls.fitted.parallel import map_pieces, pack_model, split_work
from skaocls.fitted.prediction import images_per_batch

SIZES = (4, 16, 64, 256, 1024)  # images of jobs that may be too small to be shared


def made_up(n_images):
    """A classifier of the default size for digits, hardly trained, and images."""
    data = load_digits()
    clf = AnyOrderARClassifier(max_iter=1, augmentation=None, random_state=0, tol=10.0)
    clf.fit(data.images, data.target)
    return clf, np.resize(data.images, (n_images, 8, 8))


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def alone(clf, X):
    return clf.set_params(n_jobs=None).predict_joint_log_proba(X)


def by_loky(clf, X):
    with joblib.parallel_config("loky", n_jobs=2):
        return clf.set_params(n_jobs=2).predict_joint_log_proba(X)


def by_dask(clf, X):
    with joblib.parallel_config("dask"):
        return clf.set_params(n_jobs=None).predict_joint_log_proba(X)


def nothing(model):
    """A task that is all overhead."""


def no_arguments(piece):
    return ()


def overhead(clf, n_tasks):
    """Seconds for each of so many empty tasks, and for none."""
    took, _ = timed(list, map_pieces(nothing, clf.model_, range(n_tasks), no_arguments, 2))
    few, _ = timed(list, map_pieces(nothing, clf.model_, range(2), no_arguments, 2))
    return (took - few) / (n_tasks - 2), few


def strangers(n_images):
    """Seconds of one process for the work, and of two at once for half of it each."""

    def run(*amounts):
        command = [sys.executable, __file__, "--score"]
        started = [
            subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in amounts
        ]
        return max(float(p.communicate()[0]) for p in started)

    return run(n_images), run(n_images // 2, n_images // 2)


def compare(clf, X, ways, repeats):
    """Seconds of each way, in turn, and how far its answers are from those of one process."""
    seconds, apart = {name: [] for name in ways}, dict.fromkeys(ways, 0.0)
    exact = alone(clf, X)
    for _ in range(repeats):
        for name, way in ways.items():
            took, found = timed(way, clf, X)
            seconds[name].append(took)
            apart[name] = max(apart[name], float(np.abs(found - exact).max()))
    return seconds, apart


def sizes_sent(clf, X):
    """Bytes of the weights, of the rest of the model, of a piece and of its answer."""
    model = clf.model_
    pieces = split_work(len(X), len(clf.orders_), 2, batch_size=images_per_batch(model))
    first = pieces[0].images
    _, pickled, buffers = pack_model(model, get_active_backend()[0])
    return {
        "weights": sum(buffer.nbytes for buffer in buffers),
        "the rest of the model, with each task": len(pickled),
        "images of a task": X[first].nbytes,
        "orders of a task": clf.orders_.nbytes,
        "answer of a task": 8 * first.stop * len(clf.orders_) * len(clf.classes_),
        "tasks": len(pieces),
    }


def measure(args):
    from dask.distributed import Client, LocalCluster

    clf, X = made_up(args.images)
    found = {"machine": machine(), "images": args.images, "load": os.getloadavg()[0]}
    found["sent"] = sizes_sent(clf, X)
    found["starting"] = timed(by_loky, clf, X[:64])[0]
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster):
        by_dask(clf, X[:64])
        ways = {"one process": alone, "loky, 2 processes": by_loky, "Dask, 2 workers": by_dask}
        found["seconds"], found["apart"] = compare(clf, X, ways, args.repeats)
        found["small"] = {}
        for n in (n for n in SIZES if n <= args.images):
            found["small"][n], _ = compare(clf, X[:n], ways, 2 * args.repeats + 1)
        found["overhead"] = {}
        for name, engine in (("loky, 2 processes", "loky"), ("Dask, 2 workers", "dask")):
            with joblib.parallel_config(engine):
                runs = [overhead(clf, args.tasks) for _ in range(args.repeats)]
            each, call = (statistics.median(a) for a in zip(*runs))
            found["overhead"][name] = {"task": each, "call": call}
    found["strangers"] = [strangers(args.images) for _ in range(args.repeats)]
    return found


def ratios(found, name):
    """Times faster than one process, run by run."""
    return [a / b for a, b in zip(found["seconds"]["one process"], found["seconds"][name])]


def page(found, command):
    ways = list(found["seconds"])
    free = statistics.median(a / b for a, b in found["strangers"])
    lines = [
        "# Scoring by two processes",
        "",
        f"`{command}`; {found['machine']} for each process, two processors; load of the machine "
        f"before: {found['load']:.1f}. {found['images']} images of 16 tokens, 20 orders, 10 "
        "classes, a prior of the default size for digits. Medians of runs in turn.",
        "",
        "| | seconds | times one process, median (least, most) | answers differ by |",
        "|---|---|---|---|",
    ]
    for name in ways:
        r = ratios(found, name)
        lines.append(
            f"| {name} | {statistics.median(found['seconds'][name]):.2f} | "
            f"{statistics.median(r):.2f} ({min(r):.2f}, {max(r):.2f}) | "
            f"{found['apart'][name]:.1g} |"
        )
    lines += [
        "",
        f"Two processes that know nothing of each other, with half of the images each: {free:.2f} "
        "times. More than that this machine, with what else ran on it, does not give.",
        "",
        "| | milliseconds of a task without work | of a call with two of them |",
        "|---|---|---|",
    ]
    for name, cost in found["overhead"].items():
        lines.append(f"| {name} | {1e3 * cost['task']:.1f} | {1e3 * cost['call']:.0f} |")
    lines += [
        "",
        f"The first call, which starts loky's processes, took {found['starting']:.1f} s.",
        "",
        "Seconds of small jobs, processes already running:",
        "",
        f"| images | {' | '.join(ways)} |",
        f"|---|{'---|' * len(ways)}",
    ]
    for n, seconds in found["small"].items():
        row = [f"{statistics.median(seconds[name]):.3f}" for name in ways]
        lines.append(f"| {n} | {' | '.join(row)} |")
    lines += ["", *pays(found), "", "Bytes:", "", "| what | bytes |", "|---|---|"]
    lines += [f"| {what} | {n:,} |" for what, n in found["sent"].items() if what != "tasks"]
    lines += ["", f"There are {found['sent']['tasks']} tasks."]
    return "\n".join(lines) + "\n"


def pays(found):
    """From which size on sharing is faster."""
    for name in list(found["seconds"])[1:]:
        faster = [
            (n, statistics.median(s["one process"]))
            for n, s in found["small"].items()
            if statistics.median(s[name]) < statistics.median(s["one process"])
        ]
        if faster:
            n, seconds = faster[0]
            yield f"- {name}: pays from {n} images, which take one process {seconds:.2f} s."
        else:
            yield f"- {name}: did not pay with any of these."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--score", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.score:
        clf, X = made_up(args.score)
        alone(clf, X[:64])
        print(timed(alone, clf, X)[0])
        return
    found = json.loads(json.dumps(measure(args)))
    results = HERE / "results"
    (results / "scaleout.json").write_text(json.dumps(found, indent=1) + "\n")
    command = " ".join(["python benchmarks/scaleout.py", *sys.argv[1:]])
    (results / "scaleout.md").write_text(page(found, command))
    print(page(found, command))


if __name__ == "__main__":
    main()

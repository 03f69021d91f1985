"""How long people wait for a default fit, and for an answer.

    pip install --no-deps animal-mnist==0.4
    python benchmarks/waiting.py

Seconds of `fit` with default parameters, as a clock shows them, with as many threads as torch takes
by itself, and milliseconds of `predict` for one image of some hundred. Nothing else should run.
Machines of one name differ from hour to hour, so each run is added to ``results/waiting.json``; the
pages ``results/waiting.md`` and, of CUDA devices, ``results/waiting-cuda.md`` have them all.
"""

import argparse
import json
import sys
import time
import warnings
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from digits import HERE, processor
from sklearn.exceptions import ConvergenceWarning

sys.path.append(str(Path(__file__).parent / "tasks"))

from sources import animals, task

from skaocls import AnyOrderARClassifier

N_TEST = 450
RECORDS = HERE / "results" / "waiting.json"


def measured(X, y, X_test, device):
    clf = AnyOrderARClassifier(random_state=0, device=device)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clf.fit(X, y)
    fitting = time.perf_counter() - start
    start = time.perf_counter()
    raced = clf.predict(X_test)
    racing = time.perf_counter() - start
    start = time.perf_counter()
    same = (clf.set_params(search="exhaustive").predict(X_test) == raced).mean()
    exhaustive = time.perf_counter() - start
    return clf, fitting, racing, exhaustive, same


def page(device, runs):
    """All runs on that kind of device, one after another."""
    call = "python benchmarks/waiting.py" + " --device cuda" * (device == "cuda")
    lines = [
        "# Waiting for a default fit",
        "",
        f"`{call}`. Milliseconds are of one image of {N_TEST}, with orders that stop "
        '(`search="auto"`, the default) and with all 20; the last column says for how many images '
        "both find the same class.",
    ]
    for run in runs:
        lines += [
            "",
            f"Run {run['run']}: {run['where']}, torch {run['torch']}.",
            "",
            "| data | images | tokens | epochs | fit, s | predict, ms | all orders, ms | same |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *run["rows"],
        ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=10_000 - N_TEST, help="of animals, at most")
    args = parser.parse_args()
    device = torch.device(args.device)
    where = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    X, y, X_test, _ = task("digits", 0)
    of_animals, labels = animals()
    shuffled = np.random.RandomState(0).permutation(len(labels))
    of_animals, labels = of_animals[shuffled], labels[shuffled]
    jobs = [("digits, 8 x 8", X[:1000], y[:1000], X_test)]
    for n in sorted({min(1000, args.images), args.images}):
        jobs.append(("animals, 28 x 28", of_animals[:n], labels[:n], of_animals[-N_TEST:]))
    rows = []
    for name, X, y, X_test in jobs:
        clf, fitting, racing, exhaustive, same = measured(X, y, X_test, device)
        ms, all_ms = (1e3 * t / len(X_test) for t in (racing, exhaustive))
        rows.append(
            f"| {name} | {len(X)} | {clf.prior_.n_tokens} | {clf.n_iter_} | {fitting:.0f} | "
            f"{ms:.1f} | {all_ms:.1f} | {same:.1%} |"
        )
        print(rows[-1], flush=True)
    kept = json.loads(RECORDS.read_text(encoding="utf-8"))
    kept.setdefault(device.type, []).append(
        {
            "run": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
            "where": f"{where}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "rows": rows,
        }
    )
    RECORDS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for kind, runs in kept.items():
        name = "waiting.md" if kind == "cpu" else f"waiting-{kind}.md"
        (HERE / "results" / name).write_text(page(kind, runs), encoding="utf-8")


if __name__ == "__main__":
    main()

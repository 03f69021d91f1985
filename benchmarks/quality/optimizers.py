"""What Muon is worth: new priors trained by it and by AdamW, in as many epochs.

    python benchmarks/optimizers.py [--only glyphs] [--seeds 1]

Each classifier has default parameters, but trains by likelihood alone and reads the image itself in
all orders. It is fitted on 80 % of a task's training images, one thread a fit; the other 20 % judge
it, no test image is looked at. The tasks are those of ``benchmarks/tasks``. Results that are in
``results/optimizers.json`` are kept; the table is ``results/optimizers.md``.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

sys.path.append(str(Path(__file__).parent / "tasks"))
sys.path.append(str(Path(__file__).parent / "claims"))

from digits import PLAIN, processor
from sources import task

from skaocls import AnyOrderARClassifier
from skaocls.fitted import learning
from skaocls.training.loop import train_prior

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TASKS = ["digits", "glyphs", "textures", "animals"]


def run(name, seed, muon, fonts):
    """Accuracy and nats on held-out training images, and CPU seconds of the fit."""
    X, y = task(name, seed, fonts)[:2]
    parts = train_test_split(X, y, test_size=0.2, stratify=y, random_state=seed)
    train, rest, y_train, y_rest = parts
    learning.train_prior = lambda *args, **how: train_prior(*args, **{**how, "muon": muon})
    start = time.process_time()
    clf = AnyOrderARClassifier(random_state=seed, device="cpu", **PLAIN).fit(train, y_train)
    seconds = time.process_time() - start
    proba = clf.predict_proba(rest)
    return {
        "task": name,
        "seed": seed,
        "optimizer": "Muon" if muon else "AdamW",
        "machine": processor(),
        "epochs": clf.n_iter_,
        "accuracy": float(np.mean(clf.classes_[proba.argmax(1)] == y_rest)),
        "nats": float(log_loss(y_rest, np.clip(proba, 1e-12, 1), labels=clf.classes_)),
        "fit_s": seconds,
    }


def page(rows):
    machines = ", ".join(sorted({row["machine"] for row in rows}))
    lines = [
        "# Muon and AdamW",
        "",
        f"`python benchmarks/optimizers.py`; {machines}, one thread. New priors by "
        "likelihood alone, each order of the image itself, fitted on 80 % of the training images "
        "and judged on the rest, in as many epochs.",
        "",
        "| task | seed | epochs | optimizer | accuracy | nats an image | fit, CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['task']} | {r['seed']} | {r['epochs']} | {r['optimizer']} | "
            f"{r['accuracy']:.4f} | {r['nats']:.3f} | {r['fit_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fonts", help="folder of fonts, if not those of claims/fonts.txt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    path = RESULTS / "optimizers.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for name in args.only:
        for seed in range(args.seeds):
            for muon in (False, True):
                job = name, seed, "Muon" if muon else "AdamW"
                if job in [(r["task"], r["seed"], r["optimizer"]) for r in rows]:
                    continue
                rows.append(run(name, seed, muon, args.fonts))
                print(rows[-1], flush=True)
                rows.sort(key=lambda r: (TASKS.index(r["task"]), r["seed"], r["optimizer"]))
                path.write_text(json.dumps(rows, indent=1) + "\n")
                (RESULTS / "optimizers.md").write_text(page(rows))


if __name__ == "__main__":
    main()

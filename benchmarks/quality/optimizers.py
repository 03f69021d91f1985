"""Muon against AdamW for new priors, with equal numbers of epochs.

    python -m benchmarks.quality.optimizers [--only glyphs] [--seeds 1]

Each classifier has default parameters, except that it trains by likelihood alone and uses the
original image for all orders. It is fitted on 80 % of a task's training images, with one thread,
and evaluated on the other 20 %. No test image is used. The tasks are those of
``benchmarks/quality/tasks``. Writes ``optimizers.json`` after each job, and ``optimizers.md``.
"""

import json
import warnings
from functools import partial

import torch
from sklearn.exceptions import ConvergenceWarning

from .. import common
from .tasks.sources import fit_held_out

TASKS = ["digits", "glyphs", "textures", "animals"]


def run(job, fonts=None):
    name, seed, optimizer = job
    with common.optimizer(muon=optimizer == "Muon"):
        clf, X, y, result = fit_held_out(name, seed, fonts, **common.LIKELIHOOD_ONLY)
    return result | {"epochs": clf.n_iter_} | common.quality(clf, X, y)


def page(record):
    jobs = sorted(map(json.loads, record), key=lambda job: (TASKS.index(job[0]), *job[1:]))
    rows = []
    for name, seed, optimizer in jobs:
        r = record[json.dumps([name, seed, optimizer])]
        measured = f"{r['accuracy']:.4f}", f"{r['nats']:.3f}", f"{r['fit_s']:.0f}"
        rows.append([name, seed, r["epochs"], optimizer, *measured])
    heads = ["task", "seed", "epochs", "optimizer", "accuracy", "nats per image", "fit, CPU s"]
    return common.page(
        "Muon and AdamW",
        "Measured with `python -m benchmarks.quality.optimizers` on "
        f"{common.machines(record.values())}, one thread. New priors are trained by likelihood "
        "alone. All orders use the original image instead of views. The priors are fitted on 80 % "
        "of the training images and evaluated on the other 20 %. Both optimizers train for the "
        "same number of epochs. *Nats per image* is the mean negative log-probability of the true "
        "class.",
        common.table(heads, rows),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fonts", help="folder of fonts, instead of those of claims/fonts.txt")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    jobs = [
        [name, seed, optimizer]
        for name in args.only
        for seed in range(args.seeds)
        for optimizer in ("AdamW", "Muon")
    ]
    path = args.output / "optimizers.json"
    record = common.add_missing(path, jobs, partial(run, fonts=args.fonts))
    common.write_page(args.output / "optimizers.md", page(record))


if __name__ == "__main__":
    main()

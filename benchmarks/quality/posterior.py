"""Effect of a different view for each order, and of the posterior's term in the training loss.

    python -m benchmarks.quality.posterior [--only glyphs] [--seeds 1] [--weights 0 10]

Classifiers with otherwise default parameters are fitted on 80 % of a task's training images (or
rows), with one thread, and evaluated on the other 20 %. No test image is used. Nats per token are
the mean of -log p(token | own class, order) over four orders of the original image. The tasks are
those of ``benchmarks/quality/tasks``. Writes ``posterior.json`` after each job, and
``posterior.md``.
"""

import json
import time
import warnings
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skaocls.fitted.prediction import log_likelihoods

from .. import common
from .tasks.sources import IMAGES, TABLES, fit_held_out

CROPS = {"center": "the original image", "views": "a view each"}


def run(job, fonts=None):
    """Return accuracy, nats and cost for each value of `crop`, on the held-out data."""
    name, seed, weight = job
    clf, X, y, result = fit_held_out(name, seed, fonts, posterior_weight=weight)
    result["token_nats"] = token_nats(clf, X, y)
    for crop in CROPS if name in IMAGES else ["center"]:
        start = time.process_time()
        result[crop] = common.quality(clf.set_params(crop=crop), X, y)
        result[crop]["predict_ms"] = 1000 * (time.process_time() - start) / len(X)
    return result


def token_nats(clf, X, y):
    """Return the mean negative log-likelihood per token under the true class."""
    model = clf.model_
    batch = model.reader.open(X)
    data = batch.values() if model.reader.image_shape is None else batch.images()
    codes = model.tokenizer.transform(data).reshape(len(X), -1)
    ll = log_likelihoods(model, codes, clf.orders_[:4]).mean(1)
    return float(-ll[np.arange(len(X)), model.columns(y, len(y))].mean() / codes.shape[1])


def page(record):
    tasks = [*IMAGES, *TABLES]
    groups = {}
    for job in sorted(map(json.loads, record), key=lambda job: (tasks.index(job[0]), job[2])):
        groups.setdefault((job[0], job[2]), []).append(record[json.dumps(job)])
    rows = []
    for (name, weight), results in groups.items():
        for crop in (crop for crop in CROPS if crop in results[0]):
            read = CROPS[crop] if name in IMAGES else "the row"
            mean = {k: np.mean([r[k] for r in results]) for k in ("token_nats", "fit_s")}
            mean |= {k: np.mean([r[crop][k] for r in results]) for k in results[0][crop]}
            rows.append(
                [name, f"{weight:.3g}", read, f"{mean['accuracy']:.4f}", f"{mean['nats']:.3f}",
                 f"{mean['token_nats']:.3f}", f"{mean['fit_s']:.0f}", f"{mean['predict_ms']:.1f}",
                 len(results)]
            )  # fmt: skip
    heads = ["task", "weight", "orders use", "accuracy", "nats per image", "nats per token"]
    heads += ["fit, CPU s", "predict, CPU ms per image", "seeds"]
    return common.page(
        "Views for each order, and the posterior's loss",
        "Measured with `python -m benchmarks.quality.posterior` on "
        f"{common.machines(record.values())}, one thread. Other programs ran on the machine at the "
        "same time. Classifiers are fitted on 80 % of the training images and evaluated on the "
        "other 20 %. *Weight* is `posterior_weight`. All other parameters have their default "
        'values. Orders use the original image (`crop="center"`) or a different view for each '
        'order (`crop="views"`). *Nats per image* is the mean negative log-probability of the '
        "true class. *Nats per token* is the mean negative log-likelihood of a token under the "
        "true class.",
        common.table(heads, rows),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="*", default=["glyphs"], choices=[*IMAGES, *TABLES])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--weights", type=float, nargs="*", default=[0.0, 10.0])
    parser.add_argument("--fonts", help="folder of fonts, instead of those of claims/fonts.txt")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    jobs = [
        [name, seed, weight]
        for name in args.only
        for seed in range(args.seeds)
        for weight in args.weights
    ]
    path = args.output / "posterior.json"
    record = common.add_missing(path, jobs, partial(run, fonts=args.fonts))
    common.write_page(args.output / "posterior.md", page(record))


if __name__ == "__main__":
    main()

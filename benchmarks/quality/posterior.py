"""What decides between classes: views for each order, and the posterior's loss in training.

    python benchmarks/posterior.py [--only glyphs] [--seeds 1] [--weights 0 10]

Classifiers with default parameters but for these are fitted on 80 % of a task's training images (or
rows), one thread a fit; the other 20 % judge them, no test image is looked at. Nats of tokens are
mean -log p(tokens | own class, order) per token over four orders, of the image itself. The tasks
are those of ``benchmarks/tasks``. Results in ``results/posterior.json`` are kept; the table is
``results/posterior.md``.
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

from digits import processor
from sources import IMAGES, TABLES, task

from skaocls import AnyOrderARClassifier
from skaocls.fitted.prediction import log_likelihoods

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CROPS = {"center": "the image", "views": "a view each"}


def run(name, seed, weight, fonts):
    """A row for each way of reading: accuracy and nats on held-out training data, and the cost."""
    X, y = task(name, seed, fonts)[:2]
    parts = train_test_split(X, y, test_size=0.2, stratify=y, random_state=seed)
    train, rest, y_train, y_rest = parts
    clf = AnyOrderARClassifier(posterior_weight=weight, random_state=seed, device="cpu")
    start = time.process_time()
    clf.fit(train, y_train)
    about = {
        "task": name,
        "seed": seed,
        "weight": weight,
        "machine": processor(),
        "fit_s": time.process_time() - start,
        "token_nats": token_nats(clf, rest, y_rest),
    }
    for crop in CROPS if name in IMAGES else ["center"]:
        start = time.process_time()
        proba = clf.set_params(crop=crop).predict_proba(rest)
        yield about | {
            "crop": crop,
            "accuracy": float(np.mean(clf.classes_[proba.argmax(1)] == y_rest)),
            "nats": float(log_loss(y_rest, np.clip(proba, 1e-12, 1), labels=clf.classes_)),
            "predict_ms": 1000 * (time.process_time() - start) / len(rest),
        }


def token_nats(clf, X, y):
    """Of the true class, as a generative model is judged."""
    model = clf.model_
    batch = model.reader.open(X)
    data = batch if model.reader.image_shape is None else model.batch.images()
    codes = model.tokenizer.transform(data).reshape(len(X), -1)
    ll = log_likelihoods(model, codes, clf.orders_[:4]).mean(1)
    return float(-ll[np.arange(len(X)), model.columns(y)].mean() / codes.shape[1])


def page(rows):
    machines = ", ".join(sorted({row["machine"] for row in rows}))
    lines = [
        "# Views for each order, and the posterior's loss",
        "",
        f"`python benchmarks/posterior.py`; {machines}, one thread, which other work ran beside. "
        "Default parameters but for these, fitted on 80 % of the training images and judged on the "
        'rest. *Weight* is `posterior_weight`; *orders read* the image itself (`crop="center"`) '
        'or a view of their own (`crop="views"`).',
        "",
        "| task | weight | orders read | accuracy | nats an image | nats a token | fit, CPU s "
        "| predict, CPU ms an image | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found = {}
    for r in rows:
        found.setdefault((r["task"], r["weight"], r["crop"]), []).append(r)
    for (name, weight, crop), some in found.items():
        names = ("accuracy", "nats", "token_nats", "fit_s", "predict_ms")
        mean = {k: np.mean([r[k] for r in some]) for k in names}
        what = CROPS[crop] if name in IMAGES else "the row"
        lines.append(
            f"| {name} | {weight:.3g} | {what} | {mean['accuracy']:.4f} | {mean['nats']:.3f} | "
            f"{mean['token_nats']:.3f} | {mean['fit_s']:.0f} | {mean['predict_ms']:.1f} | "
            f"{len(some)} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["glyphs"], choices=[*IMAGES, *TABLES])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--weights", type=float, nargs="*", default=[0.0, 10.0])
    parser.add_argument("--fonts", help="folder of fonts, if not those of claims/fonts.txt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    path = RESULTS / "posterior.json"
    for name in args.only:
        for seed in range(args.seeds):
            for weight in args.weights:
                rows = json.loads(path.read_text()) if path.exists() else []
                if (name, seed, weight) in [(r["task"], r["seed"], r["weight"]) for r in rows]:
                    continue
                found = list(run(name, seed, weight, args.fonts))
                print(*found, sep="\n", flush=True)
                rows = (json.loads(path.read_text()) if path.exists() else []) + found
                order = [*IMAGES, *TABLES]
                rows.sort(key=lambda r: (order.index(r["task"]), r["weight"], r["crop"], r["seed"]))
                path.write_text(json.dumps(rows, indent=1) + "\n")
                (RESULTS / "posterior.md").write_text(page(rows))


if __name__ == "__main__":
    main()

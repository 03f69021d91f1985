"""Incremental learning: copies of the prior against class vectors on its frozen trunk.

    python -m benchmarks.quality.incremental

`partial_fit` learns scikit-learn's digits two classes at a time, and synthetic characters ten at a
time. *Copies*: each step trains a copy of the first prior for the new classes. *Vectors*: each step
trains two vectors for each new class; trunk and head stay as they are after the first step. Writes
``incremental.json`` and ``incremental.md``.
"""

import json
import warnings

from sklearn.exceptions import ConvergenceWarning

from skaocls import AnyOrderARClassifier, FineTuning

from .. import common
from ..characters import TEST_SEED, TOKENIZER, TRAIN_SEED, characters

METHODS = {
    f"{common.PUBLISHED}, copies": ("randar", "full"),
    f"{common.SHARED}, copies": ("shared_trunk", "full"),
    f"{common.SHARED}, vectors": ("shared_trunk", "head"),
}


def load_tasks(args):
    """Yield name, training data, test data, classes per step, and settings."""
    X, X_test, y, y_test = common.digits()
    if args.epochs:
        yield "digits", (X, y), (X_test, y_test), 2, {"max_iter": args.epochs}
    if args.character_epochs:
        settings = {"max_iter": args.character_epochs, "augmentation": None}
        settings |= {"tokenizer": TOKENIZER(), "prior": common.SMALL_PRIOR}
        train = characters(args.classes, args.per_class, TRAIN_SEED)
        test = characters(args.classes, args.test_per_class, TEST_SEED)
        yield "characters", train, test, max(1, args.classes // 30), settings


def run(task, train, test, step, settings, method):
    """Learn all classes step by step, and test on all of them at the end."""
    architecture, mode = METHODS[method]
    prior = {"architecture": architecture} | settings.get("prior", {})
    clf = AnyOrderARClassifier(
        **settings | {"prior": prior if len(prior) > 1 else architecture},
        finetune=FineTuning(mode, dropout=0.0),
        **common.LIKELIHOOD_ONLY,
        n_orders=8,
        random_state=0,
    )
    (X, y), (X_test, y_test) = train, test
    starts, seconds = range(0, y.max() + 1, step), 0.0
    for first in starts:
        new = (y >= first) & (y < first + step)
        seconds += common.timed(clf.partial_fit, X[new], y[new])[0]
    right = clf.predict(X_test) == y_test
    return {
        "task": task,
        "method": method,
        "steps": len(starts),
        "accuracy": float(right.mean()),
        "first": float(right[y_test < step].mean()),
        "later": float(right[y_test >= step].mean()),
        "parameters": sum(p.numel() for prior in clf.model_.priors for p in prior.parameters()),
        "passes": clf.model_.readings,
        "seconds": seconds,
    }


def page(record):
    settings = record["settings"]
    heads = ["data", "method", "accuracy", "on the first step's classes", "on later classes"]
    heads += ["parameters", "transformer passes", "training, s"]
    rows = [
        [r["task"], r["method"], f"{r['accuracy']:.3f}", f"{r['first']:.3f}", f"{r['later']:.3f}",
         f"{r['parameters']:,}", r["passes"], f"{r['seconds']:.0f}"]
        for r in record["rows"]
    ]  # fmt: skip
    return common.page(
        "Incremental learning",
        f"Measured with `python -m benchmarks.quality.incremental` on {record['machine']}. With "
        f"the digits, each step adds two classes and trains for {settings['epochs']} epochs. With "
        f"the {settings['classes']} synthetic characters, each step adds "
        f"{max(1, settings['classes'] // 30)} classes and trains for "
        f"{settings['character_epochs']} epochs. Each character has {settings['per_class']} "
        "training images. Priors use 8 orders and no dropout. *Transformer passes* are the "
        "forward passes needed to score one image in one order.",
        common.table(heads, rows),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=50, help="epochs for digits; 0 skips them")
    parser.add_argument("--classes", type=int, default=300, help="characters")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--test-per-class", type=int, default=2)
    parser.add_argument("--character-epochs", type=int, default=15, help="0 skips characters")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for task in load_tasks(args):
        for method in METHODS:
            rows.append(run(*task, method))
            print(json.dumps(rows[-1]), flush=True)
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    record = {"machine": common.machine(), "settings": settings, "rows": rows}
    common.write_json(args.output / "incremental.json", record)
    common.write_page(args.output / "incremental.md", page(record))


if __name__ == "__main__":
    main()

"""The default training of images, other choices, and another checkout, on held-out animals.

    pip install --no-deps animal-mnist==0.4
    git worktree add /tmp/before REVISION
    python -m benchmarks.quality.recipe --before /tmp/before

Each variant trains on 2000 of the training images of the task *animals*, and predicts 1800 others.
No test image is used. Each variant runs in a process of its own with one thread. Writes
``recipe.json`` after each variant, and ``recipe.md``.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
N_TRAIN, N_TEST, N_ORDERS = 2000, 1800, 20
BEFORE = "before"
# For each variant: the module, the constant and its value, or the classifier's parameters
VARIANTS = {
    BEFORE: {},
    "now": {},
    "a third of the learning rate": {"constants": ["training.defaults", "MUON_RATE", 1.0]},
    "AdamW": {"constants": ["training.defaults", "MUON_MAX_EPOCHS", 0]},
    "class dropout 0.1": {"constants": ["training.loop", "SHARED_TRUNK_CLASS_DROPOUT", 0.1]},
    "64 views of each image": {"params": {"augmentation": 64}},
    "three layers": {
        "params": {"prior": {"dim": 64, "n_layer": 3, "n_head": 4, "multiple_of": 64}}
    },
    "batches of 40 images": {"params": {"batch_size": 40}},
}


def measure(images, settings, epochs=None):
    """Train and evaluate the package that this process imports, and return the results."""
    import importlib

    import numpy as np
    import torch

    from skaocls import AnyOrderARClassifier

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if "constants" in settings:
        module, name, value = settings["constants"]
        module = importlib.import_module(f"skaocls.{module}")
        assert hasattr(module, name)
        setattr(module, name, value)
    params = settings.get("params", {}) | ({"max_iter": epochs} if epochs else {})
    data = np.load(images)
    clf = AnyOrderARClassifier(device="cpu", random_state=0, n_orders=N_ORDERS, **params)
    start = time.process_time()
    clf.fit(data["X"], data["y"])
    seconds = time.process_time() - start
    clf.set_params(search="exhaustive")
    ll = np.concatenate(list(clf._log_likelihoods(data["X_test"]))) + clf.class_log_prior_
    labels = data["y_test"]
    log_proba = torch.from_numpy(ll.mean(1, dtype=float)).log_softmax(1).numpy()
    return {
        "fit_s": seconds,
        "epochs": clf.n_iter_,
        "codes": clf.tokenizer_.n_codes_,
        "accuracy": float(np.mean(log_proba.argmax(1) == labels)),
        "one order": float(np.mean(ll.argmax(2) == labels[:, None])),
        "nats": float(-log_proba[np.arange(len(labels)), labels].mean()),
    }


def run(variant, before, images, epochs):
    """Measure a variant in a process that imports this checkout, or the one before."""
    from .. import common

    root = before if variant == BEFORE else ROOT
    command = [sys.executable, __file__, str(images), json.dumps(VARIANTS[variant]), str(epochs)]
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout) | {"machine": common.processor()}


def save_images(path, n_train, n_test):
    """Write the images of all variants to a file."""
    import numpy as np

    from .tasks.sources import load_task

    X, y, *_ = load_task("animals", 0)
    test = slice(N_TRAIN, N_TRAIN + n_test)
    np.savez(path, X=X[:n_train], y=y[:n_train], X_test=X[test], y_test=y[test])


def page(record, revision):
    from .. import common

    rows = [
        [
            json.loads(variant),
            f"{100 * found['accuracy']:.1f}",
            f"{100 * found['one order']:.1f}",
            f"{found['nats']:.3f}",
            found["epochs"],
            found["codes"],
            f"{found['fit_s']:.0f}",
        ]
        for variant, found in record.items()
    ]
    heads = ["variant", "accuracy, %", "one order, %", "nats", "epochs", "codes", "fit, CPU s"]
    return common.page(
        "Training of images",
        "Measured with `python -m benchmarks.quality.recipe` on "
        f"{common.machines(record.values())}, one thread. Each variant trains on {N_TRAIN} "
        f"animals and predicts {N_TEST} others, which are held out from the training images. "
        f"*Accuracy* and *nats* average {N_ORDERS} orders, *one order* is the mean accuracy of "
        "single orders. *Nats* is the mean negative log-probability of the true class. *Before* "
        f"is revision {revision}. The standard error of the accuracy is 0.55 points.",
        common.table(heads, rows),
    )


def main(argv=None):
    import tempfile

    from .. import common

    parser = common.parser(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--short", action="store_true", help="few images and one epoch")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        save_images(images, *((60, 20) if args.short else (N_TRAIN, N_TEST)))
        job = partial(run, before=args.before, images=images, epochs=int(args.short))
        record = common.add_missing(args.output / "recipe.json", args.only, job)
    common.write_page(args.output / "recipe.md", page(record, common.revision(args.before)))


if __name__ == "__main__":
    if sys.argv[1:] and Path(sys.argv[1]).suffix == ".npz":  # another skaocls can be imported
        print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()

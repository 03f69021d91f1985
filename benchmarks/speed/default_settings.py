"""Training and prediction time with default parameters.

    pip install --no-deps animal-mnist==0.4
    python -m benchmarks.speed.default_settings

Measures the seconds of `fit` with as many threads as torch chooses, and the milliseconds per image
of `predict` on several hundred images. Nothing else should run on the machine. Because the speed of
a machine varies, each run is added to ``default_settings.json``. ``default_settings.md`` and, for
CUDA devices, ``default_settings-cuda.md`` show all runs.
"""

import warnings
from datetime import datetime, timezone

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skaocls import AnyOrderARClassifier

from .. import common
from ..quality.tasks.sources import animals, load_task

N_TEST = 450


def measure(X, y, X_test, device):
    """Return the fitted classifier, seconds of fit and of both searches, and their agreement."""
    clf = AnyOrderARClassifier(random_state=0, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit, _ = common.timed(clf.fit, X, y)
    stopped, predicted = common.timed(clf.predict, X_test)
    exhaustive, exact = common.timed(clf.set_params(search="exhaustive").predict, X_test)
    return clf, fit, stopped, exhaustive, (exact == predicted).mean()


def page(device, runs):
    """Return the page of all runs on one kind of device."""
    command = "python -m benchmarks.speed.default_settings" + " --device cuda" * (device == "cuda")
    blocks = []
    for run in runs:
        blocks.append(f"Run {run['run']}: {run['machine']}, torch {run['torch']}.")
        heads = ["data", "images", "tokens", "epochs", "fit, s", "predict, ms"]
        heads += ["all orders, ms", "same class"]
        blocks.append(common.table(heads, run["rows"]))
    about = (
        f"Measured with `{command}`. Prediction times are in milliseconds per image, measured on "
        f'{N_TEST} images. *Predict* uses early-stopped scoring (`search="auto"`, the default), '
        "and *all orders* uses exhaustive scoring in 20 orders. The last column is the percentage "
        "of images for which early-stopped and exhaustive scoring predict the same class."
    )
    return common.page("Time with default settings", about, *blocks)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=10_000 - N_TEST, help="animals, at most")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    X, y, X_test, _ = load_task("digits", 0)
    jobs = [("digits, 8 x 8", X[:1000], y[:1000], X_test)]
    X, y = animals()
    shuffled = np.random.RandomState(0).permutation(len(y))
    X, y = X[shuffled], y[shuffled]
    for n in sorted({min(1000, args.images), args.images}):
        jobs.append(("animals, 28 x 28", X[:n], y[:n], X[-N_TEST:]))
    rows = []
    for name, X, y, X_test in jobs:
        clf, fit, stopped, exhaustive, same = measure(X, y, X_test, device)
        ms = (f"{1e3 * seconds / len(X_test):.1f}" for seconds in (stopped, exhaustive))
        rows.append([name, len(X), clf.prior_.n_tokens, clf.n_iter_, f"{fit:.0f}", *ms])
        rows[-1].append(f"{same:.1%}")
        print(rows[-1], flush=True)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    run = {"run": now, "machine": common.machine(device), "torch": torch.__version__, "rows": rows}
    record = common.read_json(args.output / "default_settings.json", {})
    record.setdefault(device.type, []).append(run)
    common.write_json(args.output / "default_settings.json", record)
    for kind, runs in record.items():
        name = "default_settings.md" if kind == "cpu" else f"default_settings-{kind}.md"
        common.write_page(args.output / name, page(kind, runs))


if __name__ == "__main__":
    main()

"""Outlier detection with `score_samples`, compared with an isolation forest.

    python -m benchmarks.quality.outliers

Each kind of outlier changes all test samples of a task. The measure is the area under the ROC
curve (AUC) for separating changed from unchanged test samples. The script skips jobs whose results
are in ``outliers.json``. It also writes ``outliers.md``.
"""

import json

import numpy as np
from scipy.special import logsumexp
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier

from .. import common

N_SHAPES, SIDE = (600, 200), 16  # training and test images of coloured shapes; pixels
COLOURS = np.array([[200, 40, 40], [40, 60, 200], [40, 170, 60], [210, 180, 40]])
TABLES = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
IMAGES = ("digits", "coloured shapes")
SCORES = ("score_samples", "tokens alone", "IsolationForest")


def shapes(n, rng):
    """Draw discs and squares in four colours on a light background, as 8-bit images."""
    y = rng.randint(len(COLOURS), size=n)
    centre, radius = rng.uniform(6, 10, size=(n, 1, 1, 2)), rng.uniform(3, 5.5, size=(n, 1, 1))
    offset = np.stack(np.mgrid[:SIDE, :SIDE], axis=-1) - centre
    discs = (offset**2).sum(-1) < radius**2
    squares = abs(offset).max(-1) < 0.85 * radius
    front = COLOURS[y] + rng.normal(0, 12, size=(n, 3))
    back = np.array([230, 230, 220]) + rng.normal(0, 8, size=(n, 3))
    is_front = np.where(y[:, None, None] % 2, squares, discs)[..., None]
    images = np.where(is_front, front[:, None, None], back[:, None, None])
    return (images + rng.normal(0, 4, size=images.shape)).clip(0, 255).astype(np.uint8), y


def load(task, seed):
    """Return training and test data and labels."""
    if task in TABLES:
        X, y = TABLES[task](return_X_y=True)
        return train_test_split(X, y, test_size=0.25, stratify=y, random_state=seed)
    if task == "digits":
        return common.digits(seed)
    rng = np.random.RandomState(seed)
    (X, y), (X_test, y_test) = (shapes(n, rng) for n in N_SHAPES)
    return X, X_test, y, y_test


def outliers(task, X):
    """Return changed copies of the test data, by kind of change."""
    if task in TABLES:
        return {"times 10": 10 * X, "plus a million": X + 1e6, "zero": 0 * X, "negated": -X}
    top = 16 if task == "digits" else 255
    kinds = {
        "inverted": top - X,
        "half contrast": 0.5 * X + top / 4,
        "half brightness": 0.5 * X,
        "30 % brightness": 0.3 * X,
    }
    if X.ndim == 4:
        kinds |= {"tinted red": X * [1, 0.7, 0.7], "tinted blue": X * [0.8, 0.8, 1]}
    return {kind: images.astype(X.dtype) for kind, images in kinds.items()}


def measure(task, seed, params):
    """Return the accuracy, and the AUC of each score for each kind of outlier."""
    X, X_test, y, y_test = load(task, seed)
    clf = AnyOrderARClassifier(random_state=seed, **params).fit(X, y)
    forest = IsolationForest(random_state=seed).fit(X.reshape(len(X), -1))
    kinds = outliers(task, X_test)
    data = np.concatenate([X_test, *kinds.values()])
    scores = {
        SCORES[0]: clf.score_samples(data),
        SCORES[1]: logsumexp(clf.transform(data) + clf.class_log_prior_, axis=1),
        SCORES[2]: forest.score_samples(data.reshape(len(data), -1)),
    }
    truth = np.repeat([1, 0], len(X_test))
    result = {"accuracy": clf.score(X_test, y_test), "machine": common.machine()}
    for name, values in scores.items():
        inliers, *others = values.reshape(-1, len(X_test))
        result[name] = {
            kind: roc_auc_score(truth, np.r_[inliers, other]) for kind, other in zip(kinds, others)
        }
    return result


def page(record):
    """Return the page: means over the seeds, and the smallest AUC of `score_samples`."""
    runs = {}
    for key, result in record.items():
        runs.setdefault(json.loads(key)[0], []).append(result)
    rows = []
    for task, results in runs.items():
        for kind in results[0][SCORES[0]]:
            found = {name: [result[name][kind] for result in results] for name in SCORES}
            means = [f"{np.mean(found[name]):.3f}" for name in SCORES]
            rows.append([task, kind, *means, f"{min(found[SCORES[0]]):.3f}"])
    accuracies = ", ".join(
        f"{task} {np.mean([result['accuracy'] for result in results]):.3f}"
        for task, results in runs.items()
    )
    heads = ["task", "outliers", *(f"`{n}`" if n in SCORES[::2] else n for n in SCORES), "smallest"]
    n_seeds = max(map(len, runs.values()))
    return common.page(
        "Outliers",
        "Measured with `python -m benchmarks.quality.outliers` on "
        f"{common.machines(record.values())}. The table contains the area under the ROC curve for "
        "separating changed from unchanged test samples, as a mean over "
        f"{n_seeds} seed{'s' * (n_seeds > 1)}. *Smallest* is the smallest of these areas for "
        "`score_samples`. *Tokens alone* is log p(tokens): `score_samples` without the log "
        f"density of what the tokens do not contain. The test accuracies are: {accuracies}.",
        common.table(heads, rows),
        "On coloured shapes, the default tokenizer normalizes all channels together, so the tokens "
        "still contain the tint. The tokens alone rate tinted images as more typical than the "
        "original images."
        if "coloured shapes" in runs
        else "",
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--tasks", nargs="*", choices=[*TABLES, *IMAGES], default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--params", type=json.loads, default={}, help="JSON of other parameters")
    args = parser.parse_args(argv)
    tasks = [*TABLES, *IMAGES] if args.tasks is None else args.tasks
    jobs = [[task, seed] for task in tasks for seed in args.seeds]
    record = common.add_missing(
        args.output / "outliers.json", jobs, lambda job: measure(*job, args.params)
    )
    common.write_page(args.output / "outliers.md", page(record))


if __name__ == "__main__":
    main()

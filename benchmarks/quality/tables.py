"""Accuracy on tables: default parameters, other training lengths, and scikit-learn's classifiers.

    python -m benchmarks.quality.tables

Stratified cross-validation on scikit-learn's small tables and on a synthetic one. Times are CPU
seconds of one `fit`. Writes ``tables.md``.
"""

import time

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, load_wine, make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skaocls import AnyOrderARClassifier

from .. import common

SIZES = {"n_samples": 400, "n_features": 20, "n_informative": 10, "n_redundant": 5, "n_classes": 3}
TABLES = {
    "iris": load_iris(return_X_y=True),
    "wine": load_wine(return_X_y=True),
    "breast cancer": load_breast_cancer(return_X_y=True),
    "synthetic": make_classification(**SIZES, random_state=0),
}
ADAMW = "the same with AdamW"
CLASSIFIERS = {
    "`AnyOrderARClassifier()`": AnyOrderARClassifier(random_state=0),
    ADAMW: AnyOrderARClassifier(random_state=0),
    "the same, 10 epochs": AnyOrderARClassifier(random_state=0, max_iter=10),
    "the same, 120 epochs": AnyOrderARClassifier(random_state=0, max_iter=120),
    "`GaussianNB`": GaussianNB(),
    "`LogisticRegression`, scaled": make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000)
    ),
    "`HistGradientBoostingClassifier`": HistGradientBoostingClassifier(random_state=0),
}


def cross_validate(clf, X, y, folds):
    """Return mean accuracy and nats, and the median CPU seconds of `fit`."""
    results = []
    for train, test in folds.split(X, y):
        model, start = clone(clf), time.process_time()
        model.fit(X[train], y[train])
        seconds = time.process_time() - start
        results.append([*common.quality(model, X[test], y[test]).values(), seconds])
    accuracy, nats, seconds = zip(*results)
    return np.mean(accuracy), np.mean(nats), np.median(seconds)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    args = parser.parse_args(argv)
    folds = StratifiedKFold(args.splits, shuffle=True, random_state=0)
    rows = []
    for table in args.tables:
        for name, clf in CLASSIFIERS.items():
            with common.optimizer(muon=False if name == ADAMW else None):
                accuracy, nats, seconds = cross_validate(clf, *TABLES[table], folds)
            rows.append([table, name, f"{accuracy:.3f}", f"{nats:.3f}", f"{seconds:.2g}"])
            print(rows[-1], flush=True)
    text = common.page(
        "Tables",
        f"Measured with `python -m benchmarks.quality.tables` on {common.machine()}. Accuracy and "
        f"nats (mean negative log-probability of the true class) are means over {args.splits} "
        "folds. *Fit* is the median CPU time of one `fit`. The table *synthetic* was made by "
        "`make_classification`, with 400 rows, 20 columns and 3 classes.",
        common.table(["table", "classifier", "accuracy", "nats", "fit, s"], rows),
    )
    common.write_page(args.output / "tables.md", text)


if __name__ == "__main__":
    main()

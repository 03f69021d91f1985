"""Tables: the defaults against classifiers that are made for tables, and against longer training.

    python benchmarks/tables.py

Stratified cross-validation on scikit-learn's small tables; seconds are CPU seconds of one `fit`.
Writes ``results/tables.md``.
"""

import argparse
import time

import numpy as np
from digits import HERE, machine
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skaocls import AnyOrderARClassifier

TABLES = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
CLASSIFIERS = {
    "`AnyOrderARClassifier()`": AnyOrderARClassifier(random_state=0),
    "the same, 120 epochs": AnyOrderARClassifier(random_state=0, max_iter=120),
    "`GaussianNB`": GaussianNB(),
    "`LogisticRegression`, scaled": make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000)
    ),
    "`HistGradientBoostingClassifier`": HistGradientBoostingClassifier(random_state=0),
}


def judge(clf, X, y, folds):
    """Accuracies, and seconds of `fit`."""
    accuracies, seconds = [], []
    for train, test in folds.split(X, y):
        model = clone(clf)
        start = time.process_time()
        model.fit(X[train], y[train])
        seconds.append(time.process_time() - start)
        accuracies.append(model.score(X[test], y[test]))
    return np.mean(accuracies), np.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    args = parser.parse_args()
    folds = StratifiedKFold(args.splits, shuffle=True, random_state=0)
    lines = [
        "# Tables",
        "",
        f"`python benchmarks/tables.py`; {machine()}. Accuracy, mean of {args.splits} folds, "
        "and CPU seconds of one `fit`, median.",
        "",
        "| | " + " | ".join(f"{name} | s" for name in TABLES) + " |",
        "|---|" + "---|---|" * len(TABLES),
    ]
    data = [load(return_X_y=True) for load in TABLES.values()]
    for name, clf in CLASSIFIERS.items():
        cells = []
        for X, y in data:
            accuracy, seconds = judge(clf, X, y, folds)
            cells += [f"{accuracy:.3f}", f"{seconds:.2g}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    (HERE / "results" / "tables.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

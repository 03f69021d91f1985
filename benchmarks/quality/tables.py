"""Tables: the defaults against classifiers made for tables, and against other lengths of training.

    python benchmarks/tables.py

Stratified cross-validation on scikit-learn's small tables and on one that is made up; seconds are
CPU seconds of one `fit`. Writes ``results/tables.md``.
"""

import argparse
import time

import numpy as np
from digits import HERE, machine
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, load_wine, make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skaocls import AnyOrderARClassifier
from skaocls.fitted import learning
from skaocls.training.loop import train_prior

SIZES = {"n_samples": 400, "n_features": 20, "n_informative": 10, "n_redundant": 5, "n_classes": 3}
TABLES = {
    "iris": load_iris(return_X_y=True),
    "wine": load_wine(return_X_y=True),
    "breast cancer": load_breast_cancer(return_X_y=True),
    "made up": make_classification(**SIZES, random_state=0),
}
ADAMW = "the same, by AdamW"
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


def judge(clf, X, y, folds):
    """Mean accuracy and nats (-log of the true class's probability), and seconds of `fit`."""
    accuracies, nats, seconds = [], [], []
    for train, test in folds.split(X, y):
        model = clone(clf)
        start = time.process_time()
        model.fit(X[train], y[train])
        seconds.append(time.process_time() - start)
        accuracies.append(model.score(X[test], y[test]))
        proba = np.clip(model.predict_proba(X[test]), 1e-12, 1)
        nats.append(log_loss(y[test], proba / proba.sum(1, keepdims=True)))
    return np.mean(accuracies), np.mean(nats), np.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    args = parser.parse_args()
    folds = StratifiedKFold(args.splits, shuffle=True, random_state=0)
    lines = [
        "# Tables",
        "",
        f"`python benchmarks/tables.py`; {machine()}. Accuracy and nats an answer, means of "
        f"{args.splits} folds, and CPU seconds of one `fit`, median. *Made up*: "
        "`make_classification`, 400 rows of 20 columns, 3 classes.",
        "",
        "| table | classifier | accuracy | nats | fit, s |",
        "|---|---|---|---|---|",
    ]
    for table, (X, y) in TABLES.items():
        for name, clf in CLASSIFIERS.items():
            muon = {"muon": False} if name == ADAMW else {}
            learning.train_prior = lambda *args, how=muon, **kw: train_prior(*args, **kw | how)
            accuracy, nats, seconds = judge(clf, X, y, folds)
            lines.append(f"| {table} | {name} | {accuracy:.3f} | {nats:.3f} | {seconds:.2g} |")
            print(lines[-1], flush=True)
    (HERE / "results" / "tables.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Accuracy on scikit-learn's digits by number of orders, by allowed error, and of baselines.

    python -m benchmarks.quality.digits

Writes ``digits.json`` and ``digits.md``.
"""

import json

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import skaocls
from skaocls import AnyOrderARClassifier
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba

from .. import common

N_ORDERS = (1, 2, 4, 8, 12, 16, 20)
ERRORS = (1e-4, 1e-3, 1e-2, 0.1)


def measure(seed, params):
    """Return the accuracies and times of one split."""
    X_train, X_test, y_train, y_test = common.digits(seed)
    clf = AnyOrderARClassifier(random_state=seed, **common.LIKELIHOOD_ONLY, **params)
    fit, _ = common.timed(clf.fit, X_train, y_train)
    scoring, ll = common.timed(common.log_likelihoods, clf, X_test)
    result = {"seed": seed, "fit_seconds": fit, "score_seconds": scoring}
    for aggregation in AGGREGATIONS:
        joints = {
            k: joint_log_proba(ll[:, :k], clf.class_log_prior_, aggregation) for k in N_ORDERS
        }
        result[aggregation] = {
            k: float(np.mean(clf.classes_[joint.argmax(1)] == y_test))
            for k, joint in joints.items()
        }
    exhaustive = clf.set_params(search="exhaustive").predict(X_test)
    result["codes"], result["early_stopping"] = clf.tokenizer_.n_codes_, {}
    for error in ERRORS:
        clf.set_params(search=error)
        seconds, (joint, stats) = common.timed(
            clf.predict_joint_log_proba, X_test, return_stats=True
        )
        predicted = clf.classes_[joint.argmax(1)]
        result["early_stopping"][error] = {
            "accuracy": float(np.mean(predicted == y_test)),
            "agreement": float(np.mean(predicted == exhaustive)),
            "orders": float(stats["evaluations"].mean() / clf.prior_.n_tokens),
            "seconds": seconds,
        }
    return result | baselines(seed, X_train, y_train, X_test, y_test)


def baselines(seed, X_train, y_train, X_test, y_test):
    """Return the accuracy of three scikit-learn classifiers."""
    classifiers = (
        SVC(),  # its kernel width adapts to the variance of the pixels
        make_pipeline(StandardScaler(), MLPClassifier(max_iter=1000, random_state=seed)),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000)),
    )
    flat_train, flat_test = X_train.reshape(len(X_train), -1), X_test.reshape(len(X_test), -1)
    names = ("SVC", "MLPClassifier", "LogisticRegression")
    return {
        name: float(clf.fit(flat_train, y_train).score(flat_test, y_test))
        for name, clf in zip(names, classifiers)
    }


def accuracy_table(results):
    """Return a table with one column for each seed, and their mean."""
    values = {
        f"any-order AR, {k} order{'s' * (k > 1)}, {how}": [r[how][str(k)] for r in results]
        for how in AGGREGATIONS
        for k in N_ORDERS
    }
    for name in ("SVC", "MLPClassifier", "LogisticRegression"):
        values[f"`{name}`"] = [r[name] for r in results]
    rows = [[name, *(f"{v:.4f}" for v in [*row, np.mean(row)])] for name, row in values.items()]
    for key, name in (("fit_seconds", "fit, s"), ("score_seconds", "450 images x 20 orders, s")):
        seconds = [r[key] for r in results]
        rows.append([name, *(f"{v:.0f}" for v in [*seconds, np.mean(seconds)])])
    heads = ["test accuracy", *(f"seed {r['seed']}" for r in results), "mean"]
    return common.table(heads, rows)


def early_stopping_table(results):
    rows = []
    for error in results[0]["early_stopping"]:
        runs = [result["early_stopping"][error] for result in results]
        mean = {name: np.mean([run[name] for run in runs]) for name in runs[0]}
        rows.append(
            [f"{float(error):g}", f"{mean['orders']:.2f}", f"{mean['agreement']:.4f}",
             f"{mean['accuracy']:.4f}", f"{mean['seconds']:.2f}"]
        )  # fmt: skip
    heads = ["allowed error", "orders used", "same class as all 20 orders", "accuracy", "seconds"]
    return common.table(heads, rows)


def page(record):
    versions = ", ".join(f"{k} {record[k]}" for k in ("skaocls", "torch", "scikit-learn"))
    return common.page(
        "Digits",
        f"Measured with `python -m benchmarks.quality.digits` on {record['machine']}, {versions}. "
        "The priors were trained by likelihood alone. All orders use the original image instead "
        "of views.",
        accuracy_table(record["rows"]),
        "The next table is about early-stopped scoring. It stops as soon as the predicted class "
        "of an image is decided, up to the allowed error. All numbers are means over the seeds. "
        "*Seconds* is the total time for 450 images." + record.get("note", ""),
        early_stopping_table(record["rows"]),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--params", type=json.loads, default={}, help="JSON of other parameters")
    args = parser.parse_args(argv)
    rows = []
    for seed in args.seeds:
        rows.append(measure(seed, args.params))
        print(rows[-1], flush=True)
    about = {
        "machine": common.machine(),
        "skaocls": skaocls.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "params": args.params,
    }
    record = common.write_json(args.output / "digits.json", about | {"rows": rows})
    common.write_page(args.output / "digits.md", page(record))


if __name__ == "__main__":
    main()

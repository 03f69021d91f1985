"""Digits with default parameters: accuracy against orders, also where they stop, and baselines.

    python benchmarks/digits.py

Writes ``results/digits.json`` and the table ``results/digits.md`` beside this script.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import skaocls
from skaocls import AnyOrderARClassifier
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba

HERE = Path(__file__).parent
# Likelihood alone, and every order of the image itself: what is measured is something else, and was
# measured so
PLAIN = {"crop": "center", "posterior_weight": 0.0}
N_ORDERS = (1, 2, 4, 8, 12, 16, 20)
ERRORS = (1e-4, 1e-3, 1e-2, 0.1)  # that a race may make, by which it stops


def processor():
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        # those of one name can differ in speed, and then in family and model
        first = cpuinfo.read_text().split("\n\n")[0]
        facts = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in first.splitlines())
        }
        name = facts.get("model name", name)
        if "cpu family" in facts:
            name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def machine():
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}"


def run(seed, params):
    """One split: accuracies of ours by aggregation and orders, of baselines, and seconds."""
    X, y = load_digits().images, load_digits().target
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=seed
    )
    clf = AnyOrderARClassifier(random_state=seed, **PLAIN, **params)
    start = time.perf_counter()
    clf.fit(X_train, y_train)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    ll = np.concatenate(list(clf._log_likelihoods(X_test)))
    scoring = time.perf_counter() - start
    row = {"seed": seed, "fit_seconds": seconds, "score_seconds": scoring}
    for how in AGGREGATIONS:
        row[how] = {
            k: float(np.mean(clf.classes_[joint_log_proba(ll[:, :k], clf.class_log_prior_, how)
            .argmax(1)] == y_test))
            for k in N_ORDERS
        }  # fmt: skip
    exhaustive = clf.predict(X_test)
    row["codes"], row["races"] = clf.tokenizer_.n_codes_, {}
    for error in ERRORS:
        clf.set_params(search="racing", racing_error=error)
        start = time.perf_counter()
        joint, stats = clf.predict_joint_log_proba(X_test, return_stats=True)
        seconds = time.perf_counter() - start
        found = clf.classes_[joint.argmax(1)]
        row["races"][error] = {
            "accuracy": float(np.mean(found == y_test)),
            "agreement": float(np.mean(found == exhaustive)),
            "orders": float(stats["evaluations"].mean() / clf.prior_.n_tokens),
            "seconds": seconds,
        }
    flat_train, flat_test = X_train.reshape(len(X_train), -1), X_test.reshape(len(X_test), -1)
    for baseline in (
        SVC(),
        MLPClassifier(max_iter=1000, random_state=seed),
        LogisticRegression(max_iter=10_000),
    ):
        # SVC's kernel width follows the pixels' variance by itself
        model = baseline if type(baseline) is SVC else make_pipeline(StandardScaler(), baseline)
        accuracy = model.fit(flat_train, y_train).score(flat_test, y_test)
        row[type(baseline).__name__] = float(accuracy)
    return row


def table(rows):
    """Markdown: one column for each seed, and their mean."""
    names = [
        f"any-order AR, {k} order{'s' * (k > 1)}, {how}" for how in AGGREGATIONS for k in N_ORDERS
    ]
    values = [[row[how][k] for row in rows] for how in AGGREGATIONS for k in N_ORDERS]
    for name in ("SVC", "MLPClassifier", "LogisticRegression"):
        names.append(f"`{name}`")
        values.append([row[name] for row in rows])
    lines = [
        "| test accuracy | " + " | ".join(f"seed {row['seed']}" for row in rows) + " | mean |",
        "|---" * (len(rows) + 2) + "|",
    ]
    for name, row in zip(names, values, strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{v:.4f}" for v in [*row, np.mean(row)]) + " |")
    for key, name in (("fit_seconds", "fit, s"), ("score_seconds", "450 images x 20 orders, s")):
        row = [r[key] for r in rows]
        lines.append(f"| {name} | " + " | ".join(f"{v:.0f}" for v in [*row, np.mean(row)]) + " |")
    return "\n".join(lines)


def table_of_races(rows):
    """Markdown: what stops at which error."""
    lines = [
        "| allowed error | orders that were read | same answer as all 20 | accuracy | seconds |",
        "|---" * 5 + "|",
    ]
    for error in ERRORS:
        races = [row["races"][error] for row in rows]
        mean = {name: np.mean([race[name] for race in races]) for name in races[0]}
        lines.append(
            f"| {error:g} | {mean['orders']:.2f} | {mean['agreement']:.4f} "
            f"| {mean['accuracy']:.4f} | {mean['seconds']:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--params", type=json.loads, default={}, help="JSON of other parameters")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        rows.append(run(seed, args.params))
        print(json.dumps(rows[-1]), flush=True)
    about = {
        "machine": machine(),
        "skaocls": skaocls.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "params": args.params,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "digits.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    versions = ", ".join(f"{k} {v}" for k, v in about.items() if k != "params")
    text = (
        f"# Digits\n\n`python benchmarks/digits.py`; {versions}. By likelihood alone, and "
        f"with every order of the image itself.\n\n{table(rows)}\n\n"
        'With `search="racing"` an image takes no further orders once its class is decided, up to '
        f"`racing_error`. Means over the seeds, 450 images.\n\n{table_of_races(rows)}\n"
    )
    (args.output / "digits.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""Default parameters on a table of tasks, against classifiers that people would try first.

    pip install --no-deps animal-mnist==0.4
    python benchmarks/tasks                       # hours on two cores; goes on where it stopped
    python benchmarks/tasks --only iris --seeds 1

A job is one classifier on one task with one seed. Its result is a file, so what was interrupted
goes on. Nothing is tuned here: every classifier has its default parameters, or those that the table
names. Writes ``benchmarks/results/tasks.json`` and the page ``docs/tasks.md``.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))  # the other benchmarks
sys.path.append(str(Path(__file__).parents[1] / "claims"))

from digits import processor
from networks import NetworkClassifier
from page import write_page
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sources import IMAGES, TABLES, task

from skaocls import AnyOrderARClassifier
from skaocls.files import write_all
from skaocls.scoring.calibration import expected_calibration_error

HERE = Path(__file__).parent
OURS = "AnyOrderARClassifier()"
TEMPERED = 'AnyOrderARClassifier(temperature="auto")'  # where the default is much too sure
DRAWS = 200  # of labels, for the calibration error that is chance
SMALL = 16  # pixels of a side, up to which the ResNet sees every one of them
FLAT = {
    "SVC()": lambda seed: SVC(),
    "SVC(C=10)": lambda seed: SVC(C=10),
    "MLPClassifier()": lambda seed: MLPClassifier(random_state=seed),
    "RandomForestClassifier()": lambda seed: RandomForestClassifier(random_state=seed),
    "HistGradientBoostingClassifier()": lambda seed: HistGradientBoostingClassifier(
        random_state=seed
    ),
}
OF_TABLES = {
    "GaussianNB()": lambda seed: GaussianNB(),
    "LogisticRegression, scaled": lambda seed: make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000)
    ),
    "HistGradientBoostingClassifier()": FLAT["HistGradientBoostingClassifier()"],
}
CONTESTANTS = dict.fromkeys(IMAGES, (OURS, *FLAT, "ResNet"))
CONTESTANTS["textures"] += (TEMPERED,)
CONTESTANTS |= dict.fromkeys(TABLES, (OURS, *OF_TABLES))


def make(contestant, name, X, seed):
    if contestant in (OURS, TEMPERED):
        clf = AnyOrderARClassifier(random_state=seed, device="cpu")
        return clf.set_params(temperature="auto") if contestant == TEMPERED else clf
    if contestant == "ResNet":
        return NetworkClassifier(patch_size=1 + (X.shape[1] > SMALL), random_state=seed)
    return (FLAT if name in IMAGES else OF_TABLES)[contestant](seed)


def run(name, contestant, seed, fonts, cache):
    """One job: accuracy, nats and calibration on the test data, and CPU seconds of one thread."""
    torch.set_num_threads(1)
    X, y, X_test, y_test = task(name, seed, fonts)
    clf = make(contestant, name, X, seed)
    if contestant in FLAT and name in IMAGES:
        scale = 255 if X.dtype == np.uint8 else 1
        X, X_test = (a.reshape(len(a), -1) / scale for a in (X, X_test))
    elif contestant == "ResNet":
        X, X_test = (
            a.astype(np.float32) / (255 if a.dtype == np.uint8 else 1) for a in (X, X_test)
        )
    row = {"task": name, "contestant": contestant, "seed": seed, "machine": processor()}
    row |= {"n": len(X), "n_test": len(X_test), "n_classes": len(np.unique(y))}
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clf.fit(X, y)
    row["fit_s"] = time.process_time() - start
    start = time.process_time()
    row["accuracy"] = float(np.mean(clf.predict(X_test) == y_test))
    row["ms"] = (time.process_time() - start) / len(X_test) * 1e3
    if hasattr(clf, "predict_proba"):
        proba = clf.predict_proba(X_test)
        labels = np.searchsorted(clf.classes_, y_test)
        proba = np.clip(proba, 1e-12, 1)  # no classifier pays for a rounding to zero for ever
        proba /= proba.sum(1, keepdims=True)
        row["nats"] = float(log_loss(y_test, proba, labels=clf.classes_))
        row["ece"] = expected_calibration_error(proba, labels)
        row["chance_ece"] = chance_ece(proba, seed)
    if contestant == OURS:
        rows, cols = clf.tokenizer_.grid_
        row["chosen"] = {
            "tokens": rows * cols,
            "codes": clf.tokenizer_.n_codes_,
            "epochs": clf.n_iter_,
            "temperature": clf.temperature_,
            "width": clf.prior_.dim,
            "layers": len(clf.prior_.transformer.layers),
        }
    print(f"{name}, {contestant}, {seed}: {row['accuracy']:.4f}, {row['fit_s']:.0f} s", flush=True)
    text = json.dumps(row) + "\n"
    write_all(
        cache, {f"{file_of(name, contestant, seed)}": lambda path: Path(path).write_text(text)}
    )


def chance_ece(proba, seed):
    """Calibration error of probabilities that are true: labels are drawn from them."""
    rng, below = np.random.RandomState(seed), proba.cumsum(1)[:, :-1]
    drawn = ((rng.rand(len(proba), 1) > below).sum(1) for _ in range(DRAWS))
    return float(np.mean([expected_calibration_error(proba, labels) for labels in drawn]))


def file_of(*job):
    return "-".join("".join(c for c in str(word) if c.isalnum()) for word in job) + ".json"


def main():
    parser = argparse.ArgumentParser(prog="tasks", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[*IMAGES, *TABLES], help="tasks")
    parser.add_argument("--jobs", type=int, default=2, help="at a time, a core each")
    parser.add_argument("--fonts", help="folder of fonts, if not those of claims/fonts.txt")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "cache" / "tasks")
    parser.add_argument("--page", action="store_true", help="write only, of what has finished")
    parser.add_argument("--output", type=Path, help="folder of the page; default docs/")
    args = parser.parse_args()
    jobs = [
        (name, contestant, seed)
        for seed in range(args.seeds)
        for name in args.only
        for contestant in CONTESTANTS[name]
    ]
    args.cache.mkdir(parents=True, exist_ok=True)
    left = [job for job in jobs if not (args.cache / file_of(*job)).exists()]
    print(f"{len(jobs)} jobs, {len(left)} of them to do", flush=True)
    if args.page:
        jobs, left = [job for job in jobs if job not in left], []
    joblib.Parallel(args.jobs)(joblib.delayed(run)(*job, args.fonts, args.cache) for job in left)
    rows = [json.loads((args.cache / file_of(*job)).read_text()) for job in jobs]
    results = args.output or HERE.parent / "results"
    results.mkdir(parents=True, exist_ok=True)
    docs = args.output or HERE.parents[1] / "docs"
    text = json.dumps(rows, indent=1) + "\n"
    write_all(results, {"tasks.json": lambda path: Path(path).write_text(text)})
    write_page(rows, docs)


if __name__ == "__main__":
    sys.exit(main())

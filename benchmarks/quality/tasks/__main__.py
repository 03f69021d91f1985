"""Default parameters on a table of tasks, compared with commonly used classifiers.

    pip install --no-deps animal-mnist==0.4
    python -m benchmarks.quality.tasks            # hours on two cores
    python -m benchmarks.quality.tasks --only iris --seeds 1

A job is one classifier on one task with one seed. Each result is a file, so an interrupted run
continues. Nothing is tuned: every classifier has its default parameters, or those that the table
shows. Writes ``tasks.json`` and the page ``docs/tasks.md``.
"""

import json
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skaocls import AnyOrderARClassifier
from skaocls.scoring.calibration import expected_calibration_error

from ... import common
from ...claims.networks import NetworkClassifier
from .page import page
from .sources import IMAGES, TABLES, load_task

OURS = "AnyOrderARClassifier()"
TEMPERED = 'AnyOrderARClassifier(temperature="auto")'  # where the default is overconfident
N_DRAWS = 200  # of labels, for the calibration error that is due to chance
SMALL_SIDE = 16  # pixels up to which the ResNet's first layer has stride 1
FLAT = {
    "SVC()": lambda seed: SVC(),
    "SVC(C=10)": lambda seed: SVC(C=10),
    "MLPClassifier()": lambda seed: MLPClassifier(random_state=seed),
    "RandomForestClassifier()": lambda seed: RandomForestClassifier(random_state=seed),
    "HistGradientBoostingClassifier()": lambda seed: HistGradientBoostingClassifier(
        random_state=seed
    ),
}
TABULAR = {
    "GaussianNB()": lambda seed: GaussianNB(),
    "LogisticRegression, scaled": lambda seed: make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000)
    ),
    "HistGradientBoostingClassifier()": FLAT["HistGradientBoostingClassifier()"],
}
CONTESTANTS = dict.fromkeys(IMAGES, (OURS, *FLAT, "ResNet"))
CONTESTANTS["textures"] += (TEMPERED,)
CONTESTANTS |= dict.fromkeys(TABLES, (OURS, *TABULAR))


def make(contestant, name, X, seed):
    if contestant in (OURS, TEMPERED):
        clf = AnyOrderARClassifier(random_state=seed, device="cpu")
        return clf.set_params(temperature="auto") if contestant == TEMPERED else clf
    if contestant == "ResNet":
        return NetworkClassifier(patch_size=1 + (X.shape[1] > SMALL_SIDE), random_state=seed)
    return (FLAT if name in IMAGES else TABULAR)[contestant](seed)


def scaled(X, contestant, name):
    """Return images in [0, 1] as a classifier needs them; ours takes them as they are."""
    if name not in IMAGES or contestant in (OURS, TEMPERED):
        return X
    scale = 255 if X.dtype == np.uint8 else 1
    if contestant == "ResNet":
        return X.astype(np.float32) / scale
    return X.reshape(len(X), -1) / scale


def run(name, contestant, seed, fonts, cache):
    """Write the result of one job: quality on the test data, and CPU seconds of one thread."""
    torch.set_num_threads(1)
    X, y, X_test, y_test = load_task(name, seed, fonts)
    clf = make(contestant, name, X, seed)
    result = {"task": name, "contestant": contestant, "seed": seed, "machine": common.processor()}
    result |= {"n": len(X), "n_test": len(X_test), "n_classes": len(np.unique(y))}
    X, X_test = (scaled(a, contestant, name) for a in (X, X_test))
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clf.fit(X, y)
    result["fit_s"] = time.process_time() - start
    start = time.process_time()
    result["accuracy"] = float(np.mean(clf.predict(X_test) == y_test))
    result["ms"] = (time.process_time() - start) / len(X_test) * 1e3
    if hasattr(clf, "predict_proba"):
        proba = clf.predict_proba(X_test)
        result["nats"] = common.quality(clf, X_test, y_test)["nats"]
        result["ece"] = expected_calibration_error(proba, np.searchsorted(clf.classes_, y_test))
        result["chance_ece"] = chance_ece(proba, seed)
    if contestant == OURS:
        rows, cols = clf.tokenizer_.grid_
        result["chosen"] = {
            "tokens": rows * cols,
            "codes": clf.tokenizer_.n_codes_,
            "epochs": clf.n_iter_,
            "temperature": clf.temperature_,
            "width": clf.prior_.dim,
            "layers": len(clf.prior_.transformer.layers),
        }
    print(f"{name}, {contestant}, {seed}: {result['accuracy']:.4f}", flush=True)
    common.write_json(cache / file_of(name, contestant, seed), result)


def chance_ece(proba, seed):
    """Return the calibration error of correct probabilities: labels are drawn from them."""
    rng, cumulative = np.random.RandomState(seed), proba.cumsum(1)[:, :-1]
    draws = ((rng.rand(len(proba), 1) > cumulative).sum(1) for _ in range(N_DRAWS))
    return float(np.mean([expected_calibration_error(proba, labels) for labels in draws]))


def file_of(*job):
    return "-".join("".join(c for c in str(word) if c.isalnum()) for word in job) + ".json"


def main(argv=None):
    parser = common.parser(__doc__, prog="tasks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[*IMAGES, *TABLES], help="tasks")
    parser.add_argument("--jobs", type=int, default=2, help="parallel jobs, one core each")
    parser.add_argument("--fonts", help="folder of fonts, instead of those of claims/fonts.txt")
    parser.add_argument("--cache", type=Path, default=common.CACHE / "tasks")
    parser.add_argument("--page", action="store_true", help="only write what is finished")
    parser.add_argument("--docs", type=Path, default=common.DOCS, help="folder of the page")
    args = parser.parse_args(argv)
    jobs = [
        (name, contestant, seed)
        for seed in range(args.seeds)
        for name in args.only
        for contestant in CONTESTANTS[name]
    ]
    missing = [job for job in jobs if not (args.cache / file_of(*job)).exists()]
    print(f"{len(jobs)} jobs, {len(missing)} of them to do", flush=True)
    if args.page:
        jobs = [job for job in jobs if job not in missing]
    else:
        joblib.Parallel(args.jobs)(
            joblib.delayed(run)(*job, args.fonts, args.cache) for job in missing
        )
    results = [json.loads((args.cache / file_of(*job)).read_text()) for job in jobs]
    common.write_json(args.output / "tasks.json", results)
    common.write_page(args.docs / "tasks.md", page(results))


if __name__ == "__main__":
    main()

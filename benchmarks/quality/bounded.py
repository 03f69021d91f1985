"""Forms of bounded evidence, on images with marks that agree with the class during training.

    python -m benchmarks.quality.bounded [--fonts FOLDER]

Classifiers with default parameters are fitted on 70 % of a task's training images and evaluated on
the other 30 %. No test image is used. For each evaluation image, the log-likelihoods of all tokens
are computed once; each form then combines them. The small ResNet of the other benchmarks is trained
on the same images. The tasks are those of ``benchmarks/quality/tasks``, but with 2000 animals. The
marks are those of ``benchmarks/claims``. Writes ``bounded.json`` after each job, and
``bounded.md``.
"""

import json
import warnings
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier
from skaocls.scoring.bounded import default_bound, token_evidence
from skaocls.scoring.calibration import expected_calibration_error

from .. import common
from ..claims.experiments import AGREEMENT, TEST_MARKS
from ..claims.shifts import SHIFTS
from ..claims.shortcuts import with_shortcut
from .tasks.__main__ import make as make_resnet
from .tasks.sources import load_task

TASKS = ("digits", "glyphs", "textures", "characters", "animals")
JOBS = [[task, "corner", 0] for task in TASKS[:3]] + [[task, "none", 0] for task in TASKS]
MARKS = {"agreeing": AGREEMENT, "random": None, "conflicting": "reversed"}
MAX_TRAIN, MAX_IMAGES = 2000, 600
SHIFTED = ("gaussian_noise", "translation")
FACTORS = (0.35, 0.7, 1, 1.4, 2.8)  # of the default bound


def forms(log_likelihood):
    """Yield each form's name and the evidence (n_images, n_classes) that it sums up."""
    evidence = token_evidence(log_likelihood).numpy()
    n_orders, n_tokens = evidence.shape[1:3]
    place, bound = evidence.mean(1), default_bound(n_tokens)
    yield "no bound", log_likelihood.sum(2, dtype=float).mean(1)
    for factor in FACTORS:
        limit = factor * bound
        name = "places" if factor == 1 else f"places, {factor:g} times the bound"
        yield name, place.clip(-limit, limit).sum(1)
    yield "tokens of each order", evidence.clip(-bound, bound).sum(2).mean(1)
    yield "places, smooth bound", (bound * np.tanh(place / bound)).sum(1)
    yield "places, median of orders", np.median(evidence, 1).clip(-bound, bound).sum(1)
    ordered, quarter = np.sort(evidence, 1), n_orders // 4
    middle = ordered[:, quarter : n_orders - quarter].mean(1)
    yield "places, middle half of orders", middle.clip(-bound, bound).sum(1)
    for k in (1, 2):
        yield f"without the {k} highest and lowest", np.sort(place, 1)[:, k : n_tokens - k].sum(1)


def split(task, seed, fonts, n_train):
    """Return float images and labels: 70 % of the training images of a task, and the others."""
    X, y, *_ = load_task(task, seed, fonts)
    X = X / np.float32(255) if X.dtype == np.uint8 else X.astype(np.float32)
    X, y = X[: MAX_TRAIN * 10 // 7], y[: MAX_TRAIN * 10 // 7]
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=seed)
    return X[:n_train], y[:n_train], X_test[:MAX_IMAGES], y_test[:MAX_IMAGES]


def run(job, fonts=None, n_train=None, short=False):
    """Return {images: {form: [accuracy, nats, ECE]}} of one classifier."""
    task, kind, seed = job
    X, y, X_test, y_test = split(task, seed, fonts, n_train)
    n_classes = y.max() + 1

    def marked(images, labels, agreement, marks):
        agreement = 1 / n_classes if agreement is None else agreement
        return with_shortcut(images, labels, n_classes, agreement, "corner", marks)[0]

    tests = {"unmarked": X_test}
    for name, agreement in MARKS.items() if kind == "corner" else {"random": None}.items():
        tests[name] = marked(X_test, y_test, agreement, seed + TEST_MARKS)
    if kind == "corner":
        X = marked(X, y, AGREEMENT, seed)
    else:
        tests |= {name: SHIFTS[name](X_test, 3, seed) for name in SHIFTED}
    params = {"max_iter": 1, "n_orders": 4} if short else {}
    clf = AnyOrderARClassifier(device="cpu", random_state=seed, **params).fit(X, y)
    clf.set_params(aggregation="bounded", search="exhaustive")
    network = make_resnet("ResNet", task, X, seed).set_params(**{"max_iter": 1} if short else {})
    network.fit(X, y)
    found = {"machine": common.processor(), "revision": common.revision(), "n": len(y_test)}
    found["images"] = {}
    for name, images in tests.items():
        evidence = {}
        for part in clf._log_likelihoods(images):
            for form, values in forms(part):
                evidence.setdefault(form, []).append(values)
        found["images"][name] = {
            form: measures(np.concatenate(values) + clf.class_log_prior_, y_test)
            for form, values in evidence.items()
        } | {"ResNet": measures(np.log(network.predict_proba(images)), y_test)}
    found["early stopping"] = early_stopping(clf, tests["random"])
    return found


def early_stopping(clf, images):
    """Return how often early stopping finds the class of all orders, and its share of the work."""
    exact = clf.predict(images)
    joint, stats = clf.set_params(search="auto").predict_joint_log_proba(images, return_stats=True)
    share = stats["evaluations"].mean() / stats["exhaustive_evaluations"]
    return [float(np.mean(clf.classes_[joint.argmax(1)] == exact)), float(share)]


def measures(joint, labels):
    """Return accuracy and calibration error in percent, and the nats of the true class."""
    log_proba = torch.from_numpy(joint).log_softmax(1).numpy()
    nats = -log_proba[np.arange(len(labels)), labels].mean()
    error = expected_calibration_error(np.exp(log_proba), labels)
    return [100 * float(np.mean(joint.argmax(1) == labels)), float(nats), 100 * float(error)]


def page(record):
    found = {tuple(json.loads(key)): value for key, value in record.items()}
    revisions = ", ".join(sorted({value["revision"] for value in found.values()}))
    sections = []
    for (task, kind, seed), value in found.items():
        images = value["images"]
        heads = ["form", *images]
        rows = [
            [form, *("{:.1f} ({:.2f})".format(*images[name][form]) for name in images)]
            for form in next(iter(images.values()))
        ]
        trained = "unmarked images" if kind == "none" else f"images with a mark ({kind})"
        title = f"**{task}, trained on {trained}, seed {seed}, {value['n']} images**"
        sections += [title, common.table(heads, rows)]
    return common.page(
        "Bounded evidence",
        "Measured with `python -m benchmarks.quality.bounded` on "
        f"{common.machines(record.values())}, one thread per classifier, with the default "
        f"parameters of revision {revisions}. Accuracy in percent, and "
        "in parentheses the mean negative log-probability of the true class in nats, on images "
        "that are held out from the training images. Marks agree with the class in 95 % of the "
        "training images. *Agreeing*: marks as in training. *Random*: marks do not depend on the "
        "class. *Conflicting*: marks of another class. The other columns are shifts of severity "
        "3. Glyphs are drawn with the fonts that matplotlib contains (`--fonts`). "
        '*Places* is `aggregation="bounded"`: the evidence of each place is averaged over the '
        "orders and bounded by sqrt(8 / number of places). With 600 images, the standard error is "
        "about 1.1 points near 92 % and 0.4 points near 99 %.",
        "**What the bound costs without marks.** The classifiers are trained on unmarked images "
        "and tested on unmarked images. ECE is the expected calibration error. *Same class* is the "
        "share of images for which early stopping finds the class of all orders, on images with "
        "random marks. *Work* is the share of the tokens that early stopping scores.",
        costs(found),
        *sections,
    )


def costs(found):
    """Return the table of accuracy and calibration on unmarked images, with and without bound."""
    rows = []
    for (task, kind, _), value in found.items():
        if kind != "none":
            continue
        unmarked = value["images"]["unmarked"]
        same, work = value["early stopping"]
        rows.append([task])
        for form in ("no bound", "places", "places, 2.8 times the bound"):
            rows[-1].append("{:.1f} ({:.3f}, {:.1f})".format(*unmarked[form]))
        rows[-1] += [f"{100 * same:.1f} %", f"{100 * work:.0f} %"]
    heads = ["accuracy (nats, ECE)", "no bound", "bound", "2.8 times the bound"]
    return common.table([*heads, "same class", "work"], rows)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=TASKS)
    parser.add_argument("--short", action="store_true", help="few images and epochs")
    parser.add_argument("--fonts", help="folder of fonts, instead of those of claims/fonts.txt")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    jobs = [job for job in JOBS if args.only is None or job[0] in args.only]
    params = {"n_train": 600, "short": True} if args.short else {}
    path = args.output / "bounded.json"
    record = common.add_missing(path, jobs, partial(run, fonts=args.fonts, **params))
    common.write_page(args.output / "bounded.md", page(record))


if __name__ == "__main__":
    main()

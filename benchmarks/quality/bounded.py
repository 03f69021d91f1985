"""Forms of bounded evidence, on images with marks that agree with the class during training.

    python -m benchmarks.quality.bounded [--jobs 2] [--fonts FOLDER]

Classifiers with default parameters are fitted on 70 % of a task's training images and evaluated on
the other 30 %. No test image is used. For each evaluation image, the log-likelihoods of all tokens
are computed once; each form then combines them. The marks are those of ``benchmarks/claims``.
Writes ``bounded.json`` after each job, and ``bounded.md``.
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

from .. import common
from ..claims.contestants import load
from ..claims.experiments import AGREEMENT, TEST_MARKS
from ..claims.shifts import SHIFTS
from ..claims.shortcuts import with_shortcut

JOBS = [
    ["digits", "corner", 0], ["digits", "none", 0], ["glyphs", "corner", 0],
    ["textures", "corner", 0],
]  # fmt: skip
MARKS = {"agreeing": AGREEMENT, "random": None, "conflicting": "reversed"}
MAX_IMAGES = 300
SHIFTED = ("gaussian_noise", "gaussian_blur", "occlusion", "translation")
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


def run(job, fonts=None, n_train=None, **params):
    """Return {images: {form: [accuracy, nats]}} of one classifier."""
    task, kind, seed = job
    X, y, *_ = load(task, seed, fonts)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=seed)
    X, y, X_test, y_test = X[:n_train], y[:n_train], X_test[:MAX_IMAGES], y_test[:MAX_IMAGES]
    n_classes = y.max() + 1

    def marked(images, labels, agreement, marks, kind=kind):
        agreement = 1 / n_classes if agreement is None else agreement
        return with_shortcut(images, labels, n_classes, agreement, kind, marks)[0]

    tests = {"unmarked": X_test}
    if kind == "none":
        tests["marks at random"] = marked(X_test, y_test, None, seed + TEST_MARKS, "corner")
        tests |= {name: SHIFTS[name](X_test, 3, seed) for name in SHIFTED}
    else:
        X = marked(X, y, AGREEMENT, seed)
        for name, agreement in MARKS.items():
            tests[name] = marked(X_test, y_test, agreement, seed + TEST_MARKS)
    clf = AnyOrderARClassifier(device="cpu", random_state=seed, **params).fit(X, y)
    clf.set_params(aggregation="bounded", search="exhaustive")
    found = {"machine": common.processor(), "n": len(y_test), "images": {}}
    for name, images in tests.items():
        evidence = {}
        for part in clf._log_likelihoods(images):
            for form, values in forms(part):
                evidence.setdefault(form, []).append(values)
        found["images"][name] = {
            form: measures(np.concatenate(values) + clf.class_log_prior_, y_test)
            for form, values in evidence.items()
        }
    return found


def measures(joint, labels):
    """Return the accuracy in percent, and the mean negative log-probability of the true class."""
    log_proba = torch.from_numpy(joint).log_softmax(1).numpy()
    nats = -log_proba[np.arange(len(labels)), labels].mean()
    return [100 * float(np.mean(joint.argmax(1) == labels)), float(nats)]


def page(record):
    sections = []
    for key, found in record.items():
        task, kind, seed = json.loads(key)
        images = found["images"]
        heads = ["form", *images]
        rows = [
            [form, *("{:.1f} ({:.2f})".format(*images[name][form]) for name in images)]
            for form in next(iter(images.values()))
        ]
        trained = "unmarked images" if kind == "none" else f"images with a mark ({kind})"
        title = f"**{task}, trained on {trained}, seed {seed}, {found['n']} images**"
        sections += [title, common.table(heads, rows)]
    return common.page(
        "Bounded evidence",
        "Measured with `python -m benchmarks.quality.bounded` on "
        f"{common.machines(record.values())}, one thread per classifier. Accuracy in percent, and "
        "in parentheses the mean negative log-probability of the true class in nats, on images "
        "that are held out from the training images. Marks agree with the class in 95 % of the "
        "training images. *Agreeing*: marks as in training. *Random*: marks do not depend on the "
        "class. *Conflicting*: marks of another class. The other columns are shifts of severity "
        "3. Glyphs are drawn with the fonts that matplotlib contains (`--fonts`). "
        '*Places* is `aggregation="bounded"`: the evidence of each place is averaged over the '
        "orders and bounded by sqrt(8 / number of places). The standard error is about 1.5 points "
        "near 92 % and 0.6 points near 99 %.",
        *sections,
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=["digits", "glyphs", "textures"])
    parser.add_argument("--short", action="store_true", help="few images and epochs")
    parser.add_argument("--fonts", help="folder of fonts, instead of those of claims/fonts.txt")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    jobs = [job for job in JOBS if args.only is None or job[0] in args.only]
    params = {"n_train": 60, "max_iter": 1, "n_orders": 4} if args.short else {}
    path = args.output / "bounded.json"
    record = common.add_missing(path, jobs, partial(run, fonts=args.fonts, **params))
    common.write_page(args.output / "bounded.md", page(record))


if __name__ == "__main__":
    main()

"""One page of HTML about a fitted classifier."""

import base64
import html
import io
from contextlib import closing
from pathlib import Path
from string import Template

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.utils import _safe_indexing
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from skaocls.displays._images import Look, axes_grid
from skaocls.displays.evidence_maps import EvidenceDisplay
from skaocls.displays.order_curve import OrderCurveDisplay
from skaocls.files import write_all
from skaocls.scoring.calibration import expected_calibration_error
from skaocls.version import __version__

MISTAKES, SAMPLES, CLASSES = 4, 4, 12  # shown at most
BINS = 10  # of confidence
SHORT = 3  # letters of a label that is written across
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0;
  overflow-wrap: anywhere; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .25rem 0 1rem; color: #57606a; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
dl.facts { display: grid; gap: .75rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
dl.facts div { border: 1px solid #d0d7de; border-radius: .5rem; padding: .6rem .8rem; }
dl.facts dt { font-size: .85rem; color: #57606a; }
dl.facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #d0d7de; }
footer { margin-top: 3rem; font-size: .85rem; color: #57606a; }
</style>
</head>
<body><main>
<h1>$title</h1>
<p>$subtitle</p>
<dl class="facts">$facts</dl>
$sections
<footer>Written by skaocls $version.</footer>
</main></body>
</html>
""")


def write_report(
    clf, X, y, path, *, title="Classifier report", subtitle="", baselines=None, times=None
):
    """Write a self-contained HTML page about a classifier's answers to test data.

    It shows accuracy against the number of orders, the confusion matrix, calibration, the surest
    mistakes with their evidence maps and samples of each class (both of images only), settings and
    times. Pictures lie within the file; nothing is loaded from elsewhere.

    Parameters
    ----------
    clf : AnyOrderARClassifier
        Fitted.
    X : array-like
        Test data.
    y : array-like of shape (n_samples,)
        Their labels.
    path : path
        Of the file, which is written whole or not at all.
    title, subtitle : str
        Headings, as plain text.
    baselines : dict of str to float, default=None
        Accuracies of other classifiers on the same data.
    times : dict of str to str, default=None
        What took how long, for the table of settings.

    Returns
    -------
    path : Path
        Of the file.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from skaocls import AnyOrderARClassifier
    >>> from skaocls.displays import write_report
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = AnyOrderARClassifier(n_orders=4, random_state=0).fit(X[::2], y[::2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(clf, X[1::2], y[1::2], f"{folder}/report.html").name
    'report.html'
    """
    check_matplotlib_support("write_report")
    check_is_fitted(clf)
    path, y = Path(path), np.asarray(y)
    staged = list(clf.staged_predict(X))
    proba = clf.predict_proba(X)
    predicted = clf.classes_[proba.argmax(1)]
    images = clf.image_shape_ is not None
    sections = [
        section(
            "Accuracy against orders",
            "Test accuracy after so many orders, beside classifiers that read no orders.",
            orders_of(clf, y, staged, baselines),
        ),
        section(
            "Confusion",
            "Rows are true classes, columns are predictions.",
            confusion(clf, y, predicted),
        ),
        section(
            "Calibration",
            "How often answers of a confidence are right; on the diagonal they are as sure as they "
            "should be. Bars: how many answers have that confidence.",
            calibration(clf, y, proba),
        ),
    ]
    wrong = np.flatnonzero(predicted != y)
    if images and len(wrong):
        surest = wrong[np.argsort(-proba[wrong].max(1), kind="stable")][:MISTAKES]
        truth = ", ".join(str(label) for label in y[surest])
        sections.append(
            section(
                "Surest mistakes",
                "Evidence for the most probable classes, in nats: blue speaks for a class, red "
                f"against it. True classes, from top to bottom: {truth}.",
                EvidenceDisplay.from_estimator(clf, _safe_indexing(X, surest)).figure_,
            )
        )
    if images:
        sections.append(
            section(
                "Samples",
                "Images drawn from the model, a row for each class.",
                samples(clf),
            )
        )
    sections.append(settings(clf, times or {}))
    page = PAGE.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        facts=facts(clf, y, staged, proba, baselines or {}),
        sections="\n".join(sections),
        version=__version__,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_all(path.parent, {path.name: lambda to: Path(to).write_text(page, encoding="utf-8")})
    return path


def section(title, text, figure):
    """A heading, a sentence and a picture."""
    with closing(io.BytesIO()) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
        data = base64.b64encode(file.getvalue()).decode()
    close(figure)
    return (
        f"<section><h2>{title}</h2><p>{html.escape(text)}</p>"
        f'<img alt="{title}" src="data:image/png;base64,{data}"></section>'
    )


def close(figure):
    import matplotlib.pyplot as plt

    plt.close(figure)


def facts(clf, y, staged, proba, baselines):
    """The figures at the top."""
    right = accuracy_score(y, clf.classes_[proba.argmax(1)])
    shown = {f"Accuracy, {len(staged)} orders": f"{right:.1%}"}
    shown["Accuracy, one order"] = f"{accuracy_score(y, staged[0]):.1%}"
    if baselines:
        best = max(baselines, key=baselines.get)
        shown[f"Best other: {best}"] = f"{baselines[best]:.1%}"
    known = np.isin(y, clf.classes_)
    columns = np.searchsorted(clf.classes_, y[known])
    shown["Calibration error"] = f"{expected_calibration_error(proba[known], columns):.1%}"
    shown["Test samples"] = str(len(y))
    shown["Classes"] = str(len(clf.classes_))
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in shown.items()
    )


def orders_of(clf, y, staged, baselines):
    name = type(clf).__name__
    display = OrderCurveDisplay.from_predictions(y, staged, baselines=baselines or {}, name=name)
    return display.figure_


def confusion(clf, y, predicted):
    import matplotlib.pyplot as plt
    from sklearn.metrics import ConfusionMatrixDisplay

    several = np.unique(np.concatenate([y, predicted]))
    side = float(np.clip(0.5 * len(several), 4, 10))
    _, ax = plt.subplots(figsize=(side + 1, side), layout="constrained")
    display = ConfusionMatrixDisplay.from_predictions(
        y,
        predicted,
        ax=ax,
        cmap="Blues",
        include_values=len(several) <= 20,
        xticks_rotation="vertical" if max(len(str(x)) for x in several) > SHORT else "horizontal",
    )
    return display.figure_


def calibration(clf, y, proba):
    """Share of right answers in bins of confidence, and how many answers each bin has."""
    import matplotlib.pyplot as plt

    confidence = proba.max(1)
    right = clf.classes_[proba.argmax(1)] == y
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    some = count > 0
    figure, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    ax.bar((np.arange(BINS) + 0.5) / BINS, count / count.sum(), 0.9 / BINS, color="#d0d7de")
    ax.plot([0, 1], [0, 1], ":", color="gray")
    ax.plot(
        np.bincount(bins, confidence, BINS)[some] / count[some],
        np.bincount(bins, right, BINS)[some] / count[some],
        "o-",
    )
    ax.set(xlabel="confidence", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1.02))
    return figure


def samples(clf):
    """A few images of each class, drawn from the model."""
    classes = clf.classes_[:CLASSES]
    drawn = clf.sample(y=np.repeat(classes, SAMPLES), random_state=0)
    look = Look(drawn)
    axes = axes_grid(None, (len(classes), SAMPLES), (1.2 * SAMPLES + 0.8, 1.2 * len(classes)))
    for ax, image in zip(axes.flat, drawn, strict=True):
        look(ax, image)
    for ax, label in zip(axes[:, 0], classes, strict=True):
        ax.set_ylabel(str(label), rotation="horizontal", ha="right", va="center")
    return axes.flat[0].figure


def settings(clf, times):
    """A table of times, of what was learned and of the parameters that are not at their default."""
    rows, cols = clf.prior_.grid
    body = clf.prior_.transformer
    rest = {
        "Tokens": f"{rows} x {cols} of {clf.prior_.vocab_size} values",
        "Prior": f"{len(body.layers)} layers of width {body.dim}",
        "Epochs": str(clf.n_iter_),
        "Temperature": f"{clf.temperature_:.3g}",
    }
    changed = type(clf)().get_params(deep=False)
    rest |= {
        f"Parameter {name}": repr(value)
        for name, value in clf.get_params(deep=False).items()
        if repr(value) != repr(changed[name])
    }
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in (times | rest).items()
    )
    return (
        "<section><h2>Settings and times</h2><p>Parameters that are not listed have their default."
        f'</p><div class="wide"><table>{lines}</table></div></section>'
    )

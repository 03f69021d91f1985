"""HTML report about a fitted classifier."""

import base64
import html
import io
from pathlib import Path
from string import Template

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from skaocls.displays._images import PLAIN, printable
from skaocls.displays.evidence_maps import EvidenceDisplay
from skaocls.displays.order_curve import OrderCurveDisplay
from skaocls.displays.reconstructions import ReconstructionDisplay
from skaocls.files import check_writable, write_all
from skaocls.fitted.labels import class_columns
from skaocls.fitted.place_evidence import deciding_places, describe
from skaocls.scoring.calibration import expected_calibration_error
from skaocls.version import __version__

MAX_MISTAKES = 4  # number of mistakes shown with evidence maps
SAMPLES_PER_CLASS, MAX_SAMPLED_CLASSES = 4, 12
CONFIDENCE_BINS = 10
MAX_HORIZONTAL_LABEL = 3  # in characters; longer labels in the confusion matrix are vertical
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
    """Write a self-contained HTML page about a classifier's predictions for test data.

    The page contains the confusion matrix, a calibration plot, a plot of the accuracy against the
    number of orders, and a table of settings and times. For images, the page also contains evidence
    maps of the most confident mistakes, and samples of each class if the tokenizer can decode
    tokens. All plots are embedded in the file.

    Parameters
    ----------
    clf : AnyOrderARClassifier
        Fitted classifier.
    X : array-like
        Test data.
    y : array-like of shape (n_samples,)
        True labels.
    path : str or path
        File to write. An existing file is replaced only when the new file is complete.
    title, subtitle : str
        Title and subtitle of the page, as plain text.
    baselines : dict of str to float, default=None
        Accuracies of other classifiers on the same data.
    times : dict of str to str, default=None
        Durations to show in the table of settings, e.g. ``{"Fit": "7 s"}``.

    Returns
    -------
    path : Path
        Path of the written file.

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
    batch = clf.model_.reader.open(X)
    y = clf.model_.true_labels(batch, y)
    baselines = {str(name): float(accuracy) for name, accuracy in (baselines or {}).items()}
    path = Path(path)
    check_writable(path, f"path={str(path)!r}")
    settings = settings_section(clf, times or {})
    staged = list(clf.staged_predict(batch))
    proba = clf.predict_proba(batch)
    name = type(clf).__name__
    curve = OrderCurveDisplay.from_predictions(y, staged, baselines=baselines, name=name)
    sections = [
        section(
            "Accuracy against orders",
            "Accuracy on the test data, if predictions average over 1, 2, ... orders. Horizontal "
            "lines show the accuracy of other classifiers.",
            curve.figure_,
        ),
        section(
            "Confusion",
            "Rows are true classes, columns are predicted classes.",
            plot_confusion(y, clf.classes_[proba.argmax(1)]),
        ),
        section(
            "Calibration",
            "The curve shows the accuracy of the predictions in each range of confidence. The "
            "dotted diagonal shows perfect calibration. Bars show the fraction of predictions in "
            "each range.",
            plot_calibration(clf, y, proba),
        ),
    ]
    if clf.image_shape_ is not None:
        sections += image_sections(clf, batch, y, proba)
    sections.append(settings)
    page = PAGE.substitute(
        title=as_html(title),
        subtitle=as_html(subtitle),
        facts=key_figures(clf, y, staged, proba, baselines),
        sections="\n".join(sections),
        version=__version__,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_all(path.parent, {path.name: lambda to: Path(to).write_text(page, encoding="utf-8")})
    return path


def image_sections(clf, batch, y, proba):
    """Yield the sections that a report contains only for images."""
    wrong = np.flatnonzero(clf.classes_[proba.argmax(1)] != y)
    if len(wrong):
        confident = wrong[np.argsort(-proba[wrong].max(1), kind="stable")][:MAX_MISTAKES]
        labels = ", ".join(str(label) for label in y[confident])
        yield section(
            "Most confident mistakes",
            "Evidence for the most probable classes, in nats. Blue is evidence for a class, and "
            f"red is evidence against the class. True classes, from top to bottom: {labels}.",
            EvidenceDisplay.from_estimator(clf, batch.take(confident)).figure_,
        )
    if hasattr(clf, "place_evidence_"):  # loaded classifiers do not have it
        text = (
            "Mean evidence of each place for each class in training images. Blue is evidence for "
            "the class. If one place has most of the evidence, it may be a watermark. "
        )
        found = deciding_places(clf.place_evidence_)
        if found:
            names = getattr(clf, "class_names_", clf.classes_)
            text += describe(found, names, clf.place_evidence_.shape[1:])
        yield section("Places of the evidence", text, plot_places(clf))
    if not hasattr(clf.tokenizer_, "inverse_transform"):
        return
    sampled = np.repeat(clf.classes_[:MAX_SAMPLED_CLASSES], SAMPLES_PER_CLASS)
    samples = ReconstructionDisplay(clf.sample(y=sampled, random_state=0), labels=sampled)
    text = "Images sampled from the model, one row per class."
    yield section("Samples", text, samples.plot().figure_)


def section(title, text, figure):
    """Return a heading, a paragraph and an embedded plot as HTML, and close the plot."""
    import matplotlib.pyplot as plt

    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
        data = base64.b64encode(file.getvalue()).decode()
    plt.close(figure)
    return (
        f"<section><h2>{title}</h2><p>{as_html(text)}</p>"
        f'<img alt="{title}" src="data:image/png;base64,{data}"></section>'
    )


def key_figures(clf, y, staged, proba, baselines):
    """Return the key figures (numbers) for the top of the page, as HTML."""
    accuracy = accuracy_score(y, clf.classes_[proba.argmax(1)])
    figures = {
        f"Accuracy, {len(staged)} orders": f"{accuracy:.1%}",
        "Accuracy, one order": f"{accuracy_score(y, staged[0]):.1%}",
    }
    if baselines:
        best = max(baselines, key=baselines.get)
        figures[f"Best other: {best}"] = f"{baselines[best]:.1%}"
    columns = class_columns(clf.classes_, y)
    known = columns >= 0
    error = expected_calibration_error(proba[known], columns[known])
    figures["Calibration error"] = f"{error:.1%}"
    figures["Test samples"] = str(len(y))
    figures["Classes"] = str(len(clf.classes_))
    return html_items(figures, "<div><dt>{}</dt><dd>{}</dd></div>")


def plot_places(clf):
    """Plot the mean evidence of each place for up to `MAX_SAMPLED_CLASSES` classes."""
    import matplotlib.pyplot as plt

    maps = clf.place_evidence_[:MAX_SAMPLED_CLASSES]
    n_rows = -(-len(maps) // 6)
    figure, axes = plt.subplots(
        n_rows, 6, figsize=(9, 1.7 * n_rows), squeeze=False, layout="constrained"
    )
    limit = np.nanmax(np.abs(maps), initial=0.0) or 1.0
    for ax in axes.flat:
        ax.axis("off")
    for ax, label, evidence in zip(axes.flat, clf.classes_, maps):
        image = ax.imshow(evidence, cmap="RdBu", vmin=-limit, vmax=limit)
        ax.set_title(printable(label), fontsize=10, **PLAIN)
    figure.colorbar(image, ax=list(axes.flat), label="nats for the class")
    return figure


def plot_confusion(y, predicted):
    import matplotlib.pyplot as plt
    from sklearn.metrics import ConfusionMatrixDisplay

    labels = np.unique(np.concatenate([y, predicted]))
    names = [printable(label) for label in labels]
    longest = max(map(len, names))
    side = float(np.clip(0.5 * len(labels), 4, 10))
    _, ax = plt.subplots(figsize=(side + 1, side), layout="constrained")
    display = ConfusionMatrixDisplay.from_predictions(
        y,
        predicted,
        labels=labels,
        display_labels=names,
        ax=ax,
        cmap="Blues",
        include_values=len(labels) <= 20,
        xticks_rotation="vertical" if longest > MAX_HORIZONTAL_LABEL else "horizontal",
    )
    plt.setp([*ax.get_xticklabels(), *ax.get_yticklabels()], **PLAIN)
    return display.figure_


def plot_calibration(clf, y, proba):
    """Plot the accuracy against the confidence, and the fraction of predictions in each bin."""
    import matplotlib.pyplot as plt

    confidence = proba.max(1).clip(max=1)
    correct = clf.classes_[proba.argmax(1)] == y
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=CONFIDENCE_BINS)
    figure, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    share = np.full(len(y), 1 / len(y))
    ax.hist(confidence, CONFIDENCE_BINS, range=(0, 1), weights=share, rwidth=0.9, color="#d0d7de")
    ax.plot([0, 1], [0, 1], ":", color="gray")
    ax.plot(mean_confidence, accuracy, "o-")
    ax.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1.02))
    return figure


def settings_section(clf, times):
    """Return an HTML table: times, fitted values, and parameters without their default value."""
    rows, cols = clf.prior_.grid
    trunk = clf.prior_.transformer
    entries = times | {
        "Tokens": f"{rows} x {cols} of {clf.prior_.vocab_size} values",
        "Prior": f"{len(trunk.layers)} layers of width {trunk.dim}",
        "Epochs": str(getattr(clf, "n_iter_", "none")),  # published weights have no history
        "Temperature": f"{clf.temperature_:.3g}",
    }
    defaults = type(clf)().get_params(deep=False)
    entries |= {
        f"Parameter {name}": repr(value)
        for name, value in clf.get_params(deep=False).items()
        if repr(value) != repr(defaults[name])
    }
    lines = html_items(entries, "<tr><th>{}</th><td>{}</td></tr>")
    return (
        "<section><h2>Settings and times</h2><p>Parameters that are not listed have their default "
        f'values.</p><div class="wide"><table>{lines}</table></div></section>'
    )


def html_items(texts, item):
    """Format each key and value of a dict as HTML with the format string `item`."""
    return "".join(item.format(as_html(k), as_html(v)) for k, v in texts.items())


def as_html(text):
    return html.escape(printable(text))

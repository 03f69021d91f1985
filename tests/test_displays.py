"""Displays plot the values that the classifier computes."""

import base64
import copy
import io
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from skaocls import AnyOrderARClassifier, AnyOrderPrior, FeatureTokenizer
from skaocls.displays import (
    EvidenceDisplay,
    OrderCurveDisplay,
    ReconstructionDisplay,
    write_report,
)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_order_curve_shows_accuracy_and_binomial_error(fitted, digits):
    X, y = digits[2], digits[3].copy()
    y[::4] = (y[::4] + 1) % 3  # otherwise the error is zero
    display = OrderCurveDisplay.from_estimator(fitted, X, y)
    p = np.array([np.mean(predicted == y) for predicted in fitted.staged_predict(X)])
    np.testing.assert_array_equal(display.line_.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(display.line_.get_ydata(), p)
    error = np.sqrt(p * (1 - p) / 100)
    assert error.min() > 0.03
    edges = display.fill_.get_paths()[0].vertices
    for k in range(4):
        at = edges[edges[:, 0] == k + 1, 1]
        np.testing.assert_allclose([at.min(), at.max()], [p[k] - error[k], p[k] + error[k]])


def test_baselines_are_scored_on_flattened_images(fitted, digits):
    X, y, X_test, y_test = digits
    flat = X_test.reshape(100, 64)
    nb = GaussianNB().fit(X.reshape(300, 64), y)
    baselines = {"nb": nb, "any-order": fitted, "given": 0.5}
    display = OrderCurveDisplay.from_estimator(fitted, X_test, y_test, baselines=baselines)
    expected = {"nb": nb.score(flat, y_test), "any-order": fitted.score(X_test, y_test)}
    assert display.baselines == expected | {"given": 0.5}
    for name, score in display.baselines.items():
        assert set(display.baseline_lines_[name].get_ydata()) == {score}
    assert display.ax_.get_legend().get_texts()[-1].get_text() == "given (0.500)"  # the lowest


def test_baselines_read_the_values_of_arrays_and_files(fitted, digits, tmp_path):
    X, y, X_test, y_test = digits
    fitted = clone(fitted).set_params(max_iter=1)
    # the classifier scales 8-bit pixels, but the baselines are fitted to the original values
    X, X_test = X.astype(np.uint8), X_test.astype(np.uint8)
    logistic = LogisticRegression(max_iter=1000).fit(X.reshape(300, 64), y)
    expected = logistic.score(X_test.reshape(100, 64), y_test)
    fitted.fit(X, y)
    display = OrderCurveDisplay.from_estimator(fitted, X_test, y_test, baselines={"lr": logistic})
    assert display.baselines["lr"] == expected

    paths = [str(tmp_path / f"{i}.png") for i in range(100)]
    for path, image in zip(paths, X_test, strict=True):
        Image.fromarray(image).save(path)
    unit = LogisticRegression(max_iter=1000).fit(X.reshape(300, 64) / 255, y)
    display = OrderCurveDisplay.from_estimator(fitted, paths, y_test, baselines={"lr": unit})
    assert display.baselines["lr"] == unit.score(X_test.reshape(100, 64) / 255, y_test)


def test_order_curve_on_given_axes():
    figure, ax = plt.subplots()
    display = OrderCurveDisplay.from_predictions(
        ["a", "b"], [["a", "a"], ["a", "b"]], ax=ax, name="mine", color="red"
    )
    assert display.ax_ is ax and display.figure_ is figure
    assert display.line_.get_color() == "red" and display.line_.get_label() == "mine"
    assert display.plot() is display and display.ax_ is not ax
    np.testing.assert_allclose(display.line_.get_ydata(), [0.5, 1])
    assert OrderCurveDisplay([0.5]).plot().fill_ is None
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        OrderCurveDisplay.from_predictions([0, 1], [[0, 1], [0, 1], [0, 1, 1]])


def test_evidence_display_shows_explain(fitted, digits):
    X = digits[2][:4]
    display = EvidenceDisplay.from_estimator(fitted, X, n_classes=2)
    proba = fitted.predict_proba(X)
    ranked = fitted.classes_[(-proba).argsort(1)]
    assert display.axes_.shape == (4, 3)
    largest = np.abs(display.evidence_maps).max()
    assert {plotted.get_clim() for plotted in display.maps_.flat} == {(-largest, largest)}
    for j in range(2):
        evidence = fitted.explain(X, ranked[:, j])
        for i in range(4):
            plotted = display.maps_[i, j]
            np.testing.assert_allclose(plotted.get_array(), evidence.maps[i], atol=1e-6)
            insignificant = np.abs(evidence.maps[i]) < 2 * evidence.maps_standard_error[i]
            np.testing.assert_array_equal(plotted.get_alpha() < 1, insignificant)
            title = display.axes_[i, 1 + j].get_title()
            assert title == f"{ranked[i, j]}\np = {np.sort(proba[i])[-1 - j]:.2f}"
            np.testing.assert_allclose(display.images_[i].get_array(), X[i] / X.max())


def test_evidence_against_rivals(fitted, digits):
    X = digits[2][:5]
    ranked = fitted.classes_[(-fitted.predict_proba(X)).argsort(1)]
    display = EvidenceDisplay.from_estimator(fitted, X, rival="runner-up")
    np.testing.assert_array_equal(display.labels, ranked)
    np.testing.assert_array_equal(display.rivals, ranked[:, [1, 0, 0]])
    expected = fitted.explain(X, ranked[:, 2], rival="runner-up").maps
    np.testing.assert_allclose(display.evidence_maps[:, 2], expected, atol=1e-6)
    assert "rather than" in display.axes_[0, 1].get_title()

    one = EvidenceDisplay.from_estimator(fitted, X, rival=1)
    assert one.labels.shape == (5, 2) and (one.rivals == 1).all()
    rival = np.array([0, 1, 2, 0, 1])
    display = EvidenceDisplay.from_estimator(fitted, X, rival=rival)
    assert display.labels.shape == (5, 2) and (display.labels != rival[:, None]).all()
    expected = fitted.explain(X, display.labels[:, 1], rival).maps
    np.testing.assert_allclose(display.evidence_maps[:, 1], expected, atol=1e-6)
    with pytest.raises(ValueError, match="rival has classes that fit has not seen"):
        EvidenceDisplay.from_estimator(fitted, X, rival=rival + 1)
    with pytest.raises(ValueError, match="rival has 4 labels, but 5 are expected"):
        EvidenceDisplay.from_estimator(fitted, X, rival=rival[1:])


def test_image_displays_plot_again_on_given_axes(fitted, digits):
    for from_estimator, shape in (
        (EvidenceDisplay.from_estimator, (2, 4)),
        (ReconstructionDisplay.from_estimator, (3, 2)),
    ):
        display = from_estimator(fitted, digits[2][:2])
        figure, axes = plt.subplots(*shape)
        assert display.figure_ is not figure
        assert display.plot(axes) is display and display.figure_ is figure
        with pytest.raises(ValueError, match=r"ax has 1 axes, but \d x \d are needed"):
            display.plot(axes[0, 0])


def test_undefined_standard_errors_do_not_fade_evidence():
    evidence = np.ones((1, 1, 2, 2))
    error = np.full(evidence.shape, np.nan)
    display = EvidenceDisplay([np.eye(2)], evidence, [[0]], standard_errors=error).plot()
    assert (display.maps_[0, 0].get_alpha() == 1).all()


def test_reconstructions(fitted, digits):
    X = digits[2][:6].copy()
    X[0] = 16 - X[0]
    display = ReconstructionDisplay.from_estimator(fitted, X)
    codes = fitted.tokenizer_.transform(X)
    statistics = fitted.tokenizer_.image_statistics(X)
    decoded = fitted.tokenizer_.inverse_transform(codes, statistics=statistics)
    for i in range(6):
        image, tokens, reconstruction = (artist.get_array() for artist in display.artists_[:, i])
        np.testing.assert_allclose(image, X[i] / X.max())
        np.testing.assert_array_equal(tokens, codes[i])
        np.testing.assert_allclose(reconstruction, np.clip(decoded[i] / X.max(), 0, 1), rtol=1e-6)
        # the font is large enough for numbers
        written = [int(text.get_text()) for text in display.axes_[1, i].texts]
        np.testing.assert_array_equal(written, codes[i].ravel())


def test_each_code_has_its_own_color(digits):
    codes = np.arange(1024).reshape(1, 32, 32)
    display = ReconstructionDisplay(digits[2][:1], codes).plot()
    artist = display.artists_[1, 0]
    colors = artist.cmap(artist.norm(codes))
    assert len(np.unique(colors.reshape(-1, 4), axis=0)) > 250  # number of colors in the colormap
    np.testing.assert_array_equal(colors.reshape(-1, 4), artist.cmap(codes.ravel()))
    assert not display.axes_[1, 0].texts


def test_samples_form_one_row_per_class():
    images = np.arange(6.0)[:, None, None] * np.ones((2, 2))
    display = ReconstructionDisplay(images, labels=["b", "a", "a", "b", "a", "b"]).plot()
    values = [[artist.get_array()[0, 0] for artist in row] for row in display.artists_]
    np.testing.assert_allclose(values, np.array([[0, 3, 5], [1, 2, 4]]) / 5)
    assert [ax.get_ylabel() for ax in display.axes_[:, 0]] == ["b", "a"]


def test_samples_of_a_classifier(fitted):
    display = ReconstructionDisplay.from_samples(fitted, n_per_class=2, random_state=7)
    y = np.repeat(fitted.classes_, 2)
    np.testing.assert_array_equal(display.images, fitted.sample(y=y, random_state=7))
    np.testing.assert_array_equal(display.labels, y)


def test_color_scales_of_images():
    ink, photo = np.eye(4), np.linspace(0.2, 3, 16).reshape(4, 4)
    for image, cmap in ((ink, "gray_r"), (photo, "gray")):
        artist = ReconstructionDisplay([image]).plot().artists_[0, 0]
        assert artist.get_cmap().name == cmap
        np.testing.assert_allclose(artist.get_array(), image / image.max())
    colour = np.random.RandomState(0).uniform(0, 0.5, size=(1, 4, 4, 3))
    artist = ReconstructionDisplay(colour).plot().artists_[0, 0]  # not rescaled
    np.testing.assert_allclose(artist.get_array(), colour[0])
    artist = ReconstructionDisplay(colour[..., :2]).plot().artists_[0, 0]
    assert artist.get_array().shape == (4, 4)


@pytest.mark.parametrize("display", [EvidenceDisplay, ReconstructionDisplay])
def test_image_displays_refuse_tables(fitted, display):
    table = clone(fitted).set_params(max_iter=1)
    X = np.random.RandomState(0).randn(30, 3)
    table.fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match=f"{display.__name__} plots images"):
        display.from_estimator(table, X[:2])


def test_matplotlib_is_only_imported_to_plot():
    code = "import sys, skaocls, skaocls.displays; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib(fitted, digits, monkeypatch):
    X, y = digits[2][:2], digits[3][:2]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for plot in (
        lambda: OrderCurveDisplay.from_estimator(fitted, X, y),
        lambda: OrderCurveDisplay.from_predictions(y, [y]),
        lambda: EvidenceDisplay.from_estimator(fitted, X),
        lambda: ReconstructionDisplay.from_estimator(fitted, X),
        lambda: ReconstructionDisplay.from_samples(fitted),
    ):
        with pytest.raises(ImportError, match=r"Display.* requires matplotlib"):
            plot()


# Text that matplotlib or HTML would interpret; the last name contains a byte that is not UTF-8
NAMES = np.array([r"$\frac{5", "_<i>& ^%#$ {", "a\udcff $x$ \\$\\"])


def test_labels_are_plotted_as_plain_text(fitted, digits):
    X, y = digits[2], NAMES[(digits[3] + 1) % 3]
    clf = copy.copy(fitted)
    clf.model_ = replace(fitted.model_, classes=NAMES)
    baselines = {NAMES[0]: 0.5, "_$_": 0.25}
    curve = OrderCurveDisplay.from_estimator(clf, X, y, baselines=baselines, name=NAMES[1])
    evidence = EvidenceDisplay.from_estimator(clf, X[:2], rival="runner-up")
    samples = ReconstructionDisplay.from_samples(clf, n_per_class=1)
    for display in (curve, evidence, samples):
        display.figure_.canvas.draw()  # would raise an error for a wrong formula
    texts = [text.get_text() for text in curve.ax_.get_legend().get_texts()]
    assert f"{NAMES[0]} (0.500)" in texts and " _$_ (0.250)" in texts and f" {NAMES[1]}" in texts
    shown = [*NAMES[:2], NAMES[2].replace("\udcff", r"\udcff")]
    assert [ax.get_ylabel() for ax in samples.axes_[:, 0]] == shown
    assert evidence.axes_[0, 1].get_title().split(" rather than ")[0] in shown
    display = ReconstructionDisplay([np.eye(4)] * 2, labels=["$xx$", "xx"]).plot()
    dollars, none = (ax.yaxis.label.get_window_extent().width for ax in display.axes_[:, 0])
    assert dollars > 1.5 * none  # the dollar signs are visible


def test_dates_as_labels_of_images():
    dates = np.array(["2024-01-02", "2023-05-06"], "M8[ns]")
    display = ReconstructionDisplay([np.eye(4), 1 - np.eye(4)], labels=dates).plot()
    assert [ax.get_ylabel()[:10] for ax in display.axes_[:, 0]] == ["2024-01-02", "2023-05-06"]


def test_accuracy_needs_labels_of_the_same_type():
    curve = OrderCurveDisplay.from_predictions(
        pd.Series([3, 4], dtype="Int64"), [np.array([3.0, 3.0]), np.array([3, 4], np.uint8)]
    )
    np.testing.assert_allclose(curve.scores, [0.5, 1])
    with pytest.raises(ValueError, match="Mix of label input types"):
        OrderCurveDisplay.from_predictions(["3", "4"], [[3, 4]])


class Page(HTMLParser):
    """Tags, texts and links of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text.append(data.strip())


def test_report_is_complete_and_self_contained(fitted, digits, tmp_path):
    _, _, X, y = digits
    y = y.copy()
    y[:3] = (y[:3] + 1) % 3  # three mistakes
    options = {"baselines": {"<b>SVC</b>": 0.25}, "times": {"Fit": "7 s"}, "title": "A & <i>B</i>"}
    path = write_report(fitted, X, y, tmp_path / "new" / "report.html", **options)
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"b", "i", "script", "link", "iframe"} & set(page.tags)  # names are escaped
    for link in page.links:
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    accuracy = np.mean(fitted.predict(X) == y)
    texts = {
        f"{accuracy:.1%}",
        "25.0%",
        "A & <i>B</i>",
        "Most confident mistakes",
        "Samples",
        "7 s",
    }
    assert texts <= set(page.text)
    assert len(page.links) == 6


def test_report_with_names_that_are_not_plain_text(fitted, digits, tmp_path):
    clf = copy.copy(fitted)
    clf.model_ = replace(fitted.model_, classes=NAMES)
    options = {"title": NAMES[2], "subtitle": "$x", "baselines": {"$": 0.5}, "times": {"$": 7}}
    path = write_report(clf, digits[2], NAMES[(digits[3] + 1) % 3], tmp_path / "r.html", **options)
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert len(page.links) == 6 and "i" not in page.tags
    shown = [*NAMES[:2], NAMES[2].replace("\udcff", r"\udcff")]
    [mistakes] = [text for text in page.text if "True classes" in text]
    assert any(name in mistakes for name in shown)
    assert {shown[2], "$x", "$", "7"} <= set(page.text)


@pytest.mark.parametrize(
    "name", ["file/r.html", "folder", "n" * 256, "n" * 256 + "/r.html", "file/new/r.html"]
)
def test_paths_that_cannot_be_written_are_found_first(digits, fitted, tmp_path, monkeypatch, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    fail = partial(pytest.fail, "something was computed")
    monkeypatch.setattr("skaocls.fitted.prediction.score_batches", lambda *args, **kwargs: fail())
    with pytest.raises(OSError, match=r"path='.*' cannot be written to"):
        write_report(fitted, digits[2], digits[3], tmp_path / name)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", tmp_path / "folder"]
    assert not [*(tmp_path / "folder").iterdir()]


def test_report_of_a_table_has_no_images(tmp_path):
    X, y = load_iris(return_X_y=True)
    clf = AnyOrderARClassifier(n_orders=3, random_state=0).fit(X[::2], y[::2])
    page = Page()
    page.feed(write_report(clf, X[1::2], y[1::2], tmp_path / "r.html").read_text("utf-8"))
    assert len(page.links) == 3
    assert "Samples" not in page.text


CHECK_PAGES = Path(__file__).parents[1] / ".ci" / "check_pages.py"


@pytest.mark.skipif(runpy.run_path(str(CHECK_PAGES))["browser"]() is None, reason="needs Chromium")
def test_report_in_a_browser(fitted, digits, tmp_path):
    """The check passes for a report, at desktop and phone width, and finds faults in a bad page."""
    _, _, X, y = digits
    good = write_report(fitted, X, y, tmp_path / "report.html", baselines={"n" * 90: 0.5})
    bad = tmp_path / "bad.html"
    bad.write_text('<p style="width: 800px">wide</p><img src="lost.png">', encoding="utf-8")
    for page, status in ((good, 0), (bad, 1)):
        command = [sys.executable, CHECK_PAGES, page, "--pictures", tmp_path / "seen"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stdout + done.stderr
    messages = [line.removeprefix(f"{bad}: ") for line in done.stdout.splitlines()[:-1]]
    assert [line for line in messages if "wide" in line] == [
        "phone: is 808 pixels wide in a window of 390"
    ]
    assert sum("lacks the picture lost.png" in line for line in messages) == 2
    for device, width in (("desktop", 1280), ("phone", 390)):
        with Image.open(tmp_path / "seen" / f"report-{device}.png") as picture:
            assert picture.width == width
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_evidence_of_the_best_classes_in_all_orders():
    """Early stopping finds the best class, but ranks the other classes by few tokens."""
    X, y = load_digits(return_X_y=True)
    params = {"image_shape": (8, 8), "max_iter": 1, "augmentation": None, "n_orders": 6}
    clf = AnyOrderARClassifier(**params, search="exhaustive", random_state=0).fit(X[:200], y[:200])
    X = X[200:250]
    proba = clf.predict_proba(X)
    ranked = (-proba).argsort(1)
    early = (-clf.set_params(search=0.4).predict_proba(X)).argsort(1)
    rows = np.flatnonzero(early[:, 1] != ranked[:, 1])
    assert len(rows)
    display = EvidenceDisplay.from_estimator(clf, X[rows], n_classes=2)
    np.testing.assert_array_equal(display.labels, clf.classes_[ranked[rows, :2]])
    np.testing.assert_allclose(display.proba, np.take_along_axis(proba, ranked, 1)[rows, :2])


def test_report_of_published_weights_and_of_a_tokenizer_that_cannot_decode(tmp_path):
    X, y = load_digits(n_class=2, return_X_y=True)
    images, network = X[:60].reshape(-1, 8, 8) / 16, torch.nn.Conv2d(3, 4, 4, stride=4)
    tokenizer = FeatureTokenizer(network, n_codes=8, random_state=0).fit(images)
    prior = AnyOrderPrior(tokenizer.n_codes_, tokenizer.grid_, 2, 32, 1, 2)
    clf = AnyOrderARClassifier.from_pretrained(prior, tokenizer=tokenizer, n_orders=2)
    page = write_report(clf, images, y[:60], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Confusion</h2>" in page and "<h2>Samples</h2>" not in page


def test_order_curve_of_an_iterator(fitted, digits):
    X, y = digits[2][:20], digits[3][:20]
    baselines = {"same": fitted, "SVC": SVC().fit(X.reshape(20, -1), y)}
    expected = OrderCurveDisplay.from_estimator(fitted, X, y, baselines=baselines)
    found = OrderCurveDisplay.from_estimator(fitted, iter(X), y, baselines=baselines)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.baselines == expected.baselines

"""Arguments are checked before anything is computed; there must be enough samples to hold out."""

import copy
import inspect

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.exceptions import NotFittedError

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, FeatureTokenizer, PatchTokenizer
from skaocls.displays import (
    EvidenceDisplay,
    OrderCurveDisplay,
    ReconstructionDisplay,
    write_report,
)
from skaocls.fitted import fit as fitting
from skaocls.fitted import generation, prediction
from skaocls.order_selection import smallest_n_orders


def make(**params):
    return small_classifier(AnyOrderARClassifier, max_iter=1, augmentation=None, **params)


@pytest.mark.parametrize("params", [{"early_stopping": True}, {"temperature": "auto"}])
def test_too_few_samples(digits, params):
    X = digits[0][:40]
    pairs, clf = np.arange(40) // 2, make(**params)
    with pytest.raises(ValueError, match=r"holds out 4 of 40 samples.* 20 to 20 samples can be"):
        clf.fit(X, pairs)
    clf.set_params(validation_fraction=0.5).fit(X, pairs)
    with pytest.raises(ValueError, match=r"needs at least 2 samples; 40 classes have one\."):
        clf.fit(X, np.arange(40))


def computed(*args, **kwargs):
    raise AssertionError("an argument was checked too late")


OTHER_PRIOR = AnyOrderPrior(9, (4, 4), 3, 32, 1, 2)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"order": np.arange(16)}, r"order has shape \(16,\)"),
        ({"order": [[1, 0, 2, 2]]}, r"order\[0\] is not a permutation of 0 ... 3"),
        ({"prior": {"dim": 40, "n_head": 4}}, "dim=40 must be a multiple of 4"),
        ({"prior": {"architecture": "randar", "dim": 36, "n_head": 6}}, "dim=36 must be a mult"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"n_jobs": 0}, "'n_jobs'"),
        ({"early_stopping": True, "validation_fraction": 0.01}, "holds out 1 of 60 samples"),
        ({"temperature": "auto", "validation_fraction": 0.99}, "holds out 60 of 60 samples"),
        ({"tokenizer": "precomputed", "crop": "views"}, "crop='views' requires images"),
        ({"class_prior": [0.5, 0.5]}, "one probability for each class"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, "is zero for all classes"),
        ({"class_weight": {0: 1, 7: 1}}, "class_weight"),
    ],
    ids=str,
)
def test_fit_checks_its_parameters_first(digits, monkeypatch, params, message):
    X, y = digits[0][:60].astype(int), digits[1][:60]
    monkeypatch.setattr(fitting, "fit_tokenizer", computed)
    with pytest.raises(ValueError, match=message):
        make(**params).fit(X, y)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"order": [np.arange(9)]}, r"order has shape \(1, 9\), but \(n, 16\) is expected"),
        ({"prior": OTHER_PRIOR}, "prior and tokenizer do not match"),
        ({"prior": OTHER_PRIOR, "tokenizer": "precomputed"}, r"\(n, 4, 4\)|codes must be in"),
    ],
    ids=["order", "prior", "tokens"],
)
def test_fit_checks_the_grid_before_it_tokenizes(digits, monkeypatch, params, message):
    X, y = digits[0][:60].astype(int), digits[1][:60]
    monkeypatch.setattr(fitting, "training_tokens", computed)
    with pytest.raises(ValueError, match=message):
        make(**({"tokenizer": PatchTokenizer(2, n_codes=8)} | params)).fit(X, y)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"order": [np.arange(9)]}, r"\(n, 16\) is expected"),
        ({"early_stopping": True, "validation_fraction": 0.01}, "holds out 1 of"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"class_prior": [0.5, 0.5]}, "one probability for each class"),
        ({"temperature": "auto"}, "partial_fit does not support"),
    ],
    ids=str,
)
def test_partial_fit_checks_its_parameters_first(fitted, digits, monkeypatch, params, message):
    X, y = digits[0][:60], digits[1][:60]
    monkeypatch.setattr(fitting, "training_tokens", computed)
    clf = copy.copy(fitted).set_params(**params)
    for labels in (y, y + 1):  # known classes; known and new classes
        with pytest.raises(ValueError, match=message):
            clf.partial_fit(X, labels, classes=range(4) if "class_prior" not in params else None)


def test_feature_tokenizer_checks_the_labels_first():
    calls = []

    def backbone(pixels):
        calls.append(pixels)
        return pixels

    X = np.random.RandomState(0).rand(40, 8, 8)
    with pytest.raises(ValueError, match="y has 39 labels, but X has 40 images"):
        FeatureTokenizer(backbone).fit(X, np.arange(39) % 2)
    assert len(calls) == 1  # to find the size of the feature map


@pytest.fixture
def no_computation(monkeypatch):
    """Let every function that tokenizes, scores or samples raise an AssertionError."""
    for module, names in (
        (prediction, ("encode_part", "score_codes", "explain_piece")),
        (generation, ("encode_data", "generate", "known_token_log_likelihoods")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, computed)


def call(clf, method, *args, **kwargs):
    """Call a method of the classifier; if it is a generator, request the first result."""
    result = getattr(clf, method)(*args, **kwargs)
    return next(result) if inspect.isgenerator(result) else result


def arguments_of(method, digits):
    X, y, mask = digits[2][:4], digits[3][:4], np.eye(8, dtype=bool)
    return {"score": (X, y), "inpaint": (X, mask)}.get(method, (X,))


PREDICTIONS = ("predict", "predict_proba", "predict_log_proba", "predict_joint_log_proba")
SCORES = ("score_samples", "transform")
STAGED = ("staged_predict", "staged_predict_proba")


@pytest.mark.usefixtures("no_computation")
@pytest.mark.parametrize("method", [*PREDICTIONS, *SCORES, *STAGED, "score", "explain", "inpaint"])
@pytest.mark.parametrize(
    "params, message",
    [
        ({"n_orders": 0}, "'n_orders'"),
        ({"order": [np.arange(15)]}, r"\(n, 16\) is expected"),
        ({"class_prior": [1.0, 0.5, 0.0]}, "class_prior must sum to 1"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"n_jobs": 0}, "'n_jobs'"),
    ],
    ids=str,
)
def test_predictions_check_the_parameters_first(fitted, digits, method, params, message):
    with pytest.raises(ValueError, match=message):
        call(copy.copy(fitted).set_params(**params), method, *arguments_of(method, digits))


@pytest.mark.usefixtures("no_computation")
@pytest.mark.parametrize("method", [*PREDICTIONS, *STAGED, "score", "explain", "inpaint"])
@pytest.mark.parametrize("search", ["auto", "exhaustive"])
def test_a_missing_temperature_is_found_first(fitted, digits, method, search):
    clf = copy.copy(fitted).set_params(temperature="auto", search=search)
    with pytest.raises(NotFittedError, match="fit selects the temperature"):
        call(clf, method, *arguments_of(method, digits))


@pytest.mark.usefixtures("no_computation")
@pytest.mark.parametrize(
    "method, args, kwargs, message",
    [
        *(
            (method, args, kwargs, message)
            for method in ("score", "staged_score")
            for args, kwargs, message in [
                (([0, 1, 2],), {}, "inconsistent numbers of samples"),
                ((["a", "b", "a", "b"],), {}, "y has labels of type"),
                (([0.5, 1.5, 1.0, 0.1],), {}, "y has labels of type"),
                (([0, 1, 1, 0], [1.0, 2.0]), {}, "inconsistent numbers of samples"),
                ((None,), {}, "y should be a 1d array"),
            ]
        ),
        ("explain", ([0, 1, 2, 3],), {}, "y has classes that fit has not seen"),
        ("explain", ([0, 1, 2],), {}, "y has 3 labels, but 4"),
        ("explain", (), {"rival": "second"}, "rival has classes that fit has not seen"),
        ("explain", (), {"rival": [0, 1, 2, 9]}, "rival has classes that fit has not seen"),
        ("explain", (), {"rival": [0, 1]}, "rival has 2 labels, but 4"),
        ("inpaint", (np.eye(7, dtype=bool),), {}, "mask has shape"),
        ("inpaint", (np.eye(8),), {}, "mask must be boolean"),
        ("inpaint", (np.eye(8, dtype=bool), [0, 1, 2]), {}, "3 labels"),
        ("inpaint", (np.eye(8, dtype=bool),), {"top_p": 2.0}, "'top_p'"),
        ("inpaint", (np.eye(8, dtype=bool),), {"random_state": "seed"}, "'seed' cannot be used"),
    ],
    ids=str,
)
def test_predictions_check_their_arguments_first(fitted, digits, method, args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        call(fitted, method, digits[2][:4], *args, **kwargs)


@pytest.mark.usefixtures("no_computation")
@pytest.mark.parametrize("method, args", [("sample", ()), ("inpaint", (np.eye(8, dtype=bool),))])
def test_sampling_needs_a_tokenizer_that_decodes(fitted, digits, monkeypatch, method, args):
    monkeypatch.delattr(PatchTokenizer, "inverse_transform")
    with pytest.raises(NotImplementedError, match="has no inverse_transform"):
        call(fitted, method, *((digits[2][:4],) if args else ()), *args)


@pytest.mark.usefixtures("no_computation")
def test_sampling_checks_its_arguments_first(fitted):
    for kwargs, message in (
        ({"n_samples": 2.5}, "'n_samples'"),
        ({"n_samples": 2, "y": [0, 1, 2]}, "3 labels, but 2"),
        ({"y": 5}, "classes that fit has not seen"),
        ({"n_steps": 0}, "'n_steps'"),
        ({"random_state": -1}, "Seed must be"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted.sample(**kwargs)


# Displays and the selection of orders -------------------------------------------------------------


def report(clf, X, y, path, **kwargs):
    return write_report(clf, X, y, path / "report.html", **kwargs)


def order_curve(clf, X, y, path, **kwargs):
    return OrderCurveDisplay.from_estimator(clf, X, y, **kwargs)


def evidence(clf, X, y, path, **kwargs):
    return EvidenceDisplay.from_estimator(clf, X, **kwargs)


def reconstructions(clf, X, y, path, **kwargs):
    return ReconstructionDisplay.from_estimator(clf, X, **kwargs)


def samples(clf, X, y, path, **kwargs):
    return ReconstructionDisplay.from_samples(clf, **kwargs)


def select(clf, X, y, path):
    return smallest_n_orders(clf, X, y)


@pytest.mark.usefixtures("no_computation")
@pytest.mark.parametrize(
    "function, y, kwargs, message",
    [
        *(
            (function, y, {}, message)
            for function in (report, order_curve, select)
            for y, message in (
                ([0, 1, 2], "inconsistent numbers of samples"),
                (list("abcd"), "labels of type"),
                (None, "y should be a 1d array"),
            )
        ),
        (report, [0, 1, 2, 0], {"baselines": {"SVC": "high"}}, "could not convert"),
        (report, [0, 1, 2, 0], {"times": 3}, "unsupported operand"),
        (order_curve, [0, 1, 2, 0], {"baselines": {"SVC": "high"}}, r"baselines\['SVC'\] must be"),
        (order_curve, [0, 1, 2, 0], {"ax": "left"}, "ax must be None"),
        (order_curve, [0, 1, 2, 0], {"colour": "red"}, "colour"),
        (evidence, None, {"n_classes": 0}, "'n_classes'"),
        (evidence, None, {"n_classes": 1.5}, "'n_classes'"),
        (evidence, None, {"significance": "high"}, "'significance'"),
        (evidence, None, {"ax": [None]}, "ax must be None"),
        (evidence, None, {"ax": "axes"}, "ax has 1 axes, but 4 x 4 are needed"),
        (evidence, None, {"ax": "axes", "n_classes": 9, "rival": 1}, "but 4 x 3 are needed"),
        (evidence, None, {"rival": [0, 1, 2, 9]}, "rival has classes that fit has not seen"),
        (evidence, None, {"rival": [0, 1]}, "rival has 2 labels, but 4"),
        (reconstructions, None, {"ax": "axes"}, "ax has 1 axes, but 3 x 4 are needed"),
        (samples, None, {"n_per_class": 0}, "'n_per_class'"),
        (samples, None, {"ax": "axes"}, "ax has 1 axes, but 3 x 8 are needed"),
        (samples, None, {"random_state": "seed"}, "'seed' cannot be used"),
    ],
)
def test_displays_check_their_arguments_first(
    fitted, digits, tmp_path, function, y, kwargs, message
):
    if kwargs.get("ax") == "axes":
        kwargs = kwargs | {"ax": Figure().add_subplot()}
    with pytest.raises((ValueError, TypeError, AttributeError), match=message):
        function(fitted, digits[2][:4], y, tmp_path, **kwargs)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_computation")
@pytest.mark.parametrize("function", [report, order_curve, evidence, samples, select])
def test_displays_check_the_parameters_of_the_classifier_first(fitted, digits, tmp_path, function):
    clf = copy.copy(fitted).set_params(n_orders=0)
    with pytest.raises(ValueError, match="'n_orders'"):
        function(clf, digits[2][:4], [0, 1, 2, 0], tmp_path)


def test_one_image_does_not_select_the_number_of_orders(fitted, digits):
    with pytest.raises(ValueError, match="at least two images"):
        smallest_n_orders(fitted, digits[2][:1], digits[3][:1])

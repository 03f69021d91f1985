"""Arguments are checked before anything is computed; there must be enough samples to hold out."""

import copy

import numpy as np
import pytest

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, FeatureTokenizer, PatchTokenizer
from skaocls.fitted import fit as fitting


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

"""Evidence of tokens agrees with the prior's logits and adds up to log-likelihood ratios."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from test_scoring import make_prior

from skaocls import AnyOrderARClassifier
from skaocls.scoring.evidence import Evidence, token_log_likelihoods


def test_token_log_likelihoods_agree_with_the_prior():
    prior = make_prior(5, (2, 3), 4)
    rng = np.random.RandomState(0)
    codes, orders = rng.randint(5, size=(3, 6)), np.stack([rng.permutation(6) for _ in range(4)])
    labels = np.array([0, 4, 3])
    found = token_log_likelihoods(prior, codes, orders, labels)
    assert found.dtype == np.float64
    for i, k in np.ndindex(3, 4):
        with torch.no_grad():
            inputs = (torch.as_tensor(a)[None] for a in (codes[i], orders[k], labels[i]))
            log_prob = prior(*inputs).log_softmax(-1)[0].numpy()
        expected = np.empty(6)
        expected[orders[k]] = log_prob[np.arange(6), codes[i, orders[k]]]
        np.testing.assert_allclose(found[i, k], expected, atol=1e-5)


def test_evidence_sums_to_the_log_likelihood_ratio(fitted, digits):
    X, y = digits[2][:12], digits[3][:12]
    mean_ll = fitted.predict_joint_log_proba(X) - fitted.class_log_prior_
    rows, columns = np.arange(12), np.searchsorted(fitted.classes_, y)
    rival = fitted.classes_[(columns + 1) % 3]
    evidence = fitted.explain(X, y, rival)
    difference = mean_ll[rows, columns] - mean_ll[rows, (columns + 1) % 3]
    np.testing.assert_allclose(evidence.tokens.sum((1, 2)), difference, atol=1e-4)
    assert evidence.maps.shape == evidence.maps_standard_error.shape == X.shape
    # a token covers 2 x 2 pixels
    np.testing.assert_array_equal(evidence.maps[:, ::2, 1::2], evidence.tokens)
    np.testing.assert_array_equal(evidence.maps_standard_error[:, 1::2, ::2], evidence[1])


def test_runner_up_is_the_second_most_probable_class(fitted, digits):
    X = digits[2][:12]
    joint = fitted.predict_joint_log_proba(X)
    ranked = fitted.classes_[joint.argsort(1)[:, ::-1]]
    expected = fitted.explain(X, ranked[:, 0], ranked[:, 1])
    found = fitted.explain(X, rival="runner-up")
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("given", [False, True])
def test_the_runner_up_is_found_with_all_orders(given):
    """Early stopping finds the best class, but ranks the other classes by few tokens."""
    X, y = load_digits(return_X_y=True)
    params = {"image_shape": (8, 8), "max_iter": 1, "augmentation": None, "n_orders": 6}
    clf = AnyOrderARClassifier(**params, random_state=0).fit(X[:200], y[:200])
    X, y = X[200:250], y[200:250]
    joint = clf.set_params(search="exhaustive").predict_joint_log_proba(X)
    ranked = clf.classes_[(-joint).argsort(1)]
    rival = np.where(ranked[:, 0] == y, ranked[:, 1], ranked[:, 0]) if given else ranked[:, 1]
    expected = clf.explain(X, y if given else ranked[:, 0], rival)
    clf.set_params(search=0.4)
    early = clf.classes_[(-clf.predict_joint_log_proba(X)).argsort(1)]
    assert (early[:, :2] != ranked[:, :2]).any()
    found = clf.explain(X, y if given else None, rival="runner-up")
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_runner_up_of_impossible_classes(fitted, digits):
    X = digits[2][:4]
    clf = copy.copy(fitted).set_params(class_prior=[1.0, 0.0, 0.0])
    found = clf.explain(X, rival="runner-up")
    assert abs(found.tokens.sum((1, 2))).min() > 0  # the rival is another class
    clf.model_ = clf.model_.restricted([1])
    with pytest.raises(ValueError, match="at least two classes"):
        clf.set_params(class_prior=None).explain(X, rival="runner-up")


def test_evidence_without_a_rival_and_its_standard_error(fitted, digits):
    X = digits[2][:3]
    evidence = fitted.explain(X)
    codes = fitted.tokenizer_.transform(X).reshape(3, -1)
    best = fitted.predict_joint_log_proba(X).argmax(1)
    given, null = (
        token_log_likelihoods(fitted.prior_, codes, fitted.orders_, labels)
        for labels in (fitted.model_.rows[best], np.full(3, fitted.prior_.num_classes))
    )
    difference = (given - null).reshape(3, 4, 4, 4)
    np.testing.assert_allclose(evidence.tokens, difference.mean(1), atol=1e-6)
    np.testing.assert_allclose(
        evidence.standard_error, difference.std(1, ddof=1) / np.sqrt(4), atol=1e-6
    )


def test_unknown_classes(fitted, digits):
    with pytest.raises(ValueError, match="y has classes that fit has not seen"):
        fitted.explain(digits[2][:2], [0, 7])
    with pytest.raises(ValueError, match="rival has classes that fit has not seen"):
        fitted.explain(digits[2][:2], 0, rival=3)
    with pytest.raises(ValueError, match="y has 3 labels, but 2 are expected"):
        fitted.explain(digits[2][:2], [0, 1, 1])
    with pytest.raises(ValueError, match="rival has 1 labels, but 2 are expected"):
        fitted.explain(digits[2][:2], rival=[1])


def test_one_class_for_all_images(fitted, digits):
    X = digits[2][:5]
    expected = fitted.explain(X, np.full(5, 2), rival=np.full(5, 1)).tokens
    for two, one in ((2, 1), (np.array(2), np.uint8(1)), (torch.tensor(2), 1.0)):
        np.testing.assert_array_equal(fitted.explain(X, two, rival=one).tokens, expected)
    clf = copy.copy(fitted)
    clf.model_ = replace(clf.model_, classes=np.array(["ant", "bee", "cat"]))
    np.testing.assert_array_equal(clf.explain(X, "cat", rival="bee").tokens, expected)
    assert clf.sample(2, "cat", random_state=0).shape == (2, 8, 8)


def test_evidence_has_a_short_repr(fitted, digits):
    text = repr(fitted.explain(digits[2][:5], 1))
    assert text.startswith("Evidence(tokens of shape (5, 4, 4), ")
    assert "maps of shape (5, 8, 8)" in text and len(text) < 200
    assert "maps" not in repr(Evidence(np.ones((2, 1, 90)), np.ones((2, 1, 90))))

"""Temperature scaling: by hand, by simulation and on held-out digits."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.exceptions import NotFittedError

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.scoring.aggregation import AGGREGATIONS
from skaocls.scoring.calibration import expected_calibration_error, fit_temperature


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("true", [0.5, 3.0])
def test_recovers_the_true_temperature(true, aggregation):
    rng = np.random.default_rng(0)
    ll = rng.normal(0, 4, size=(4000, 1, 5))  # with one order, all aggregations agree
    log_prior = np.log([0.1, 0.2, 0.2, 0.2, 0.3])
    proba = softmax(ll[:, 0] / true + log_prior, axis=1)
    labels = (proba.cumsum(1) < rng.random((4000, 1))).sum(1)
    assert fit_temperature(ll, labels, log_prior, aggregation) == pytest.approx(true, rel=0.07)


def test_calibration_error_of_calibrated_and_overconfident_probabilities():
    rng = np.random.default_rng(0)
    proba = softmax(rng.normal(0, 2, size=(20_000, 4)), axis=1)
    labels = (proba.cumsum(1) < rng.random((20_000, 1))).sum(1)
    assert expected_calibration_error(proba, labels) < 0.015
    sure = np.eye(4)[proba.argmax(1)]
    missed = np.mean(proba.argmax(1) != labels)
    assert expected_calibration_error(sure, labels) == pytest.approx(missed)


def test_temperature_without_errors_and_with_one_class():
    ll = np.array([[[5.0, 0.0]], [[0.0, 3.0]]])
    # two correct labels of two count as three of four
    t = fit_temperature(ll[:1].repeat(2, 0), [0, 0], np.log([0.5, 0.5]), "mean_log_likelihood")
    assert np.exp(5 / t) == pytest.approx(3, rel=1e-3)
    assert fit_temperature(ll[..., :1], [0, 0], np.zeros(1), "mean_log_likelihood") == 1.0


def test_temperature_divides_log_likelihoods(fitted, digits):
    X = digits[2][:20]
    before = fitted.get_params()
    log_prior = fitted.class_log_prior_
    mean_ll = fitted.predict_joint_log_proba(X) - log_prior
    likelihood = fitted.score_samples(X)
    try:
        fitted.set_params(temperature=7.0)
        assert fitted.temperature_ == 7.0
        expected = log_softmax(mean_ll / 7 + log_prior, axis=1)
        np.testing.assert_allclose(fitted.predict_log_proba(X), expected, atol=1e-6)
        np.testing.assert_array_equal(
            fitted.predict(X), fitted.classes_[(mean_ll / 7 + log_prior).argmax(1)]
        )
        np.testing.assert_allclose(fitted.score_samples(X), likelihood)
        fitted.set_params(search="auto")
        np.testing.assert_array_equal(fitted.predict_log_proba(X).argmax(1), expected.argmax(1))
        fitted.set_params(temperature="auto")
        with pytest.raises(NotFittedError, match="but fit selects the temperature"):
            fitted.predict(X)
    finally:
        fitted.set_params(**before)


def test_automatic_temperature_improves_calibration(digits, tmp_path):
    X, y, X_test, y_test = digits
    clf = small_classifier(AnyOrderARClassifier, temperature="auto", validation_fraction=0.3)
    clf.fit(X, y)
    columns = np.searchsorted(clf.classes_, y_test)
    calibrated = clf.predict_log_proba(X_test)
    restored_from = tmp_path / "saved"
    clf.save_pretrained(restored_from)
    restored = AnyOrderARClassifier.from_pretrained(restored_from)
    assert restored.temperature_ == clf.temperature_
    np.testing.assert_array_equal(restored.predict_log_proba(X_test), calibrated)
    raw = clf.set_params(temperature=1.0).predict_log_proba(X_test)
    rows = np.arange(len(columns))
    assert -calibrated[rows, columns].mean() <= -raw[rows, columns].mean() + 0.02


def test_classes_with_zero_probability_are_ignored():
    ll = np.log(np.random.RandomState(0).dirichlet([1, 1, 1], size=(50, 2)))
    labels = np.random.RandomState(1).randint(3, size=50)
    some = labels != 1
    with np.errstate(divide="ignore"):
        log_prior = np.log([0.3, 0.0, 0.7])
    found = fit_temperature(ll, labels, log_prior, "mean_log_likelihood")
    expected = fit_temperature(
        ll[some][..., [0, 2]], labels[some] // 2, log_prior[[0, 2]], "mean_log_likelihood"
    )
    assert found == expected
    with np.errstate(divide="ignore"):
        sure = np.log([0.0, 1.0, 0.0])
    assert fit_temperature(ll, labels, sure, "mean_log_likelihood") == 1.0
    assert fit_temperature(ll[some], labels[some], sure, "mean_posterior") == 1.0


def test_impossible_images_are_ignored():
    ll = np.log(np.random.RandomState(0).dirichlet([1, 1, 1], size=(50, 2)))
    labels = np.random.RandomState(1).randint(3, size=50)
    log_prior = np.log([0.2, 0.3, 0.5])
    expected = fit_temperature(ll, labels, log_prior, "mean_log_likelihood")
    ll = np.concatenate([ll, np.full((2, 2, 3), -np.inf)])
    found = fit_temperature(ll, [*labels, 0, 2], log_prior, "mean_log_likelihood")
    assert found == pytest.approx(expected, rel=1e-6)
    # the other class is impossible, so the prediction is right at any temperature
    sure = np.array([[[0.0, -np.inf]]]), np.array([0])
    ll = np.concatenate([np.log([[[9.0, 1.0]]] * 10), *sure[:1] * 2])
    found = fit_temperature(ll, [0] * 7 + [1] * 3 + [0, 0], np.log([0.5, 0.5]), "logsumexp")
    assert 0.5 < found < 4


def test_sample_weight_equals_repetition():
    ll = np.log(np.random.RandomState(0).dirichlet([1, 1, 1], size=(30, 2)))
    labels = np.random.RandomState(1).randint(3, size=30)
    weights = np.random.RandomState(2).randint(1, 4, size=30)
    log_prior = np.log([0.2, 0.3, 0.5])
    found = fit_temperature(ll, labels, log_prior, "mean_posterior", weights)
    many = np.repeat(ll, weights, 0), np.repeat(labels, weights)
    assert found == pytest.approx(fit_temperature(*many, log_prior, "mean_posterior"), rel=1e-6)


def test_calibration_error_by_hand():
    # confidences 0.3, 0.3, 0.55 and 1.0 in four bins; the first and the last are right
    proba = [[0.3, 0.2, 0.25, 0.25], [0.3, 0.2, 0.25, 0.25], [0.45, 0.55, 0, 0], [0, 0, 0, 1.0]]
    labels = [0, 1, 0, 3]
    expected = (abs(0.6 - 1) + abs(0.55 - 0) + 0) / 4
    assert expected_calibration_error(proba, labels, n_bins=4) == pytest.approx(expected)
    assert expected_calibration_error(proba, labels, n_bins=1) == pytest.approx(abs(2.15 - 2) / 4)
    assert expected_calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1]) == pytest.approx(0.3)
    # 0.9 (right) and 1.0 (wrong) are both in the last bin
    last = expected_calibration_error([[0.9, 0.1], [1.0, 0.0]], [0, 1], n_bins=4)
    assert last == pytest.approx((0.9 + 1.0 - 1) / 2)

"""The first-order screen: exact where it must be, of second order elsewhere, and safe in a race."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from test_racing import made_up
from test_scoring import make_prior

from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.racing import race
from skaocls.scoring.screening import COST, N_ANCHORS, find_anchors, first_order, survivors


@pytest.fixture
def prior():
    return make_prior(5, (2, 3), 12)


def exact_and_estimate(prior, n_anchors):
    codes, orders = made_up(4, 1, 6, 5)
    exact = log_likelihoods(prior, codes, orders, np.arange(12))[:, 0]
    anchors = find_anchors(prior, torch.arange(12), n_anchors)
    estimate = first_order(prior, torch.from_numpy(codes), torch.from_numpy(orders[0]), anchors)
    return exact, estimate.numpy()


def test_a_class_that_is_its_own_anchor_is_exact(prior):
    exact, estimate = exact_and_estimate(prior, 12)
    assert_allclose(estimate, exact, atol=1e-4)


def test_the_error_is_of_second_order(prior):
    errors = []
    middle = prior.class_table.detach().mean(0)
    directions = prior.class_table.detach() - middle
    for distance in (0.02, 0.01):
        near = copy.deepcopy(prior)
        with torch.no_grad():
            near.class_table.copy_(middle + distance * directions)
        exact, estimate = exact_and_estimate(near, 1)
        spread = exact - exact.mean(1, keepdims=True)
        guess = estimate - estimate.mean(1, keepdims=True)
        errors.append(np.abs(spread - guess).max() / np.abs(spread).max())
    # an error of second order halves beside differences of first order
    assert errors[0] < 0.2
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.3)


def test_survivors_are_the_best_by_estimate_and_prior(prior):
    codes, orders = made_up(4, 1, 6, 5)
    log_prior = np.linspace(-9, 0, 12)
    kept, score = survivors(prior, codes, orders[0], np.arange(12), log_prior, 3)
    assert_array_equal(kept.sum(1), 3)
    for row, chosen in zip(score, kept):
        assert row[chosen].min() >= row[~chosen].max()
    none, plain = survivors(prior, codes, orders[0], np.arange(12), np.zeros(12), 12)
    assert none.all()
    assert_allclose(score - plain, np.tile(log_prior, (4, 1)), atol=1e-5)


@pytest.mark.parametrize("crops", [False, True])
def test_a_race_of_survivors(prior, crops):
    codes, orders = made_up(5, 3, 6, 5)
    if crops:
        codes = np.random.RandomState(1).randint(5, size=(5, 3, 6))
    log_prior = np.log(np.full(12, 1 / 12))
    exact = log_likelihoods(prior, codes, orders, np.arange(12))
    found = race(prior, codes, orders, np.arange(12), log_prior, error=1e-12, screen=4)
    first = codes[:, 0] if crops else codes
    kept, score = survivors(prior, first, orders[0], np.arange(12), log_prior, 4)
    for i in range(5):
        assert_allclose(found.log_likelihood[i][:, kept[i]], exact[i][:, kept[i]], atol=1e-4)
        lag = score[i].max() - score[i][~kept[i]]
        leader = found.log_likelihood[i][:, [score[i].argmax()]]
        assert_allclose(found.log_likelihood[i][:, ~kept[i]], leader - lag, atol=1e-4)
    assert_array_equal(found.evaluations, 4 * 3 * 6 + COST * N_ANCHORS * 6)
    whole = race(prior, codes, orders, np.arange(12), log_prior)
    same = race(prior, codes, orders, np.arange(12), log_prior, screen=12)
    assert_array_equal(same.log_likelihood, whole.log_likelihood)


@pytest.mark.parametrize("screen", [None, 2])
def test_impossible_classes(fitted, digits, screen):
    X = digits[2][:30]
    clf = copy.deepcopy(fitted).set_params(search="racing", racing_screen=screen, racing_error=1e-6)
    clf.class_log_prior_ = np.log([0.5, 0.5, 1.0])
    clf.class_log_prior_[2] = -np.inf
    proba = clf.predict_proba(X)
    assert (proba[:, 2] == 0).all()
    assert_allclose(proba.sum(1), 1)
    assert_array_equal(proba.argmax(1), clf.set_params(search="exhaustive").predict(X))

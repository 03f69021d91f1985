"""Racing against exhaustive scoring, and its rules against hand-computed cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from test_scoring import make_prior

from skaocls import AnyOrderARClassifier
from skaocls.scoring import engine, racing
from skaocls.scoring.aggregation import AGGREGATIONS
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.racing import Lanes, fill, lags, race

NEVER, OFTEN = 1e-12, 0.05


def made_up(n_images, n_orders, n_tokens, n_codes, seed=0):
    rng = np.random.RandomState(seed)
    orders = np.stack([rng.permutation(n_tokens) for _ in range(n_orders)])
    return rng.randint(n_codes, size=(n_images, n_tokens)), orders


@settings(max_examples=15, deadline=None)
@given(
    grid=st.tuples(st.integers(2, 3), st.integers(2, 4)),
    n_classes=st.integers(1, 6),
    n_orders=st.integers(1, 3),
    n_images=st.integers(1, 4),
    n_layer=st.integers(1, 3),
    cache=st.sampled_from([0, 1500, 2**28]),
    seed=st.integers(0, 100),
)
def test_without_exits_it_is_exhaustive(grid, n_classes, n_orders, n_images, n_layer, cache, seed):
    prior = make_prior(5, grid, n_classes, seed, n_layer)
    codes, orders = made_up(n_images, n_orders, grid[0] * grid[1], 5, seed)
    labels, log_prior = np.arange(n_classes), np.log(np.full(n_classes, 1 / n_classes))

    def endless(*args):  # no bound is so wide that chance never passes it
        lag, bound, leader = lags(*args)
        return lag, torch.full_like(bound, torch.inf), leader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(racing, "CACHE_BYTES", cache)
        patch.setattr(racing, "lags", endless)
        found = race(prior, codes, orders, labels, log_prior, error=NEVER)
    exact = log_likelihoods(prior, codes, orders, labels)
    if n_classes == 1:  # has won after one order
        exact = np.repeat(exact[:, :1], n_orders, 1)
        n_orders = 1
    assert_allclose(found.log_likelihood, exact, atol=1e-5)
    assert (found.evaluations >= n_orders * n_classes * codes.shape[1]).all()
    if cache == 2**28:
        assert (found.evaluations == n_orders * n_classes * codes.shape[1]).all()


def test_what_was_read_is_exact_and_the_rest_follows_the_leader():
    prior = make_prior(9, (4, 4), 30)
    codes, orders = made_up(20, 5, 16, 9)
    log_prior = np.log(np.random.RandomState(1).dirichlet(np.ones(30)))
    exact = log_likelihoods(prior, codes, orders, np.arange(30))
    found = race(prior, codes, orders, np.arange(30), log_prior, error=OFTEN)
    assert np.isfinite(found.log_likelihood).all()
    assert found.evaluations.mean() < 0.4 * 5 * 30 * 16
    joint = found.log_likelihood.mean(1) + log_prior
    winner = joint.argmax(1)
    # the first order was read to its end by whoever was still there, the winner among them
    read = found.log_likelihood[np.arange(20), 0, winner]
    assert_allclose(read, exact[np.arange(20), 0, winner], atol=1e-5)
    agreement = np.mean(winner == (exact.mean(1) + log_prior).argmax(1))
    assert agreement >= 0.8
    careful = race(prior, codes, orders, np.arange(30), log_prior, error=1e-4)
    assert (careful.evaluations >= found.evaluations).all()
    careful_winner = (careful.log_likelihood.mean(1) + log_prior).argmax(1)
    assert (careful_winner == (exact.mean(1) + log_prior).argmax(1)).all()


def test_an_image_does_not_depend_on_its_company(monkeypatch):
    prior = make_prior(9, (3, 3), 12)
    codes, orders = made_up(13, 4, 9, 9)
    log_prior = np.log(np.full(12, 1 / 12))
    together = race(prior, codes, orders, np.arange(12), log_prior, error=OFTEN)
    alone = [race(prior, c[None], orders, np.arange(12), log_prior, error=OFTEN) for c in codes]
    assert_allclose(
        np.concatenate([r.log_likelihood for r in alone]), together.log_likelihood, atol=1e-5
    )
    assert (np.concatenate([r.evaluations for r in alone]) == together.evaluations).all()
    monkeypatch.setattr(racing, "LANES_STARTED", 12 * 5)
    some = race(prior, codes, orders, np.arange(12), log_prior, error=OFTEN)
    assert_allclose(some.log_likelihood, together.log_likelihood, atol=1e-5)


def test_walds_bound_by_hand():
    # of 8 tokens class 1 leads by 1 + 2 + 6 nats in the first 3; then, in a second image, by more
    log_prob = torch.tensor([[-3.0, -3, -7], [-2, -1, -1], [-2, -31, -3], [-1, -1, -1]])
    lanes = Lanes(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), log_prob)
    log_prior = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    lag, bound, leader = lags(lanes, log_prior, n_tokens=4, population=8, error=1e-4)
    assert_allclose(lag, [9 - np.log(3), 0, 33 - np.log(3), 0], atol=1e-6)
    # log(1 / error), but two standard errors at least
    standard_error = np.std([1, 30, 2], ddof=1) * np.sqrt(3 * 5 / 8)
    wald = np.log(1 / 1e-4)
    assert_allclose(bound, [wald, wald, 2 * standard_error, wald], rtol=1e-5)
    assert leader.tolist() == [1, 1, 1, 1]
    many = torch.full((101,), 1 / 101, dtype=torch.float64).log()
    _, bound, _ = lags(lanes, many, n_tokens=4, population=8, error=1e-3)
    assert_allclose(bound[0], np.log(100 / 1e-3))


def test_students_bound_by_hand():
    # a token more than an order: nats per order, and the smaller of both bounds
    log_prob = torch.tensor([[-3.0, -3, -7, -1, -1], [-2, -1, -1, -2, -2]])
    lanes = Lanes(torch.tensor([0, 0]), torch.tensor([0, 1]), log_prob)
    log_prior = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    lag, bound, _ = lags(lanes, log_prior, n_tokens=4, population=8, error=0.01)
    assert_allclose(lag, [7 * 4 / 5 - np.log(3), 0], atol=1e-6)
    standard_error = np.std([1, 2, 6, -1, -1], ddof=1) * np.sqrt(5 * 3 / 8) * 4 / 5
    assert 2 * standard_error > np.log(1 / 0.01)
    assert_allclose(bound[0], 2 * standard_error, rtol=1e-5)
    # 2.77645 is Student's 97.5 % quantile with 4 degrees of freedom
    _, bound, _ = lags(lanes, log_prior, n_tokens=4, population=2000, error=0.025)
    standard_error = np.std([1, 2, 6, -1, -1], ddof=1) * np.sqrt(5 * 1995 / 2000) * 4 / 5
    assert_allclose(bound[0], min(2.77645, 2) * standard_error, rtol=1e-5)
    close = lanes._replace(log_prob=lanes.log_prob / 10)
    _, bound, _ = lags(close, torch.zeros(2).double(), n_tokens=4, population=2000, error=0.025)
    assert_allclose(bound[0], 2.77645 * standard_error / 10, rtol=1e-5)


def test_the_error_of_a_lag_where_each_order_reads_its_own_tokens():
    """No less than that of a mean of three whole readings; a fourth has begun."""
    log_prob = torch.tensor([[-3.0, -4, -30, -3, -5, -4, -9], [-2.0, -2, -1, -1, -1, -1, -1]])
    lanes = Lanes(torch.tensor([0, 0]), torch.tensor([0, 1]), log_prob)
    how = torch.zeros(2).double(), 2, 8  # tokens of an order, and of all four
    _, alike, _ = lags(lanes, *how, error=0.01)
    _, bound, _ = lags(lanes, *how, error=0.01, differ=True)
    of_tokens = np.std([1, 2, 29, 2, 4, 3, 8], ddof=1) * np.sqrt(7 / 8) * 2 / 7
    of_readings = np.std([1 + 2, 29 + 2, 4 + 3], ddof=1) * np.sqrt(1 / 8 / 3)
    assert of_readings > of_tokens
    assert_allclose(
        [alike[0], bound[0]], np.maximum(np.log(100), 2 * np.array([of_tokens, of_readings]))
    )
    more = lanes._replace(log_prob=log_prob * 10)
    _, alike, _ = lags(more, *how, error=0.01)
    _, bound, _ = lags(more, *how, error=0.01, differ=True)
    assert_allclose([alike[0], bound[0]], 20 * np.array([of_tokens, of_readings]), rtol=1e-5)


def test_fill_by_hand():
    nan = np.nan
    ll = torch.tensor([[[-5.0, -7.0, nan], [-6.0, nan, nan], [nan, nan, nan]]]).double()
    log_prior = torch.zeros(3, dtype=torch.float64)
    one = torch.tensor
    exits = [  # class 2 left first, 4 behind class 1, which left 2.5 behind class 0
        (one([0]), one([2]), one([1]), one([4.0], dtype=torch.float64)),
        (one([0]), one([1]), one([0]), one([2.5], dtype=torch.float64)),
    ]
    expected = [[-5, -7, -11], [-6, -8.5, -12.5], [-5.5, -8, -12]]
    assert_allclose(fill(ll, exits, log_prior)[0], expected)


def test_out_of_memory_halves_the_tile(monkeypatch):
    prior = make_prior(5, (2, 2), 30)
    codes, orders = made_up(3, 2, 4, 5)
    log_prior = np.log(np.full(30, 1 / 30))
    expected = race(prior, codes, orders, np.arange(30), log_prior)
    read = engine.Engine.read

    def small_device(self, pairs, pair, *args, **kwargs):
        if len(pair) > 10:
            raise torch.OutOfMemoryError("made up")
        return read(self, pairs, pair, *args, **kwargs)

    monkeypatch.setattr(engine.Engine, "read", small_device)
    found = race(prior, codes, orders, np.arange(30), log_prior)
    assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-5)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits().images, load_digits().target
    clf = AnyOrderARClassifier("randar", max_iter=15, augmentation=None, random_state=0)
    return clf.fit(X[:1200], y[:1200]), X[1200:]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_racing_saves_most_of_the_work_on_digits(digits):
    clf, X = digits
    exact, stats = clf.set_params(search="exhaustive").predict_joint_log_proba(X, return_stats=True)
    assert (stats["evaluations"] == stats["exhaustive_evaluations"]).all()
    clf.set_params(search="racing")
    joint, stats = clf.predict_joint_log_proba(X, return_stats=True)
    assert np.mean(joint.argmax(1) == exact.argmax(1)) >= 0.995
    assert stats["evaluations"].mean() * 3 <= stats["exhaustive_evaluations"]
    assert stats["exhaustive_evaluations"] == 20 * 10 * 16


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_posteriors_of_a_race(digits, aggregation):
    clf, X = digits
    clf.set_params(aggregation=aggregation, search="exhaustive")
    exact = clf.predict_proba(X[:200])
    proba = clf.set_params(search="racing").predict_proba(X[:200])
    clf.set_params(aggregation="mean_log_likelihood")
    assert_allclose(proba.sum(1), 1)
    assert np.mean(proba.argmax(1) == exact.argmax(1)) >= 0.98
    # who left keeps what it had: nothing becomes impossible
    assert (proba > 0).all()
    assert np.abs(proba - exact).mean() < 0.01


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_bad_parameters(digits):
    clf, X = digits
    with pytest.raises(ValueError, match="'search' parameter"):
        clf.set_params(search="beam").predict(X)
    clf.set_params(search="racing")
    with pytest.raises(ValueError, match="'racing_error' parameter"):
        clf.set_params(racing_error=0.0).predict(X)
    clf.set_params(racing_error=1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("error", [NEVER, OFTEN])
def test_cuda_equals_cpu(error):
    prior = make_prior(9, (3, 4), 12)
    codes, orders = made_up(6, 4, 12, 9)
    log_prior = np.log(np.full(12, 1 / 12))
    cpu = race(prior, codes, orders, np.arange(12), log_prior, error=error)
    gpu = race(prior.cuda(), codes, orders, np.arange(12), log_prior, error=error)
    assert_allclose(gpu.log_likelihood, cpu.log_likelihood, atol=1e-3)

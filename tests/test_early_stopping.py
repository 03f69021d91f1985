"""Early stopping: against exhaustive scoring, and against the rules written out naively."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from test_scoring import make_prior
from test_shared_trunk import make_prior as make_shared_prior

from skaocls import AnyOrderARClassifier, SharedTrunkPrior
from skaocls.scoring import early_stopping, engine, token_scores
from skaocls.scoring.early_stopping import Comparison, score_until_decided
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.token_sampling import generate

NEVER, OFTEN = 1e-12, 0.05
MAKE = {"randar": make_prior, "shared_trunk": make_shared_prior}
both = pytest.mark.parametrize("architecture", MAKE)


def random_orders(n_orders, n_tokens, seed=0):
    rng = np.random.RandomState(seed)
    return np.stack([rng.permutation(n_tokens) for _ in range(n_orders)])


def sampled(prior, n_images, n_orders, n_classes):
    """Codes sampled from the prior, so that classes differ, and orders."""
    orders = random_orders(n_orders, prior.n_tokens)
    labels = np.arange(n_images) % n_classes
    return generate(prior, labels, np.repeat(orders[:1], n_images, 0), seed=0), orders


def token_log_prob(prior, codes, orders, n_classes):
    """log p(token | class, order) in the order of reading, (n_images, n_orders, n_tokens, C)."""
    views = codes if codes.ndim == 3 else np.repeat(codes[:, None], len(orders), 1)
    tokens = np.empty((*views.shape, n_classes))
    with torch.inference_mode():
        for k, order in enumerate(orders):
            for label in range(n_classes):
                args = views[:, k], order[None], np.full(len(views), label)
                log_prob = prior.log_prob(*(torch.as_tensor(a, device=prior.device) for a in args))
                tokens[:, k, :, label] = log_prob.cpu()
    return tokens


def bound_over_views(differences, n_orders, error):
    """Student's bound, with the pooled variance of k orders (k, n_tokens) and of their tokens."""
    k, n_tokens = differences.shape
    from_tokens = 0.7**2 * n_tokens * differences.var(ddof=1)
    pooled = (30 * from_tokens + (k - 1) * differences.sum(1).var(ddof=1)) / (30 + k - 1)
    return stats.t.isf(error, 30 + k - 1) * np.sqrt(pooled / k * (1 - k / n_orders))


def naive(tokens, log_prior, error, stops, views=False, together=False):
    """Apply the rules to one image.

    `tokens` is (n_orders, n_tokens, n_classes), `stops` are the checkpoints of the first order.
    Returns the number of complete orders, and log-likelihoods (n_orders, n_classes) as estimated.
    """
    n_orders, n_tokens, n_classes = tokens.shape
    flat, population = tokens.reshape(-1, n_classes), n_orders * n_tokens
    ll = np.full((n_orders, n_classes), np.nan)
    active, dropped = set(range(n_classes)), []
    for m in [*stops, *range(2 * n_tokens, population + 1, n_tokens)]:
        n_read, orders_seen = m // n_tokens, max(1, m / n_tokens)
        if m % n_tokens == 0:
            ll[n_read - 1, list(active)] = tokens[n_read - 1].sum(0)[list(active)]
        if (2 * n_tokens if views else 2) <= m < population:
            mean = flat[:m].sum(0) / orders_seen
            score = mean + log_prior
            leader = max(active, key=lambda c: score[c])
            leaving = []
            for c in active - {leader}:
                d = flat[:m, leader] - flat[:m, c]
                spread = d.std(ddof=1) * np.sqrt(m * (1 - m / population)) / orders_seen
                bound = max(np.log((n_classes - 1) / error), 2 * spread)
                if m >= n_tokens:
                    bound = min(bound, stats.t.isf(error, m - 1) * spread)
                if views:
                    bound = bound_over_views(d.reshape(n_read, n_tokens), n_orders, error)
                if score[leader] - score[c] > bound:
                    leaving.append((c, leader, mean[leader] - mean[c]))
            if not together or len(leaving) == len(active) - 1:
                dropped += leaving
                active -= {c for c, *_ in leaving}
        if len(active) == 1 and n_read:
            break
    for c in active:
        ll[n_read:, c] = ll[:n_read, c].mean()
    for c, leader, gap in reversed(dropped):
        ll[:, c] = np.where(np.isnan(ll[:, c]), ll[:, leader] - gap, ll[:, c])
    return n_read, ll


@pytest.mark.parametrize("error", [0.1, 1e-4])
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("n_classes", [2, 5, 40])
@both
def test_the_rules(architecture, n_classes, views, error):
    prior = MAKE[architecture](9, (3, 4), n_classes)
    codes, orders = sampled(prior, 12, 6, n_classes)
    shared = architecture == "shared_trunk"
    together = shared and n_classes < early_stopping.DROP_FROM
    if views:
        noise = np.random.RandomState(0).randint(9, size=(12, 6, 12))
        kept = np.random.RandomState(1).uniform(size=noise.shape) < 0.7
        codes = np.where(kept, codes[:, None], noise)
    log_prior = np.log(np.random.RandomState(1).dirichlet(np.ones(n_classes)))
    result = score_until_decided(prior, codes, orders, np.arange(n_classes), log_prior, error=error)
    stops = [2, 3, 6, 12] if shared else [1, 2, 3, 4, 6, 12]
    if views or together:
        stops = [12]
    expected = [
        naive(tokens, log_prior, error, stops, views, together)
        for tokens in token_log_prob(prior, codes, orders, n_classes)
    ]
    assert_allclose(result.log_likelihood, [ll for _, ll in expected], atol=2e-5)
    if shared:
        assert_array_equal(result.evaluations, [12 * n_read for n_read, _ in expected])


@settings(max_examples=15, deadline=None)
@given(
    architecture=st.sampled_from(sorted(MAKE)),
    grid=st.tuples(st.integers(1, 3), st.integers(2, 4)),
    n_classes=st.integers(2, 6),
    n_orders=st.integers(1, 3),
    n_images=st.integers(1, 4),
    cache=st.sampled_from([0, 1500, 2**28]),
    kept=st.sampled_from([1, 2**9, 2**26]),
    seed=st.integers(0, 100),
)
def test_without_drops_it_is_exhaustive(
    architecture, grid, n_classes, n_orders, n_images, cache, kept, seed
):
    prior = MAKE[architecture](5, grid, n_classes, seed)
    n_tokens = grid[0] * grid[1]
    codes = np.random.RandomState(seed).randint(5, size=(n_images, n_tokens))
    orders, labels = random_orders(n_orders, n_tokens, seed), np.arange(n_classes)

    def endless(self, image, leader, m):
        return torch.full((len(image), n_classes), torch.inf, dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_scores, "CACHE_BYTES", cache)
        patch.setattr(early_stopping, "KEPT_NUMBERS", kept)
        patch.setattr(Comparison, "_bound", endless)
        result = score_until_decided(prior, codes, orders, labels, np.zeros(n_classes))
    exact = log_likelihoods(prior, codes, orders, labels)
    assert_allclose(result.log_likelihood, exact, atol=1e-5)
    assert (result.evaluations == n_orders * prior.readings(n_classes) * n_tokens).all()


@pytest.mark.parametrize("n_classes", [3, 41])
@pytest.mark.parametrize("grid", [(3, 4), (7, 7)])
def test_a_shared_trunk_reads_what_exhaustive_scoring_reads_bit_for_bit(grid, n_classes):
    prior = make_shared_prior(20, grid, n_classes)
    codes, orders = sampled(prior, 30, 8, n_classes)
    labels, log_prior = np.arange(n_classes), np.zeros(n_classes)
    result = score_until_decided(prior, codes, orders, labels, log_prior, error=0.1)
    exact = log_likelihoods(prior, codes, orders, labels)
    for ll, exact_ll, n in zip(
        result.log_likelihood, exact, result.evaluations // prior.n_tokens, strict=True
    ):
        winner = ll.mean(0).argmax()
        assert_array_equal(ll[:n, winner], exact_ll[:n, winner])
        if n_classes == 3:
            assert_array_equal(ll[:n], exact_ll[:n])
            assert_allclose(ll.mean(0), exact_ll[:n].mean(0), rtol=1e-12)
    equal = (result.log_likelihood == exact).mean()
    assert 0.01 < equal < 0.99


@both
def test_an_image_does_not_depend_on_its_batch(architecture, monkeypatch):
    n_classes = 40
    prior = MAKE[architecture](9, (3, 3), n_classes)
    codes, orders = sampled(prior, 33, 5, n_classes)
    args = orders, np.arange(n_classes), np.zeros(n_classes)
    whole = score_until_decided(prior, codes, *args, error=OFTEN)
    rows = np.random.RandomState(0).permutation(33)[:13]
    parts = [score_until_decided(prior, codes[rows], *args, error=OFTEN)]
    parts += [score_until_decided(prior, codes[[i]], *args, error=OFTEN) for i in (0, 30)]
    monkeypatch.setattr(early_stopping, "KEPT_NUMBERS", 5 * 45 * n_classes)
    parts += [score_until_decided(prior, codes, *args, error=OFTEN)]
    equal = assert_array_equal if architecture == "shared_trunk" else assert_allclose
    for images, part in zip((rows, [0], [30], slice(None)), parts, strict=True):
        equal(part.log_likelihood, whole.log_likelihood[images])
        assert_array_equal(part.evaluations, whole.evaluations[images])


@both
def test_smaller_errors_read_more_and_agree_with_exhaustive_scoring(architecture):
    n_classes = 40
    prior = MAKE[architecture](9, (4, 4), n_classes)
    codes, orders = sampled(prior, 40, 6, n_classes)
    log_prior = np.log(np.random.RandomState(1).dirichlet(np.ones(n_classes)))
    args = prior, codes, orders, np.arange(n_classes), log_prior
    expected = (log_likelihoods(*args[:4]).mean(1) + log_prior).argmax(1)
    often, careful = (score_until_decided(*args, error=error) for error in (OFTEN, 1e-5))
    assert (careful.evaluations >= often.evaluations).all()
    assert careful.evaluations.sum() > often.evaluations.sum()
    for result, agreement in ((often, 0.9), (careful, 1.0)):
        found = (result.log_likelihood.mean(1) + log_prior).argmax(1)
        assert (found == expected).mean() >= agreement
    assert np.isfinite(often.log_likelihood).all()


@both
def test_one_view_does_not_decide(architecture):
    """The first of twelve views is that of an image of another class."""
    prior = MAKE[architecture](9, (4, 4), 3)
    codes, orders = sampled(prior, 30, 12, 3)
    views = np.repeat(codes[:, None], 12, 1)
    views[:, 0] = np.roll(codes, 1, 0)
    labels, log_prior = np.arange(3), np.zeros(3)
    exact = log_likelihoods(prior, views, orders, labels)
    misled = exact[:, 0].argmax(1) != exact.mean(1).argmax(1)
    assert misled.sum() > 5
    result = score_until_decided(prior, views, orders, labels, log_prior)
    assert (result.evaluations >= 2 * 16).all()
    assert_array_equal(result.log_likelihood.mean(1).argmax(1), exact.mean(1).argmax(1))


@both
def test_impossible_and_single_classes(architecture):
    prior = MAKE[architecture](9, (3, 3), 3)
    codes, orders = sampled(prior, 20, 5, 3)
    exact = log_likelihoods(prior, codes, orders, np.arange(3))
    with np.errstate(divide="ignore"):
        log_prior = np.log([0.0, 0.5, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = score_until_decided(prior, codes, orders, np.arange(3), log_prior)
        one = score_until_decided(prior, codes, orders, np.array([1]), np.zeros(1))
    assert np.isfinite(result.log_likelihood).all()
    found = (result.log_likelihood.mean(1) + log_prior).argmax(1)
    assert_array_equal(found, exact[..., 1:].mean(1).argmax(1) + 1)
    assert (one.evaluations == 9).all()
    assert_allclose(one.log_likelihood[..., 0], exact[:, :1, 1].repeat(5, 1), atol=1e-5)


def bound_of(log_prob, log_prior, n_tokens, n_orders, error, views=False):
    """Lags and bounds of one image after tokens (n_classes, m)."""
    log_prob = torch.tensor(log_prob)
    shape = torch.Size((n_orders, n_tokens))
    log_prior = torch.tensor(log_prior, dtype=torch.float64)
    comparison = Comparison(1, shape, log_prior, error, views, shared=False)
    image, found = torch.zeros(1, dtype=torch.long), []
    bound = comparison._bound

    def recorded(image, leader, m):
        found.append(bound(image, leader, m))
        return torch.full_like(found[-1], torch.inf)

    comparison._bound = recorded
    for start in range(0, log_prob.shape[1], n_tokens):
        new = log_prob.T[None, start : start + n_tokens]
        comparison.add(image, start, new)
    return found[-1][0].numpy()


def test_walds_bound_by_hand():
    # class 1 leads by 1, 2 and 6 nats in the first 3 of 8 tokens
    log_prob = [[-3.0, -3, -7], [-2, -1, -1]]
    wald = np.log(1 / 1e-4)
    assert_allclose(bound_of(log_prob, np.log([0.75, 0.25]), 4, 2, 1e-4)[0], wald)
    # at least two standard errors
    log_prob = [[-3.0, -31, -3], [-2, -1, -1]]
    standard_error = np.std([1, 30, 2], ddof=1) * np.sqrt(3 * 5 / 8)
    bound = bound_of(log_prob, np.log([0.75, 0.25]), 4, 2, 1e-4)
    assert_allclose(bound, [2 * standard_error, wald], rtol=1e-5)
    many = np.log(np.full(101, 1 / 101))
    log_prob = np.tile(np.float32(log_prob[0]), (101, 1))
    assert_allclose(bound_of(log_prob, many, 4, 2, 1e-3), np.log(100 / 1e-3))


def test_students_bound_by_hand():
    # one order and one token, in nats per order
    log_prob = np.float32([[-3, -3, -7, -1, -1], [-2, -1, -1, -2, -2]])
    spread = np.std([1, 2, 6, -1, -1], ddof=1) * 4 / 5
    bound = bound_of(log_prob / 10, np.zeros(2), 4, 500, 0.025)
    # 2.77645 is Student's 97.5 % quantile with 4 degrees of freedom
    assert_allclose(bound[0], 2.77645 * spread / 10 * np.sqrt(5 * 1995 / 2000), rtol=1e-5)


def test_the_bound_over_views_by_hand():
    log_prob = np.float32([[-3, -4, -30, -3, -5, -4], [-2, -2, -1, -1, -1, -1]])
    by_token = np.var([1, 2, 29, 2, 4, 3], ddof=1) * 2
    by_order = np.var([1 + 2, 29 + 2, 4 + 3], ddof=1)
    pooled = (30 * 0.49 * by_token + 2 * by_order) / 32
    # 2.44868 is Student's 99 % quantile with 32 degrees of freedom; 3 of 4 orders are read
    expected = 2.44868 * np.sqrt(pooled / 3 * (1 - 3 / 4))
    assert_allclose(bound_of(log_prob, np.zeros(2), 2, 4, 0.01, True)[0], expected, rtol=1e-5)


def test_unread_orders_by_hand():
    log_prior = torch.zeros(3, dtype=torch.float64)
    comparison = Comparison(1, torch.Size((3, 2)), log_prior, 0.01, False, False)
    nan, tensor = np.nan, torch.tensor
    comparison.by_order = tensor([[[-5.0, -7, nan], [-6.0, nan, nan], [nan, nan, nan]]]).double()
    comparison.active = tensor([[True, False, False]])
    comparison.dropped = [  # class 2 was 4 nats behind class 1, then class 1 was 2.5 behind class 0
        (tensor([0]), tensor([2]), tensor([1]), tensor([4.0]).double()),
        (tensor([0]), tensor([1]), tensor([0]), tensor([2.5]).double()),
    ]
    expected = [[-5, -7, -11], [-6, -8.5, -12.5], [-5.5, -8, -12]]
    assert_allclose(comparison.log_likelihoods()[0], expected)


@pytest.mark.parametrize("architecture, method", [("randar", "read"), ("shared_trunk", "pairs")])
def test_out_of_memory_halves_the_tile(monkeypatch, architecture, method):
    prior = MAKE[architecture](5, (2, 2), 30)
    codes, orders = sampled(prior, 3, 2, 30)
    args = prior, codes, orders, np.arange(30), np.zeros(30)
    expected = score_until_decided(*args)
    original, sizes = getattr(engine.Engine, method), []

    def small_device(self, pairs, pair, *rest, **options):
        sizes.append(len(pair))
        if len(pair) > 10:
            raise torch.OutOfMemoryError("simulated")
        return original(self, pairs, pair, *rest, **options)

    monkeypatch.setattr(engine.Engine, method, small_device)
    result = score_until_decided(*args)
    assert max(sizes) > 10
    assert_allclose(result.log_likelihood, expected.log_likelihood, atol=1e-5)


# The estimator --------------------------------------------------------------------------------


SMALL = {"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 32}


@pytest.fixture(scope="module", params=sorted(MAKE))
def clf(request, digits):
    params = {"prior": {"architecture": request.param} | SMALL, "n_orders": 12, "batch_size": 16}
    params |= {"max_iter": 15, "tol": 10.0, "crop": "center", "random_state": 0}
    params |= {"precision": "float32", "learning_rate_init": 5e-3}
    return AnyOrderARClassifier(**params).fit(*digits[:2])


def test_default_predictions_stop_early_and_other_methods_read_every_order(clf, digits, tmp_path):
    X = digits[2]
    joint, cost = clf.predict_joint_log_proba(X, return_stats=True)
    codes = clf.tokenizer_.transform(X).reshape(len(X), -1)
    args = clf.prior_, codes, clf.orders_, np.arange(3), clf.class_log_prior_
    result = score_until_decided(*args)
    assert_array_equal(cost["evaluations"], result.evaluations)
    assert cost["evaluations"].mean() < cost["exhaustive_evaluations"] / 2
    assert_allclose(joint, result.log_likelihood.mean(1) + clf.class_log_prior_, rtol=1e-6)
    exhaustive = copy.deepcopy(clf).set_params(search="exhaustive")
    assert (clf.predict(X) == exhaustive.predict(X)).mean() >= 0.99
    assert_array_equal(list(clf.staged_predict_proba(X))[-1], exhaustive.predict_proba(X))
    assert_array_equal(clf.score_samples(X), exhaustive.score_samples(X))
    assert_array_equal(clf.transform(X), exhaustive.transform(X))
    for every_order in ({"aggregation": "logsumexp"}, {"memory": str(tmp_path)}):
        complete = copy.deepcopy(clf).set_params(**every_order)
        _, cost = complete.predict_joint_log_proba(X, return_stats=True)
        assert (cost["evaluations"] == cost["exhaustive_evaluations"]).all()


def test_posteriors_of_dropped_classes(clf, digits):
    X = digits[2]
    proba = clf.predict_proba(X)
    exact = copy.copy(clf).set_params(search="exhaustive").predict_proba(X)
    assert_allclose(proba.sum(1), 1)
    assert (proba > 0).all()
    # the small randar prior is undecided between classes, so its estimates are less accurate
    shared = isinstance(clf.prior_, SharedTrunkPrior)
    assert np.abs(proba - exact).mean() < (0.002 if shared else 0.02)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("error", [NEVER, OFTEN])
@both
def test_cuda_equals_cpu(architecture, error):
    prior = MAKE[architecture](9, (3, 4), 40)
    codes, orders = sampled(prior, 6, 4, 40)
    args = codes, orders, np.arange(40), np.zeros(40)
    cpu = score_until_decided(prior, *args, error=error)
    gpu = score_until_decided(prior.cuda(), *args, error=error)
    assert_allclose(gpu.log_likelihood, cpu.log_likelihood, atol=1e-3)

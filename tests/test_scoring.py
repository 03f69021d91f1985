"""The engine and the aggregations against brute force."""

import functools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from skaocls import AnyOrderPrior
from skaocls.devices import prefetch
from skaocls.scoring import engine, exhaustive
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba, where_possible
from skaocls.scoring.early_stopping import score_until_decided
from skaocls.scoring.evidence import token_log_likelihoods
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.token_sampling import known_log_likelihoods


def make_prior(vocab_size, grid, num_classes, seed=0, n_layer=2):
    torch.manual_seed(seed)
    prior = AnyOrderPrior(vocab_size, grid, num_classes, 16, n_layer, 2, multiple_of=16).eval()
    for p in prior.parameters():  # far from uniform predictions
        torch.nn.init.normal_(p, std=0.4)
    return prior


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    n_classes=st.integers(1, 5),
    n_orders=st.integers(1, 4),
    n_images=st.integers(1, 4),
    stream=st.integers(1, 3000),
    seed=st.integers(0, 100),
)
def test_engine_equals_brute_force(grid, n_classes, n_orders, n_images, stream, seed):
    prior = make_prior(5, grid, n_classes, seed)
    rng = np.random.RandomState(seed)
    n = grid[0] * grid[1]
    codes = rng.randint(5, size=(n_images, n))
    orders = np.stack([rng.permutation(n) for _ in range(n_orders)])
    labels = rng.permutation(n_classes + 1)[: rng.randint(1, n_classes + 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exhaustive, "STREAM_CPU", stream)
        patch.setattr(exhaustive, "MIN_ROWS_CPU", 1)
        patch.setattr(engine, "LOGITS_AT_ONCE", 13)
        ll = log_likelihoods(prior, codes, orders, labels)
    np.testing.assert_allclose(
        ll, reference.log_likelihoods(prior, codes, orders, labels), atol=1e-5
    )


def test_golden_sums(golden_prior):
    prior, expected = golden_prior
    ll = log_likelihoods(prior, expected["tokens"], expected["orders"], np.arange(6))
    np.testing.assert_allclose(ll, expected["log_prob"].sum(-1).transpose(2, 0, 1), atol=1e-4)


def test_an_image_does_not_depend_on_its_batch():
    prior = make_prior(9, (3, 3), 4)
    rng = np.random.RandomState(0)
    codes = rng.randint(9, size=(40, 9))
    orders = np.stack([rng.permutation(9) for _ in range(5)])
    whole = log_likelihoods(prior, codes, orders, np.arange(4))
    assert whole.dtype == np.float64  # sums of many float32 numbers
    for size in (1, 3, 17):
        parts = [
            log_likelihoods(prior, codes[i : i + size], orders, np.arange(4))
            for i in range(0, 40, size)
        ]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6, rtol=0)


@settings(max_examples=15, deadline=None)
@given(stops=st.sets(st.integers(1, 11)), n_layer=st.integers(1, 3), seed=st.integers(0, 100))
def test_reading_in_parts_equals_reading_at_once(stops, n_layer, seed):
    prior = make_prior(5, (3, 4), 3, seed, n_layer)
    rng = np.random.RandomState(seed)
    codes = torch.from_numpy(rng.randint(5, size=(2, 12)))
    orders = torch.from_numpy(np.stack([rng.permutation(12) for _ in codes]))
    pair, label = torch.tensor([0, 1, 1, 0]), torch.tensor([2, 0, 1, 1])
    with torch.inference_mode():
        reader = engine.Engine(prior, torch.arange(3))
        pairs = reader.pairs(codes, orders)
        parts, cache, start = [], None, 0
        for stop in [*sorted(stops), 12]:
            log_prob, cache = reader.read(pairs, pair, label, start, stop, cache, keep=True)
            parts.append(log_prob)
            start = stop
        logits = prior(codes[pair], orders[pair], label)
    expected = logits.log_softmax(-1).gather(-1, codes[pair].gather(1, orders[pair])[..., None])
    torch.testing.assert_close(torch.cat(parts, 1), expected[..., 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("steps", [range(11), range(0, 11, 2), range(4, 11), range(5, 11, 2)])
def test_attention_equals_its_definition(monkeypatch, dtype, bound, steps):
    monkeypatch.setattr(engine, "QUERIES_AT_ONCE", 3)
    torch.manual_seed(0)
    q = torch.randn(2, 4, len(steps), 8).to(dtype)
    k, v = torch.randn(2, 2, 4, 12, 8).to(dtype)  # the class token and 11 steps
    y = engine.attention(q, k, v, steps)
    for i, step in enumerate(steps):
        seen = slice(step + 2)
        score = torch.einsum("nhd,nhkd->nhk", q[:, :, i].float(), k[:, :, seen].float())
        expected = (score / 8**0.5).softmax(-1)[:, :, None] @ v[:, :, seen].float()
        torch.testing.assert_close(y[:, i].float(), expected.flatten(1), atol=bound, rtol=0)


def test_bfloat16_preserves_the_differences_between_classes():
    # documented bound: the root mean square error of class differences is below 5 % of their own
    torch.manual_seed(0)
    prior = AnyOrderPrior(64, (4, 4), 8, 128, 3, 4).eval()
    torch.nn.init.normal_(prior.output.weight, std=0.2)
    rng = np.random.RandomState(0)
    codes, orders = rng.randint(64, size=(10, 16)), np.stack([rng.permutation(16)] * 2)
    exact, rounded = (
        log_likelihoods(prior, codes, orders, np.arange(8), dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert np.abs(rounded - exact).max() < 0.02 * np.abs(exact).min()
    exact, rounded = (ll - ll.mean(-1, keepdims=True) for ll in (exact, rounded))
    assert 0 < np.std(rounded - exact) < 0.05 * np.std(exact)


@pytest.mark.parametrize("read", ["exhaustive", "early stopping", "evidence", "known"])
def test_dtype_is_used_for_matrix_products(read):
    prior, labels = make_prior(5, (2, 3), 3), np.arange(3)
    rng = np.random.RandomState(0)
    codes, orders = rng.randint(5, size=(3, 6)), np.stack([rng.permutation(6) for _ in range(2)])
    score = {
        "exhaustive": lambda **dtype: log_likelihoods(prior, codes, orders, labels, **dtype),
        "early stopping": lambda **dtype: (
            score_until_decided(
                prior, codes, orders, labels, np.zeros(3), error=1e-12, **dtype
            ).log_likelihood
        ),
        "evidence": lambda **dtype: token_log_likelihoods(
            prior, codes, orders, np.full(3, 1), **dtype
        ),
        "known": lambda **dtype: known_log_likelihoods(
            prior, codes, np.tile(orders, (3, 1, 1)), labels, np.full(3, 4), **dtype
        ),
    }[read]
    exact, rounded = score(), score(dtype=torch.bfloat16)
    assert 1e-3 < np.abs(rounded - exact).max() < 0.5
    np.testing.assert_array_equal(score(dtype=torch.float32), exact)


def test_automatic_precision():
    narrow = make_prior(5, (2, 2), 3)
    assert exhaustive.scoring_dtype(narrow, "auto") == torch.float32
    assert exhaustive.scoring_dtype(narrow, "bfloat16") == torch.bfloat16
    wide = AnyOrderPrior(64, (2, 2), 8, 512, 1, 8)
    torch.nn.init.normal_(wide.output.weight, std=0.1)
    assert exhaustive.bfloat16_is_safe(wide)
    expected = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    assert exhaustive.scoring_dtype(wide, "auto") == expected
    # classes differ by less than the rounding error of bfloat16
    wide.class_table.data.copy_(wide.class_table[:1] + 1e-3 * wide.class_table)
    assert not exhaustive.bfloat16_is_safe(wide)
    assert exhaustive.scoring_dtype(wide, "auto") == torch.float32


def test_compiling_changes_nothing(monkeypatch):
    prior = make_prior(5, (2, 3), 3)
    rng = np.random.RandomState(0)
    codes, orders = rng.randint(5, size=(3, 6)), np.stack([rng.permutation(6)] * 2)
    expected = log_likelihoods(prior, codes, orders, np.arange(3))
    monkeypatch.setitem(exhaustive.COMPILE_FROM, "cpu", 0)
    # trace only: the machine may not have a compiler
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.compile failed")
        ll = log_likelihoods(prior, codes, orders, np.arange(3))
    np.testing.assert_allclose(ll, expected, atol=1e-5, rtol=0)

    def broken(*args):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    with pytest.warns(
        RuntimeWarning, match="torch.compile failed .RuntimeError.; scoring continues"
    ):
        ll = log_likelihoods(prior, codes, orders, np.arange(3))
    np.testing.assert_allclose(ll, expected, atol=1e-6, rtol=0)


def test_out_of_memory_halves_the_tile(monkeypatch):
    prior = make_prior(5, (2, 2), 3)
    rng = np.random.RandomState(0)
    codes, orders = rng.randint(5, size=(7, 4)), np.stack([rng.permutation(4)] * 2)
    expected = log_likelihoods(prior, codes, orders, np.arange(3))
    read, sizes = engine.Engine.read, []

    def small_device(self, pairs, pair, *args, **kwargs):
        sizes.append(len(pair))
        if len(pair) > most:
            raise torch.OutOfMemoryError("simulated")
        return read(self, pairs, pair, *args, **kwargs)

    monkeypatch.setattr(engine.Engine, "read", small_device)
    most = 10
    ll = log_likelihoods(prior, codes, orders, np.arange(3))
    np.testing.assert_allclose(ll, expected, atol=1e-6, rtol=0)
    assert max(sizes) > most and sizes[-1] <= most
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        log_likelihoods(prior, codes, orders, np.arange(3))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_posterior_equals_brute_force(aggregation):
    prior = make_prior(5, (2, 2), 3)
    rng = np.random.RandomState(0)
    codes = rng.randint(5, size=(3, 4))
    orders = np.stack([rng.permutation(4) for _ in range(4)])
    class_prior = np.array([0.5, 0.3, 0.2])
    ll = log_likelihoods(prior, codes, orders, np.arange(3))
    joint = joint_log_proba(ll, np.log(class_prior), aggregation)
    posterior = np.exp(joint) / np.exp(joint).sum(1, keepdims=True)

    likelihood = np.exp(reference.log_likelihoods(prior, codes, orders, np.arange(3)))
    for i in range(3):
        if aggregation == "mean_posterior":
            rows = [x * class_prior / sum(x * class_prior) for x in likelihood[i]]
            expected = sum(rows) / len(rows)
        else:
            if aggregation == "logsumexp":
                evidence = sum(likelihood[i]) / 4 * class_prior
                np.testing.assert_allclose(np.exp(joint[i]), evidence, rtol=1e-5)
            else:
                evidence = np.prod(likelihood[i], axis=0) ** (1 / 4) * class_prior
                np.testing.assert_allclose(np.exp(joint[i]), evidence, rtol=1e-5)
            expected = evidence / sum(evidence)
        np.testing.assert_allclose(posterior[i], expected, atol=1e-5)


def test_no_overflow_in_long_sums():
    ll = np.array([[[-9000.0, -9001.0], [-8000.0, -8003.0]]])
    for aggregation in AGGREGATIONS:
        joint = joint_log_proba(ll, np.log([0.5, 0.5]), aggregation)
        assert np.isfinite(joint).all()
        assert joint[0, 0] > joint[0, 1]


def test_joint_of_mean_posterior_equals_brute_force():
    ll = np.log(np.random.RandomState(0).dirichlet([1, 1, 1], size=(4, 5)))
    class_prior = np.array([0.5, 0.3, 0.2])
    posterior = np.exp(ll) * class_prior
    evidence = posterior.sum(2).mean(1)
    posterior /= posterior.sum(2, keepdims=True)
    joint = joint_log_proba(ll, np.log(class_prior), "mean_posterior")
    np.testing.assert_allclose(np.exp(joint), posterior.mean(1) * evidence[:, None], rtol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_impossible_tokens(aggregation):
    """Image 0 excludes class 0 in one order, image 1 class 1 in all, image 2 every class."""
    no = -np.inf
    ll = np.array([[[no, -1.0], [-1, -2]], [[-1, no], [-2, no]], [[no, no], [no, no]]])
    log_prior = np.log([0.25, 0.75])
    joint = joint_log_proba(ll, log_prior, aggregation)
    posterior = np.exp(where_possible(joint, log_prior))
    posterior /= posterior.sum(1, keepdims=True)
    np.testing.assert_allclose(posterior[1:], [[1, 0], [0.25, 0.75]])
    weighed = np.exp(ll[0]) * [0.25, 0.75]  # joint probabilities of each order
    first = {
        "mean_log_likelihood": [0, 1],
        "logsumexp": weighed.sum(0) / weighed.sum(),
        "mean_posterior": (weighed / weighed.sum(1, keepdims=True)).mean(0),
    }
    np.testing.assert_allclose(posterior[0], first[aggregation])
    mixed = np.array([[[no, no], [-1.0, -1.0]]])  # no class is possible in the first order
    assert np.isfinite(
        where_possible(joint_log_proba(mixed, log_prior, aggregation), log_prior)
    ).all()


@pytest.mark.parametrize("search", ["exhaustive", "early stopping"])
def test_nan_log_likelihoods_raise_an_error(search):
    prior = make_prior(5, (2, 2), 3)
    with torch.no_grad():
        prior.output.weight.fill_(3e38)
    codes, orders = np.zeros((2, 4), int), np.arange(4)[None]
    score = {
        "exhaustive": lambda: log_likelihoods(prior, codes, orders, np.arange(3)),
        "early stopping": lambda: score_until_decided(
            prior, codes, orders, np.arange(3), np.zeros(3)
        ),
    }
    with pytest.raises(ValueError, match="that are NaN: its weights are too large"):
        score[search]()


def test_unknown_aggregation():
    with pytest.raises(ValueError, match="'median' is unknown"):
        joint_log_proba(np.zeros((1, 1, 1)), np.zeros(1), "median")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    prior = make_prior(5, (3, 4), 3)
    rng = np.random.RandomState(0)
    codes = rng.randint(5, size=(6, 12))
    orders = np.stack([rng.permutation(12) for _ in range(4)])
    cpu = log_likelihoods(prior, codes, orders, np.arange(3))
    gpu = log_likelihoods(prior.cuda(), codes, orders, np.arange(3))
    np.testing.assert_allclose(gpu, cpu, atol=1e-4)


def test_prefetch_prepares_one_item_in_advance():
    made = []

    def items():
        for i in range(4):
            made.append(i)
            yield i

    used = []
    for item in prefetch(items()):
        used.append(item)
    assert used == made == [0, 1, 2, 3]

    def broken():
        yield 1
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        list(prefetch(broken()))

"""The shared trunk against a naive implementation of its formula."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

import reference
from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, PatchTokenizer, SharedTrunkPrior
from skaocls.priors.shared_trunk import group_size, similar_slots
from skaocls.scoring import shared_trunk_engine
from skaocls.scoring.evidence import token_log_likelihoods
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.shared_trunk_engine import make_engine
from skaocls.scoring.token_sampling import generate, known_log_likelihoods

SIZES = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32, "width": 24, "rank": 8}


def make_prior(vocab_size, grid, n_classes, seed=0, **sizes):
    """A prior whose classes differ: all weights are random."""
    random = torch.Generator().manual_seed(seed)
    slots = np.random.RandomState(seed).permutation(vocab_size)
    prior = SharedTrunkPrior(vocab_size, grid, n_classes, **SIZES | sizes, slots=slots)
    for p in prior.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=random)
    return prior.eval()


def make(**params):
    return small_classifier(AnyOrderARClassifier, **({"prior": SIZES} | params))


def naive(prior, codes, orders, labels):
    """log p(tokens | class, order) in float64: the trunk by `reference`, the head in numpy."""
    w = {k: p.detach().cpu().double().numpy() for k, p in prior.head.state_dict().items()}
    body = {k: p.detach().cpu().double().numpy() for k, p in prior.body.state_dict().items()}
    slots, size = prior.head.slots.cpu().numpy(), prior.head.group_size
    group_of = slots // size
    out = np.zeros((len(codes), len(orders), len(labels)))
    for i, k, c in np.ndindex(*out.shape):
        for h, base, place in zip(*trunk_states(body, codes[i], orders[k], prior), orders[k]):
            u, v = np.split(reference.norm(h, w["norm.weight"]) @ w["features.weight"].T, 2)
            scale, shift = np.split(w["classes.weight"][labels[c]], 2)
            x = u * (1 + scale) + shift
            z = (x / (1 + np.exp(-x)) * v) @ w["project.weight"].T
            groups = np.unique(group_of)
            of_groups = np.array([logsumexp(base[group_of == g]) for g in groups])
            of_groups = log_softmax(of_groups + (w["groups.weight"] @ z)[groups])
            tilted = base + w["tokens"].reshape(-1, len(z))[slots] @ z
            log_p = np.empty(len(base))
            for g, among in zip(groups, of_groups):
                log_p[group_of == g] = among + log_softmax(tilted[group_of == g])
            np.testing.assert_allclose(logsumexp(log_p), 0, atol=1e-9)
            out[i, k, c] += log_p[codes[i][place]]
    return out


def trunk_states(w, image, order, prior):
    """Hidden states before each token, and the trunk's logits there."""
    states = reference.sequence_states(w, image, order, 0, prior.grid, prior.body.n_head)[1::2]
    return states, reference.norm(states, w["norm.weight"]) @ w["output.weight"].T


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 10**6))
def test_log_likelihoods_equal_the_formula(vocab_size, n_classes, seed):
    rng = np.random.RandomState(seed)
    prior = make_prior(vocab_size, (2, 3), n_classes, seed)
    codes, orders = rng.randint(vocab_size, size=(2, 6)), np.stack([rng.permutation(6)] * 2)
    labels = rng.permutation(n_classes + 1)  # includes the null class
    expected = naive(prior, codes, orders, labels)
    found = log_likelihoods(prior, codes, orders, labels)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for i, label in enumerate(labels):
        of_tokens = token_log_likelihoods(prior, codes, orders, np.full(2, label))
        np.testing.assert_allclose(of_tokens.sum(2), expected[:, :, i], atol=1e-4)
    along = np.tile(orders, (2, 1, 1))
    known = known_log_likelihoods(prior, codes, along, labels, np.full(2, 6))
    np.testing.assert_allclose(known, expected, atol=1e-4)


@pytest.mark.parametrize("vocab_size", [2, 16, 37])
def test_probabilities_sum_to_one_for_each_class(vocab_size):
    prior = make_prior(vocab_size, (2, 2), 3)
    rng = np.random.RandomState(0)
    codes = torch.from_numpy(rng.randint(vocab_size, size=(4, 4)))
    orders = torch.from_numpy(np.stack([rng.permutation(4) for _ in range(4)]))
    log_p = prior(codes, orders, torch.arange(4))
    assert log_p.shape == (4, 4, vocab_size)
    torch.testing.assert_close(log_p.double().logsumexp(-1).exp(), torch.ones(4, 4).double())


def test_scores_do_not_depend_on_other_classes_or_tiles(monkeypatch):
    prior = make_prior(20, (2, 3), 30)
    rng = np.random.RandomState(0)
    codes, orders = rng.randint(20, size=(3, 6)), np.stack([rng.permutation(6) for _ in range(2)])
    together = log_likelihoods(prior, codes, orders, np.arange(30))
    alone = np.concatenate([log_likelihoods(prior, codes, orders, [c]) for c in range(30)], 2)
    np.testing.assert_allclose(alone, together, atol=1e-5)
    monkeypatch.setattr(shared_trunk_engine, "NUMBERS_PER_BLOCK", 1)
    monkeypatch.setattr(shared_trunk_engine, "LOGITS_AT_ONCE", 1)
    np.testing.assert_allclose(
        log_likelihoods(prior, codes, orders, np.arange(30)), together, atol=1e-5
    )


@pytest.mark.parametrize("block", [1, 2**12, 2**20])
def test_reading_lanes_equals_reading_each_alone(monkeypatch, block):
    monkeypatch.setattr(shared_trunk_engine, "NUMBERS_PER_BLOCK", block)
    monkeypatch.setattr(shared_trunk_engine, "ROWS_PER_BLOCK", 13)
    prior = make_prior(20, (2, 3), 40)
    rng = np.random.RandomState(0)
    codes = torch.from_numpy(rng.randint(20, size=(4, 6)))
    orders = torch.from_numpy(np.stack([rng.permutation(6) for _ in range(4)]))
    # pair 0 has all classes, pair 3 seven, pair 2 one and pair 1 none
    pair = torch.tensor([2] + [0] * 40 + [3] * 7)
    label = torch.from_numpy(np.concatenate([[5], rng.permutation(40), rng.permutation(40)[:7]]))
    mixed = torch.from_numpy(rng.permutation(len(pair)))
    pair, label = pair[mixed], label[mixed]
    with torch.inference_mode():
        engine = shared_trunk_engine.HeadEngine(prior, torch.arange(40))
        read, _ = engine.read(engine.pairs(codes, orders), pair, label, 2, 5)
        expected = prior.log_prob(codes[pair], orders[pair], label)[:, 2:5]
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=0)


def test_zero_tilt_equals_the_trunk():
    prior = SharedTrunkPrior(9, (2, 2), 3, **SIZES)
    torch.nn.init.normal_(prior.body.output.weight, generator=torch.Generator().manual_seed(0))
    codes, orders = np.array([[1, 5, 0, 8]]), np.array([[2, 0, 3, 1]])
    ll = log_likelihoods(prior, codes, orders, np.arange(4))
    body = log_likelihoods(prior.body, codes, orders, [0])
    np.testing.assert_allclose(ll, np.repeat(body, 4, 2), atol=1e-5)


def test_similar_codes_are_neighbors():
    rng = np.random.RandomState(0)
    centers = 100 * rng.randn(5, 3)
    codebook = (centers[:, None] + rng.randn(5, 5, 3)).reshape(25, 3)
    shuffled = rng.permutation(25)
    slots = similar_slots(codebook[shuffled])
    assert sorted(slots) == list(range(25)) and group_size(25) == 5
    clusters = shuffled[np.argsort(slots)] // 5
    assert all(len(set(clusters[i : i + 5])) == 1 for i in range(0, 25, 5))
    np.testing.assert_array_equal(similar_slots(np.zeros((1, 2))), [0])


@pytest.mark.parametrize("architecture", ["randar", "shared_trunk"])
def test_saving_keeps_the_architecture(digits, tmp_path, architecture):
    X, y, _, _ = digits
    sizes = {"architecture": architecture, "dim": 32, "n_layer": 1, "n_head": 2}
    first = make(prior=sizes, max_iter=1).fit(X, y)
    frozen = FrozenEstimator(first.tokenizer_)
    second = make(prior=first.prior_, tokenizer=frozen, max_iter=1).fit(X, y)
    second.save_pretrained(tmp_path)
    third = AnyOrderARClassifier.from_pretrained(tmp_path)
    assert type(third.prior_) is type(first.prior_)
    assert third.prior.items() >= sizes.items()
    assert type(third.fit(X, y).prior_) is type(first.prior_)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_engines_use_the_requested_dtype(dtype, shared):
    prior = make_prior(20, (2, 3), 4)
    engine = make_engine(prior if shared else prior.body, torch.arange(1), dtype)
    assert engine.output.dtype == dtype


# The estimator --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clf(digits):
    return make(n_orders=4, tokenizer=PatchTokenizer(n_codes=64)).fit(*digits[:2])


def test_predictions_equal_brute_force(clf, digits):
    X = digits[2][:3]
    codes = clf.tokenizer_.transform(X).reshape(3, -1)
    ll = naive(clf.prior_, codes, clf.orders_, np.arange(3))
    exhaustive = copy.deepcopy(clf).set_params(search="exhaustive")
    np.testing.assert_allclose(
        exhaustive.predict_joint_log_proba(X), ll.mean(1) + clf.class_log_prior_, rtol=1e-5
    )
    np.testing.assert_allclose(clf.transform(X), ll.mean(1), rtol=1e-5)


def test_learning_and_saving(clf, digits, tmp_path):
    _, _, X, y = digits
    assert isinstance(clf.prior_, SharedTrunkPrior)
    assert clf.score(X, y) >= 0.95
    clf.save_pretrained(tmp_path)
    restored = AnyOrderARClassifier.from_pretrained(tmp_path)
    for same in (restored, pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        np.testing.assert_array_equal(same.predict_proba(X), clf.predict_proba(X))
    tuned = make(prior=str(tmp_path), max_iter=5).fit(X, y)  # fine-tunes the saved prior
    assert tuned.score(X, y) >= 0.9


def test_cost_does_not_grow_with_classes(clf, digits):
    X = digits[2][:30]
    exhaustive = copy.deepcopy(clf).set_params(search="exhaustive")
    _, stats = exhaustive.predict_joint_log_proba(X, return_stats=True)
    assert (stats["evaluations"] == 4 * 16).all() and stats["exhaustive_evaluations"] == 4 * 16
    early = copy.deepcopy(clf).set_params(search="auto", n_orders=20)
    _, stopped = early.predict_joint_log_proba(X, return_stats=True)
    assert set(stopped["evaluations"] % 16) == {0}  # whole orders
    assert stopped["evaluations"].mean() < 20 * 16 / 2  # most images need few orders
    everything = early.set_params(search="exhaustive").predict(X)
    assert (early.set_params(search="auto").predict(X) == everything).mean() >= 0.96


def test_evidence_sums_to_the_difference(clf, digits):
    X = digits[2][:9]
    evidence = clf.explain(X, np.zeros(9, int), np.ones(9, int))
    difference = clf.transform(X)[:, 0] - clf.transform(X)[:, 1]
    np.testing.assert_allclose(evidence.tokens.sum((1, 2)), difference, atol=1e-4)
    assert clf.explain(X).maps.shape == (9, 8, 8)  # evidence over the null class


def test_samples_follow_the_distribution_of_the_prior():
    prior = make_prior(3, (1, 2), 2)
    every = np.array([[a, b] for a in range(3) for b in range(3)])
    order = np.array([[1, 0]])
    for label in range(3):
        p = np.exp(log_likelihoods(prior, every, order, [label]))[:, 0, 0]
        np.testing.assert_allclose(p.sum(), 1, atol=1e-5)
        drawn = generate(prior, np.full(4000, label), order.repeat(4000, 0), seed=label)
        share = np.array([(drawn == codes).all(1).mean() for codes in every])
        assert np.abs(share - p).max() < 4 * np.sqrt(0.25 / 4000)


def test_guidance_and_inpainting(clf, digits):
    mask = np.zeros((8, 8), dtype=bool)
    mask[4:] = True
    filled = clf.inpaint(digits[2][:4], mask, random_state=0)
    np.testing.assert_array_equal(filled[:, :4], digits[2][:4, :4])
    guided = clf.sample(60, y=np.repeat([0, 1, 2], 20), guidance=2.0, random_state=0)
    assert (clf.predict(guided) == np.repeat([0, 1, 2], 20)).mean() > 0.9


@pytest.mark.parametrize("finetune", ["full", "lora", "class_embedding"])
def test_new_classes_leave_the_scores_of_others_unchanged(clf, digits, finetune):
    X, y, X_test, y_test = digits
    two = make(max_iter=15).fit(X[y < 2], y[y < 2])
    before = two.transform(X_test)
    grown = copy.deepcopy(two).set_params(finetune=finetune).partial_fit(X[y == 2], y[y == 2])
    after = grown.transform(X_test)
    np.testing.assert_allclose(after[:, :2], before, atol=1e-4)
    assert len(grown.model_.priors) - 1 == (finetune != "class_embedding")
    new = y_test == 2
    assert (after[new].argmax(1) == 2).mean() > 0.6


def test_prior_parameter_selects_the_architecture(digits):
    X, y, _, _ = digits
    assert isinstance(make(prior="randar", max_iter=1).fit(X, y).prior_, AnyOrderPrior)
    assert isinstance(make(prior="shared_trunk", max_iter=1).fit(X, y).prior_, SharedTrunkPrior)
    assert isinstance(make(prior="auto", max_iter=1).fit(X, y).prior_, SharedTrunkPrior)
    with pytest.raises(ValueError, match="'vit', but must be one of shared_trunk, randar"):
        make(prior={"architecture": "vit"}).fit(X, y)


def test_new_head_on_a_frozen_trunk():
    """Train a prior on seven digits, then only a head for the other three on its frozen trunk."""
    data = load_digits()
    X, y = data.images, data.target
    X, X_test, y, y_test = train_test_split(X, y, stratify=y, random_state=0)
    old, new = y < 7, y_test >= 7
    sizes = {"architecture": "randar", "dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
    params = {"max_iter": 30, "batch_size": 32, "augmentation": 4, "learning_rate_init": "auto"}
    first = make(prior=sizes, **params).fit(X[old], y[old])
    body = first.prior_.state_dict()
    frozen = FrozenEstimator(first.tokenizer_)
    clf = make(prior=first.prior_, tokenizer=frozen, finetune="head", n_orders=8, **params)
    clf.fit(X[~old], y[~old])
    assert clf.score(X_test[new], y_test[new]) >= 0.9
    assert (
        clf.orders_.size
        == clf.predict_joint_log_proba(X_test[:1], return_stats=True)[1]["exhaustive_evaluations"]
    )
    clf.set_params(max_iter=1).partial_fit(X[~old], y[~old])
    for name, weight in clf.prior_.body.state_dict().items():
        expected = body[name]
        if name == "cls_embedding.embedding_table.weight":
            expected = expected[-1:]  # only the null class is kept
        assert (weight == expected).all()

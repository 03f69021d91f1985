"""Generation agrees with enumerated probabilities and with an implementation without a cache."""

import copy
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.svm import SVC
from test_scoring import make_prior

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.fitted import generation
from skaocls.fitted.generation import unknown_tokens
from skaocls.scoring import token_sampling
from skaocls.scoring.token_sampling import generate, known_log_likelihoods, step_ends

N_SAMPLES = 20_000
ORDERS = np.array([[2, 0, 3, 1]])


@pytest.fixture(scope="module")
def ten_digits():
    """Images and labels, a classifier fitted to the first, and an SVC that labels images."""
    data = load_digits()
    # the posterior weight helps to tell classes apart by few tokens
    params = {"n_orders": 5, "augmentation": None, "max_iter": 30, "posterior_weight": 5.0}
    clf = AnyOrderARClassifier(**params, precision="float32", random_state=0)
    clf.fit(data.images[:1000], data.target[:1000])
    svc = SVC().fit(data.data, data.target)
    return data.images, data.target, clf, lambda images: svc.predict(images.reshape(-1, 64))


def forward(prior, codes, orders, labels):
    with torch.no_grad():
        return prior(*(torch.as_tensor(np.array(a)) for a in (codes, orders, labels))).double()


def first_token_frequencies(prior, order, label, **options):
    """Return the frequency of each value of the first token of an order."""
    labels, orders = np.full(N_SAMPLES, label), np.repeat(order, N_SAMPLES, 0)
    codes = generate(prior, labels, orders, seed=0, **options)
    return np.bincount(codes[:, order[0, 0]], minlength=prior.vocab_size) / N_SAMPLES


def first_logits(prior, order, label):
    return forward(prior, np.zeros_like(order), order, [label])[0, 0].numpy()


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def assert_frequencies(frequencies, p):
    """Compare within five standard errors, which are zero for impossible values."""
    assert (np.abs(frequencies - p) <= 5 * np.sqrt(p * (1 - p) / N_SAMPLES)).all()


@pytest.mark.parametrize("grid, order", [((1, 2), [1, 0]), ((2, 2), [2, 0, 3, 1])])
@pytest.mark.parametrize("label", [1, 2])
def test_samples_have_the_distribution_of_the_prior(grid, order, label):
    prior, n_tokens = make_prior(3, grid, 2), len(order)
    grids = np.array(list(product(range(3), repeat=n_tokens)))
    orders = np.repeat([order], len(grids), 0)
    steps = forward(prior, grids, orders, np.full(len(grids), label)).log_softmax(-1).numpy()
    read = np.take_along_axis(grids, orders, 1)
    p = np.exp(np.take_along_axis(steps, read[..., None], -1).sum((1, 2)))
    assert p.sum() == pytest.approx(1, abs=1e-5)
    codes = generate(prior, np.full(N_SAMPLES, label), np.repeat([order], N_SAMPLES, 0), seed=0)
    index = codes @ 3 ** np.arange(n_tokens)[::-1]
    assert_frequencies(np.bincount(index, minlength=len(grids)) / N_SAMPLES, p)


def test_temperature_and_truncation():
    prior = make_prior(6, (2, 2), 2)
    logits = first_logits(prior, ORDERS, 1)
    ranked = np.argsort(-logits)

    def truncated(kept, temperature=1.0):
        p = np.zeros(6)
        p[kept] = softmax(logits[kept] / temperature)
        return p

    assert_frequencies(first_token_frequencies(prior, ORDERS, 1, top_k=3), truncated(ranked[:3]))
    p = softmax(logits)[ranked]
    for top_p, n_kept in [(p[0] - 0.01, 1), (p[:2].sum() - 0.01, 2), (p[:2].sum() + 0.01, 3)]:
        assert_frequencies(
            first_token_frequencies(prior, ORDERS, 1, top_p=top_p), truncated(ranked[:n_kept])
        )
    assert_frequencies(
        first_token_frequencies(prior, ORDERS, 1, temperature=1e-320), np.eye(6)[ranked[0]]
    )
    # top_p applies after temperature and top_k
    p = softmax(logits[ranked[:3]] / 2)
    options = {"temperature": 2.0, "top_k": 3, "top_p": p[:2].sum() - 0.01}
    assert_frequencies(
        first_token_frequencies(prior, ORDERS, 1, **options), truncated(ranked[:2], 2.0)
    )


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance(guidance):
    prior = make_prior(4, (2, 2), 2)
    given, null = (first_logits(prior, ORDERS, label) for label in (1, 2))
    expected = softmax(null + guidance * (given - null))
    assert_frequencies(first_token_frequencies(prior, ORDERS, 1, guidance=guidance), expected)


def generate_without_cache(prior, label, order, codes, n_known, ends, guidance):
    """Return the most likely tokens; a token only depends on the tokens of earlier steps."""
    codes = codes.copy()
    for start, stop in zip([n_known, *ends[:-1]], ends, strict=True):
        updated = codes.copy()
        for s in range(start, stop):
            reordered = [*order[:start], order[s], *order[start:s], *order[s + 1 :]]
            given, null = forward(prior, [codes] * 2, [reordered] * 2, [label, prior.num_classes])[
                :, start
            ]
            updated[order[s]] = (null + guidance * (given - null)).argmax()
        codes = updated
    return codes


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("n_steps", [None, 1, 3, 5])
@pytest.mark.parametrize("n_known", [0, 1, 5])
def test_cache_does_not_change_the_tokens(n_known, n_steps, guidance):
    prior = make_prior(7, (2, 4), 3, n_layer=3)
    rng = np.random.RandomState(0)
    orders = np.stack([rng.permutation(8) for _ in range(6)])
    codes, labels = rng.randint(7, size=(6, 8)), rng.randint(4, size=6)
    options = {"n_steps": n_steps, "guidance": guidance, "top_k": 1, "seed": 0}
    found = generate(prior, labels, orders, codes, n_known, **options)
    ends = n_known + step_ends(8 - n_known, n_steps)
    for i in range(6):
        expected = generate_without_cache(
            prior, labels[i], orders[i], codes[i], n_known, ends, guidance
        )
        np.testing.assert_array_equal(found[i], expected)


def test_step_ends():
    for n in range(20):
        for n_steps in [*range(1, 25), None]:
            sizes = np.diff(step_ends(n, n_steps), prepend=0)
            assert sizes.sum() == n and (sizes >= 1).all()
            assert len(sizes) == min(n, n_steps or n)
    sizes = np.diff(step_ends(256, 32), prepend=0)
    assert sizes[0] == 1 and sizes[-1] == 12 and (np.diff(sizes) >= -1).all()


def test_known_tokens_are_kept_and_other_inputs_ignored():
    prior = make_prior(9, (3, 3), 2)
    rng = np.random.RandomState(0)
    orders = np.stack([rng.permutation(9) for _ in range(40)])
    codes, n_known = rng.randint(9, size=(40, 9)), rng.randint(10, size=40)
    known = np.argsort(orders, 1) < n_known[:, None]
    labels = np.ones(40, int)
    for n_steps in (None, 2):
        sampled = generate(prior, labels, orders, codes, n_known, n_steps=n_steps, seed=0)
        np.testing.assert_array_equal(sampled[known], codes[known])
        assert (sampled[~known] != codes[~known]).mean() > 0.5
        masked = np.where(known, codes, 0)
        repeated = generate(prior, labels, orders, masked, n_known, n_steps=n_steps, seed=0)
        np.testing.assert_array_equal(repeated, sampled)


def test_an_image_does_not_depend_on_its_batch(monkeypatch):
    prior = make_prior(9, (3, 3), 4)
    rng = np.random.RandomState(0)
    orders = np.stack([rng.permutation(9) for _ in range(30)])
    codes, n_known = rng.randint(9, size=(30, 9)), rng.randint(4, size=30)
    labels = rng.randint(4, size=30)
    args, options = (labels, orders, codes, n_known), {"guidance": 1.5, "n_steps": 4, "seed": 3}
    expected = generate(prior, *args, **options)
    first = generate(prior, *(a[:7] for a in args), **options)
    np.testing.assert_array_equal(first, expected[:7])
    for lanes in (1, 2, 7):
        monkeypatch.setattr(token_sampling, "lanes_at_once", lambda prior, lanes=lanes: lanes)
        np.testing.assert_array_equal(generate(prior, *args, **options), expected)
    assert (generate(prior, *args, **options | {"seed": 4}) != expected).any()


def test_batch_size_is_halved_when_memory_runs_out(monkeypatch):
    prior = make_prior(5, (2, 2), 2)
    labels, orders = np.ones(9, int), np.repeat(ORDERS, 9, 0)
    expected = generate(prior, labels, orders, seed=0)
    generate_batch, sizes = token_sampling.generate_batch, []

    def limited(prior, inputs, *args):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError
        return generate_batch(prior, inputs, *args)

    monkeypatch.setattr(token_sampling, "lanes_at_once", lambda prior: 8)
    monkeypatch.setattr(token_sampling, "generate_batch", limited)
    np.testing.assert_array_equal(generate(prior, labels, orders, seed=0), expected)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    monkeypatch.setattr(
        token_sampling, "generate_batch", lambda prior, *args: limited(prior, [range(3)])
    )
    with pytest.raises(torch.OutOfMemoryError):
        generate(prior, labels, orders, seed=0)


@pytest.mark.parametrize("lanes", [2, 100])
def test_known_log_likelihoods(monkeypatch, lanes):
    monkeypatch.setattr(token_sampling, "lanes_at_once", lambda prior: lanes)
    prior = make_prior(5, (2, 3), 4)
    rng = np.random.RandomState(0)
    codes, n_known = rng.randint(5, size=(4, 6)), np.array([0, 2, 6, 2])
    orders = np.stack([[rng.permutation(6) for _ in range(3)] for _ in range(4)])
    labels = np.array([3, 0, 1])
    found = known_log_likelihoods(prior, codes, orders, labels, n_known)
    for i, k, c in product(range(4), range(3), range(3)):
        log_prob = forward(prior, codes[i : i + 1], orders[i, k][None], labels[c : c + 1])
        read = torch.as_tensor(codes[i, orders[i, k]])
        steps = log_prob.log_softmax(-1)[0, torch.arange(6), read]
        assert found[i, k, c] == pytest.approx(float(steps[: n_known[i]].sum()), abs=1e-5)


def test_tokens_with_a_masked_pixel_are_unknown():
    mask = np.zeros((3, 5, 7), bool)
    mask[0, 1, 5] = mask[1, 4, 6] = mask[2, 2, :4] = True
    expected = np.zeros((3, 3, 3), bool)  # tokens of 2 x 3 pixels, partly outside of the image
    expected[0, 0, 1] = expected[1, 2, 2] = expected[2, 1, :2] = True
    found = unknown_tokens(SimpleNamespace(patch_size_=(2, 3)), mask, (3, 3))
    np.testing.assert_array_equal(found, expected.reshape(3, 9))


@pytest.mark.parametrize("n_steps", [None, 6])
def test_samples_are_recognized(ten_digits, n_steps):
    _, _, clf, predict_svc = ten_digits
    y = np.repeat(np.arange(10), 20)
    images = clf.sample(200, y, n_steps=n_steps, random_state=0)
    assert images.shape == (200, 8, 8) and images.dtype == np.float32
    assert (predict_svc(images) == y).mean() > 0.9
    assert len(np.unique(images[y == 3], axis=0)) > 15


def test_classes_of_samples(ten_digits):
    _, _, clf, predict_svc = ten_digits
    images = clf.sample(30, 7, random_state=0)
    assert (predict_svc(images) == 7).mean() > 0.8
    np.testing.assert_array_equal(images, clf.sample(y=[7] * 30, random_state=0))
    assert (images != clf.sample(30, 7, random_state=1)).any()
    # without y, classes have the frequencies of the class prior
    two = copy.copy(clf).set_params(class_prior=[0, 0.5, 0, 0, 0, 0, 0.5, 0, 0, 0])
    found = predict_svc(two.sample(100, random_state=0))
    assert 30 < (found == 1).sum() < 70 and np.isin(found, [1, 6]).mean() > 0.8


def test_orders_are_those_of_training(fitted, monkeypatch):
    seen = []

    def record(prior, labels, orders, *args, **kwargs):
        seen.append(orders)
        return generate(prior, labels, orders, *args, **kwargs)

    monkeypatch.setattr(generation, "generate", record)
    fitted.sample(50, random_state=0)
    assert len(np.unique(seen[0], axis=0)) == 50
    clf = copy.copy(fitted).set_params(order=[np.arange(16), np.arange(16)[::-1]])
    clf.sample(50, random_state=0)
    np.testing.assert_array_equal(np.unique(seen[1], axis=0), clf.orders_)
    mask = np.zeros((8, 8), bool)
    mask[2:4, 1] = True  # part of token 4
    clf.set_params(order="raster").inpaint(np.ones((1, 8, 8)), mask)
    np.testing.assert_array_equal(seen[2], [[*range(4), *range(5, 16), 4]])


def test_inpainting(ten_digits):
    X, y, clf, predict_svc = ten_digits
    X, y = X[1500:1700], y[1500:1700]
    mask = np.zeros((8, 8), bool)
    mask[3:7, 1:6] = True
    known_pixels = np.broadcast_to(~mask, X.shape)
    statistics = clf.tokenizer_.image_statistics(X, known_pixels)
    before = clf.tokenizer_._encode(X[..., None].astype(np.float32), statistics=statistics)
    filled = clf.inpaint(X, mask, random_state=0)
    assert filled.shape == X.shape
    np.testing.assert_array_equal(filled[:, ~mask], X[:, ~mask])
    known = ~unknown_tokens(clf.tokenizer_, mask[None], (4, 4)).reshape(4, 4)
    assert known.sum() == 7
    after = clf.tokenizer_._encode(filled[..., None], statistics=statistics)
    np.testing.assert_array_equal(after[:, known], before[:, known])
    blank = X * ~mask
    assert (predict_svc(filled) == y).mean() > 0.7 > (predict_svc(blank) == y).mean() + 0.1
    given = clf.inpaint(X, mask, y, random_state=0)
    assert (predict_svc(given) == y).mean() > 0.85
    # masked pixels are ignored
    np.testing.assert_array_equal(clf.inpaint(blank, mask, random_state=0), filled)


def test_one_mask_per_image(ten_digits):
    X, y, clf, _ = ten_digits
    X, y = X[1500:1503], y[1500:1503]
    mask = np.zeros((3, 8, 8), bool)
    mask[1, :, 4:] = mask[2] = True
    filled = clf.inpaint(X, mask, y, random_state=0)
    np.testing.assert_array_equal(filled[0], X[0])
    np.testing.assert_array_equal(filled[1, :, :4], X[1, :, :4])
    assert (filled[1, :, 4:] != X[1, :, 4:]).any()
    # flat rows are read as in fit
    rows = copy.copy(clf)
    reader = replace(clf.model_.reader, declared_shape=(8, 8))
    rows.model_ = replace(clf.model_, reader=reader)
    np.testing.assert_array_equal(rows.inpaint(X.reshape(3, 64), mask, y, random_state=0), filled)


def most_probable(clf, codes, unknown):
    """Return the column of the most probable class given the known tokens."""
    ll = generation.known_token_log_likelihoods(clf.model_, codes, unknown, clf.orders_)
    return clf._aggregation()(ll).argmax(1)


def test_class_given_half_of_the_tokens(ten_digits):
    X, y, clf, _ = ten_digits
    X, y = X[1500:1600], y[1500:1600]
    mask = np.zeros((8, 8), bool)
    mask[4:] = True
    codes = clf.tokenizer_.transform(X).reshape(100, 16)
    unknown = np.repeat(unknown_tokens(clf.tokenizer_, mask[None], (4, 4)), 100, 0)
    half = most_probable(clf, codes, unknown)
    assert (half == y).mean() > 0.7
    all_known = most_probable(clf, codes, np.zeros((100, 16), bool))
    np.testing.assert_array_equal(clf.classes_[all_known], clf.predict(X))
    none_known = most_probable(clf, codes, np.ones((100, 16), bool))
    assert (none_known == clf.class_log_prior_.argmax()).all()


def test_rgb_images_and_partial_patches():
    rng = np.random.RandomState(0)
    X, y = rng.randint(256, size=(40, 5, 7, 3), dtype=np.uint8), np.arange(40) % 2
    clf = small_classifier(AnyOrderARClassifier, augmentation=None).fit(X, y)
    assert clf.sample(2).shape == (2, 5, 7, 3)
    mask = rng.uniform(size=(40, 5, 7)) < 0.1
    filled = clf.inpaint(X, mask)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[~mask], (X[~mask] / np.float32(255)))
    assert (filled[mask] != X[mask] / np.float32(255)).any()


def test_tabular_data():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    clf = AnyOrderARClassifier(max_iter=60, random_state=0).fit(X, names)
    rows = clf.sample(90, np.repeat(clf.classes_, 30), random_state=0)
    assert rows.shape == (90, 4)
    assert (SVC().fit(X, names).predict(rows) == np.repeat(clf.classes_, 30)).mean() > 0.85
    mask = np.array([False, False, True, True])
    filled = clf.inpaint(X, mask, "setosa", random_state=0)
    np.testing.assert_array_equal(filled[:, :2], X[:, :2])
    assert (filled[:, 2] < 2.5).mean() > 0.75  # setosa has small petals
    filled = clf.inpaint(X, np.tile(mask, (150, 1)), random_state=0)
    assert np.corrcoef(filled[:, 2], X[:, 2])[0, 1] > 0.6


def nan_where(mask, X):
    return np.where(mask, np.nan, X)


@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X,
        lambda X: X[..., None],
        lambda X: torch.from_numpy(X),
        lambda X: list(X),
        lambda X: np.where(np.isnan(X), None, X),
    ],
)
def test_masked_pixels_may_be_nan(fitted, digits, convert):
    X, mask = digits[2][:3], np.zeros((8, 8), bool)
    mask[2:5, 3:] = True
    expected = fitted.inpaint(X, mask, random_state=0)
    found = fitted.inpaint(convert(nan_where(mask, X)), mask, random_state=0)
    np.testing.assert_array_equal(found, expected)
    one = np.stack([mask, ~mask, mask])
    with pytest.raises(ValueError, match="X contains NaN where mask is False"):
        fitted.inpaint(convert(nan_where(mask, X)), one)
    with pytest.raises(ValueError, match="contains infinity"):
        fitted.inpaint(convert(np.where(mask, np.inf, X)), mask)


def test_masked_cells_may_be_nan(digits):
    X, y = load_iris(return_X_y=True, as_frame=True)
    clf = small_classifier(AnyOrderARClassifier, max_iter=2).fit(X, y)
    mask = np.zeros(X.shape, bool)
    mask[::2, 1:3] = mask[7, :] = True
    expected = clf.inpaint(X, mask, random_state=0)
    found = clf.inpaint(X.mask(mask), mask, random_state=0)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="X contains NaN where mask is False"):
        clf.inpaint(X.mask(mask), np.roll(mask, 1, axis=0))
    # flat rows with 8-bit values in fit
    X, y = digits[0].astype(np.uint8).reshape(-1, 64), digits[1]
    clf = small_classifier(AnyOrderARClassifier, max_iter=1, image_shape=(8, 8)).fit(X, y)
    mask = np.zeros((8, 8), bool)
    mask[:, :3] = True
    rows = X[:4] / 255
    found = clf.inpaint(nan_where(mask.ravel(), rows), mask, random_state=0)
    np.testing.assert_array_equal(found, clf.inpaint(rows, mask, random_state=0))


@pytest.mark.parametrize(
    "name, value",
    [("temperature", 0), ("top_k", 0), ("top_p", 1.5), ("n_steps", 0), ("guidance", -1.0)],
)
def test_parameters_out_of_range(fitted, name, value):
    mask = np.zeros((8, 8), bool)
    for method, arguments in (("sample", ()), ("inpaint", (np.zeros((1, 8, 8)), mask))):
        with pytest.raises(ValueError, match=f"'{name}' parameter of {method} must"):
            getattr(fitted, method)(*arguments, **{name: value})


def test_errors(fitted, digits):
    X, mask = digits[2][:3], np.zeros((8, 8), bool)
    with pytest.raises(ValueError, match=r"mask has shape \(8, 7\), but \(8, 8\) or \(3, 8, 8\)"):
        fitted.inpaint(X, mask[:, :7])
    with pytest.raises(ValueError, match="mask must be boolean"):
        fitted.inpaint(X, np.zeros((8, 8)))
    with pytest.raises(ValueError, match="y has classes that fit has not seen"):
        fitted.inpaint(X, mask, [0, 1, 7])
    with pytest.raises(ValueError, match="y has classes that fit has not seen"):
        fitted.sample(2, 7)
    with pytest.raises(ValueError, match="y has 2 labels, but 3 are expected"):
        fitted.inpaint(X, mask, [0, 1])
    with pytest.raises(ValueError, match="y has 2 labels, but 1 are expected"):
        fitted.sample(1, y=[0, 1])
    with pytest.raises(ValueError, match="'n_samples' parameter of sample"):
        fitted.sample(0)
    for method in ("sample", "inpaint"):
        with pytest.raises(NotFittedError):
            getattr(AnyOrderARClassifier(), method)(*{"inpaint": (X, mask)}.get(method, ()))


def test_class_with_an_added_prior(digits):
    X, y, X_test, _ = digits
    two = small_classifier(AnyOrderARClassifier, augmentation=None).fit(X[y < 2], y[y < 2])
    clf = copy.deepcopy(two).partial_fit(X[y == 2], y[y == 2])
    assert len(clf.model_.priors) == 2
    np.testing.assert_array_equal(
        clf.sample(10, 1, random_state=0), two.sample(10, 1, random_state=0)
    )
    labels = np.repeat([2, 0, 2, 1], 15)
    svc = SVC().fit(X.reshape(-1, 64), y)
    images = clf.sample(60, labels, random_state=0)
    assert (svc.predict(images.reshape(-1, 64)) == labels).mean() > 0.8
    codes = clf.tokenizer_.transform(X_test).reshape(-1, 16)
    columns = most_probable(clf, codes, np.zeros(codes.shape, bool))
    np.testing.assert_array_equal(clf.classes_[columns], clf.predict(X_test))
    mask = np.zeros((8, 8), bool)
    mask[:, :4] = True
    filled = clf.inpaint(X_test, mask, random_state=0)
    np.testing.assert_array_equal(filled[..., 4:], X_test[..., 4:])

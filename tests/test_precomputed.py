"""Precomputed tokens as input."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.frozen import FrozenEstimator

from conftest import small_classifier
from skaocls import (
    AnyOrderARClassifier,
    AnyOrderPrior,
    PatchTokenizer,
    PrecomputedTokenizer,
    PretrainedWeights,
    tokenize_dataset,
)
from skaocls.fitted.prediction import encode_part
from skaocls.fitted.tokenization import training_tokens
from skaocls.images.reader import learn_tokens
from skaocls.priors.shared_trunk import similar_slots


def make(**params):
    return small_classifier(
        AnyOrderARClassifier,
        **({"tokenizer": "precomputed", "max_iter": 8, "augmentation": None} | params),
    )


def log_likelihoods(clf, X):
    return np.concatenate(list(clf._log_likelihoods(X)))


@pytest.fixture(scope="module")
def tokens(digits):
    """Training images and their tokens, labels, test images and their tokens."""
    X, y, X_test, _ = digits
    tokenizer = PatchTokenizer(2, n_codes=16, random_state=0).fit(X)
    return tokenizer, X, tokenizer.transform(X), y, X_test, tokenizer.transform(X_test)


@pytest.fixture(scope="module")
def of_tokens(tokens):
    return make().fit(tokens[2], tokens[3])


def test_tokens_give_the_same_predictions_as_images(tokens, tmp_path):
    tokenizer, X, codes, y, X_test, test_codes = tokens
    _, distinct = np.unique(codes.reshape(len(y), -1), axis=0, return_index=True)
    distinct.sort()  # equal samples are merged; images with equal tokens are not
    X, codes, y = X[distinct], codes[distinct], y[distinct]
    images = make(tokenizer=FrozenEstimator(tokenizer)).fit(X, y)
    precomputed = FrozenEstimator(PrecomputedTokenizer(16).fit(codes))
    clf = make(tokenizer=precomputed).fit(codes, y)
    expected = images.predict_proba(X_test)
    np.testing.assert_array_equal(clf.predict_proba(test_codes), expected)
    assert clf.image_shape_ is None and clf.n_features_in_ == 16
    assert not clf.model_.reader.tabular  # and trained as long as on images
    # the same holds for a classifier fitted on images
    images.save_pretrained(tmp_path)
    clf = AnyOrderARClassifier.from_pretrained(tmp_path, tokenizer="precomputed")
    forms = test_codes.astype(np.uint16), torch.tensor(test_codes), test_codes.tolist()
    for form in (*forms, test_codes[:, None]):
        np.testing.assert_array_equal(clf.predict_proba(form), expected)
    # tokens of random crops, one crop for each order
    images.set_params(crop="random")
    batch = images.model_.reader.open(X_test)
    kept = encode_part(images.model_, batch, slice(0, len(batch)), 4, "random")
    crops = kept.reshape(-1, 4, 4, 4)
    np.testing.assert_array_equal(clf.predict_proba(crops), images.predict_proba(X_test))
    assert abs(clf.predict_proba(crops) - expected).max() > 0.01
    assert clf.get_params()["tokenizer"] == "precomputed"
    assert clf.set_params(max_iter=1).fit(codes, y).tokenizer_.grid_ == (4, 4)


def test_orders_take_turns_with_crops(of_tokens, tokens):
    rng = np.random.RandomState(0)
    crops = rng.randint(of_tokens.tokenizer_.n_codes_, size=(5, 3, 4, 4))
    ll = log_likelihoods(of_tokens, crops)
    assert ll.shape == (5, 4, 3)
    for k in range(4):
        alone = log_likelihoods(of_tokens, crops[:, k % 3])[:, k]
        np.testing.assert_allclose(ll[:, k], alone, atol=1e-5)
    single = np.concatenate([log_likelihoods(of_tokens, crops[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(ll, single, atol=1e-5)


def test_crops_are_training_views(tokens):
    codes, y = tokens[2], tokens[3]
    crops = np.stack([codes, codes[:, ::-1]], axis=1)
    tokenizer = PrecomputedTokenizer().fit(crops)
    views = training_tokens(tokenizer, learn_tokens(crops, "Reader"), "auto", None)
    np.testing.assert_array_equal(views, crops.reshape(len(y), 2, 16))
    # a model that never saw flipped images finds them unlikely
    flipped = tokens[5][:, ::-1]
    clf, other = make().fit(crops, y), make().fit(codes, y)
    assert clf.score_samples(flipped).mean() > other.score_samples(flipped).mean() + 2


def test_the_codebook_is_part_of_the_cache_key(tokens, tmp_path):
    tokenizer, X, codes, y, _, _ = tokens
    stored = tokenize_dataset(tokenizer, X, tmp_path / "tokens")
    params = {"prior": "shared_trunk", "memory": tmp_path, "max_iter": 1}
    with_codebook = make(**params).fit(stored, y)
    without = make(**params).fit(codes.astype(stored.dtype), y)
    assert (with_codebook.tokenizer_.codebook_ == tokenizer.codebook_).all()
    assert not hasattr(without.tokenizer_, "codebook_")
    slots = [clf.prior_.head.slots.tolist() for clf in (with_codebook, without)]
    assert slots == [similar_slots(tokenizer.codebook_).tolist(), list(range(16))]


def test_methods_of_a_classifier_of_tokens(of_tokens, tokens, tmp_path):
    codes, y, test = tokens[2], tokens[3], tokens[5]
    proba = of_tokens.predict_proba(test)
    of_tokens.save_pretrained(tmp_path / "saved")
    restored = AnyOrderARClassifier.from_pretrained(tmp_path / "saved")
    for again in (restored, pickle.loads(pickle.dumps(of_tokens))):
        np.testing.assert_array_equal(again.predict_proba(test), proba)
    with pytest.raises(ValueError, match="integers are expected, but it has dtype float64"):
        restored.predict(test / 1.0)
    cached = make(memory=tmp_path / "cache").fit(codes, y)
    np.testing.assert_array_equal(cached.predict_proba(test), proba)
    np.testing.assert_array_equal(cached.predict_proba(test), proba)
    evidence = of_tokens.explain(test[:3])
    assert evidence.tokens.shape == (3, 4, 4) and evidence.maps is None
    drawn = of_tokens.sample(3, y=1, random_state=0)
    assert drawn.shape == (3, 4, 4) and drawn.dtype == np.int64
    mask = np.zeros((4, 4), dtype=bool)
    mask[1] = True
    filled = of_tokens.inpaint(test[:5], mask, random_state=0)
    np.testing.assert_array_equal(filled[:, ~mask], test[:5, ~mask])
    assert (filled[:, mask] != test[:5, mask]).any()
    with pytest.raises(ValueError, match=r"one crop, \(n, 4, 4\)"):
        of_tokens.inpaint(test[:5, None], mask)
    grown = make(tokenizer=PrecomputedTokenizer(16)).partial_fit(codes[y < 2], y[y < 2])
    before = log_likelihoods(grown, test)
    grown.partial_fit(np.stack([codes[y == 2]] * 2, axis=1), y[y == 2])
    np.testing.assert_array_equal(log_likelihoods(grown, test)[:, :, :2], before)


@pytest.mark.parametrize(
    "X, message",
    [
        (np.zeros((3, 4, 4)), "integers are expected, but it has dtype float64"),
        (np.zeros((3, 4, 4), bool), "integers are expected, but it has dtype bool"),
        (np.zeros((3, 4, 5), int), r"\(3, 4, 5\), but \(n, 4, 4\) or \(n, n_crops, 4, 4\) is"),
        (np.zeros((3, 16), int), r"Reshape flat tokens by X\.reshape\(len\(X\), -1, 4, 4\)"),
        (np.zeros((3, 7, 16), int), r"Reshape flat tokens by X\.reshape\(len\(X\), -1, 4, 4\)"),
        (np.full((3, 4, 4), 16), r"codes must be in 0 \.\.\. 15, got 16 \.\.\. 16"),
        (np.full((3, 2, 4, 4), -1), r"codes must be in 0 \.\.\. 15, got -1"),
        (np.zeros((0, 4, 4), int), r"0 sample\(s\)"),
        (np.zeros((3, 0, 4, 4), int), r"is not tokens: it has shape \(3, 0, 4, 4\)"),
        (["photo.jpg"], r"X is not tokens: it has shape \(1,\)"),
    ],
)
def test_wrong_tokens_are_an_error(tokens, X, message):
    clf = make(tokenizer=PrecomputedTokenizer(16), max_iter=1).fit(tokens[2], tokens[3])
    for use in (clf.predict, clf.tokenizer_.transform):
        with pytest.raises(ValueError, match=message):
            use(X)


def test_crop_needs_images(of_tokens, tokens):
    clf = pickle.loads(pickle.dumps(of_tokens))
    with pytest.raises(ValueError, match="requires images, but the classifier was"):
        clf.set_params(crop="random").predict(tokens[5])


def test_wrong_tokens_or_parameters_in_fit(tokens):
    codes, y = tokens[2][:4], tokens[3][:4]
    for tokenizer, X, message in (
        ("precomputed", codes / 1.0, "do not pass tokenizer="),
        ("precomputed", -1 - codes, r"codes must be in 0 \.\.\. 0, got -"),
        (PrecomputedTokenizer(3), codes, r"codes must be in 0 \.\.\. 2, got"),
        (PrecomputedTokenizer(16, grid=(2, 8)), codes, r"\(n, 2, 8\)"),
        (PrecomputedTokenizer(0), codes, "'n_codes' parameter of PrecomputedTokenizer must be"),
    ):
        clf = make(tokenizer=tokenizer)
        with pytest.raises(ValueError, match=message):
            clf.fit(X, y)
        assert not hasattr(clf, "model_")
    with pytest.raises(ValueError, match="Pass X, or n_codes and grid"):
        PrecomputedTokenizer(5).fit()


def test_published_weights_on_tokens_without_a_tokenizer(tmp_path):
    torch.manual_seed(0)
    prior = AnyOrderPrior(50, (3, 2), 4, 64, 1, 1)
    torch.nn.init.normal_(prior.output.weight, std=0.5)
    save_file(prior.state_dict(), tmp_path / "prior.safetensors")
    codes = np.random.RandomState(0).randint(40, size=(6, 2, 3, 2))  # rare codes may be missing
    how = {"tokenizer": "precomputed", "n_orders": 2, "random_state": 0}
    how |= {"precision": "float32", "device": "cpu"}
    weights = PretrainedWeights(tmp_path, grid=(3, 2), num_classes=4)
    clf = AnyOrderARClassifier.from_pretrained(weights, **how)
    ll = prior.log_prob(
        torch.tensor(codes[:, 1].reshape(6, 6)),
        torch.tensor(clf.orders_[1:]),
        torch.full((6,), 2),
    )
    np.testing.assert_allclose(log_likelihoods(clf, codes)[:, 1, 2], ll.sum(1).detach(), atol=1e-4)
    tuned = make(prior=prior, max_iter=1).fit(codes, np.arange(6) % 3)
    assert tuned.tokenizer_.n_codes_ == 50
    with pytest.raises(ValueError, match=r"\(n, 3, 2\)"):
        make(prior=prior).fit(codes.reshape(6, 2, 2, 3), np.arange(6) % 3)

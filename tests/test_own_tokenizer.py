"""Custom tokenizers: checks, evidence maps and inpainting."""

import re
import warnings

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin

from skaocls import (
    AnyOrderARClassifier,
    FeatureTokenizer,
    PatchTokenizer,
    QuantileTokenizer,
    check_tokenizer,
)

SMALL = {"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 32}


class Blocks(TransformerMixin, BaseEstimator):
    """Tokens are the quantized mean of blocks; images are padded with their last pixels."""

    def __init__(self, side=4, n_levels=8, fault=None):
        self.side = side
        self.n_levels = n_levels
        self.fault = fault

    def fit(self, X, y=None):
        rows, cols = (-(-size // self.side) for size in X.shape[1:3])
        if self.fault != "no grid":
            self.grid_ = (rows, cols) if self.fault != "grid" else (rows * cols,)
        self.n_codes_ = self.n_levels if self.fault != "no codes" else 0.5
        self.shape_ = X.shape[1:]
        self.patch_size_ = None if self.fault == "no patch size" else (self.side, self.side)
        if self.fault == "parameter":
            self.n_levels += 1
        return None if self.fault == "no self" else self

    def transform(self, X):
        height, width, _ = self.shape_
        side, rows, cols = self.side, *self.grid_
        over = (0, 0), (0, rows * side - height), (0, cols * side - width), (0, 0)
        blocks = np.pad(X, over, mode="edge").reshape(len(X), rows, side, cols, side, -1)
        share = blocks.mean((2, 4, 5))
        if self.fault == "company":
            share = share - share[:1] + 0.5
        codes = (share * self.n_levels).astype(int).clip(0, self.n_levels - 1)
        if self.fault == "in place":
            X *= 0.5
        made = {
            "float": codes * 1.0, "flat": codes.reshape(len(X), -1), "large": codes + self.n_levels,
            "negative": codes - 1, "one less": codes[1:],
        }  # fmt: skip
        return made.get(self.fault, codes)

    def inverse_transform(self, codes):
        height, width, channels = self.shape_
        images = ((codes + 0.5) / self.n_levels).repeat(self.side, 1).repeat(self.side, 2)
        images = images[:, :height, :width, None]
        return images if self.fault == "gray" else images.repeat(channels, 3)


@pytest.fixture(scope="module")
def images():
    """Color images of 10 x 13 pixels, bright in the upper or lower half."""
    rng = np.random.RandomState(0)
    X, y = 0.3 * rng.uniform(size=(40, 10, 13, 3)), np.arange(40) % 2
    X[y == 0, :5] += 0.6
    X[y == 1, 5:] += 0.6
    return X, y


def fitted(X, y, tokenizer):
    how = {"prior": SMALL, "max_iter": 3, "n_orders": 3, "augmentation": None, "random_state": 0}
    return AnyOrderARClassifier(tokenizer=tokenizer, **how).fit(X, y)


FAULTS = {
    "no self": "Blocks.fit must return the tokenizer itself, got None.",
    "no grid": "Blocks has no attribute grid_ after fit: rows and columns",
    "grid": "Blocks.grid_ must be (rows, cols), two integers, got (12,)",
    "no codes": "Blocks.n_codes_ must be an integer, got 0.5",
    "float": "Blocks.transform: codes must be integers, got dtype float64",
    "flat": "Blocks.transform: codes have shape (40, 12), but (n, 3, 4) is expected",
    "large": "Blocks.transform: codes must be in 0 ... 7, got",
    "negative": "Blocks.transform: codes must be in 0 ... 7, got -1",
    "one less": "Blocks.transform: codes are of 39 images, but there are 40",
}
MORE_FAULTS = {
    "company": "other codes when the same images are transformed in two halves",
    "in place": "other codes when the same images are transformed a second time",
    "parameter": "Blocks.fit changed the parameter n_levels from 8 to 9",
    "gray": "array of shape (40, 10, 13, 1) for the codes of X, but the shape of X, (40, ",
}


@pytest.mark.parametrize("fault, said", FAULTS.items())
def test_faults_are_reported_by_fit_and_check_tokenizer(images, fault, said):
    X, y = images
    for use in (
        lambda: check_tokenizer(Blocks(fault=fault), X),
        lambda: fitted(X, y, Blocks(fault=fault)),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            use()


@pytest.mark.parametrize("fault, said", MORE_FAULTS.items())
def test_faults_that_only_check_tokenizer_reports(images, fault, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        check_tokenizer(Blocks(fault=fault), images[0].copy())


def test_check_tokenizer_adds_the_channel_axis(images):
    X = images[0][..., 0].copy()
    with pytest.raises(ValueError, match="when the same images are transformed in two halves"):
        check_tokenizer(Blocks(fault="company"), X)
    for tokenizer in (Blocks(), PatchTokenizer(random_state=0)):
        check_tokenizer(tokenizer, X)
    np.testing.assert_array_equal(X, images[0][..., 0])
    for bad in (X[0, 0], X[None, ..., None], np.array([["a.png", "b.png"]] * 4)):
        with pytest.raises(
            ValueError, match=r"X has shape .* but numbers of shape \(n_images, hei"
        ):
            check_tokenizer(Blocks(), bad)


def test_check_tokenizer_passes_and_changes_nothing(images):
    X, y = images
    for tokenizer, data in (
        (Blocks(), X),
        (Blocks(fault="gray"), X[..., :1]),
        (PatchTokenizer(3, n_codes=5, random_state=0), X),
        (QuantileTokenizer(n_bins=4), X.reshape(40, -1)[:, :9]),
    ):
        before, params = data.copy(), repr(tokenizer.get_params())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert check_tokenizer(tokenizer, data, y) is None
        assert np.array_equal(data, before) and repr(tokenizer.get_params()) == params
        assert not hasattr(tokenizer, "grid_")
    with pytest.warns(UserWarning, match=r"3 x 4 tokens of images of 10 x 13 .* patch_size_"):
        check_tokenizer(Blocks(fault="no patch size"), X)
    with pytest.raises(ValueError, match="X has 3 samples, but at least 4"):
        check_tokenizer(Blocks(), X[:3])


def test_padded_blocks_in_evidence_and_inpainting(images):
    X, y = images
    clf = fitted(X, y, Blocks())
    evidence = clf.explain(X[:2])
    assert evidence.maps.shape == (2, 10, 13)
    np.testing.assert_array_equal(evidence.maps[:, 8:, 12], evidence.tokens[:, 2:, 3].repeat(2, 1))
    mask = np.zeros((10, 13), bool)
    mask[8, 12] = True  # in the last block
    other = X[:2].copy()
    other[:, 8:, 12:] = 1 - other[:, 8:, 12:]  # other codes, which must not be used
    filled = [clf.inpaint(some, mask, random_state=0) for some in (X[:2], other)]
    np.testing.assert_array_equal(filled[0][:, 8, 12], filled[1][:, 8, 12])
    assert np.isclose(filled[0][:, 8, 12, :, None], (np.arange(8) + 0.5) / 8).any(-1).all()
    np.testing.assert_array_equal(filled[0][:, ~mask], X[:2, ~mask].astype(np.float32))


def test_tokens_without_patch_size_divide_the_image_evenly(images):
    X, y = images
    network = FeatureTokenizer(lambda x: x[:, :, ::2, ::2], input_size=6, n_codes=4, random_state=0)
    clf = fitted(X, y, network)
    maps, tokens = (clf.explain(X[:2]).maps, clf.explain(X[:2]).tokens)
    assert tokens.shape[1:] == (3, 3) and maps.shape == (2, 10, 13)
    rows, cols = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0] * 5 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(maps, tokens[:, rows][:, :, cols])


def test_samples_with_one_channel_have_no_channel_axis(images):
    X, y = images
    for channels in (X[..., 0], X[..., :1]):
        clf = fitted(channels, y, Blocks(fault="gray"))
        assert clf.sample(2, random_state=0).shape == (2, 10, 13)
    clf = fitted(X, y, Blocks(fault="gray"))
    with pytest.raises(ValueError, match=r"images of shape \(10, 13, 1\), but .* \(10, 13, 3\)"):
        clf.inpaint(X[:1], np.ones((10, 13), bool))

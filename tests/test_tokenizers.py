"""Patch and quantile tokenizers, compared with explicit nearest neighbors and quantiles."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from skaocls import AnyOrderARClassifier, PatchTokenizer, QuantileTokenizer, check_tokenizer
from skaocls.tokenizers.codebook import held_out_loss


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 1), (8, 8, 3), (5, 6, 4), (1, 7, 1)])
@pytest.mark.parametrize("patch_size", [2, (3, 2), "auto"])
def test_codes_are_nearest_centers(shape, patch_size):
    X = np.random.RandomState(0).rand(30, *shape)
    tokenizer = PatchTokenizer(patch_size=patch_size, n_codes=12, random_state=0).fit(X)
    codes = tokenizer.transform(X)
    ph, pw = tokenizer.patch_size_
    rows, cols = tokenizer.grid_
    assert codes.shape == (30, rows, cols) and codes.dtype == np.int64
    assert (rows - 1) * ph < shape[0] <= rows * ph and (cols - 1) * pw < shape[1] <= cols * pw
    centres = tokenizer.codebook_
    for i, r, c in [(0, 0, 0), (3, rows - 1, cols - 1), (29, rows // 2, cols - 1)]:
        patch = np.array(
            [
                X[i, min(r * ph + a, shape[0] - 1), min(c * pw + b, shape[1] - 1)]
                for a in range(ph)
                for b in range(pw)
            ]
        ).ravel()
        assert codes[i, r, c] == ((centres - patch) ** 2).sum(1).argmin()


def test_reconstructions_have_the_same_codes():
    X = load_digits().images[:50, :7, :7]  # not divisible by the patch
    tokenizer = PatchTokenizer(patch_size=2, n_codes=10, random_state=0).fit(X)
    codes = np.random.RandomState(0).randint(10, size=(6, 4, 4))
    images = tokenizer.inverse_transform(codes)
    assert images.shape == (6, 7, 7)
    centres = tokenizer.codebook_
    np.testing.assert_array_equal(images[3, 2:4, 4:6].ravel(), centres[codes[3, 1, 2]])
    whole = images[:, :6, :6].reshape(6, 3, 2, 3, 2).swapaxes(2, 3).reshape(6, 3, 3, 4)
    distances = ((whole[..., None, :] - centres) ** 2).sum(-1)
    assert (distances.argmin(-1) == codes[:, :3, :3]).all()


def test_large_codebooks_reconstruct_well():
    X = load_digits().images
    error = [
        ((t.inverse_transform(t.transform(X)) - X) ** 2).mean()
        for t in (PatchTokenizer(2, n, random_state=0).fit(X) for n in (1, 16, 128))
    ]
    assert error[0] > 3 * error[1] > 6 * error[2]
    mean_patch = X.reshape(-1, 4, 2, 4, 2).mean((0, 1, 3))
    assert error[0] == pytest.approx(((X - np.tile(mean_patch, (4, 4))) ** 2).mean(), rel=0.05)


def test_default_sizes_follow_the_data():
    digits = PatchTokenizer(random_state=0).fit(load_digits().images)
    assert (digits.patch_size_, digits.grid_, digits.n_codes_) == ((2, 2), (4, 4), 256)
    rng = np.random.RandomState(0)
    photos = PatchTokenizer(random_state=0).fit(rng.rand(4, 64, 48, 3))
    # 7 x 7 leaves 10 * 7 = 70 tokens, 8 x 8 leaves 8 * 6 = 48
    assert photos.patch_size_ == (8, 8) and photos.grid_ == (8, 6)
    flat = PatchTokenizer(image_shape=(8, 8), random_state=0).fit(load_digits().data)
    np.testing.assert_array_equal(
        flat.transform(load_digits().data), digits.transform(load_digits().images)
    )
    constant = PatchTokenizer().fit(np.zeros((5, 4, 4)))
    assert constant.n_codes_ == 1 and (constant.transform(np.zeros((2, 4, 4))) == 0).all()


def test_quantile_bins_are_equally_frequent():
    X = np.random.RandomState(0).lognormal(size=(1000, 3))
    codes = QuantileTokenizer(n_bins=8).fit(X).transform(X)
    assert codes.shape == (1000, 1, 3)
    for j in range(3):
        assert abs(np.bincount(codes[:, 0, j]) - 125).max() <= 1
        order = X[:, j].argsort()
        assert (np.diff(codes[order, 0, j]) >= 0).all()


def test_quantile_bins_of_unusual_features():
    X = np.c_[np.zeros(100), np.arange(100) % 2, np.arange(100)]
    tokenizer = QuantileTokenizer(n_bins=5).fit(X)
    codes = tokenizer.transform(X)
    assert (codes[:, 0, 0] == 0).all()
    assert len(np.unique(codes[:, 0, 1])) == 2
    assert tokenizer.n_codes_ == 5
    back = tokenizer.inverse_transform(codes)
    assert abs(back[:, 2] - X[:, 2]).max() <= 10  # half a bin
    outside = tokenizer.transform([[9.0, 9.0, 1e9], [-9.0, -9.0, -1e9]])
    np.testing.assert_array_equal(outside[:, 0, 2], [4, 0])
    assert QuantileTokenizer().fit(X).n_codes_ == 9  # 2 * 100 ** (1 / 3)


@pytest.mark.parametrize("tokenizer", [PatchTokenizer(2), QuantileTokenizer()])
def test_wrong_codes(tokenizer):
    with pytest.raises(NotFittedError):
        tokenizer.inverse_transform([[[0]]])
    tokenizer = tokenizer.fit(np.random.RandomState(0).rand(20, 6))
    n = tokenizer.n_codes_
    good = np.zeros((1, *tokenizer.grid_), int)
    tokenizer.inverse_transform(good)
    for bad, message in [
        (good[0], r"shape \(1, \d\), but \(n, 1, \d\) is expected"),
        (good + n, f"must be in 0 ... {n - 1}, got {n}"),
        (good - 1, "got -1"),
        (good + 0.5, "must be integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenizer.inverse_transform(bad)


def test_wrong_options():
    X = np.zeros((3, 4, 4))
    for params, message in [
        ({"patch_size": 0}, "'patch_size'"),
        ({"patch_size": (2, 0)}, "must be an int >= 1 or two of them"),
        ({"n_codes": 0}, "'n_codes'"),
        ({"image_shape": (4,)}, "must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            PatchTokenizer(**params).fit(X)
    with pytest.raises(ValueError, match="'n_bins'"):
        QuantileTokenizer(n_bins=1).fit(X[0])


def test_large_patches_are_clustered_by_principal_components():
    rng = np.random.RandomState(0)
    kinds = rng.rand(6, 16, 16, 3)
    images = np.clip(kinds[rng.randint(6, size=40)] + 0.02 * rng.randn(40, 16, 16, 3), 0, 1)
    tokenizer = PatchTokenizer(patch_size=16, n_codes=6, random_state=0).fit(images)
    error = ((tokenizer.inverse_transform(tokenizer.transform(images)) - images) ** 2).mean()
    kmeans = KMeans(6, n_init=3, random_state=0).fit(images.reshape(40, -1))
    assert tokenizer.codebook_.shape == (6, 768)
    assert error < 1.2 * kmeans.inertia_ / images.size


def test_large_images_get_a_warning_by_default():
    images = np.random.RandomState(0).rand(3, 72, 72, 3)
    with pytest.warns(UserWarning, match=r"72 x 72 pixels .* patches of 9 x 9.*\(64, 64\)"):
        PatchTokenizer(random_state=0).fit(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PatchTokenizer(random_state=0).fit(images[:, :64, :64])
        PatchTokenizer(9, random_state=0).fit(images)  # explicit


def test_held_out_loss_equals_explicit_naive_bayes():
    rng = np.random.RandomState(0)
    codes, labels, folds = rng.randint(3, size=(30, 2)), rng.randint(2, size=30), np.arange(30) % 3
    joint = np.zeros((30, 2))
    for i, c in np.ndindex(30, 2):
        rest = [j for j in range(30) if folds[j] != folds[i]]
        for place in range(2):
            t = codes[i, place]

            def share(rows, places, prior, weight, t=t):
                seen = [codes[j, p] for j in rows for p in places]
                return (seen.count(t) + weight * prior) / (len(seen) + weight)

            everywhere = (sum((codes[rest] == t).ravel()) + 0.5) / (2 * len(rest) + 1.5)
            own = [j for j in rest if labels[j] == c]
            joint[i, c] += np.log(share(own, [place], share(own, [0, 1], everywhere, 2), 2))
    scales = np.exp(np.linspace(-8, 2, 20001))[:, None]
    gap = joint[np.arange(30), labels] - joint[np.arange(30), 1 - labels]
    expected = np.logaddexp(0, -scales * gap).mean(1).min()
    assert held_out_loss(codes, labels, 3, folds) == pytest.approx(expected, abs=1e-5)


def test_codebook_size_is_chosen_by_labels():
    rng = np.random.RandomState(0)
    y = np.arange(400) % 2
    tokenizer = PatchTokenizer(random_state=0)
    # classes differ by rare patches, which a small codebook merges
    kinds = rng.rand(2, 300, 2, 2)
    which = rng.randint(300, size=(400, 4, 4))
    fine = kinds[y[:, None, None], which].transpose(0, 1, 3, 2, 4).reshape(400, 8, 8)
    assert tokenizer.fit(fine, y).n_codes_ > 64
    # classes differ in brightness; many codes only split the noise
    bright = rng.rand(10, 4, 4).round()[np.arange(400) % 10].repeat(2, 1).repeat(2, 2)
    noisy = bright + rng.normal(scale=0.5, size=(400, 8, 8))
    chosen = tokenizer.fit(noisy, np.array(list("abcdefghij"))[np.arange(400) % 10])
    assert chosen.n_codes_ == 16
    codebook = chosen.codebook_
    again = tokenizer.fit(noisy, np.arange(400) % 10).codebook_
    np.testing.assert_array_equal(codebook, again)
    # without labels, or with uninformative ones: 6400 patches, at least 64 per code
    for nothing in (None, rng.rand(400), np.arange(400), np.zeros(400), rng.permutation(y)):
        assert tokenizer.fit(fine, nothing).n_codes_ == 64
    with pytest.raises(ValueError, match="y has 3 labels, but X has 400 images"):
        tokenizer.fit(fine, y[:3])


def test_tokenizer_of_the_user_guide():
    guide = (Path(__file__).parents[1] / "docs/user_guide.md").read_text(encoding="utf-8")
    section = guide.split("### A tokenizer of your own")[1]
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    tokenizer = names["GrayBlocks"](side=1, n_levels=2)
    X, y = load_digits(n_class=2, return_X_y=True)
    check_tokenizer(names["GrayBlocks"](), X.reshape(-1, 8, 8, 1))
    X = X.reshape(-1, 8, 8)[:, 1:7, 1:7]  # values from 0 to 16
    clf = AnyOrderARClassifier(tokenizer=tokenizer, max_iter=2, n_orders=2, random_state=0)
    clf.fit(X[:200], y[:200])
    np.testing.assert_array_equal(clf.tokenizer_.transform(X[..., None]), X >= 8)
    assert clf.score(X[200:], y[200:]) > 0.9
    assert set(np.unique(clf.sample(3, y=1, random_state=0))) == {4.0, 12.0}

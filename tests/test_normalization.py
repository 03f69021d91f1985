"""Normalization: tokens do not depend on brightness and contrast, and images get them back."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from skaocls import AnyOrderARClassifier, PatchTokenizer
from skaocls.tokenizers.normalization import NORMALIZATIONS, image_statistics, match_statistics

RNG = np.random.RandomState(0)
# skewed, so that polarity is defined
IMAGES = RNG.gamma(0.5, size=(60, 8, 8, 3)) * RNG.uniform(1, 3, size=(60, 1, 1, 1))


def changed(images, normalize):
    """Change everything that the normalization removes."""
    rng = np.random.RandomState(1)
    channels = 3 if normalize.startswith("channel") else 1
    times = rng.uniform(0.5, 2, size=(len(images), 1, 1, channels))
    if normalize.endswith("polarity"):
        times *= rng.choice([-1, 1], size=(len(images), 1, 1, 1))
    return times * images + rng.uniform(-1, 1, size=(len(images), 1, 1, channels))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_tokens_do_not_depend_on_what_is_normalized(normalize):
    tokenizer = PatchTokenizer(2, n_codes=16, normalize=normalize, random_state=0).fit(IMAGES)
    codes = tokenizer.transform(IMAGES)
    np.testing.assert_array_equal(tokenizer.transform(changed(IMAGES, normalize)), codes)
    one_by_one = [tokenizer.transform(image[None])[0] for image in IMAGES]
    np.testing.assert_array_equal(one_by_one, codes)
    for more in set(NORMALIZATIONS) - {normalize}:
        if any(word not in normalize for word in more.replace("image", "").split("+")):
            assert (tokenizer.transform(changed(IMAGES, more)) != codes).mean() > 0.1
    unnormalized = PatchTokenizer(2, n_codes=16, normalize=None, random_state=0).fit(IMAGES)
    assert (
        unnormalized.transform(changed(IMAGES, "image")) != unnormalized.transform(IMAGES)
    ).any()


def test_statistics_are_mean_and_standard_deviation():
    known = RNG.rand(60, 8, 8) < 0.5
    by_image, by_channel = (image_statistics(IMAGES, how, known) for how in ("image", "channel"))
    for i in range(60):
        seen = IMAGES[i][known[i]]
        np.testing.assert_allclose(by_image[i, :, 1], [seen.mean(), seen.std()])
        np.testing.assert_allclose(by_channel[i], [seen.mean(0), seen.std(0)])
    polar = image_statistics(np.concatenate([IMAGES, -IMAGES]), "image+polarity")
    assert (polar[:60, 1] > 0).all() and (polar[60:, 1] < 0).all()
    np.testing.assert_allclose(abs(polar[60:]), abs(polar[:60]))
    even = image_statistics(np.array([0.0, 1, 0, 1]).reshape(1, 2, 2, 1), "image+polarity")
    assert even[0, 1, 0] == 0.5  # not skewed: polarity is positive
    there = match_statistics(IMAGES, by_channel, by_image)
    np.testing.assert_allclose(match_statistics(there, by_image, by_channel), IMAGES, atol=1e-4)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_uniform_images(normalize):
    flat = np.full((3, 8, 8, 3), 0.7)
    flat += np.arange(3)[:, None, None, None]
    # a seed for which no two codes are equally near to uniform patches
    tokenizer = PatchTokenizer(2, n_codes=16, normalize=normalize, random_state=2).fit(IMAGES)
    codes = tokenizer.transform(flat)
    assert (codes == codes[0, 0, 0]).all()
    # noise of a hundredth of the typical contrast stays small
    noise = 0.01 * IMAGES.std() * RNG.randn(3, 8, 8, 3)
    assert (tokenizer.transform(flat + noise) == codes).mean() > 0.9
    back = tokenizer.inverse_transform(codes, statistics=tokenizer.image_statistics(flat))
    np.testing.assert_allclose(back, flat, atol=0.1 * IMAGES.std())
    only = PatchTokenizer(2, normalize=normalize).fit(flat)
    assert only.n_codes_ == 1 and np.isfinite(only.inverse_transform(only.transform(flat))).all()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_inverse_transform_restores_given_or_typical_statistics(normalize):
    rng = np.random.RandomState(2)
    kinds = rng.gamma(0.5, size=(4, 2, 2, 3))
    places = np.stack([rng.permutation(16) % 4 for _ in range(30)]).reshape(30, 4, 4)
    images = kinds[places].swapaxes(2, 3).reshape(30, 8, 8, 3)  # all with equal statistics
    X = changed(images, normalize)
    tokenizer = PatchTokenizer(2, n_codes=4, normalize=normalize, random_state=0).fit(X)
    codes = tokenizer.transform(X)
    statistics = tokenizer.image_statistics(X)
    np.testing.assert_allclose(statistics, image_statistics(X, normalize), rtol=1e-4)
    np.testing.assert_allclose(
        tokenizer.inverse_transform(codes, statistics=statistics), X, atol=1e-3
    )
    back = tokenizer.inverse_transform(codes)
    times = tokenizer.reference_statistics_[1] / image_statistics(images, normalize)[0, 1]
    plus = tokenizer.reference_statistics_[0] - times * image_statistics(images, normalize)[0, 0]
    np.testing.assert_allclose(back, (times * images + plus).clip(X.min(), X.max()), atol=1e-3)
    medians = np.median(abs(image_statistics(X, normalize)[:, 1]), axis=0)
    np.testing.assert_allclose(abs(tokenizer.reference_statistics_[1]), medians, rtol=1e-4)
    X = X.astype(np.float32)
    matched = match_statistics(X, statistics[::-1], statistics)
    np.testing.assert_array_equal(
        tokenizer._encode(X, statistics=statistics[::-1]),
        tokenizer._encode(matched, statistics=statistics),
    )


def test_normalization_is_chosen_by_labels():
    rng = np.random.RandomState(0)
    y = np.arange(300) % 4
    shapes = (rng.rand(4, 8, 8, 3) < 0.2).astype(float)

    def chosen(images, y=y):
        images = images + 0.02 * rng.randn(*images.shape)
        return PatchTokenizer(2, n_codes=16, random_state=0).fit(images, y).normalize_

    brightness, sign = rng.uniform(0.2, 3, (300, 1, 1, 1)), rng.choice([-1, 1], (300, 1, 1, 1))
    colours = rng.uniform(0.2, 3, (300, 1, 1, 3))
    assert chosen(shapes[y] * sign * colours + colours[::-1]) == "channel+polarity"
    assert chosen(shapes[0] + y[:, None, None, None]) is None
    gray = shapes[y][..., :1] * brightness
    assert chosen(gray) == "image+polarity"  # which loses nothing
    two = shapes[y // 2][..., :1] * brightness
    assert chosen(np.where(y[:, None, None, None] % 2, two, -two)) == "image"
    for nothing in (None, np.zeros(300), rng.rand(300), rng.permutation(y)):
        assert chosen(gray, nothing) is None


def test_predictions_do_not_depend_on_brightness(tmp_path):
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 8, 8)
    clf = AnyOrderARClassifier(max_iter=4, n_orders=4, random_state=0).fit(X[:300], y[:300])
    assert clf.tokenizer_.normalize_ == "image+polarity"
    lit = np.where(np.arange(60)[:, None, None] % 2, 16 - X[300:360] / 2, 2 + X[300:360] / 2)
    proba = clf.predict_proba(X[300:360])
    np.testing.assert_array_equal(clf.predict_proba(lit), proba)
    clf.save_pretrained(tmp_path)
    again = AnyOrderARClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(lit), proba)
    assert again.tokenizer_.get_params() == clf.tokenizer_.get_params()
    config = tmp_path / "config.json"
    saved = json.loads(config.read_text())
    for changes in ({"normalize_": "other"}, {"reference_statistics_": [[1.0], [0.0]]}):
        damaged = json.loads(json.dumps(saved))
        damaged["tokenizer"]["attributes"].update(changes)
        config.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"(?s)normalization .* is invalid"):
            AnyOrderARClassifier.from_pretrained(tmp_path)


def test_inpainting_keeps_the_statistics_of_the_known_part():
    X, y = load_digits(n_class=3, return_X_y=True)
    X = X.reshape(-1, 8, 8) / 16
    tokenizer = PatchTokenizer(2, n_codes=32, normalize="image+polarity")
    clf = AnyOrderARClassifier(tokenizer=tokenizer, max_iter=4, n_orders=2, random_state=0)
    clf.fit(np.concatenate([X[:200], 1 - X[:200]]), np.tile(y[:200], 2))
    mask = np.zeros((8, 8), bool)
    mask[:, 4:] = True
    holes = X[200:220].copy()
    filled = clf.inpaint(holes, mask, y[200:220], random_state=0)
    holes[:, mask] = 1 - holes[:, mask]  # masked, so not used
    np.testing.assert_array_equal(
        clf.inpaint(holes, mask, y[200:220], random_state=0)[:, mask], filled[:, mask]
    )
    negative = clf.inpaint(1 - X[200:220], mask, y[200:220], random_state=0)
    np.testing.assert_allclose(negative, 1 - filled, atol=1e-5)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_statistics_are_estimated_from_a_part(normalize):
    rng = np.random.RandomState(3)
    rows = np.linspace(0, 3, 8)[:, None, None]  # darker and with less contrast at the top
    images = rows * (0.5 + rng.gamma(0.5, size=(200, 8, 8, 3)))
    tokenizer = PatchTokenizer(2, n_codes=16, normalize=normalize, random_state=0).fit(images)
    own = tokenizer.image_statistics(images)
    np.testing.assert_allclose(
        tokenizer.image_statistics(images, np.ones((200, 8, 8), bool)), own, rtol=1e-3
    )
    nothing = tokenizer.image_statistics(images, np.zeros((200, 8, 8), bool))
    np.testing.assert_array_equal(
        nothing, np.broadcast_to(tokenizer.reference_statistics_, own.shape)
    )
    top = np.zeros((200, 8, 8), bool)
    top[:, :4] = True
    guess, part = tokenizer.image_statistics(images, top), image_statistics(images, normalize, top)
    assert (abs(guess - own).mean(0) < 0.7 * abs(part - own).mean(0)).all()
    # images with other statistics get the same tokens; all channels change alike, because the
    # polarity is that of their mean
    other = changed(images, normalize.replace("channel", "image"))
    tokens = [
        tokenizer._encode(x.astype(np.float32), statistics=tokenizer.image_statistics(x, top))
        for x in (images, other)
    ]
    np.testing.assert_array_equal(*tokens)

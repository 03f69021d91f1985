"""The likelihood as an outlier score, and what the tokens do not contain."""

import copy
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, PatchTokenizer, QuantileTokenizer
from skaocls.fitted.class_statistics import log_density, log_density_of_images, log_density_of_rows

QUICK = {"max_iter": 1, "n_orders": 2, "tol": 10.0, "random_state": 0}


def mixed_table(return_X_y):
    """Return skewed, integer, binary and constant columns of two classes."""
    rng = np.random.RandomState(0)
    y = np.arange(200) % 2
    columns = [
        rng.randn(200) + y,
        rng.lognormal(sigma=1.5, size=200) + 0.1,
        rng.randint(3, 7, size=200),
        1 + y * rng.randint(2, size=200),
        np.full(200, 5.0),
    ]
    return np.stack(columns, axis=1), y


def log_p_of_tokens(clf, X):
    return logsumexp(clf.transform(X) + clf.class_log_prior_, axis=1)


def auc(clf, X, strange):
    truth = np.r_[np.ones(len(X)), np.zeros(len(strange))]
    return roc_auc_score(truth, np.r_[clf.score_samples(X), clf.score_samples(strange)])


@pytest.mark.parametrize("load", [load_breast_cancer, load_wine, load_iris, mixed_table])
def test_rows_outside_the_training_range_are_outliers(load):
    X, y = load(return_X_y=True)
    X, X_test, y, _ = train_test_split(X, y, test_size=30, stratify=y, random_state=0)
    clf = AnyOrderARClassifier(**QUICK).fit(X, y)
    one_value = X_test.copy()
    one_value[:, 0] = -1e6
    kinds = [10 * X_test, X_test + 1e6, 0 * X_test, -X_test, X_test - 1e3, one_value]
    scores = clf.score_samples(np.concatenate([X_test, *kinds])).reshape(-1, 30)
    for strange in scores[1:]:
        assert roc_auc_score(np.repeat([1, 0], 30), np.r_[scores[0], strange]) >= 0.95
    # the class probabilities still only depend on the nearest values in the training range
    strange = np.concatenate(kinds[:4])
    clipped = strange.clip(X.min(0), X.max(0))
    np.testing.assert_array_equal(clf.predict_proba(strange), clf.predict_proba(clipped))
    inside = X[:20]
    np.testing.assert_allclose(clf.score_samples(inside), log_p_of_tokens(clf, inside))


def test_log_density_of_rows():
    X = np.array([[0.0, 3], [1, 3], [3, 3], [4, 3], [8, 3], [8, 3]])
    means = QuantileTokenizer(n_bins=6).fit(X).bin_means_
    ranges = np.array([[[0.0, 3], [4, 3]], [[1, 3], [8, 3]]])  # of two classes
    rows = np.array([[2.5, 3], [-2, 3], [20, 3], [5, 9], [8, -3], [1e308, -1e308]])
    found = log_density_of_rows(means, ranges, rows)
    distances = np.array([0, 2 / 1, 12 / 4, 6 / 3, 6 / 3])
    np.testing.assert_allclose(found[:-1], -4 * np.log(1 + distances))
    assert np.isfinite(found).all() and found[-1] < -4000
    high = np.finfo(float).max
    tiny = [np.array([1.0, 1.0 + 1e-16])]  # rounding makes the means of two bins equal
    assert np.isfinite(log_density_of_rows(tiny, np.array([[[-high], [1.0]]]), [[high]])).all()


def test_inverted_and_faded_images_are_outliers_of_normalized_tokens(fitted, digits):
    X = digits[2]
    assert fitted.tokenizer_.normalize_ == "image+polarity"
    for strange in (16 - X, 0.5 * X, 0.5 * X + 4, 0.3 * X + 8, 0 * X + X.mean()):
        assert auc(fitted, X, strange) >= 0.95
    for same in (16 - X, 0.5 * X):
        np.testing.assert_array_equal(fitted.predict_proba(same), fitted.predict_proba(X))
    density = log_density(fitted.model_, fitted.model_.reader.open(X))
    one_by_one = [log_density(fitted.model_, fitted.model_.reader.open(x[None])) for x in X]
    np.testing.assert_array_equal(np.concatenate(one_by_one), density)


def test_density_of_images_equals_a_sum_of_gaussians(fitted, digits):
    X = digits[2][:4]
    X = np.concatenate([X, 16 - X])
    points = fitted.model_.statistics[..., 0].reshape(-1, 2)  # mean and contrast of training images
    weights = np.repeat(fitted.class_prior_, 64) / 64
    contrast = np.median(abs(points[:, 1]))
    bandwidth = 0.5 * len(np.unique(points, axis=0)) ** (-1 / 6)
    covariance = np.cov(points.T, aweights=weights, bias=True) * bandwidth**2
    covariance += np.eye(2) * (0.02 * contrast) ** 2
    own = np.stack([X.mean((1, 2)), X.std((1, 2))], axis=1)
    own[4:, 1] *= -1  # polarity
    logs = [multivariate_normal(x, covariance).logpdf(points) + np.log(weights) for x in own]
    expected = logsumexp(logs, axis=1) - multivariate_normal([0, 0], covariance).logpdf([0, 0])
    found = fitted.score_samples(X) - log_p_of_tokens(fitted, X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_density_of_extreme_images():
    rng = np.random.RandomState(0)
    for scale in (1e-30, 1, 1e30):
        for spread in (0, 1e-9, 1e9):  # of the means, relative to the contrasts
            training = scale * rng.uniform(1, 2, size=(3, 64, 2, 3))
            training[:, :, 0] = scale * spread * rng.uniform(1, 2, size=(3, 64, 1))
            found = log_density_of_images(training, np.ones(3), training[0])
            assert np.isfinite(found).all() and (found <= 0).all()


def coloured(y, rng):
    """Return 8-bit images of a disc or a bar; each class has its own colours."""
    rows, cols = np.mgrid[:8, :8]
    shapes = [(rows - 3.5) ** 2 + (cols - 3.5) ** 2 < 8, abs(rows - 3.5) < 1.6, rows + cols < 6]
    front = np.array([[220, 40, 40], [30, 60, 220], [40, 200, 60]])
    back = np.array([[250, 240, 200], [190, 200, 250], [20, 40, 20]])
    masks = np.array(shapes)[y][..., None]
    images = np.where(masks, front[y][:, None, None], back[y][:, None, None])
    return (images + rng.normal(0, 5, size=images.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def shapes():
    """Return coloured images, labels, and a classifier whose tokens contain no colour cast."""
    y = np.arange(90) % 2
    X = coloured(y, np.random.RandomState(0))
    tokenizer = PatchTokenizer(normalize="channel", random_state=0)
    return X, y, small_classifier(AnyOrderARClassifier, tokenizer=tokenizer).fit(X, y)


def assert_samples_have_class_colours(clf, images, y):
    for label in np.unique(y):
        drawn = clf.sample(20, y=label, random_state=0)
        expected = images[y == label] / 255
        difference = drawn.mean((0, 1, 2)) - expected.mean((0, 1, 2))
        assert abs(difference).max() < 0.06
        assert abs(drawn.std((1, 2)).mean(0) - expected.std((1, 2)).mean(0)).max() < 0.06


def test_samples_have_the_colours_of_their_class(shapes):
    X, y, clf = shapes
    assert_samples_have_class_colours(clf, X, y)
    frozen = FrozenEstimator(clf.tokenizer_)  # fitted before, without this classifier
    again = small_classifier(AnyOrderARClassifier, tokenizer=frozen, max_iter=1)
    assert_samples_have_class_colours(again.fit(X, 1 - y), X, 1 - y)
    # a class without images borrows colours
    empty = small_classifier(AnyOrderARClassifier, max_iter=1, tokenizer=frozen)
    empty.partial_fit(X, y, classes=[0, 1, 2])
    assert np.isfinite(empty.sample(2, y=2)).all()


def test_tinted_images_are_outliers(shapes):
    X, _, clf = shapes
    for tint in ([1, 0.7, 0.7], [0.7, 0.7, 1], [1, 0.8, 1]):
        tinted = (X * tint).astype(np.uint8)
        assert auc(clf, X, tinted) >= 0.95


def test_partial_fit_adds_statistics_of_new_data(shapes):
    X, y, clf = shapes
    new = coloured(np.full(30, 2), np.random.RandomState(1))
    assert auc(clf, X, new) >= 0.95
    scores = clf.score_samples(new)
    more = copy.deepcopy(clf).set_params(max_iter=1).partial_fit(new, np.full(30, 2))
    assert more.score_samples(new).mean() > scores.mean() + 50
    assert_samples_have_class_colours(more, np.r_[X, new], np.r_[y, np.full(30, 2)])
    dark = X // 2  # darker images of known classes
    mixed = copy.deepcopy(clf).set_params(max_iter=1).partial_fit(dark, y)
    share = np.mean(mixed.model_.statistics[:, :, 0] < clf.model_.statistics[:, :, 0].min() * 0.8)
    assert 0.2 < share < 0.6  # half of the images

    rows, labels = load_iris(return_X_y=True)
    by_class = AnyOrderARClassifier(**QUICK)
    for label in range(3):
        by_class.partial_fit(rows[labels == label], labels[labels == label])
    np.testing.assert_allclose(by_class.score_samples(rows), log_p_of_tokens(by_class, rows))
    assert (by_class.score_samples(2 * rows) < log_p_of_tokens(by_class, 2 * rows) - 1).all()


def test_saved_classifiers_keep_statistics(shapes, tmp_path):
    X, _, clf = shapes
    rows, labels = load_iris(return_X_y=True)
    table = AnyOrderARClassifier(**QUICK).fit(rows, labels)
    for name, original, data in (("images", clf, 255 - X), ("table", table, 2 * rows)):
        folder = tmp_path / name
        original.save_pretrained(folder)
        for same in (
            AnyOrderARClassifier.from_pretrained(folder),
            pickle.loads(pickle.dumps(original)),
        ):
            np.testing.assert_array_equal(same.score_samples(data), original.score_samples(data))
            drawn = (c.sample(4, random_state=0) for c in (same, original))
            np.testing.assert_array_equal(*drawn)
        # tokens contain no statistics, and neither do files of earlier versions
        of_tokens = AnyOrderARClassifier.from_pretrained(folder, tokenizer="precomputed")
        codes = original.tokenizer_.transform(data)
        np.testing.assert_allclose(
            of_tokens.score_samples(codes), log_p_of_tokens(of_tokens, codes)
        )
        arrays = load_file(folder / "tokenizer.safetensors")
        del arrays["class_statistics"]
        save_file(arrays, folder / "tokenizer.safetensors")
        old = AnyOrderARClassifier.from_pretrained(folder)
        np.testing.assert_allclose(old.score_samples(data), log_p_of_tokens(original, data))
        assert np.isfinite(old.sample(2, random_state=0)).all()
        arrays["class_statistics"] = np.full((len(original.classes_), 2, 4), np.nan)
        save_file(arrays, folder / "tokenizer.safetensors")
        with pytest.raises(ValueError, match="the statistics of"):
            AnyOrderARClassifier.from_pretrained(folder)

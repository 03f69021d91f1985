"""Random views: which order reads which view, and when."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional as F

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.fitted.prediction import ScoringOptions, log_likelihoods
from skaocls.fitted.tokenization import SCORING_STRENGTH
from skaocls.images.augmentation import random_views


def other(fitted, **params):
    clf = copy.copy(fitted)
    clf.__dict__ = fitted.__dict__ | params
    return clf


@pytest.fixture(scope="module")
def clf(fitted):
    return other(fitted, crop="auto")


def test_same_view_for_all_images(digits):
    images = digits[0][:6, :, :, None]
    same = random_views(images, np.random.RandomState(3), same=True)
    for image, view in zip(images, same, strict=True):
        one = random_views(image[None], np.random.RandomState(3))
        assert_array_equal(view, one[0])
    assert_allclose(random_views(images, np.random.RandomState(3), strength=0.0), images, atol=1e-5)


def test_view_equals_explicit_affine_transformation(digits):
    """Half as far as in training: shift by a quarter of an eighth at most, and so on."""
    rng, image = np.random.RandomState(0), digits[0][:1, :, :, None]
    angle, stretch, slant = (
        rng.uniform(-SCORING_STRENGTH * limit, SCORING_STRENGTH * limit, 1)[0]
        for limit in (np.deg2rad(10), 0.1, 0.1)
    )
    dx, dy = rng.uniform(-0.25 * SCORING_STRENGTH, 0.25 * SCORING_STRENGTH, (2, 1))[:, 0]
    size, (c, s) = 1 + stretch, (np.cos(angle), np.sin(angle))
    theta = torch.tensor([[[size * c, -size * s + slant, dx], [size * s, size * c, dy]]]).float()
    pixels = torch.from_numpy(image).float().permute(0, 3, 1, 2)
    grid = F.affine_grid(theta, [1, 1, 8, 8], align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    view = random_views(image, np.random.RandomState(0), strength=SCORING_STRENGTH, same=True)
    assert_allclose(view[0, :, :, 0], moved[0, 0], atol=1e-5)


def test_each_order_has_its_view_and_the_first_has_the_image(clf, digits):
    X, model = digits[2][:5], clf.model_
    images = model.reader.open(X).images()
    ll = np.concatenate(list(clf._log_likelihoods(X)))
    for k in range(4):
        drawing = np.random.RandomState([model.order_seed, 2, k])
        view = random_views(images, drawing, strength=SCORING_STRENGTH, same=True) if k else images
        codes = model.tokenizer.transform(view).reshape(5, -1)
        one = log_likelihoods(model, codes, clf.orders_[k : k + 1], ScoringOptions(device="cpu"))
        assert_allclose(ll[:, k : k + 1], one, rtol=1e-6)
    # the first orders of more are those of fewer
    fewer = np.concatenate(list(other(clf, n_orders=2)._log_likelihoods(X)))
    assert_array_equal(fewer, ll[:, :2])


def test_predictions_do_not_depend_on_the_batch(clf, digits):
    X = digits[2][:20]
    together = clf.predict_joint_log_proba(X)
    apart = np.concatenate([clf.predict_joint_log_proba(X[i : i + 3]) for i in range(0, 20, 3)])
    assert_array_equal(together, apart)


def test_crop_auto_uses_views_after_training_with_views(clf, fitted, digits, tmp_path):
    X, y, X_test, _ = digits
    views = other(fitted, crop="views").predict_joint_log_proba(X_test[:9])
    center = fitted.predict_joint_log_proba(X_test[:9])
    assert np.abs(views - center).max() > 0.1
    assert_array_equal(clf.predict_joint_log_proba(X_test[:9]), views)
    # a folder knows it, too
    clf.save_pretrained(tmp_path)
    loaded = AnyOrderARClassifier.from_pretrained(tmp_path)
    assert loaded.model_.views and loaded.crop == "auto"
    assert_array_equal(loaded.predict_joint_log_proba(X_test[:9]), views)
    # without views in training each order reads the image
    plain = small_classifier(AnyOrderARClassifier, augmentation=None, max_iter=1, crop="auto")
    plain.fit(X[:50], y[:50])
    auto = plain.predict_joint_log_proba(X_test[:9])
    assert not plain.model_.views
    assert_array_equal(plain.set_params(crop="center").predict_joint_log_proba(X_test[:9]), auto)


def test_tables_have_no_views(digits):
    X, y = digits[0][:50].reshape(50, -1) - 0.5, digits[1][:50]
    table = small_classifier(AnyOrderARClassifier, max_iter=1, crop="auto").fit(X, y)
    assert not table.model_.views
    assert table.predict_proba(X).shape == (50, 3)


def test_temperature_is_fitted_to_views(digits):
    """Found on held-out images as they will be read, by views or not."""
    X, y = digits[:2]
    params = {"temperature": "auto", "max_iter": 4, "random_state": 0}
    by_views, by_center = (
        small_classifier(AnyOrderARClassifier, **params | {"crop": crop}).fit(X, y)
        for crop in ("auto", "center")
    )
    weights = [c.prior_.output.weight.detach().cpu() for c in (by_views, by_center)]
    assert_array_equal(*weights)
    assert by_views.temperature_ != by_center.temperature_

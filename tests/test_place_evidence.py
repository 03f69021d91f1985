"""The evidence of each place of the training images, and the report of places that decide."""

import numpy as np
import pytest

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.fitted.place_evidence import deciding_places
from skaocls.scoring.evidence import token_log_likelihoods


def test_equals_a_computation_by_hand(digits):
    X, y = digits[0][:40], digits[1][:40]
    clf = small_classifier(AnyOrderARClassifier, max_iter=2, augmentation=None).fit(X, y)
    codes = clf.tokenizer_.transform(X).reshape(40, -1)
    for label in range(3):
        ll = [
            token_log_likelihoods(
                clf.prior_, codes[y == label], clf.orders_, np.full(sum(y == label), c)
            )
            for c in range(3)
        ]
        others = np.mean([ll[c] for c in range(3) if c != label], 0)
        expected = (ll[label] - others).mean((0, 1)).reshape(4, 4)
        np.testing.assert_allclose(clf.place_evidence_[label], expected, atol=1e-4)


def test_places_that_decide():
    even = np.full((3, 4, 4), 1.0)
    assert deciding_places(even) == {}
    marked = even.copy()
    marked[1, 3, 0] = 2.2  # more than twice the rest
    assert deciding_places(marked) == {1: (3, 0)}
    assert deciding_places(marked / 3) == {}  # less than one nat decides nothing
    marked[2, 0, 3], marked[0, 2, 2] = 1.6, 1.4  # likely, and not likely
    assert deciding_places(marked) == {1: (3, 0), 2: (0, 3)}
    marked[1, 3, 1] = 1.8  # a mark that covers two tokens
    assert deciding_places(marked) == {1: (3, 0), 2: (0, 3)}
    marked[1, 2, 1] = 1.8  # a part of the object
    assert deciding_places(marked) == {}
    assert deciding_places(np.full((2, 3, 3), np.nan)) == {}
    assert deciding_places(np.ones((2, 1, 2))) == {}
    assert deciding_places(-even) == {}


@pytest.mark.parametrize(("architecture", "n_epochs"), [("randar", 20), ("shared_trunk", 8)])
def test_fit_names_the_corner_of_a_mark_and_is_silent_without_marks(
    digits, capsys, architecture, n_epochs
):
    X, y, X_test, y_test = digits
    marked, fooled = X.copy(), X_test.copy()
    marked[:, -2:, :2] = np.array([5, 10, 16])[y, None, None]
    fooled[:, -2:, :2] = np.array([5, 10, 16])[y_test - 1, None, None]  # marks of another class
    sizes = {"architecture": architecture, "dim": 32, "n_layer": 1, "n_head": 2}
    clf = small_classifier(AnyOrderARClassifier, prior=sizes, max_iter=n_epochs, augmentation=None)
    clf.set_params(verbose=1).fit(X, y)
    assert "watermark" not in capsys.readouterr().err
    clf.fit(marked, y)
    assert "the lower left (row 4 and column 1 of the tokens): 0, 1, 2" in capsys.readouterr().err
    plain = clf.score(fooled, y_test)
    assert clf.set_params(aggregation="bounded").score(fooled, y_test) > plain


def test_classes_without_images_are_nan(digits):
    X, y = digits[0][:60], digits[1][:60]
    clf = small_classifier(AnyOrderARClassifier, max_iter=1, augmentation=None)
    clf.partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    assert np.isnan(clf.place_evidence_[2]).all() and np.isfinite(clf.place_evidence_[:2]).all()
    clf.partial_fit(X[y == 2], y[y == 2])
    assert np.isnan(clf.place_evidence_[:2]).all()
    assert (clf.place_evidence_[2] == 0).all()  # no other class to compare with

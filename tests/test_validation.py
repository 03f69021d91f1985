"""Held-out samples: which ones are chosen, and errors if there are too few."""

import numpy as np
import pytest

from conftest import small_classifier
from skaocls import AnyOrderARClassifier


def make(**params):
    return small_classifier(AnyOrderARClassifier, max_iter=1, augmentation=None, **params)


@pytest.mark.parametrize("params", [{"early_stopping": True}, {"temperature": "auto"}])
def test_too_few_samples(digits, params):
    X = digits[0][:40]
    pairs, clf = np.arange(40) // 2, make(**params)
    with pytest.raises(ValueError, match=r"holds out 4 of 40 samples.* 20 to 20 samples can be"):
        clf.fit(X, pairs)
    clf.set_params(validation_fraction=0.5).fit(X, pairs)
    with pytest.raises(ValueError, match=r"needs at least 2 samples; 40 classes have one\."):
        clf.fit(X, np.arange(40))

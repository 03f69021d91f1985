"""scikit-learn's own checks, with default settings and no expected failures."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from skaocls import AnyOrderARClassifier, PatchTokenizer, QuantileTokenizer


@parametrize_with_checks([AnyOrderARClassifier(), PatchTokenizer(), QuantileTokenizer()])
def test_scikit_learn_check(estimator, check):
    check(estimator)

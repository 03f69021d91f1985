"""partial_fit: new classes leave the predictions of other classes unchanged."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing

from conftest import small_classifier
from skaocls import AnyOrderARClassifier

PARAMS = {"max_iter": 6, "augmentation": None}


def make(**params):
    return small_classifier(AnyOrderARClassifier, **(PARAMS | params))


@pytest.fixture(scope="module")
def parts(digits):
    """Two classes of digits, and a third."""
    X, y, _, _ = digits
    return X[y < 2], y[y < 2], X[y == 2], y[y == 2]


@pytest.fixture(scope="module")
def two(parts):
    return make().partial_fit(*parts[:2])


def test_first_call_equals_fit(parts, two, digits):
    fitted = make().fit(*parts[:2])
    np.testing.assert_array_equal(two.predict_proba(digits[2]), fitted.predict_proba(digits[2]))


@pytest.mark.parametrize("finetune", ["full", "lora", "class_embedding"])
def test_new_classes_leave_others_unchanged(parts, two, digits, finetune):
    X_test, y_test = digits[2:]
    before = two.transform(X_test)
    clf = copy.deepcopy(two).set_params(finetune=finetune, max_iter=20).partial_fit(*parts[2:])
    np.testing.assert_array_equal(clf.classes_, [0, 1, 2])
    after = clf.transform(X_test)
    np.testing.assert_allclose(after[:, :2], before, rtol=0, atol=1e-4)  # rounding of other tiles
    assert len(clf.model_.priors) == (1 if finetune == "class_embedding" else 2)
    for name, weight in two.prior_.state_dict().items():
        weight_after = clf.prior_.state_dict()[name]
        if name == "cls_embedding.embedding_table.weight" and finetune == "class_embedding":
            weight_after = weight_after[[0, 1, 3]]  # the null class is the last row
        assert (weight_after == weight).all()
    counts = np.bincount(np.r_[parts[1], parts[3]])
    np.testing.assert_array_equal(clf.class_count_, counts)
    np.testing.assert_allclose(clf.class_prior_, counts / counts.sum())
    untrained = copy.deepcopy(two).set_params(finetune=finetune, learning_rate_init=1e-9)
    start = untrained.partial_fit(*parts[2:]).transform(X_test)
    new = y_test == 2
    assert after[new, 2].mean() > start[new, 2].mean() + 0.2
    if finetune != "class_embedding":
        assert (after[new].argmax(1) == 2).mean() > 0.8


def test_known_classes_are_trained_in_full_or_by_their_embeddings(parts, two, digits):
    X, y, _, _ = parts
    X_test = digits[2]
    before = two.transform(X_test)
    one = copy.deepcopy(two).partial_fit(X[y == 1], y[y == 1])
    after = one.transform(X_test)
    np.testing.assert_allclose(after[:, 0], before[:, 0], rtol=0, atol=1e-4)
    assert np.abs(after[:, 1] - before[:, 1]).mean() > 1e-2
    for name, weight in two.prior_.state_dict().items():
        same = (one.prior_.state_dict()[name] == weight).all()
        assert same == (name != "cls_embedding.embedding_table.weight")
    both = copy.deepcopy(two).partial_fit(X, y)
    assert (both.prior_.output.weight != two.prior_.output.weight).any()
    own = np.arange(len(y)), y
    assert both.transform(X)[own].mean() > two.transform(X)[own].mean()
    np.testing.assert_array_equal(both.class_count_, 2 * two.class_count_)


def test_classes_without_images_have_probability_zero(parts, digits):
    X, y, more, label = parts
    clf = make().partial_fit(X, y, classes=[2, 1, 0, 9])
    np.testing.assert_array_equal(clf.classes_, [0, 1, 2, 9])
    proba = clf.predict_proba(digits[2])
    assert (proba[:, 2:] == 0).all()
    np.testing.assert_allclose(proba[:, :2].sum(1), 1)
    clf.partial_fit(more, label)
    np.testing.assert_array_equal(clf.classes_, [0, 1, 2, 9])
    assert (clf.predict_proba(digits[2])[:, 2] > 0).all()
    assert clf.class_prior_[3] == 0
    with pytest.raises(ValueError, match=r"\[0 1\].*\[2\]"):
        make().partial_fit(more, label, classes=[0, 1])


def test_several_priors(parts, two, digits, tmp_path):
    X, y = digits[2][:20], digits[3][:20]
    clf = copy.deepcopy(two).partial_fit(*parts[2:])
    proba = clf.predict_proba(X)
    joint = clf.transform(X) + clf.class_log_prior_
    np.testing.assert_allclose(proba, softmax(joint, axis=1), atol=1e-9)
    clf.save_pretrained(tmp_path)
    restored = AnyOrderARClassifier.from_pretrained(tmp_path)
    for same in (restored, pickle.loads(pickle.dumps(clf))):
        np.testing.assert_array_equal(same.predict_proba(X), proba)
        assert len(same.model_.priors) == 2
    evidence = clf.explain(X, np.full(20, 2), rival=np.zeros(20, dtype=int))
    difference = clf.transform(X) @ [-1, 0, 1]
    np.testing.assert_allclose(evidence.tokens.sum((1, 2)), difference, atol=1e-4)
    np.testing.assert_array_equal(clf.set_params(search="auto").predict_proba(X), proba)
    assert clf.sample(3, y=[0, 2, 1], random_state=0).shape == (3, 8, 8)
    restored.partial_fit(X, y)  # training continues after loading
    assert restored.class_count_.sum() == clf.class_count_.sum() + 20


LARGE = 2**60  # float64 cannot represent LARGE + 1
DAY = np.array([9], "M8[D]")


@pytest.mark.parametrize(
    "first, later, new, expected",
    [
        # two labels; the same labels in another type; a new label; the dtype of all classes
        (["ant", "bee"], pd.Series(["ant", "bee"]), ["wasp"], "<U4"),
        (pd.Series(["ant", "bee"], dtype="string"), ["ant", "bee"], ["a longer name"], object),
        (
            ["ant", "bee"],
            np.array(["ant", "bee"], dtype=object),
            np.array(["wasps"], object),
            "<U5",
        ),
        ([5, 6], pd.Series([5, 6], dtype="Int64"), pd.Series([9], dtype="UInt8"), np.int64),
        (pd.Series([5, 6], dtype="Int16"), [5.0, 6.0], [9.0], np.int16),
        (np.array([5, 6], np.uint8), np.array([5, 6], object), [-9], np.int64),
        (np.array([5, 6], np.uint8), [5, 6], np.array([250], np.uint64), np.uint8),
        ([LARGE, LARGE + 1], np.array([LARGE, LARGE + 1], np.uint64), [LARGE + 2], np.int64),
        ([LARGE, LARGE + 1], pd.Series([LARGE, LARGE + 1], dtype="UInt64"), [LARGE + 2], np.int64),
        ([0, 1], [False, True], [2], np.int64),
        ([5.0, 6.0], [5, 6], np.array([9], np.int8), np.float64),
        (np.array([5, 6], "M8[D]"), np.array([5, 6], "M8[D]").astype("M8[s]"), DAY, "M8[D]"),
    ],
)
def test_labels_are_compared_by_value(first, later, new, expected):
    X = np.random.RandomState(0).rand(12, 2)
    prior = {"dim": 16, "n_layer": 1, "n_head": 1}
    clf = AnyOrderARClassifier(prior, max_iter=1, n_orders=1, random_state=0, tol=10.0)
    rows = np.tile([0, 1], 6)
    y, same = _safe_indexing(first, rows), _safe_indexing(later, rows)
    clf.partial_fit(X, y, classes=first)
    dtype = clf.classes_.dtype
    clf.partial_fit(X, same, classes=later)
    assert clf.classes_.dtype == dtype and clf.class_count_.tolist() == [12, 12]
    assert clf.score(X, same) == clf.score(X, y) == np.mean(clf.predict(X) == np.asarray(y))
    assert clf.explain(X, same, rival=same).tokens.shape == (12, 1, 2)
    clf.set_params(class_weight=dict.fromkeys([*later, *new], 2.0))
    clf.partial_fit(X[:6], _safe_indexing(new, np.zeros(6, dtype=int)))
    assert clf.classes_.dtype == expected
    assert [*clf.classes_] == sorted([*first, *new])
    assert sorted(clf.class_count_) == [12, 12, 12]


def test_digits_two_classes_at_a_time():
    X, y = load_digits().images, load_digits().target
    X, X_test, y, y_test = train_test_split(X, y, stratify=y, random_state=0)
    clf = AnyOrderARClassifier(max_iter=50, n_orders=8, tol=10.0, random_state=0)
    for first in range(0, 10, 2):
        some = (y == first) | (y == first + 1)
        clf.partial_fit(X[some], y[some])
    assert clf.score(X_test, y_test) >= 0.93


def test_invalid_calls(parts, two):
    X, y, _, _ = parts
    with pytest.raises(ValueError, match="partial_fit does not support temperature="):
        make(temperature="auto").partial_fit(X, y)
    for labels in (
        np.array(["a", "b"])[y],
        y.astype(str),  # "1" is not 1
        y.astype("M8[ns]"),
        y.astype(np.uint64) + np.uint64(2**63 + 2),  # int64 cannot represent them
    ):
        with pytest.raises(ValueError, match=r"y has labels of type .*int64.* same type"):
            copy.deepcopy(two).partial_fit(X, labels)
        with pytest.raises(ValueError, match=r"y has labels of type .*int64.* same type"):
            two.score(X, labels)
    with pytest.raises(ValueError, match="images of shape"):
        copy.deepcopy(two).partial_fit(X[:, :7], y)

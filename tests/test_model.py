"""FittedModel without the estimator: training, extending, scoring, sampling, saving, pickling."""

import pickle

import joblib
import numpy as np
import pytest

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, PretrainedWeights
from skaocls.fitted import FittedModel, generation, prediction, saving
from skaocls.fitted.fit import extend_model, fit_model
from skaocls.fitted.labels import read_labels
from skaocls.images.reader import learn_reader
from skaocls.scoring.aggregation import joint_log_proba


@pytest.fixture(scope="module")
def estimator():
    return small_classifier(AnyOrderARClassifier, max_iter=6, augmentation=2)


@pytest.fixture(scope="module")
def model(estimator, digits):
    X, y, _, _ = digits
    batch = learn_reader(X, "A script")
    batch, y, weights = read_labels(batch, y, owner="A script")
    return fit_model(batch, y, weights, np.unique(y), estimator._training_config(), 0).model


def likelihoods(model, X, n_orders=3):
    batch = model.reader.open(X)
    parts = prediction.score_batches(
        model,
        batch,
        model.orders("random", n_orders),
        prediction.ScoringOptions(precision="float32"),
    )
    return np.concatenate([result.log_likelihood for result in parts])


def test_same_model_as_the_estimator(estimator, model, digits):
    clf = estimator.set_params(crop="auto").fit(*digits[:2])
    for name, weight in model.prior.state_dict().items():
        assert (clf.prior_.state_dict()[name] == weight).all()
    ll = likelihoods(model, digits[2], 4)
    joint = joint_log_proba(ll, clf.class_log_prior_, "mean_log_likelihood")
    np.testing.assert_array_equal(clf.predict_joint_log_proba(digits[2]), joint)


def test_extending_returns_a_new_model(estimator, model, digits):
    X, y, X_test, _ = digits
    before, ll = pickle.dumps(model), likelihoods(model, X_test)
    config, rng = estimator._training_config(), np.random.RandomState(1)
    more = extend_model(model, model.reader.open(X[:40]), y[:40], np.ones(40), config, rng).model
    grown = model.with_classes(np.array([7]))
    sevens = np.full(40, 7)
    new = extend_model(grown, model.reader.open(X[:40]), sevens, np.ones(40), config, rng).model
    assert np.abs(likelihoods(more, X_test) - ll).max() > 0.1
    np.testing.assert_array_equal(new.classes, [0, 1, 2, 7])
    np.testing.assert_allclose(likelihoods(new, X_test)[..., :3], ll, atol=1e-4)
    np.testing.assert_array_equal(new.class_count, [*model.class_count, 40])
    assert pickle.dumps(model) == before
    with pytest.raises(AttributeError):
        model.rows = new.rows


def test_restricted_models_cost_less(model, digits):
    two = model.restricted([0, 2])
    np.testing.assert_array_equal(two.classes, [0, 2])
    assert two.readings == 2 and model.readings == 3
    ll = likelihoods(model, digits[2][:9])
    np.testing.assert_allclose(likelihoods(two, digits[2][:9]), ll[..., [0, 2]], atol=1e-4)


def test_saving_and_loading(model, digits, tmp_path):
    saving.save(model, tmp_path, {"note": "extra"})
    same, config = saving.load(PretrainedWeights(tmp_path))
    assert config["note"] == "extra" and isinstance(same, FittedModel)
    np.testing.assert_array_equal(likelihoods(same, digits[2]), likelihoods(model, digits[2]))


def test_scoring_in_workers(model, digits):
    X, orders = digits[2], model.orders("random", 2)
    codes = model.tokenizer.transform(X).reshape(len(X), -1)
    halves = joblib.Parallel(2)(
        joblib.delayed(prediction.log_likelihoods)(model, part, orders)
        for part in np.array_split(codes, 2)
    )
    whole = prediction.log_likelihoods(model, codes, orders)
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-5)


def test_explaining_and_sampling(model, digits):
    batch, orders = model.reader.open(digits[2][:5]), model.orders("random", 2)
    evidence = prediction.explain(model, batch, np.zeros(5, int), np.ones(5, int), orders)
    difference = likelihoods(model, digits[2][:5], 2).mean(1) @ [1, -1, 0]
    np.testing.assert_allclose(evidence.tokens.sum((1, 2)), difference, atol=1e-4)
    rng = np.random.RandomState(0)
    along = generation.generation_orders(model, "random", 1, 4, rng)
    images = generation.generate_images(model, np.array([0, 1, 2, 0]), along, rng, {"top_k": 3})
    assert images.shape == (4, 8, 8)

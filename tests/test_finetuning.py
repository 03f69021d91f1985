"""Fine-tuning: which weights change, and where new classes start."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, FineTuning, PatchTokenizer
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders
from skaocls.training.config import ResolvedConfig
from skaocls.training.finetuning import merge_finetuning, prepare_finetuning, set_classes
from skaocls.training.loop import train_prior

CLASS_TABLE = "cls_embedding.embedding_table.weight"


@pytest.fixture
def prior():
    torch.manual_seed(0)
    prior = AnyOrderPrior(6, (2, 3), 3, dim=32, n_layer=2, n_head=2, multiple_of=32)
    torch.nn.init.normal_(prior.output.weight, std=0.3)
    return prior


@pytest.fixture
def data():
    rng = np.random.RandomState(0)
    return rng.randint(6, size=(12, 2, 6)), rng.randint(3, size=12)


@pytest.mark.parametrize("mode", ["full", "lora", "class_embedding"])
def test_each_mode_trains_its_weights_alone(prior, data, mode):
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    prepare_finetuning(prior, mode, rank=2, alpha=4.0)
    train_prior(prior, *data, ResolvedConfig(3, 6, 1e-2, keep_null_class=True))
    codes, orders, labels = data[0][:, 0], draw_orders(2, 6, 0), np.arange(3)
    unmerged = log_likelihoods(prior, codes, orders, labels)
    merge_finetuning(prior)
    merged = log_likelihoods(prior, codes, orders, labels)
    np.testing.assert_allclose(merged, unmerged, atol=1e-4)
    after = prior.state_dict()
    assert list(after) == list(before)
    changed = {k for k in after if (after[k] != before[k]).any()}
    matrices = {k for k in before if k.startswith("layers") and before[k].ndim == 2}
    expected = {
        "full": set(before),
        "lora": matrices | {CLASS_TABLE},
        "class_embedding": {CLASS_TABLE},
    }
    assert changed == expected[mode]
    if mode == "lora":
        for k in matrices:
            assert torch.linalg.matrix_rank(after[k] - before[k], atol=1e-5) <= 2
    if mode != "full":
        assert (after[CLASS_TABLE][-1] == before[CLASS_TABLE][-1]).all()  # the null class


def test_new_classes_start_at_the_nearest_old_ones(prior, data):
    codes, labels = data[0][:, 0], data[1]
    table = prior.class_table.detach().clone()
    null = copy.deepcopy(prior)
    set_classes(null, codes, labels, 3, "null")
    assert (null.class_table == table[-1]).all() and len(null.class_table) == 4
    # of five old classes, the three most likely ones are averaged
    torch.manual_seed(1)
    five = AnyOrderPrior(6, (2, 3), 5, dim=32, n_layer=2, n_head=2, multiple_of=32)
    for p in five.parameters():
        torch.nn.init.normal_(p, std=0.5)
    table = five.class_table.detach().clone()
    images = codes[labels == 1][:8]
    ll = log_likelihoods(five, images, draw_orders(2, 6, 7), np.arange(5)).mean((0, 1))
    set_classes(five, codes, labels, 3, "nearest", seed=7)
    nearest = np.argsort(ll)[-3:]
    torch.testing.assert_close(five.class_table[1], table[nearest.copy()].mean(0))
    assert (five.class_table[3] == table[5]).all() and five.num_classes == 3


@pytest.mark.parametrize("mode", ["full", "lora", "class_embedding"])
def test_fit_finetunes_a_pretrained_prior(fitted, mode):
    digits = load_digits()
    is_new = np.isin(digits.target, (3, 4, 5, 6))
    X, y = digits.images[is_new], digits.target[is_new]
    params = {"prior": fitted.prior_, "tokenizer": FrozenEstimator(fitted.tokenizer_)}
    clf = small_classifier(AnyOrderARClassifier, finetune=mode, max_iter=10, **params)
    clf.fit(X[:200], y[:200])
    np.testing.assert_array_equal(clf.classes_, [3, 4, 5, 6])
    params |= {"finetune": FineTuning(new_classes="null")}
    untrained = small_classifier(
        AnyOrderARClassifier, max_iter=1, learning_rate_init=1e-9, **params
    ).fit(X[:200], y[:200])
    assert clf.score(X[200:], y[200:]) > 0.2 + untrained.score(X[200:], y[200:])
    before, after = fitted.prior_.state_dict(), clf.prior_.state_dict()
    unchanged = all((before[k] == after[k]).all() for k in before if k != CLASS_TABLE)
    assert unchanged == (mode == "class_embedding")
    assert clf.tokenizer_ is fitted.tokenizer_


def test_fit_finetunes_a_saved_classifier(fitted, digits, tmp_path):
    X, y = digits[:2]
    fitted.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    clf = small_classifier(AnyOrderARClassifier, prior=tmp_path, max_iter=2)
    clf.fit(X, np.array(["a", "b", "c"])[y])
    np.testing.assert_array_equal(clf.tokenizer_.codebook_, fitted.tokenizer_.codebook_)
    assert clf.loss_curve_[0] + 0.5 < fitted.loss_curve_[0]
    assert clf.score(digits[2], np.array(["a", "b", "c"])[digits[3]]) > 0.8
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_random_crops_differ_between_orders_but_not_between_images(digits):
    X = digits[2][:12]
    tokenizer = PatchTokenizer(normalize=None)  # brightness differs between an image and its crops
    fitted = small_classifier(AnyOrderARClassifier, tokenizer=tokenizer).fit(*digits[:2])
    clf = pickle.loads(pickle.dumps(fitted)).set_params(crop="random")
    whole = clf.predict_joint_log_proba(X)
    assert abs(whole - fitted.predict_joint_log_proba(X)).max() > 0.1
    alone = np.concatenate([clf.predict_joint_log_proba(X[i : i + 1]) for i in range(12)])
    np.testing.assert_allclose(alone, whole, atol=1e-6, rtol=0)
    # the first two of four orders are those of n_orders=2
    ll = np.concatenate(list(clf._log_likelihoods(X)))
    two = np.concatenate(list(clf.set_params(n_orders=2)._log_likelihoods(X)))
    np.testing.assert_allclose(ll[:, :2], two, atol=1e-6, rtol=0)
    assert clf.score(digits[2], digits[3]) > 0.8


def test_random_crops_of_files_of_several_sizes(digits, tmp_path):
    X, y = digits[0][:24], digits[1][:24]
    files = [str(tmp_path / f"{i}.png") for i in range(24)]
    for i, (x, file) in enumerate(zip(X, files, strict=True)):
        size = (8, 8) if i % 3 == 0 else (100, 80 + i)
        Image.fromarray((x * 15).astype(np.uint8)).resize(size).save(file)
    clf = small_classifier(AnyOrderARClassifier, image_shape=(8, 8), max_iter=3, augmentation=None)
    clf.fit(files, y)
    centre = clf.predict_joint_log_proba(files)
    ll = np.concatenate(list(clf.set_params(crop="random")._log_likelihoods(files)))
    assert abs(clf.predict_joint_log_proba(files) - centre).max() > 0.1
    alone = np.concatenate([a for f in files for a in clf._log_likelihoods([f])])
    np.testing.assert_allclose(alone, ll, atol=1e-6, rtol=0)
    two = np.concatenate(list(clf.set_params(n_orders=2)._log_likelihoods(files)))
    np.testing.assert_allclose(ll[:, :2], two, atol=1e-6, rtol=0)


def test_dropout_of_finetuning(digits):
    X, y, _, _ = digits
    clf = small_classifier(AnyOrderARClassifier, max_iter=2).fit(X, y)
    params = {"prior": clf.prior_, "tokenizer": FrozenEstimator(clf.tokenizer_), "max_iter": 1}
    weights = []
    for dropout in (0.0, 0.1, "auto"):
        finetune = FineTuning(dropout=dropout)
        tuned = small_classifier(AnyOrderARClassifier, finetune=finetune, **params).fit(X, y)
        weights.append(tuned.prior_.output.weight.detach().cpu().numpy())
    assert not np.allclose(weights[0], weights[1], atol=1e-5)
    np.testing.assert_array_equal(weights[1], weights[2])
    assert clf.prior_.tok_dropout.p == 0

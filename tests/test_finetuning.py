"""Fine-tuning: what changes, what must not, and that memory savers change nothing."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior, PatchTokenizer
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders
from skaocls.training.finetuning import merge_finetuning, prepare_finetuning, set_classes
from skaocls.training.loop import train_prior


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


def train(prior, data, **params):
    defaults = {"max_iter": 3, "batch_size": 6, "learning_rate": 1e-2, "seed": 0}
    train_prior(prior, *data, **(defaults | params))
    return {k: v.clone() for k, v in prior.state_dict().items()}


@pytest.mark.parametrize("saver", [{"micro_batch_size": 2}, {"checkpointing": True}])
def test_saving_memory_changes_nothing(prior, data, saver):
    # where a gradient is all rounding Adam still takes a step of about the learning rate
    plain = train(copy.deepcopy(prior), data, learning_rate=1e-3)
    saved = train(prior, data, learning_rate=1e-3, **saver)
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["full", "lora", "class_embedding"])
def test_what_training_changes(prior, data, mode):
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    prepare_finetuning(prior, mode, rank=2, alpha=4.0)
    train(prior, data, class_dropout=0.0, weight_decay=0.0)
    codes, orders, labels = data[0][:, 0], draw_orders(2, 6, 0), np.arange(3)
    unmerged = log_likelihoods(prior, codes, orders, labels)
    merge_finetuning(prior)
    merged = log_likelihoods(prior, codes, orders, labels)
    np.testing.assert_allclose(merged, unmerged, atol=1e-4)
    after = prior.state_dict()
    assert list(after) == list(before)
    changed = {k for k in after if (after[k] != before[k]).any()}
    table = "cls_embedding.embedding_table.weight"
    matrices = {k for k in before if k.startswith("layers") and before[k].ndim == 2}
    expected = {"full": set(before), "lora": matrices | {table}, "class_embedding": {table}}
    assert changed == expected[mode]
    if mode == "lora":
        for k in matrices:
            assert torch.linalg.matrix_rank(after[k] - before[k], atol=1e-5) <= 2
    if mode != "full":  # the null class is part of the frozen body
        assert (after[table][-1] == before[table][-1]).all()


def test_new_classes_start_at_their_nearest_old_ones(prior, data):
    codes, labels = data[0][:, 0], data[1]
    table = prior.class_table.detach().clone()
    null = copy.deepcopy(prior)
    set_classes(null, codes, labels, 3, "null")
    assert (null.class_table == table[-1]).all() and len(null.class_table) == 4
    # with two old classes more than are averaged, the least likely ones have no part
    torch.manual_seed(1)
    many = AnyOrderPrior(6, (2, 3), 5, dim=32, n_layer=2, n_head=2, multiple_of=32)
    for p in many.parameters():
        torch.nn.init.normal_(p, std=0.5)
    table = many.class_table.detach().clone()
    of_new = codes[labels == 1][:8]
    ll = log_likelihoods(many, of_new, draw_orders(2, 6, 7), np.arange(5)).mean((0, 1))
    set_classes(many, codes, labels, 3, "nearest", seed=7)
    best = np.argsort(ll)[-3:]
    torch.testing.assert_close(many.class_table[1], table[best.copy()].mean(0))
    assert (many.class_table[3] == table[5]).all() and many.num_classes == 3


@pytest.mark.parametrize("mode", ["full", "lora", "class_embedding"])
def test_fit_finetunes_a_given_prior(fitted, mode):
    digits = load_digits()
    new = np.isin(digits.target, (3, 4, 5, 6))
    X, y = digits.images[new], digits.target[new]
    tokenizer = FrozenEstimator(fitted.tokenizer_)
    clf = small_classifier(
        AnyOrderARClassifier,
        prior=fitted.prior_,
        tokenizer=tokenizer,
        finetune=mode,
        max_iter=10,
    ).fit(X[:200], y[:200])
    np.testing.assert_array_equal(clf.classes_, [3, 4, 5, 6])
    chance = small_classifier(
        AnyOrderARClassifier, prior=fitted.prior_, tokenizer=tokenizer, max_iter=1,
        learning_rate_init=1e-9, new_classes="null",
    ).fit(X[:200], y[:200])  # fmt: skip
    assert clf.score(X[200:], y[200:]) > 0.2 + chance.score(X[200:], y[200:])
    body = [k for k in fitted.prior_.state_dict() if k != "cls_embedding.embedding_table.weight"]
    kept = all((fitted.prior_.state_dict()[k] == clf.prior_.state_dict()[k]).all() for k in body)
    assert kept == (mode == "class_embedding")
    assert clf.tokenizer_ is fitted.tokenizer_


def test_fit_finetunes_what_was_saved(fitted, digits, tmp_path):
    X, y = digits[:2]
    fitted.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    clf = small_classifier(AnyOrderARClassifier, prior=tmp_path, max_iter=2)
    clf.fit(X, np.array(["a", "b", "c"])[y])
    np.testing.assert_array_equal(clf.tokenizer_.codebook_, fitted.tokenizer_.codebook_)
    assert clf.loss_curve_[0] + 0.5 < fitted.loss_curve_[0]
    assert clf.score(digits[2], np.array(["a", "b", "c"])[digits[3]]) > 0.8
    # mapped from the file, the weights change in memory alone
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_crops_differ_by_order_not_by_image(digits):
    X = digits[2][:12]
    tokenizer = PatchTokenizer(normalize=None)  # statistics of crops differ from the image's
    fitted = small_classifier(AnyOrderARClassifier, tokenizer=tokenizer).fit(*digits[:2])
    clf = pickle.loads(pickle.dumps(fitted)).set_params(crop="random")
    whole = clf.predict_joint_log_proba(X)
    assert abs(whole - fitted.predict_joint_log_proba(X)).max() > 0.1
    alone = np.concatenate([clf.predict_joint_log_proba(X[i : i + 1]) for i in range(12)])
    np.testing.assert_allclose(alone, whole, atol=1e-6, rtol=0)
    # orders stay nested: the first two are those of n_orders=2
    ll = np.concatenate(list(clf._log_likelihoods(X)))
    two = np.concatenate(list(clf.set_params(n_orders=2)._log_likelihoods(X)))
    np.testing.assert_allclose(ll[:, :2], two, atol=1e-6, rtol=0)
    assert clf.score(digits[2], digits[3]) > 0.8


def test_crops_of_files(digits, tmp_path):
    """Of any size, whether they are resized or shifted: as for arrays, nested and one by one."""
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


def test_dropout_while_fine_tuning_alone(digits):
    X, y, _, _ = digits
    clf = small_classifier(AnyOrderARClassifier, max_iter=2).fit(X, y)
    prior, tokenizer = clf.prior_, FrozenEstimator(clf.tokenizer_)
    how = {"prior": prior, "tokenizer": tokenizer, "max_iter": 1}
    tuned = [
        small_classifier(AnyOrderARClassifier, finetune_dropout=p, **how).fit(X, y)
        for p in (0.0, 0.1, "auto")
    ]
    weights = [c.prior_.output.weight.detach().cpu().numpy() for c in tuned]
    assert not np.allclose(weights[0], weights[1], atol=1e-5)
    np.testing.assert_array_equal(weights[1], weights[2])
    assert prior.tok_dropout.p == 0

"""Default lengths, batch sizes and memory of training, and the warning about long trainings."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from torch.utils.flop_counter import FlopCounterMode

from skaocls import (
    AnyOrderARClassifier,
    AnyOrderPrior,
    FeatureTokenizer,
    PatchTokenizer,
    SharedTrunkPrior,
)
from skaocls.fitted import tokenization
from skaocls.fitted.initial_prior import DEFAULT_SIZES
from skaocls.training import defaults, loop
from skaocls.training.config import ResolvedConfig
from skaocls.training.defaults import (
    activation_bytes,
    default_batch_size,
    default_max_iter,
    micro_batch_size,
    training_operations,
)
from skaocls.training.loop import Trainer
from skaocls.training.loss import TrainingBatch, TrainingLoss


def make_prior(grid, vocab_size=64, cls=SharedTrunkPrior):
    return cls(vocab_size, grid, 10, **DEFAULT_SIZES)


def random_batch(prior, n, n_rivals=0, weighted=False):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(prior.vocab_size, (n, prior.n_tokens), generator=generator)
    orders = torch.rand(codes.shape, generator=generator).argsort(1)
    labels = torch.arange(n) % (prior.num_classes + 1)
    rivals = (labels[:, None] + 1 + torch.arange(n_rivals)) % prior.num_classes
    weights = torch.rand(n, generator=generator) if weighted else None
    return TrainingBatch(codes, orders, labels, weights, rivals if n_rivals else None)


@pytest.mark.parametrize("grid, vocab_size", [((4, 4), 64), ((7, 7), 256), ((8, 8), 1024)])
def test_estimated_operations_match_torch(grid, vocab_size):
    prior = make_prior(grid, vocab_size)
    counter = FlopCounterMode(display=False)
    with counter:
        TrainingLoss(prior)(random_batch(prior, 4)).backward()
    # torch does not count the attention, and the last block needs half of the queries only
    assert 0.65 < counter.get_total_flops() / 4 / training_operations(prior) < 1.1


def test_epochs_follow_a_budget():
    prior = make_prior((7, 7))
    sizes = np.array([1000, 3000, 10_000, 30_000])
    epochs = np.array([default_max_iter(n, prior) for n in sizes])
    assert (np.diff(epochs) < 0).all()
    steps = epochs * sizes
    assert (np.diff(steps) > 0).all()
    assert steps[2] < 8 * steps[0]  # one minute for 1000 images, eight minutes for 10,000
    assert default_max_iter(100, make_prior((2, 4))) == 120
    assert default_max_iter(10**7, make_prior((16, 16))) == 10
    assert default_max_iter(1000, prior, posterior_weight=5.0) < epochs[0]


def test_tables_have_at_most_thirty_epochs():
    prior, wide = make_prior((1, 20)), make_prior((1, 200))
    epochs = [default_max_iter(n, prior, tabular=True) for n in (40, 999, 1001, 10**4)]
    assert epochs == [30] * 4
    assert default_max_iter(1000, wide, tabular=True) == default_max_iter(1000, wide) == 10


def test_batches_have_about_1024_tokens():
    assert [default_batch_size(10_000, n) for n in (4, 16, 32, 64, 256)] == [64, 64, 32, 16, 16]
    assert default_batch_size(80, 16) == 16
    assert default_batch_size(320, 16, tabular=True) == 16
    assert default_batch_size(10_000, 16, tabular=True) == 64
    assert default_batch_size(10_000, 64, tabular=True) == 16


@pytest.mark.parametrize("cls", [AnyOrderPrior, SharedTrunkPrior])
@pytest.mark.parametrize("n_rivals", [0, 9])
@pytest.mark.parametrize("grid, vocab_size", [((4, 4), 64), ((8, 8), 1024)])
def test_estimated_activations_match_what_autograd_saves(cls, n_rivals, grid, vocab_size):
    prior, sizes = make_prior(grid, vocab_size, cls), {}
    batch = random_batch(prior, 4, n_rivals)._replace(labels=torch.arange(4))
    state = {t.untyped_storage().data_ptr() for t in [*prior.parameters(), *prior.buffers()]}

    def record(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            sizes[storage.data_ptr()] = storage.nbytes(), tensor  # keeps the address in use
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        TrainingLoss(prior, 1.0, torch.zeros(10))(batch)
    saved = sum(size for size, _ in sizes.values()) / 4
    assert 0.6 < saved / activation_bytes(prior, n_rivals) < 1.3


def test_default_trainings_do_not_accumulate_gradients():
    for side in (4, 8, 16, 32, 64):
        n_tokens = side * side
        prior = make_prior((side, side), 1024)
        assert micro_batch_size(prior, 9) >= default_batch_size(10**5, n_tokens)


@pytest.mark.parametrize("cls", [AnyOrderPrior, SharedTrunkPrior])
@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_gradients_equal_those_of_the_batch(monkeypatch, cls, weighted):
    labels, codes = np.arange(30) % 10, np.zeros((30, 1, 6), int)
    gradients = []
    for micro_batch in (16, 5):
        prior = cls(19, (2, 3), 10, dim=32, n_layer=1, n_head=2)
        generator = torch.Generator().manual_seed(0)
        for p in prior.parameters():
            torch.nn.init.normal_(p, std=0.2, generator=generator)
        monkeypatch.setattr(
            defaults, "ACTIVATION_BUDGET", micro_batch * activation_bytes(prior, 9) + 1
        )
        config = ResolvedConfig(1, 16, 1e-3, posterior_weight=2.0)
        trainer = Trainer(prior, codes, labels, config, None, None)
        assert trainer.micro_batch_size == micro_batch
        trainer.accumulate_gradients(random_batch(prior, 16, 9, weighted))
        gradients.append([p.grad for p in prior.parameters()])
        gradients[-1].append(trainer.state.loss_sum)
    for accumulated, whole in zip(*gradients[::-1], strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seconds, expected", [(0.1, None), (10.0, "15 minutes: 90 steps")])
def test_long_trainings_start_with_a_warning(digits, monkeypatch, seconds, expected):
    X, y, _, _ = digits
    # the clock is read after each step; two steps are slower
    durations = np.full(10**6, seconds)
    durations[[1, 3]] *= 1000
    clock = SimpleNamespace(perf_counter=iter(durations.cumsum()).__next__)
    monkeypatch.setattr(loop, "time", clock)
    sizes = {"dim": 32, "n_layer": 1, "n_head": 2}
    clf = AnyOrderARClassifier(
        sizes, max_iter=10, batch_size=30, augmentation=None, device="cpu", random_state=0
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.fit(X, y)
    messages = [w for w in caught if "Training will take" in str(w.message)]
    assert len(messages) == (expected is not None)
    if expected:
        assert expected in str(messages[0].message)
        assert messages[0].filename == __file__


class Started(Exception):
    pass


def start(*args, **kwargs):
    raise Started


@pytest.mark.parametrize("seconds, expected", [(0.01, None), (0.5, r" 17\.2 minutes")])
def test_long_tokenizing_is_announced_before_it_starts(digits, monkeypatch, seconds, expected):
    X, y, _, _ = digits
    clock = SimpleNamespace(perf_counter=(seconds * np.arange(99)).tolist().__iter__().__next__)
    monkeypatch.setattr(tokenization, "time", clock)  # 8 of 300 images; the cost is 55
    monkeypatch.setattr(PatchTokenizer, "_fit", start)
    network = FeatureTokenizer(torch.nn.Conv2d(3, 4, 4, stride=4), n_codes=4, device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Started):
            AnyOrderARClassifier(augmentation=None).fit(X, y)
    check_announcement(caught, expected)
    clf = AnyOrderARClassifier(max_iter=1, augmentation=None, random_state=0, n_orders=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.set_params(tokenizer=FrozenEstimator(network.fit(X / 16))).fit(X[:9] / 16, y[:9])
    monkeypatch.setattr(tokenization, "views_of", start)
    clock.perf_counter = (16 * seconds * np.arange(99)).tolist().__iter__().__next__
    for method in (clf.fit, clf.partial_fit):  # 8 of 300 images
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(Started):
                method(X / 16, y)
        check_announcement(caught, expected and " 5\\.0 minutes")


def check_announcement(caught, expected):
    messages = [w for w in caught if "Tokenizing" in str(w.message)]
    assert len(messages) == (expected is not None)
    if expected:
        assert re.search(f"300 images of 8 x 8 pixels.*{expected}", str(messages[0].message))
        assert messages[0].filename == __file__


def test_choices_can_be_passed_as_parameters(digits, tmp_path):
    X, y, _, _ = digits
    clf = AnyOrderARClassifier(max_iter=2, augmentation=2, random_state=0, device="cpu").fit(X, y)
    choices = clf.choices_
    assert choices["max_iter"] == clf.n_iter_ == 2
    assert choices["batch_size"] == default_batch_size(len(X), 16)
    assert choices["tokenizer"]["n_codes"] == clf.tokenizer_.n_codes_
    params = {**choices, "tokenizer": PatchTokenizer(**choices["tokenizer"])}
    again = AnyOrderARClassifier(augmentation=2, random_state=1, device="cpu", **params).fit(X, y)
    shapes = [{k: v.shape for k, v in c.prior_.state_dict().items()} for c in (clf, again)]
    assert shapes[0] == shapes[1]
    assert again.choices_ == choices
    clf.save_pretrained(tmp_path)
    restored = AnyOrderARClassifier.from_pretrained(tmp_path)
    codes = PatchTokenizer(**restored.choices_["tokenizer"], random_state=0).fit(X).transform(X)
    tokenizer = PatchTokenizer(**choices["tokenizer"], random_state=0)
    np.testing.assert_array_equal(tokenizer.fit(X).transform(X), codes)
    del restored.choices_["tokenizer"], choices["tokenizer"]
    assert restored.choices_ == choices

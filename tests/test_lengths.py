"""How long training lasts by default, and that it says so."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from skaocls import AnyOrderARClassifier, PatchTokenizer, SharedTrunkPrior
from skaocls.fitted.lengths import batch_of, epochs_of, training_operations
from skaocls.training import loop


def prior_for(grid, vocab_size=64):
    sizes = {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
    return SharedTrunkPrior(vocab_size, grid, 10, **sizes)


@pytest.mark.parametrize("grid, vocab_size", [((4, 4), 64), ((7, 7), 256), ((8, 8), 1024)])
def test_operations_are_those_that_torch_counts(grid, vocab_size):
    prior, n = prior_for(grid, vocab_size), grid[0] * grid[1]
    codes = torch.randint(vocab_size, (4, n))
    orders = torch.stack([torch.randperm(n) for _ in codes])
    counter = FlopCounterMode(display=False)
    with counter:
        prior.log_prob(codes, orders, torch.arange(4)).mean().backward()
    # of the last block only half of the tokens need to be read to the end
    assert 0.7 < counter.get_total_flops() / len(codes) / training_operations(prior) < 1.1


def test_a_fit_is_as_long_as_its_budget():
    prior = prior_for((7, 7))
    sizes = np.array([1000, 3000, 10_000, 30_000])
    epochs = np.array([epochs_of(n, prior) for n in sizes])
    assert (np.diff(epochs) < 0).all()
    work = epochs * sizes
    assert (np.diff(work) > 0).all()  # more images are worth more steps, and less than as many more
    assert work[2] < 8 * work[0]  # a minute for 1000, eight minutes for 10,000
    assert epochs_of(100, prior_for((2, 4))) == 120
    assert epochs_of(10**7, prior_for((16, 16))) == 10


def test_tables_take_thirty_epochs_in_the_time_of_images():
    prior, wide = prior_for((1, 20)), prior_for((1, 200))
    assert [epochs_of(n, prior, tabular=True) for n in (40, 999, 1001, 10**4)] == [30] * 4
    assert epochs_of(1000, wide, tabular=True) == epochs_of(1000, wide) == 10


def test_a_batch_has_about_as_many_tokens_whatever_an_image_has():
    assert [batch_of(10_000, n) for n in (4, 16, 32, 64, 256)] == [64, 64, 32, 16, 16]
    assert batch_of(80, 16) == 16
    assert batch_of(320, 16, tabular=True) == 16
    assert batch_of(10_000, 16, tabular=True) == 64
    assert batch_of(10_000, 64, tabular=True) == 16


@pytest.mark.parametrize("seconds, minutes", [(0.1, None), (10.0, "15 minutes: 90 steps")])
def test_a_long_fit_says_so_at_its_start(digits, monkeypatch, seconds, minutes):
    X, y, _, _ = digits
    # looked at after each step; two of them are slower, because the processor was wanted elsewhere
    took = np.full(10**6, seconds)
    took[[1, 3]] *= 1000
    monkeypatch.setattr(loop.time, "perf_counter", iter(took.cumsum()).__next__)
    small = {"prior": {"dim": 32, "n_layer": 1, "n_head": 2}, "augmentation": None}
    clf = AnyOrderARClassifier(max_iter=10, batch_size=30, device="cpu", **small)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        clf.fit(X, y)
    said = [str(w.message) for w in seen if "Training will take" in str(w.message)]
    assert len(said) == (minutes is not None)
    if minutes:
        assert minutes in said[0]


def test_what_was_chosen_can_be_passed(digits, tmp_path):
    X, y, _, _ = digits
    clf = AnyOrderARClassifier(max_iter=2, augmentation=2, random_state=0, device="cpu").fit(X, y)
    chosen = clf.choices_
    assert chosen["max_iter"] == clf.n_iter_ == 2
    assert chosen["batch_size"] == batch_of(len(X), 16)
    assert chosen["tokenizer"]["n_codes"] == clf.tokenizer_.n_codes_
    given = {**chosen, "tokenizer": PatchTokenizer(**chosen["tokenizer"])}
    again = AnyOrderARClassifier(augmentation=2, random_state=1, device="cpu", **given).fit(X, y)
    shapes = [{k: v.shape for k, v in c.prior_.state_dict().items()} for c in (clf, again)]
    assert shapes[0] == shapes[1]
    assert again.choices_ == chosen
    clf.save_pretrained(tmp_path)
    restored = AnyOrderARClassifier.from_pretrained(tmp_path)
    codes = PatchTokenizer(**restored.choices_["tokenizer"], random_state=0).fit(X).transform(X)
    given = PatchTokenizer(**chosen["tokenizer"], random_state=0)
    np.testing.assert_array_equal(given.fit(X).transform(X), codes)
    del restored.choices_["tokenizer"], chosen["tokenizer"]
    assert restored.choices_ == chosen

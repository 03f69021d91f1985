"""The training loop: class-conditional maximum likelihood over random orders.

Most constants are from the published RandAR recipe (Pang et al., arXiv 2412.01827, section 4.1 and
appendix).
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import gen_batches
from torch import Tensor

from skaocls.devices import own_torch_state
from skaocls.distributed import all_reduce_sum, is_main, peer_errors, shard_rows, world_size
from skaocls.images.lazy import of_views
from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.priors.transformer import Prior
from skaocls.progress import progress
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders
from skaocls.training.checkpoints import Checkpoints
from skaocls.training.config import ResolvedConfig
from skaocls.training.defaults import micro_batch_size
from skaocls.training.loss import (
    TrainingBatch,
    TrainingLoss,
    average_over_ranks,
    class_log_frequencies,
    distribute,
    draw_rivals,
    number_of_rivals,
)
from skaocls.training.optimizer import WEIGHT_DECAY, make_optimizer
from skaocls.training.state import RESTART_RATE_FACTOR, History, TrainingState, copies
from skaocls.training.validation import Validation, validation_score
from skaocls.warn import warn

# Constants of the published recipe
CLASS_DROPOUT = 0.1  # probability that the null class replaces a label
CLIP_NORM = 1.0
WARMUP_SHARE = 0.05  # fraction of all training steps
FINAL_RATE = 0.05  # final learning rate, as a fraction of the peak learning rate
# In a shared trunk, only the head has parameters of the null class, so few images suffice. Each of
# these images is missing from the posterior in the loss.
SHARED_TRUNK_CLASS_DROPOUT = 0.03
# Decay of the running average of the weights. At the end of training, the average becomes the
# weights of the prior (benchmarks/quality/digits.py).
AVERAGE_DECAY = 0.99
VALIDATION_ORDERS = 4  # number of fixed orders, so few that validation takes little time
ACCURACY_PAIRS = 1024  # (image, class) pairs for estimating the accuracy in the progress bar
# A warning is issued if training will take more than ten minutes. The training time is estimated
# from the first ten steps.
LONG_TRAINING_SECONDS, TIMED_STEPS = 600, 10
# After a block of this size has been freed, glibc keeps up to 64 MiB of freed memory for the next
# training step. Otherwise, each step requests this memory from the operating system again, which
# takes about 5 % of its time. 32 MiB is the limit of this rule, see mallopt(3).
FREED_BLOCK_BYTES = 2**25 - 2**13


@own_torch_state(grad=True)
def train_prior(
    prior: Prior,
    codes: np.ndarray,
    labels: np.ndarray,
    config: ResolvedConfig,
    *,
    sample_weight: np.ndarray | None = None,
    validation: Validation | None = None,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train a prior in place on codes (n_images, n_views, n_tokens) and labels (n_images,).

    Each training step draws a batch of images. For each image, the step draws a view and an order.
    With probability 0.1 per image (0.03 for a `SharedTrunkPrior`), the null class replaces the
    label. AdamW optimizes the weights. In short trainings of new priors, Muon optimizes the weight
    matrices instead. The learning rate first rises linearly to its peak, and then falls along a
    cosine to 5 % of the peak. Gradients are clipped to norm 1. If the activations of a batch exceed
    a fixed memory limit, the batch is split into micro-batches, whose gradients are summed
    (:mod:`skaocls.training.defaults`).

    At the end of training, the running average of the weights becomes the weights of the prior. If
    validation data are given, the averaged weights of the epoch with the highest validation
    log-likelihood are used instead.

    If the loss or a weight is not finite after an epoch, the epoch is repeated at a tenth of the
    learning rate. After three such restarts, a further divergence raises a ValueError. Ctrl-C ends
    training with a warning, and the prior keeps what it has learned. During the first epoch, or if
    training runs on several ranks, Ctrl-C raises KeyboardInterrupt instead.

    In distributed training, all ranks draw the same batches, and each rank processes a part of
    every batch. If no dropout is used, distributed training gives the same weights as a single
    process, up to rounding errors. If dropout is used, the weights differ, because each rank draws
    its own dropout masks.

    References
    ----------
    Pang et al., arXiv 2412.01827, section 4.1 and appendix; Sudakov, Babenko, Baranchuk,
    arXiv 2603.19122.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.training.config import ResolvedConfig
    >>> from skaocls.training.loop import train_prior
    >>> prior = AnyOrderPrior(vocab_size=4, grid=(1, 2), num_classes=2, dim=32, n_layer=1)
    >>> codes = np.array([[[0, 1]], [[2, 3]]])
    >>> config = ResolvedConfig(max_iter=30, batch_size=2, learning_rate_init=1e-2)
    >>> history = train_prior(prior, codes, np.array([0, 1]), config)
    >>> history.loss_curve[-1] < history.loss_curve[0]
    True
    """
    trainer = Trainer(prior, codes, labels, config, sample_weight, validation)
    state, history = trainer.state, trainer.state.history
    if checkpoints is not None:
        checkpoints.restore(state)
    with trainer.progress_bar(), interruptible(history):
        while history.n_iter < config.max_iter and not history.converged:
            trainer.begin_epoch()
            for step in range(state.step, trainer.n_steps):
                trainer.train_step(trainer.draw_batch(step))
                state.step = step + 1
                if checkpoints is not None:
                    checkpoints.save_if_due(state)
            trainer.end_epoch()
    trainer.finish()
    return history


class Trainer:
    """The steps of :func:`train_prior`, which documents the parameters."""

    bar: Any

    def __init__(
        self,
        prior: Prior,
        codes: np.ndarray,
        labels: np.ndarray,
        config: ResolvedConfig,
        sample_weight: np.ndarray | None,
        validation: Validation | None,
    ):
        self.prior, self.codes, self.config, self.validation = prior, codes, config, validation
        self.labels = torch.as_tensor(labels)
        self.weights = None if sample_weight is None else torch.as_tensor(sample_weight).float()
        self.orders = None if config.orders is None else torch.as_tensor(config.orders)
        self.n_views, self.n_tokens = codes.shape[1:]
        self.batch_size = min(config.batch_size, len(labels))
        self.n_steps = len(labels) // self.batch_size  # per epoch
        shared = isinstance(prior, SharedTrunkPrior)
        dropout = SHARED_TRUNK_CLASS_DROPOUT if shared else CLASS_DROPOUT
        self.class_dropout = 0.0 if config.keep_null_class else dropout
        self.uses_posterior = config.posterior_weight > 0 and prior.num_classes > 1
        n_rivals = number_of_rivals(prior.num_classes) if self.uses_posterior else 0
        self.micro_batch_size = micro_batch_size(prior, n_rivals)
        log_prior = class_log_frequencies(labels, sample_weight, prior.num_classes)
        self.loss = TrainingLoss(prior, config.posterior_weight, log_prior.to(prior.device))
        self.distributed_loss = distribute(self.loss)
        weight_decay = 0.0 if config.keep_null_class else WEIGHT_DECAY
        optimizer = make_optimizer(prior, config.learning_rate_init, weight_decay, config.muon)
        self.state = TrainingState(prior, optimizer, config.seed)
        torch.empty(FREED_BLOCK_BYTES, dtype=torch.uint8, device="cpu")
        orders = config.orders
        if orders is None:
            orders = draw_orders(VALIDATION_ORDERS, self.n_tokens, config.seed)
        self.validation_orders = orders[:VALIDATION_ORDERS]
        self.timer = StepTimer()

    @property
    def total_steps(self) -> int:
        return self.config.max_iter * self.n_steps

    @property
    def steps_done(self) -> int:
        """Number of completed training steps in all epochs."""
        return self.state.history.n_iter * self.n_steps + self.state.step

    def progress_bar(self) -> Any:
        verbose, done = self.config.verbose, self.steps_done
        self.bar = progress(self.total_steps, "training", "step", verbose, initial=done)
        return self.bar

    def begin_epoch(self) -> None:
        """Shuffle the images, unless a checkpoint from the middle of this epoch was restored."""
        epoch = self.state.history.n_iter + 1
        self.bar.set_description(f"epoch {epoch}/{self.config.max_iter}", refresh=False)
        self.distributed_loss.train()
        if self.state.step == 0:
            self.state.loss_sum.zero_()
            self.state.permutation = torch.randperm(
                len(self.labels), generator=self.state.generator
            )

    def draw_batch(self, step: int) -> TrainingBatch:
        """Draw the batch of a training step, and return the part that this rank processes."""
        generator = self.state.generator
        rows = self.state.permutation[step * self.batch_size : (step + 1) * self.batch_size]
        views = torch.randint(self.n_views, rows.shape, generator=generator)
        codes = torch.from_numpy(of_views(self.codes, rows.numpy(), views.numpy()))
        is_null = uniform(len(rows), generator=generator) < self.class_dropout
        labels = self.labels[rows].masked_fill(is_null, self.prior.num_classes)
        if self.orders is None:
            orders = uniform(len(rows), self.n_tokens, generator=generator).argsort(1)
        else:
            orders = self.orders[torch.randint(len(self.orders), rows.shape, generator=generator)]
        rivals = None
        if self.uses_posterior:
            rivals = draw_rivals(labels, self.prior.num_classes, generator)
        weights = None if self.weights is None else self.weights[rows]
        batch = TrainingBatch(codes, orders, labels, weights, rivals)
        if world_size() > 1:
            batch = rank_share(batch)
        return batch.map(lambda tensor: tensor.to(self.prior.device))

    def train_step(self, batch: TrainingBatch) -> None:
        state, step = self.state, self.steps_done
        if world_size() > 1:
            state.seed_dropout(step)
        rate = self.config.learning_rate_init * schedule(step, self.total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * RESTART_RATE_FACTOR**state.n_restarts
        state.optimizer.zero_grad()
        self.accumulate_gradients(batch)
        torch.nn.utils.clip_grad_norm_(self.prior.parameters(), CLIP_NORM)
        state.optimizer.step()
        # at first, the average covers all steps; later, it covers about the last hundred steps
        with torch.no_grad():
            decay = min(AVERAGE_DECAY, step / (step + 10))
            torch._foreach_lerp_(state.average, state.weights, 1 - decay)
        self.bar.update()
        if self.prior.device.type == "cpu" and is_main():
            self.timer.record(self.total_steps - step - 1)

    def accumulate_gradients(self, batch: TrainingBatch) -> None:
        """Compute the gradient of the mean loss over all ranks, one micro-batch at a time."""
        device, autocast = self.prior.device, self.config.autocast
        n = len(batch.codes)
        for part in gen_batches(n, self.micro_batch_size):
            micro_batch = batch.rows(part)
            with average_over_ranks(self.distributed_loss, part.stop == n):
                with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                    loss = self.distributed_loss(micro_batch, self.state.dropout_generator)
                loss = loss * ((part.stop - part.start) / self.batch_size)
                with peer_errors():
                    # convert the average over ranks, which the backward pass computes, to a sum
                    (loss * world_size()).backward()
            self.state.loss_sum += loss.detach()

    def end_epoch(self) -> None:
        """Record the loss and evaluate the averaged weights. Restart the epoch if it diverged."""
        state, history, config = self.state, self.state.history, self.config
        if not state.is_finite():
            state.restart_epoch()
            self.bar.update(-self.n_steps)
            return
        state.last_good, state.step = copies(state.weights), 0
        history.loss_curve.append(all_reduce_sum(state.loss_sum).item() / self.n_steps)
        history.n_iter += 1
        if self.validation is not None or config.verbose:
            with state.averaged_weights():
                self.evaluate()
        if self.validation is not None:
            curve = history.validation_curve
            history.converged = is_flat(curve, config.n_iter_no_change, config.tol)

    def evaluate(self) -> None:
        """Score the validation data, keep the best weights, and update the progress bar."""
        state, history, config = self.state, self.state.history, self.config
        if self.validation is not None:
            orders = self.validation_orders
            score = validation_score(self.loss, self.validation, orders, config.autocast)
            if score > max(history.validation_curve, default=-math.inf):
                history.best_iter, state.best = history.n_iter, copies(state.average)
            history.validation_curve.append(score)
        if config.verbose:
            self.bar.set_postfix(self.progress_values(), refresh=False)

    def progress_values(self) -> dict[str, str]:
        """Return the loss, validation loss and estimated accuracy for the progress bar."""
        history, dtype = self.state.history, self.config.autocast or torch.float32
        n = max(1, ACCURACY_PAIRS // self.prior.num_classes)
        if self.validation is not None:
            codes, labels = self.validation.codes[:n], self.validation.labels[:n]
        else:
            start = (self.n_steps - 1) * self.batch_size  # first row of the last batch
            rows = self.state.permutation[start : start + min(n, self.batch_size)].numpy()
            codes, labels = of_views(self.codes, rows, 0), self.labels[rows].numpy()
        classes = np.arange(self.prior.num_classes)
        ll = log_likelihoods(self.prior, codes, self.validation_orders[:1], classes, dtype=dtype)
        values = {"loss": f"{history.loss_curve[-1]:.3f}"}
        if history.validation_curve:
            values["validation"] = f"{-history.validation_curve[-1]:.3f}"
        return values | {"accuracy": f"{np.mean(ll[:, 0].argmax(1) == labels):.2f}"}

    def finish(self) -> None:
        """Copy the weights that training keeps into the prior, and complete the history."""
        history, config = self.state.history, self.config
        if self.state.best is None:
            history.best_iter = history.n_iter
            window = min(config.n_iter_no_change, max(1, history.n_iter // 4))
            curve = [-loss for loss in history.loss_curve]
            history.converged = is_flat(curve, window, config.tol * window)
        self.state.keep_best_weights()
        self.prior.eval()


class StepTimer:
    """Warn after the first ten steps if training will take more than ten minutes."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def record(self, steps_left: int) -> None:
        """Record that a training step has ended."""
        if len(self.times) > TIMED_STEPS:
            return
        self.times.append(time.perf_counter())
        # the median ignores the slow first step and delays that other processes cause
        seconds = float(np.median(np.diff(self.times)))
        if len(self.times) > TIMED_STEPS and seconds * steps_left > LONG_TRAINING_SECONDS:
            warn(
                f"Training will take about {seconds * steps_left / 60:.0f} minutes: {steps_left} "
                f"steps of {1000 * seconds:.0f} ms on the CPU. To train faster, lower max_iter, "
                "use fewer tokens (smaller images or a larger patch_size), use a smaller prior, "
                "or use a CUDA device. If you pass checkpoint_dir, you can continue an interrupted "
                "fit where it stopped."
            )


def rank_share(batch: TrainingBatch) -> TrainingBatch:
    """Return the rows of a batch that this rank processes.

    Rows that were added to give every rank the same number of rows have weight 0.
    """
    rows, valid = shard_rows(len(batch.codes))
    share = batch.rows(rows)
    if valid is None:
        return share
    return share._replace(weights=valid if share.weights is None else share.weights * valid)


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw float32 numbers from [0, 1), whatever torch's default data type is."""
    return torch.rand(shape, dtype=torch.float32, generator=generator)


@contextmanager
def interruptible(history: History) -> Iterator[None]:
    """If the first epoch is complete, turn Ctrl-C (KeyboardInterrupt) into a warning."""
    try:
        yield
    except KeyboardInterrupt:
        # Ctrl-C would stop the ranks at different steps
        if not history.n_iter or world_size() > 1:
            raise
        history.interrupted = True
        warn("Training interrupted by user.")


def schedule(step: int, n_steps: int) -> float:
    """Return the learning rate of a training step as a fraction of the peak learning rate."""
    warmup = max(1, round(WARMUP_SHARE * n_steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, n_steps - warmup)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def is_flat(curve: list[float], window: int, tol: float) -> bool:
    """Return whether the last `window` values raised the maximum by at most `tol`."""
    if len(curve) <= window:
        return False
    return max(curve[-window:]) <= max(curve[:-window]) + tol

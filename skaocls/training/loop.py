"""Training the prior: class-conditional maximum likelihood over random orders."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import gen_batches
from torch import Tensor

from skaocls.devices import own_torch_state
from skaocls.distributed import all_ranks_true, all_reduce_sum, is_main, shard_rows, world_size
from skaocls.images.lazy import of_views
from skaocls.priors.interface import Prior
from skaocls.progress import progress
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders
from skaocls.training.checkpoints import Checkpoints
from skaocls.training.optimizer import make_optimizer
from skaocls.training.parallel import Loss, Parallel, use
from skaocls.training.posterior import EVERY, class_log_frequencies, draw_rivals
from skaocls.training.state import LOWERED, History, TrainingState, are_finite, copies

CLIP_NORM = 1.0
WARMUP = 0.05  # share of all steps
FINAL_RATE = 0.05  # share of the peak learning rate
VALIDATION_ORDERS = 4
AVERAGING = 0.99  # decay of the running mean of the weights, which is what is kept
LONG, TIMED = 600, 10  # seconds that are worth a warning, and steps that are timed before it
ESTIMATE_ROWS = 1024  # (image, class) pairs for the accuracy shown while training


@own_torch_state(grad=True)
def train_prior(
    prior: Prior,
    codes: np.ndarray,
    labels: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    max_iter: int,
    batch_size: int,
    micro_batch_size: int | None = None,
    learning_rate: float,
    weight_decay: float = 0.05,
    muon: bool = False,
    class_dropout: float = 0.1,
    posterior_weight: float = 0.0,
    orders: np.ndarray | None = None,
    validation: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None,
    n_iter_no_change: int = 10,
    tol: float = 1e-3,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    checkpointing: bool = False,
    checkpoints: Checkpoints | None = None,
    parallel: str = "ddp",
    verbose: int = 0,
) -> History:
    """Fit the prior, in place, to codes and labels.

    Each step draws a batch, for each image one of its views and an order, and replaces some labels
    by the null class. AdamW (weight decay on matrices only), linear warm-up, cosine decay to 5 %
    of the peak rate, gradients clipped to norm 1: the recipe of the published checkpoints. What is
    kept is a running mean of the weights over about the last hundred steps. Ctrl-C ends training
    with a warning and keeps them so far, or before the end of the first epoch raises. An epoch
    after which loss or weights are no finite numbers begins again at a tenth of the rate, with a
    warning and at most three times.

    Processes that work together (:mod:`skaocls.distributed`) draw the same batches, views, orders
    and labels, and each takes its share of every batch. They end with the same weights, those of
    one process but for rounding; only where the prior drops anything they differ by more, because
    each process draws its own. Ctrl-C is raised there.

    Parameters
    ----------
    prior : Prior
        Trained where its weights are.
    codes : int array of shape (n_images, n_views, n_tokens)
        Tokens in raster order, of one or more augmented views of each image; may be
        :class:`skaocls.images.lazy.Lazy`.
    labels : int array of shape (n_images,)
        Classes 0 ... num_classes - 1.
    sample_weight : array of shape (n_images,), default=None
        Weight of each image in the loss, 1 on average.
    max_iter : int
        Epochs.
    batch_size : int
        Images per step, of all processes together, at most n_images.
    micro_batch_size : int, default=None
        Images per forward pass of a process, if fewer than its share of `batch_size`; gradients
        are accumulated.
    learning_rate : float
        Peak learning rate.
    weight_decay : float, default=0.05
        Of matrices, not of vectors.
    muon : bool, default=False
        Whether matrices take steps of orthogonal direction, as suits new priors, see
        :mod:`skaocls.training.optimizer`.
    class_dropout : float, default=0.1
        Probability of the null class.
    posterior_weight : float, default=0.0
        How often -log p(class | tokens, order) is counted beside -log p(tokens | class, order) of
        each image that keeps its class, see :mod:`skaocls.training.posterior`.
    orders : int array of shape (n_orders, n_tokens), default=None
        Orders to choose from; None is all permutations.
    validation : tuple (codes (n, n_tokens), labels (n,), weights (n,) or None), default=None
        Held-out data. With it, the weights of the epoch with the highest held-out log-likelihood
        are kept, and training stops once that has not risen by `tol` for `n_iter_no_change` epochs.
    n_iter_no_change : int, default=10
        Patience with held-out data. Without them, the last so many epochs, at most a quarter of
        all, tell whether training converged.
    tol : float, default=1e-3
        Rise of the held-out log-likelihood, or fall of the training loss per epoch, in nats per
        token, that counts as none.
    seed : int, default=0
        Governs everything random here; torch's global generator is not touched.
    autocast : torch.dtype or None, default=None
        Type of the matrix products.
    checkpointing : bool, default=False
        Compute activations again in the backward pass instead of keeping them.
    checkpoints : Checkpoints, default=None
        Where the state is written now and then, and from where training goes on if it is there,
        on a CPU to the same weights bit for bit if as many processes do it.
    parallel : {"ddp", "fsdp"}, default="ddp"
        Whether each of several processes holds all weights, or a piece of them, their gradients
        and optimizer state.
    verbose : int, default=0
        1 shows epochs, steps, loss, an estimate of the accuracy, and the time left.

    Returns
    -------
    history : History

    Raises
    ------
    ValueError
        If training diverges at lower rates, too.

    References
    ----------
    Pang et al., arXiv 2412.01827, section 4.1 and appendix; Sudakov, Babenko, Baranchuk,
    arXiv 2603.19122.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.training.loop import train_prior
    >>> prior = AnyOrderPrior(vocab_size=4, grid=(1, 2), num_classes=2, dim=32, n_layer=1)
    >>> codes = np.array([[[0, 1]], [[2, 3]]])
    >>> history = train_prior(
    ...     prior, codes, np.array([0, 1]), max_iter=30, batch_size=2, learning_rate=1e-2
    ... )
    >>> history.loss_curve[-1] < history.loss_curve[0]
    True
    """
    device = prior.device
    engine = Parallel(prior, parallel, autocast, posterior_weight)
    all_labels = torch.as_tensor(labels)
    all_orders = None if orders is None else torch.as_tensor(orders)
    weights = None if sample_weight is None else torch.as_tensor(sample_weight).float()
    told_apart = posterior_weight > 0 and prior.num_classes > 1
    log_share = class_log_frequencies(labels, sample_weight, prior.num_classes).to(device)
    optimizer = make_optimizer(engine.prior, learning_rate, weight_decay, muon)
    n, n_views, n_tokens = codes.shape
    steps = max(1, n // batch_size)
    # in which orders the prior is judged while it is trained
    judged = draw_orders(VALIDATION_ORDERS, n_tokens, seed) if orders is None else orders
    judged = judged[:VALIDATION_ORDERS]
    engine.prior.transformer.checkpointing = checkpointing
    state = TrainingState(engine.prior, optimizer, seed)
    if checkpoints is not None:
        checkpoints.resume(state)
    history, random, mixed = state.history, state.random, autocast is not None
    done = history.n_iter * steps + state.step
    bar = progress(max_iter * steps, "training", "step", verbose, initial=done)
    ends = [time.perf_counter()]  # of the steps that are timed
    with bar, interruptible(history):
        while history.n_iter < max_iter:
            epoch = history.n_iter
            bar.set_description(f"epoch {epoch + 1}/{max_iter}", refresh=False)
            engine.loss.train()
            if state.step == 0:
                state.losses.zero_()
                state.shuffled = torch.randperm(n, generator=random)
            for step in range(state.step, steps):
                rate = learning_rate * schedule(epoch * steps + step, max_iter * steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate * LOWERED**state.lowered
                i = state.shuffled[step * batch_size : (step + 1) * batch_size]
                view = torch.randint(n_views, i.shape, generator=random)
                batch = torch.from_numpy(of_views(codes, i.numpy(), view.numpy()))
                null = uniform(len(i), generator=random) < class_dropout
                label = all_labels[i].masked_fill(null, prior.num_classes)
                if all_orders is None:
                    order = uniform(len(i), n_tokens, generator=random).argsort(1)
                else:
                    which = torch.randint(len(all_orders), i.shape, generator=random)
                    order = all_orders[which]
                rivals = draw_rivals(label, prior.num_classes, random) if told_apart else None
                weight = None if weights is None else weights[i]
                share = shard_rows(len(i))
                if world_size() > 1:
                    batch, label, order = (a[share.rows] for a in (batch, label, order))
                    weight = None if weight is None else weight[share.rows]
                    rivals = None if rivals is None else rivals[share.rows]
                    state.begin_step(epoch * steps + step)
                if share.valid is not None:
                    weight = share.valid if weight is None else weight * share.valid
                batch, label, order = (a.to(device) for a in (batch, label, order))
                weight = None if weight is None else weight.to(device)
                rivals = None if rivals is None else rivals.to(device)
                optimizer.zero_grad()
                for few in gen_batches(len(batch), micro_batch_size or len(batch)):
                    with engine.accumulating(few.stop == len(batch)):
                        with torch.autocast(device.type, dtype=autocast, enabled=mixed):
                            loss = engine.loss(
                                batch[few],
                                order[few],
                                label[few],
                                None if weight is None else weight[few],
                                state.dropping,
                                None if rivals is None else rivals[few],
                                log_share,
                                (epoch * steps + step) % EVERY,
                            )
                        loss = loss * ((few.stop - few.start) / len(i))
                        # torch's engines take the mean over the processes
                        (loss * world_size()).backward()
                    state.losses += loss.detach()
                torch.nn.utils.clip_grad_norm_(engine.prior.parameters(), CLIP_NORM)
                optimizer.step()
                with torch.no_grad():  # at first over all steps, then over about the last hundred
                    done = epoch * steps + step
                    newest = 1 - min(AVERAGING, done / (done + 10))
                    torch._foreach_lerp_(state.mean, state.own, newest)
                bar.update()
                if len(ends) <= TIMED:
                    ends.append(time.perf_counter())
                    if len(ends) > TIMED and device.type == "cpu" and is_main():
                        # the first step warms up, and another may have to wait for the processor
                        seconds = float(np.median(np.diff(ends)))
                        warn_if_long(seconds, max_iter * steps - done - 1)
                state.step = step + 1
                if checkpoints is not None:
                    checkpoints.keep(state)
            if not state.is_finite():
                state.go_back()
                bar.update(-steps)
                continue
            state.good, state.step = copies(state.own), 0
            history.loss_curve.append(all_reduce_sum(state.losses).item() / steps)
            history.n_iter = epoch + 1
            if validation is not None or verbose:
                with engine.showing(state.own, state.mean):
                    if validation is not None:
                        score = held_out(engine.judge, *validation, judged, autocast)
                        if score > max(history.validation_curve, default=-math.inf):
                            history.best_iter, state.best = epoch + 1, copies(state.mean)
                        history.validation_curve.append(score)
                    if verbose and not engine.sharded:
                        i = state.shuffled[(steps - 1) * batch_size : steps * batch_size]
                        known = validation or (of_views(codes, i.numpy(), 0), all_labels[i].numpy())
                        shown = how_it_goes(prior, history, *known[:2], judged[:1], autocast)
                        bar.set_postfix(shown, refresh=False)
            if validation is not None and is_flat(history.validation_curve, n_iter_no_change, tol):
                history.converged = True
                break
    if state.best is None:
        history.best_iter = history.n_iter
        window = min(n_iter_no_change, max(1, history.n_iter // 4))
        history.converged = is_flat([-x for x in history.loss_curve], window, tol * window)
    if not engine.sharded:
        use(state.trained, state.own)
    kept = state.mean if state.best is None else state.best
    with torch.no_grad():  # what Ctrl-C cuts short may be about to go back
        torch._foreach_copy_(state.own, kept if all_ranks_true(are_finite(kept)) else state.good)
    engine.close()
    prior.transformer.checkpointing = False
    prior.eval()
    return history


def warn_if_long(seconds: float, n_steps: int) -> None:
    """Say so at the start where so many steps of so many seconds are more than ten minutes."""
    if seconds * n_steps > LONG:
        warnings.warn(
            f"Training will take about {seconds * n_steps / 60:.0f} minutes: {n_steps} steps of "
            f"{1000 * seconds:.0f} ms on the CPU. A lower max_iter, fewer tokens (smaller images, "
            "a larger patch_size) or a smaller prior are faster, so is a CUDA device; with "
            "checkpoint_dir, a fit that is cut short goes on from where it was.",
            UserWarning,
            stacklevel=3,
        )


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), of one type whatever torch's default is."""
    return torch.rand(shape, dtype=torch.float32, generator=generator)


@contextmanager
def interruptible(history: History) -> Iterator[None]:
    """Ctrl-C ends what is within, with a warning; before an epoch is complete it is raised."""
    try:
        yield
    except KeyboardInterrupt:
        # several processes are never interrupted at the same step
        if not history.n_iter or world_size() > 1:
            raise
        history.interrupted = True
        warnings.warn("Training interrupted by user.", UserWarning, stacklevel=2)


def schedule(step: int, n_steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine decay to 5 %."""
    warmup = max(1, round(WARMUP * n_steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, n_steps - warmup)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def is_flat(curve: list[float], window: int, tol: float) -> bool:
    """Whether the best of the last `window` values is no more than `tol` above the best before."""
    if len(curve) <= window:
        return False
    return max(curve[-window:]) <= max(curve[:-window]) + tol


@torch.no_grad()
def held_out(
    loss: Loss,
    codes: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None,
    orders: np.ndarray,
    autocast: torch.dtype | None,
) -> float:
    """Mean log-likelihood per token of held-out data, over a few fixed orders."""
    weights = np.ones(len(codes)) if weights is None else weights
    everything = weights.sum() * len(orders)
    if world_size() > 1:
        rows, real = shard_rows(len(codes))
        codes, labels, weights = codes[rows], labels[rows], weights[rows]
        weights = weights if real is None else weights * real.numpy()
    loss.eval()
    device = loss.prior.device
    places = torch.as_tensor(orders).to(device)
    found = 0.0
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for at in range(0, len(codes), 256):
            batch = torch.as_tensor(codes[at : at + 256]).long().to(device)
            label = torch.as_tensor(labels[at : at + 256]).to(device)
            weight = torch.as_tensor(weights[at : at + 256]).float().to(device)
            for order in places:
                found -= loss(batch, order.expand_as(batch), label, weight).item() * len(batch)
    return all_reduce_sum(torch.tensor(found, dtype=torch.float64)).item() / float(everything)


def how_it_goes(
    prior: Prior,
    history: History,
    codes: np.ndarray,
    labels: np.ndarray,
    order: np.ndarray,
    autocast: torch.dtype | None,
) -> dict[str, str]:
    """What the progress bar shows: the loss and the accuracy of one order on a few images."""
    n = max(1, ESTIMATE_ROWS // prior.num_classes)
    classes = np.arange(prior.num_classes)
    ll = log_likelihoods(prior, codes[:n], order, classes, dtype=autocast or torch.float32)[:, 0]
    shown = {"loss": f"{history.loss_curve[-1]:.3f}"}
    if history.validation_curve:
        shown["validation"] = f"{-history.validation_curve[-1]:.3f}"
    return shown | {"accuracy": f"{np.mean(ll.argmax(1) == labels[:n]):.2f}"}

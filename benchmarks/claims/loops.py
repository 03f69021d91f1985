"""Views of images and the training loop that the contestants written in torch share."""

import numpy as np
import torch

from skaocls.fitted.tokenization import N_VIEWS, SHARP_EVERY
from skaocls.images.augmentation import random_views
from skaocls.training.loop import AVERAGE_DECAY, CLIP_NORM, schedule
from skaocls.training.optimizer import make_optimizer
from skaocls.training.state import assign


def training_views(images, rng, n_views=N_VIEWS):
    """Return the views on which `AnyOrderARClassifier` trains, as pixels instead of tokens.

    Parameters
    ----------
    images : float array of shape (n, height, width, channels)
    rng : RandomState
    n_views : int, default=16
        Number of views per image. The first and every fifth is the image itself.

    Returns
    -------
    views : float16 tensor of shape (n, n_views, channels, height, width)
        Rounded to save memory; the rounding is far finer than 8 bits.
    """
    views = [
        random_views(images, rng) if view % SHARP_EVERY else np.asarray(images, np.float32)
        for view in range(n_views)
    ]
    return torch.stack([pixels(view).half() for view in views], 1)


def pixels(images):
    """Convert images (n, height, width, channels) to a tensor (n, channels, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).permute(0, 3, 1, 2)


def powers_of_two(n):
    """Return 1, 2, 4, 8, ... n."""
    return sorted({2**k for k in range(n.bit_length())} | {n})


def train(
    module,
    loss,
    views,
    labels,
    *,
    max_iter,
    batch_size=64,
    learning_rate,
    weight_decay=0.05,
    averaging=AVERAGE_DECAY,
    seed=0,
):
    """Train a module in place, with the schedule of :func:`skaocls.training.loop.train_prior`.

    AdamW, warm-up over 5 % of the steps, cosine decay to 5 % of the peak rate, gradients clipped to
    norm 1. The result is a running mean of the weights.

    Parameters
    ----------
    module : nn.Module
        Only its parameters are averaged, not its buffers.
    loss : callable
        Returns a scalar, given the module, float32 images (batch, channels, height, width) and
        labels (batch,). It may use torch's global random state, which is restored afterwards.
    views : tensor of shape (n, n_views, channels, height, width)
    labels : int array of shape (n,)
    max_iter : int
        Number of epochs.
    averaging : float, default=0.99
        Decay of the running mean.

    Returns
    -------
    loss_curve : list of float
        Mean loss in each epoch.
    """
    labels = torch.as_tensor(labels)
    n, n_views = views.shape[:2]
    batch_size = min(batch_size, n)
    steps = n // batch_size
    optimizer = make_optimizer(module, learning_rate, weight_decay)
    trained = list(module.parameters())
    mean = [p.detach().clone() for p in trained]
    loss_curve = []
    module.train()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for epoch in range(max_iter):
            total = 0.0
            shuffled = torch.randperm(n)
            for step in range(steps):
                done = epoch * steps + step
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * schedule(done, max_iter * steps)
                i = shuffled[step * batch_size : (step + 1) * batch_size]
                batch = views[i, torch.randint(n_views, i.shape)].float()
                optimizer.zero_grad()
                value = loss(module, batch, labels[i])
                value.backward()
                torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
                optimizer.step()
                total += value.item()
                with torch.no_grad():  # the mean of all steps at first, later of the last ones
                    torch._foreach_lerp_(mean, trained, 1 - min(averaging, done / (done + 10)))
            loss_curve.append(total / steps)
    assign(trained, mean)
    module.eval()
    return loss_curve

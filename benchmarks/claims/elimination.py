"""Errors of the predicted noise, and elimination of classes, for diffusion classifiers.

References
----------
Li et al., "Your diffusion model is secretly a zero-shot classifier", arXiv 2303.16203.
"""

import math
from zlib import crc32

import numpy as np
import torch

N_STEPS = 1000  # steps T of the diffusion
IMAGE_BATCH = 64  # images whose noises are in memory at the same time


def timesteps(n):
    """Return n steps at which errors are compared; a smaller n gives the first of them.

    The first 1, 2, 4, 8, ... numbers of van der Corput's sequence are spread evenly over 0 ... T.
    The offset of one third keeps these grids away from both ends.
    """
    halves = 2.0 ** -np.arange(1, 33)
    bits = np.arange(n)[:, None] >> np.arange(32) & 1
    return torch.from_numpy((bits @ halves + 1 / 3) % 1 * N_STEPS).float()


def noise_seeds(images, seed):
    """Return a seed for the noises of each image, from its content and a common seed."""
    return [[seed, crc32(np.ascontiguousarray(image).tobytes())] for image in images]


def noises(seed, shape, steps):
    """Draw the noises of an image at a range of its `timesteps`."""
    # numpy's first numbers, unlike torch's, do not depend on how many are drawn
    rng = np.random.RandomState(seed)
    return torch.from_numpy(rng.normal(size=(steps.stop, *shape))[steps.start :]).float()


def noise_errors(predict, add_noise, x, seeds, labels, steps, batch_size):
    """Return the squared norm of the error in the noise, float64 (n, n_labels, n_steps).

    Parameters
    ----------
    predict : callable
        Predicts the noise from noisy images, steps and labels.
    add_noise : callable
        Returns noisy images, given images, steps and noises.
    x : tensor of shape (n, channels, height, width)
    seeds : list
        Seed of the noises of each image, which all labels share.
    labels : int tensor of shape (n, n_labels)
    steps : range
        Indices of `timesteps`.
    batch_size : int
        Number of rows in a call of `predict`.
    """
    t, parts = timesteps(steps.stop), []
    for start in range(0, len(x), IMAGE_BATCH):
        part = slice(start, start + IMAGE_BATCH)
        images, columns = x[part], labels[part]
        noise = torch.stack([noises(seed, x.shape[1:], steps) for seed in seeds[part]])
        shape = len(images), labels.shape[1], len(steps)
        out = torch.empty(math.prod(shape), dtype=torch.float64)
        for rows in torch.arange(len(out)).split(batch_size):
            image, column, step = torch.unravel_index(rows, shape)
            eps, times = noise[image, step], t[steps.start + step]
            noisy = add_noise(images[image], times, eps)
            predicted = predict(noisy, times, columns[image, column])
            out[rows] = (predicted - eps).flatten(1).square().sum(1).double()
        parts.append(out.view(shape))
    return torch.cat(parts)


def search(errors, stages, n_images, n_classes):
    """Return the error of each class, averaged over the steps, float64 (n_images, n_classes).

    A dropped class keeps its distance from the winner at the time it was dropped, because errors
    over different steps are not comparable.

    Parameters
    ----------
    errors : callable
        Returns errors (n_images, n_labels, n_steps), given class indices (n_images, n_labels) and
        a range of steps.
    stages : list of tuple (timesteps, classes kept)
        Number of classes kept after a number of steps (Li et al., algorithm 1).
    """
    alive = torch.arange(n_classes).expand(n_images, -1)
    total = torch.zeros(n_images, n_classes, dtype=torch.float64)
    before, reached = 0, []
    for until, keep in stages:
        total.scatter_add_(1, alive, errors(alive, range(before, until)).sum(2))
        mean, before = total / until, until
        reached.append((mean, alive))
        best = mean.gather(1, alive).topk(min(keep, alive.shape[1]), largest=False).indices
        alive = alive.gather(1, best)
    error = torch.empty_like(total)
    for stage_mean, classes in reached:
        settled = mean.gather(1, alive) + stage_mean - stage_mean.gather(1, alive)
        error.scatter_(1, classes, settled.gather(1, classes))
    return error


def evaluations(stages, n_classes):
    """Return the number of forward passes for one image."""
    alive, before, passes = n_classes, 0, 0
    for until, keep in stages:
        passes += alive * (until - before)
        alive, before = min(keep, alive), until
    return passes

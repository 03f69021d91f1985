"""What diffusion classifiers of any size do: errors in the noise, and which classes stay.

References
----------
Li et al., "Your diffusion model is secretly a zero-shot classifier", arXiv 2303.16203.
"""

import math
from zlib import crc32

import numpy as np
import torch

N_STEPS = 1000  # T, of the diffusion
IMAGES_AT_ONCE = 64  # whose noises are kept in memory


def timesteps(n):
    """The n steps at which errors are compared; those of a smaller n are the first of them.

    Van der Corput's sequence: the first 1, 2, 4, 8, ... are spread evenly over 0 ... T. The offset
    of a third keeps all of these grids as far from one end as from the other, or twice as far.
    """
    halves = 2.0 ** -np.arange(1, 33)
    bits = np.arange(n)[:, None] >> np.arange(32) & 1
    return torch.from_numpy((bits @ halves + 1 / 3) % 1 * N_STEPS).float()


def keys_of(images, seed):
    """Seeds of the images' noises: they follow from the image and the seed alone."""
    return [[seed, crc32(np.ascontiguousarray(image).tobytes())] for image in images]


def noises(key, shape, steps):
    """Noises of an image of that shape at those of its `timesteps`."""
    # numpy's numbers, unlike torch's, do not change if more of them are drawn
    rng = np.random.RandomState(key)
    return torch.from_numpy(rng.normal(size=(steps.stop, *shape))[steps.start :]).float()


def noise_errors(predict, add_noise, x, keys, labels, steps, at_once):
    """Squared norm of the error in the noise, float64 (n, n_labels, n_steps).

    Parameters
    ----------
    predict : callable
        The noise in noisy images, given them, their steps and their labels.
    add_noise : callable
        Noisy images, given images, steps and noises.
    x : tensor of shape (n, channels, height, width)
    keys : list of seeds
        Of the noises of each image, which all of its labels share.
    labels : int tensor of shape (n, n_labels)
    steps : range
        Numbers within `timesteps`.
    at_once : int
        Rows of one call of `predict`.
    """
    t, parts = timesteps(steps.stop), []
    for start in range(0, len(x), IMAGES_AT_ONCE):
        now = slice(start, start + IMAGES_AT_ONCE)
        some, theirs = x[now], labels[now]
        noise = torch.stack([noises(key, x.shape[1:], steps) for key in keys[now]])
        shape = len(some), labels.shape[1], len(steps)
        out = torch.empty(math.prod(shape), dtype=torch.float64)
        for rows in torch.arange(len(out)).split(at_once):
            image, column, step = torch.unravel_index(rows, shape)
            eps, at = noise[image, step], t[steps.start + step]
            guess = predict(add_noise(some[image], at, eps), at, theirs[image, column])
            out[rows] = (guess - eps).flatten(1).square().sum(1).double()
        parts.append(out.view(shape))
    return torch.cat(parts)


def search(errors, stages, n_images, n_classes):
    """Error of each class, averaged over the steps, float64 (n_images, n_classes).

    A class that was dropped lags the winner by what it lagged it when it left: its error at the
    steps that it has seen cannot be compared with one over others.

    Parameters
    ----------
    errors : callable
        Errors (n_images, n_labels, n_steps), given columns of classes (n_images, n_labels) and a
        range of steps.
    stages : list of tuple (timesteps, classes kept)
        After so many of the steps so many classes stay (Li et al., algorithm 1).
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
    for there, present in reached:
        settled = mean.gather(1, alive) + there - there.gather(1, alive)
        error.scatter_(1, present, settled.gather(1, present))
    return error


def evaluations(stages, n_classes):
    """Forward passes for one image."""
    alive, before, passes = n_classes, 0, 0
    for until, keep in stages:
        passes += alive * (until - before)
        alive, before = min(keep, alive), until
    return passes

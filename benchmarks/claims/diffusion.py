"""A diffusion classifier: predicts the class under which a small DiT best predicts the noise."""

import math

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional as F

from skaocls.scoring.calibration import fit_temperature

from .elimination import N_STEPS, evaluations, noise_errors, noise_seeds, search
from .latents import PatchLatents
from .loops import pixels, powers_of_two, train, training_views

SCHEDULE_OFFSET = 0.008
STREAM_SIZE = 2**18  # numbers in the residual stream of one forward pass when scoring
HELD_OUT = 0.1  # share of the data for temperature="auto", as in AnyOrderARClassifier
N_FREQUENCIES = 64
CLASS_STD = 1.0  # with the published 0.02, small models hardly learn the classes


def alpha_bar(t):
    """Return the share of the image in the variance after t of T steps (cosine schedule)."""
    progress = (t / N_STEPS + SCHEDULE_OFFSET) / (1 + SCHEDULE_OFFSET)
    start = math.cos(SCHEDULE_OFFSET / (1 + SCHEDULE_OFFSET) * math.pi / 2)
    return (torch.cos(progress * math.pi / 2) / start).square()


def add_noise(x, t, noise):
    """Return x_t for images x (n, ...), steps t (n,) and noise (n, ...)."""
    share = alpha_bar(t).view(-1, *[1] * (x.ndim - 1))
    return share.sqrt() * x + (1 - share).sqrt() * noise


def noise_loss(module, x, labels, class_dropout=0.1):
    """Return the mean squared error of the predicted noise at uniform steps; x in [0, 1]."""
    x, noise = 2 * x - 1, torch.randn_like(x)
    t = torch.randint(1, N_STEPS + 1, (len(x),)).float()
    labels = labels.masked_fill(torch.rand(len(x)) < class_dropout, module.num_classes)
    return F.mse_loss(module(add_noise(x, t, noise), t, labels), noise)


class Attention(nn.Module):
    def __init__(self, dim, n_head):
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def mlp(dim, hidden, out):
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU("tanh"), nn.Linear(hidden, out))


def zero_init(linear):
    """Set the weights and biases of a linear layer to 0, and return it."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Block(nn.Module):
    """Transformer block with adaLN-zero: the condition shifts, scales and gates, initially by 0."""

    def __init__(self, dim, n_head):
        super().__init__()
        self.attention = Attention(dim, n_head)
        self.mlp = mlp(dim, 4 * dim, dim)
        self.condition = zero_init(nn.Linear(dim, 6 * dim))

    def forward(self, x, condition):
        shift, scale, gate, *second = self.condition(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attention(modulate(x, shift, scale))
        shift, scale, gate = second
        return x + gate * self.mlp(modulate(x, shift, scale))


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class DiT(nn.Module):
    """Diffusion transformer that predicts the noise in images, given the step and the class.

    Parameters
    ----------
    image_shape : tuple of int (height, width, channels)
    num_classes : int
        The label `num_classes` is the null class.
    patch_size : int
        Pixels along each side of a token.
    dim, n_layer, n_head : int

    References
    ----------
    Peebles and Xie, "Scalable diffusion models with transformers", arXiv 2212.09748, section 3.2.
    """

    def __init__(self, image_shape, num_classes, patch_size=1, dim=96, n_layer=4, n_head=3):
        super().__init__()
        height, width, channels = image_shape
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.n_tokens = (height // patch_size) * (width // patch_size)
        self.image_size = (height, width)
        self.patch_size = patch_size
        self.embed = nn.Linear(channels * patch_size**2, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(self.n_tokens, dim))
        self.step = mlp(N_FREQUENCIES, dim, dim)
        self.classes = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.classes.weight, std=CLASS_STD)
        self.blocks = nn.ModuleList(Block(dim, n_head) for _ in range(n_layer))
        self.condition = zero_init(nn.Linear(dim, 2 * dim))
        self.output = zero_init(nn.Linear(dim, channels * patch_size**2))

    def forward(self, x, t, labels):
        """Predict the noise in images x (n, channels, height, width) at steps t (n,)."""
        tokens = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        y = self.embed(tokens) + self.positions
        condition = F.silu(self.step(step_features(t)) + self.classes(labels))
        for block in self.blocks:
            y = block(y, condition)
        shift, scale = self.condition(condition)[:, None].chunk(2, -1)
        y = self.output(modulate(y, shift, scale)).transpose(1, 2)
        return F.fold(y, self.image_size, self.patch_size, stride=self.patch_size)


def step_features(t):
    """Return sines and cosines of the step, (n, N_FREQUENCIES)."""
    rates = torch.exp(torch.linspace(0, -math.log(10_000), N_FREQUENCIES // 2))
    angles = t[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


class DiffusionClassifier(ClassifierMixin, BaseEstimator):
    """Classifier that compares how well classes predict the noise in an image.

    The score of a class is the squared error of the predicted noise, averaged over pairs of a step
    and a noise. All classes share these pairs. The noise is a function of the image and the seed,
    so that predictions do not depend on the batch.

    Parameters
    ----------
    patch_size, dim, n_layer, n_head : int
        Sizes of the :class:`DiT`.
    n_components : int, default=None
        Number of whitened principal components of each patch that replace its pixels, as a linear
        substitute for the latents of larger models. None uses pixels.
    n_timesteps : int, default=64
        Number of steps with one noise each. May be changed after `fit`.
    adaptive : bool, default=False
        If True, drop the worst classes after some steps (Li et al., algorithm 1). May be changed
        after `fit`.
    stages : list of tuple (timesteps, classes kept), default=None
        Number of classes kept after a number of steps; the search ends when one is left. None keeps
        half of the classes after an eighth of the steps, and a fifth after a quarter.
    temperature : float or "auto", default=1.0
        Divisor of the log-likelihoods, which are taken to be the negative squared norm of the
        error, averaged over the steps. This ignores the true weights of the steps and a constant
        factor, so probabilities are only meaningful with ``"auto"``, which fits the temperature to
        a held-out tenth of the data. A number may be set after `fit`.
    augmentation : int, default=16
        Number of views of each image for training; 1 uses only the image itself.
    max_iter : int, default=240
        Number of epochs.
    batch_size : int, default=64
    learning_rate : float, default=6e-3
    averaging : float, default=0.99
        Decay of the running mean of the weights.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    module_ : DiT
    latents_ : PatchLatents or None
    temperature_ : float
    loss_curve_ : list of float
        Mean squared error of the noise in each epoch.
    evaluations_ : int
        Number of forward passes for one image.

    References
    ----------
    Li et al., "Your diffusion model is secretly a zero-shot classifier", arXiv 2303.16203.
    """

    latents_: PatchLatents | None = None

    def __init__(
        self,
        patch_size=2,
        dim=64,
        n_layer=4,
        n_head=4,
        *,
        n_components=None,
        n_timesteps=64,
        adaptive=False,
        stages=None,
        temperature=1.0,
        augmentation=16,
        max_iter=240,
        batch_size=64,
        learning_rate=6e-3,
        averaging=0.99,
        random_state=None,
    ):
        self.patch_size = patch_size
        self.dim = dim
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_components = n_components
        self.n_timesteps = n_timesteps
        self.adaptive = adaptive
        self.stages = stages
        self.temperature = temperature
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.averaging = averaging
        self.random_state = random_state

    def fit(self, X, y):
        """Train on images X (n, height, width, channels) in [0, 1] and classes y (n,)."""
        rng = check_random_state(self.random_state)
        self.classes_, labels = np.unique(y, return_inverse=True)
        held_out = None
        if self.temperature == "auto":
            X, held_out, labels, known = train_test_split(
                X, labels, test_size=HELD_OUT, stratify=labels, random_state=rng
            )
        self._noise_seed, weights_seed, training_seed = rng.randint(2**31 - 1, size=3)
        views = training_views(X, rng, self.augmentation)
        self.latents_, patch_size = None, self.patch_size
        if self.n_components is not None:
            self.latents_, patch_size = PatchLatents(patch_size, self.n_components).fit(X), 1
            views = torch.stack(
                [self._inputs(view.float().permute(0, 2, 3, 1)).half() for view in views]
            )
        with torch.random.fork_rng([]):
            torch.manual_seed(weights_seed)
            sizes = patch_size, self.dim, self.n_layer, self.n_head
            shape = views.shape[3], views.shape[4], views.shape[2]
            self.module_ = DiT(shape, len(self.classes_), *sizes)
        self.loss_curve_ = train(
            self.module_,
            noise_loss,
            views,
            labels,
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            averaging=self.averaging,
            seed=training_seed,
        )
        if held_out is not None:
            ll, uniform = -self._search(held_out), np.zeros(len(self.classes_))
            self._temperature = fit_temperature(ll[:, None], known, uniform, "mean_log_likelihood")
        return self

    def _inputs(self, X):
        """Return the pixels or latents to which noise is added, (n, channels, height, width)."""
        return pixels(X if self.latents_ is None else self.latents_.transform(X))

    @property
    def temperature_(self):
        return self._temperature if self.temperature == "auto" else self.temperature

    @property
    def evaluations_(self):
        """Number of forward passes for one image."""
        return evaluations(self._stages(), len(self.classes_))

    def predict_proba(self, X):
        """Return class probabilities, (n, n_classes), for equally frequent classes."""
        ll = torch.from_numpy(-self._search(X) / self.temperature_)
        return ll.softmax(1).numpy()

    def predict(self, X):
        """Return the class with the smallest error for each image."""
        return self.classes_[self._search(X).argmin(1)]

    def staged_timesteps(self):
        """Return 1, 2, 4, 8, ... `n_timesteps`."""
        return powers_of_two(self.n_timesteps)

    def staged_predict(self, X):
        """Yield predictions after each of `staged_timesteps`, without elimination."""
        for error in self._staged_errors(X):
            yield self.classes_[error.argmin(1)]

    def staged_predict_proba(self, X):
        """Yield class probabilities after each of `staged_timesteps`."""
        for error in self._staged_errors(X):
            yield torch.from_numpy(-error / self.temperature_).softmax(1).numpy()

    def _staged_errors(self, X):
        all_classes = torch.arange(len(self.classes_)).expand(len(X), -1)
        errors = self._errors(self._inputs(X), all_classes, range(self.n_timesteps)).numpy()
        for k in self.staged_timesteps():
            yield errors[:, :, :k].mean(2)

    def _stages(self):
        n, n_classes = self.n_timesteps, len(self.classes_)
        if not self.adaptive:
            return [(n, 1)]
        shares = ((8, 2), (4, 5))
        early = [(max(1, n // a), -(-n_classes // b)) for a, b in shares]
        stages = self.stages or [*early, (n, 1)]
        decided = [keep for _, keep in stages].index(1)  # later stages cannot change the result
        return stages[: decided + 1]

    def _search(self, X):
        """Return the squared norm of the error, averaged over the steps, (n, n_classes)."""
        check_is_fitted(self)
        x = self._inputs(X)

        def errors(labels, steps):
            return self._errors(x, labels, steps)

        return search(errors, self._stages(), len(x), len(self.classes_)).numpy()

    @torch.inference_mode()
    def _errors(self, x, labels, steps):
        """Return the squared norm of the error in the noise, float64 (n, n_labels, n_steps).

        `labels` (n, n_labels) are rows of the class table; `steps` are indices of `timesteps`.
        """
        module, x = self.module_, 2 * x - 1
        batch_size = max(1, STREAM_SIZE // (module.n_tokens * module.positions.shape[1]))
        seeds = noise_seeds(x, self._noise_seed)
        return noise_errors(module, add_noise, x, seeds, labels, steps, batch_size)

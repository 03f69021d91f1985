"""A diffusion classifier: the class under which a small DiT best predicts the noise in an image."""

import math

import numpy as np
import torch
from elimination import N_STEPS, evaluations, keys_of, noise_errors, search
from latents import PatchLatents
from loops import doublings, pixels, train, training_views
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional as F

from skaocls.scoring.calibration import fit_temperature

SCHEDULE_OFFSET = 0.008
NUMBERS_AT_ONCE = 2**18  # in the residual stream of one forward pass when scoring
HELD_OUT = 0.1  # share of the data for temperature="auto", as in AnyOrderARClassifier
FREQUENCIES = 64
CLASS_SPREAD = 1.0  # with 0.02, as published for wide models, small ones hardly learn the classes


def alpha_bar(t):
    """Share of the image in the variance after t of T steps: Nichol and Dhariwal's cosine."""
    at = (t / N_STEPS + SCHEDULE_OFFSET) / (1 + SCHEDULE_OFFSET)
    start = math.cos(SCHEDULE_OFFSET / (1 + SCHEDULE_OFFSET) * math.pi / 2)
    return (torch.cos(at * math.pi / 2) / start).square()


def add_noise(x, t, noise):
    """x_t of images x (n, ...), steps t (n,) and noise (n, ...)."""
    share = alpha_bar(t).view(-1, *[1] * (x.ndim - 1))
    return share.sqrt() * x + (1 - share).sqrt() * noise


def noise_loss(module, x, labels, class_dropout=0.1):
    """Mean squared error of the predicted noise, at uniform steps 1 ... T; x in [0, 1]."""
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


def zeros(linear):
    """The linear layer, with weights and biases of 0."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Block(nn.Module):
    """Transformer block with adaLN-zero: the condition shifts, scales and gates, at first by 0."""

    def __init__(self, dim, n_head):
        super().__init__()
        self.attention = Attention(dim, n_head)
        self.mlp = mlp(dim, 4 * dim, dim)
        self.condition = zeros(nn.Linear(dim, 6 * dim))

    def forward(self, x, condition):
        shift, scale, gate, *second = self.condition(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attention(modulate(x, shift, scale))
        shift, scale, gate = second
        return x + gate * self.mlp(modulate(x, shift, scale))


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class DiT(nn.Module):
    """Diffusion transformer: predicts the noise in images, given the step and the class.

    Parameters
    ----------
    image_shape : tuple of int (height, width, channels)
    num_classes : int
        Label `num_classes` is no class.
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
        self.step = mlp(FREQUENCIES, dim, dim)
        self.classes = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.classes.weight, std=CLASS_SPREAD)
        self.blocks = nn.ModuleList(Block(dim, n_head) for _ in range(n_layer))
        self.condition = zeros(nn.Linear(dim, 2 * dim))
        self.output = zeros(nn.Linear(dim, channels * patch_size**2))

    def forward(self, x, t, labels):
        """Noise in images x (n, channels, height, width) at steps t (n,) of classes labels (n,)."""
        tokens = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        y = self.embed(tokens) + self.positions
        condition = F.silu(self.step(waves(t)) + self.classes(labels))
        for block in self.blocks:
            y = block(y, condition)
        shift, scale = self.condition(condition)[:, None].chunk(2, -1)
        y = self.output(modulate(y, shift, scale)).transpose(1, 2)
        return F.fold(y, self.image_size, self.patch_size, stride=self.patch_size)


def waves(t):
    """Sines and cosines of the step, (n, FREQUENCIES)."""
    rates = torch.exp(torch.linspace(0, -math.log(10_000), FREQUENCIES // 2))
    angles = t[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


class DiffusionClassifier(ClassifierMixin, BaseEstimator):
    """Classification by the noise that a class-conditional diffusion model predicts.

    The score of a class is the squared error of the predicted noise, averaged over pairs of a step
    and a noise. These pairs are the same for all classes, as they must be; the noises follow from
    the image and the seed, so that an answer does not depend on what else is asked.

    Parameters
    ----------
    patch_size, dim, n_layer, n_head : int
        Sizes of the :class:`DiT`.
    n_components : int, default=None
        How many whitened principal components of each patch are noised and predicted instead of
        its pixels: a linear stand-in for the latents of larger models.
    n_timesteps : int, default=64
        Steps at which errors are compared, one noise for each. May be changed after `fit`.
    adaptive : bool, default=False
        Whether to drop the worst classes on the way (Li et al., algorithm 1). May be changed after
        `fit`.
    stages : list of tuple (timesteps, classes kept), default=None
        After so many of the steps so many classes stay; the search ends where that is one.
        None keeps half of the classes after an eighth of the steps, and a fifth after a quarter.
    temperature : float or "auto", default=1.0
        A class's log-likelihood is taken to be minus the squared norm of the error, averaged over
        the steps, divided by this. The true weights of the steps and a constant factor are lost
        in that, so the probabilities mean little until ``"auto"`` has found the temperature on a
        tenth of the data, held out from training. A number may be set after `fit`.
    augmentation : int, default=16
        Views of each image to train on; 1 is the image alone.
    max_iter : int, default=240
        Epochs.
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
        Forward passes for one image.

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
        """Train on images X (n, height, width, channels) in [0, 1] and their classes y (n,)."""
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
        """What is noised: pixels or latents, (n, channels, height, width)."""
        return pixels(X if self.latents_ is None else self.latents_.transform(X))

    @property
    def temperature_(self):
        return self._temperature if self.temperature == "auto" else self.temperature

    @property
    def evaluations_(self):
        """Forward passes for one image."""
        return evaluations(self._stages(), len(self.classes_))

    def predict_proba(self, X):
        """Class probabilities, (n, n_classes); classes are taken to be equally frequent."""
        ll = torch.from_numpy(-self._search(X) / self.temperature_)
        return ll.softmax(1).numpy()

    def predict(self, X):
        """The class of the least error, of each image."""
        return self.classes_[self._search(X).argmin(1)]

    def staged_timesteps(self):
        """1, 2, 4, 8, ... `n_timesteps`."""
        return doublings(self.n_timesteps)

    def staged_predict(self, X):
        """Yield predictions after each of `staged_timesteps`, from one pass without elimination.

        Each takes as many forward passes for an image as steps times classes.
        """
        for error in self._staged_errors(X):
            yield self.classes_[error.argmin(1)]

    def staged_predict_proba(self, X):
        """Yield class probabilities after each of `staged_timesteps`."""
        for error in self._staged_errors(X):
            yield torch.from_numpy(-error / self.temperature_).softmax(1).numpy()

    def _staged_errors(self, X):
        everything = torch.arange(len(self.classes_)).expand(len(X), -1)
        errors = self._errors(self._inputs(X), everything, range(self.n_timesteps)).numpy()
        for k in self.staged_timesteps():
            yield errors[:, :, :k].mean(2)

    def _stages(self):
        n, n_classes = self.n_timesteps, len(self.classes_)
        if not self.adaptive:
            return [(n, 1)]
        shares = ((8, 2), (4, 5))
        few = [(max(1, n // a), -(-n_classes // b)) for a, b in shares]
        stages = self.stages or [*few, (n, 1)]
        decided = [keep for _, keep in stages].index(1)  # what follows could change nothing
        return stages[: decided + 1]

    def _search(self, X):
        """Squared norm of the error, averaged over the steps, (n, n_classes)."""
        check_is_fitted(self)
        x = self._inputs(X)

        def errors(labels, steps):
            return self._errors(x, labels, steps)

        return search(errors, self._stages(), len(x), len(self.classes_)).numpy()

    @torch.inference_mode()
    def _errors(self, x, labels, steps):
        """Squared norm of the error in the noise, float64 (n, n_labels, n_steps).

        `labels` (n, n_labels) are rows of the class table, `steps` numbers within `timesteps`.
        """
        module, x = self.module_, 2 * x - 1
        at_once = max(1, NUMBERS_AT_ONCE // (module.n_tokens * module.positions.shape[1]))
        keys = keys_of(x, self._noise_seed)
        return noise_errors(module, add_noise, x, keys, labels, steps, at_once)

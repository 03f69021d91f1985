"""A masked model: predicts the class under which a transformer best restores hidden tokens."""

import math

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional as F

from skaocls import PatchTokenizer

from .diffusion import CLASS_STD, STREAM_SIZE, Block, modulate, zero_init
from .loops import powers_of_two, train, training_views

SHARES = {"uniform": lambda u: u, "cosine": lambda u: torch.cos(u * math.pi / 2)}


class MaskedTransformer(nn.Module):
    """Predicts hidden tokens from visible ones, given the class.

    Parameters
    ----------
    n_tokens, vocab_size : int
        The token `vocab_size` stands for a hidden one.
    num_classes : int
        The label `num_classes` is the null class.
    dim, n_layer, n_head : int
        Sizes of the blocks, which are those of :class:`diffusion.DiT`.
    """

    def __init__(self, n_tokens, vocab_size, num_classes, dim=64, n_layer=4, n_head=4):
        super().__init__()
        self.n_tokens, self.vocab_size, self.num_classes = n_tokens, vocab_size, num_classes
        self.embed = nn.Embedding(vocab_size + 1, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(n_tokens, dim))
        self.classes = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.classes.weight, std=CLASS_STD)
        self.blocks = nn.ModuleList(Block(dim, n_head) for _ in range(n_layer))
        self.condition = zero_init(nn.Linear(dim, 2 * dim))
        self.output = zero_init(nn.Linear(dim, vocab_size))

    def forward(self, tokens, hidden, labels):
        """Return log-probabilities, (n, n_tokens, vocab_size).

        Parameters
        ----------
        tokens : int tensor of shape (n, n_tokens)
        hidden : bool tensor of shape (n, n_tokens)
        labels : int tensor of shape (n,)
        """
        y = self.embed(tokens.masked_fill(hidden, self.vocab_size)) + self.positions
        condition = F.silu(self.classes(labels))
        for block in self.blocks:
            y = block(y, condition)
        shift, scale = self.condition(condition)[:, None].chunk(2, -1)
        return self.output(modulate(y, shift, scale)).log_softmax(-1)


def hidden_tokens(u, schedule, n_tokens):
    """Draw masks (n, n_tokens) that hide a random share of the tokens, at least one.

    Parameters
    ----------
    u : tensor of shape (n,)
        In [0, 1).
    schedule : {"uniform", "cosine"}
        Maps u to the share of hidden tokens.
    """
    n_hidden = (SHARES[schedule](u) * n_tokens).long().clamp(max=n_tokens - 1) + 1
    return torch.rand(len(u), n_tokens).argsort(1).argsort(1) < n_hidden[:, None]


def mean_log_prob(module, tokens, hidden, labels):
    """Return the mean log-probability of the hidden tokens, (n,)."""
    log_prob = module(tokens, hidden, labels).gather(2, tokens[:, :, None])[:, :, 0]
    return (log_prob * hidden).sum(1) / hidden.sum(1)


class MaskedClassifier(ClassifierMixin, BaseEstimator):
    """Classifier that compares how well classes restore hidden tokens.

    The score of a class is the mean log-probability of the hidden tokens, averaged over masks that
    all classes and images share. With the uniform schedule, this mean times the number of tokens
    estimates the average log-likelihood over all orders (Hoogeboom et al., equation 5).

    Parameters
    ----------
    patch_size, n_codes : default="auto"
        Parameters of the :class:`PatchTokenizer`.
    dim, n_layer, n_head : int
        Sizes of the :class:`MaskedTransformer`.
    n_masks : int, default=32
        Number of masks. May be lowered after `fit`; the first masks are used.
    schedule : {"uniform", "cosine"}, default="uniform"
        Distribution of the share of hidden tokens, in training and scoring. MaskGIT uses cosine,
        which mostly hides many tokens.
    class_dropout : float, default=0.1
    augmentation : int, default=16
        Number of views of each image for training; 1 uses only the image itself.
    max_iter : int, default=240
        Number of epochs.
    batch_size : int, default=64
    learning_rate : float, default=6e-3
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    tokenizer_ : PatchTokenizer
    module_ : MaskedTransformer
    masks_ : bool tensor of shape (n_masks, n_tokens)
    loss_curve_ : list of float
        Mean negative log-probability of a hidden token in each epoch.

    References
    ----------
    Chang et al., "MaskGIT: masked generative image transformer", arXiv 2202.04200.
    Hoogeboom et al., "Autoregressive diffusion models", arXiv 2110.02037.
    """

    def __init__(
        self,
        patch_size="auto",
        n_codes="auto",
        dim=64,
        n_layer=4,
        n_head=4,
        *,
        n_masks=32,
        schedule="uniform",
        class_dropout=0.1,
        augmentation=16,
        max_iter=240,
        batch_size=64,
        learning_rate=6e-3,
        random_state=None,
    ):
        self.patch_size = patch_size
        self.n_codes = n_codes
        self.dim = dim
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_masks = n_masks
        self.schedule = schedule
        self.class_dropout = class_dropout
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X, y):
        """Train on images X (n, height, width, channels) in [0, 1] and classes y (n,)."""
        rng = check_random_state(self.random_state)
        self.classes_, labels = np.unique(y, return_inverse=True)
        tokenizer_seed, weights_seed, training_seed = rng.randint(2**31 - 1, size=3)
        self.tokenizer_ = PatchTokenizer(
            self.patch_size, self.n_codes, random_state=tokenizer_seed
        ).fit(X)
        views = training_views(X, rng, self.augmentation).float().permute(0, 1, 3, 4, 2)
        tokens = self._tokens(views.flatten(0, 1).numpy()).unflatten(0, views.shape[:2])
        vocab_size = len(self.tokenizer_.codebook_)
        sizes = self.dim, self.n_layer, self.n_head
        with torch.random.fork_rng([]):
            torch.manual_seed(weights_seed)
            n_tokens = tokens.shape[2]
            self.module_ = MaskedTransformer(n_tokens, vocab_size, len(self.classes_), *sizes)
            # so that the first masks hide different shares
            u = (torch.arange(self.n_masks) * (5**0.5 - 1) / 2 + 0.5) % 1
            self.masks_ = hidden_tokens(u, self.schedule, n_tokens)
        self.loss_curve_ = train(
            self.module_,
            self._loss,
            tokens,
            labels,
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=training_seed,
        )
        return self

    def _tokens(self, X):
        codes = self.tokenizer_.transform(X)
        return torch.from_numpy(codes.reshape(len(X), -1)).long()

    def _loss(self, module, tokens, labels):
        tokens = tokens.long()  # the training loop converts its input to float
        dropped = torch.rand(len(labels)) < self.class_dropout
        labels = labels.masked_fill(dropped, module.num_classes)
        hidden = hidden_tokens(torch.rand(len(tokens)), self.schedule, module.n_tokens)
        return -mean_log_prob(module, tokens, hidden, labels).mean()

    @property
    def evaluations_(self):
        """Number of forward passes for one image."""
        return self.n_masks * len(self.classes_)

    def predict_proba(self, X):
        """Return class probabilities, (n, n_classes), for equally frequent classes."""
        return self._posterior(self._log_probs(X))

    def predict(self, X):
        """Return the most probable class of each image."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def staged_masks(self):
        """Return 1, 2, 4, 8, ... `n_masks`."""
        return powers_of_two(self.n_masks)

    def staged_predict_proba(self, X):
        """Yield class probabilities after each of `staged_masks`."""
        log_probs = self._log_probs(X)
        for k in self.staged_masks():
            yield self._posterior(log_probs[:, :, :k])

    def _posterior(self, log_probs):
        return (self.module_.n_tokens * log_probs.mean(2)).softmax(1).numpy()

    @torch.inference_mode()
    def _log_probs(self, X):
        """Return mean log-probabilities of the hidden tokens, float64 (n, n_classes, n_masks)."""
        check_is_fitted(self)
        tokens = self._tokens(X)
        shape = len(X), len(self.classes_), self.n_masks
        out = torch.empty(math.prod(shape), dtype=torch.float64)
        batch_size = max(1, STREAM_SIZE // (self.module_.n_tokens * self.dim))
        for rows in torch.arange(len(out)).split(batch_size):
            image, label, mask = torch.unravel_index(rows, shape)
            out[rows] = mean_log_prob(
                self.module_, tokens[image], self.masks_[mask], label
            ).double()
        return out.view(shape)

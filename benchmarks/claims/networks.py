"""A small ResNet and a small ViT as scikit-learn classifiers."""

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional as F

from .diffusion import Attention, mlp
from .loops import pixels, train, training_views

BATCH_SIZE = 128  # images of one forward pass when predicting
N_GROUPS = 8  # of group normalization
# width, depth (blocks per stage of the ResNet, blocks of the ViT), peak learning rate
DEFAULTS = {"resnet": (32, 1, 2e-3), "vit": (64, 4, 1e-3)}


class ResidualBlock(nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(N_GROUPS, width) for _ in range(2))
        same = before == width and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x):
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.skip(x) + self.norms[1](self.second(y)))


def resnet(image_shape, n_classes, patch_size, width, depth):
    """Make three stages of residual blocks, each with half the size and twice the width.

    Group normalization needs no running statistics, so that only weights are averaged.
    """
    stem = nn.Conv2d(image_shape[2], width, 3, patch_size, padding=1, bias=False)
    layers = [stem, nn.GroupNorm(N_GROUPS, width), nn.ReLU()]
    for stage in range(3):
        for block in range(depth):
            downsample = stage > 0 and block == 0
            before = width * 2 ** (stage - downsample)
            layers.append(ResidualBlock(before, width * 2**stage, 1 + downsample))
    head = nn.Linear(4 * width, n_classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


class ViTBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.attention = Attention(dim, dim // 16)
        self.mlp = mlp(dim, 4 * dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class ViT(nn.Module):
    """Vision transformer with learned positions, pre-norm blocks and mean pooling."""

    def __init__(self, image_shape, n_classes, patch_size, width, depth):
        super().__init__()
        n_tokens = (image_shape[0] // patch_size) * (image_shape[1] // patch_size)
        self.embed = nn.Conv2d(image_shape[2], width, patch_size, patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.blocks = nn.Sequential(*(ViTBlock(width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_classes))

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(tokens).mean(1))


NETWORKS = {"resnet": resnet, "vit": ViT}


def label_loss(module, x, labels):
    return F.cross_entropy(module(2 * x - 1), labels)


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """Network trained with cross-entropy.

    Parameters
    ----------
    kind : {"resnet", "vit"}, default="resnet"
    patch_size : int, default=1
        Side of a token of the ViT in pixels; stride of the ResNet's first layer.
    width : int, default=None
        Channels of the ResNet's first stage (None is 32), or width of the ViT (None is 64).
    depth : int, default=None
        Blocks in each of the ResNet's three stages (None is 1), or of the ViT (None is 4).
    augmentation : int, default=16
        Number of views of each image for training; 1 uses only the image itself.
    max_iter : int, default=60
        Number of epochs.
    batch_size : int, default=64
    learning_rate : float, default=None
        Peak learning rate; None is 2e-3 for the ResNet and 1e-3 for the ViT.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    module_ : nn.Module
    loss_curve_ : list of float
    """

    def __init__(
        self,
        kind="resnet",
        *,
        patch_size=1,
        width=None,
        depth=None,
        augmentation=16,
        max_iter=60,
        batch_size=64,
        learning_rate=None,
        random_state=None,
    ):
        self.kind = kind
        self.patch_size = patch_size
        self.width = width
        self.depth = depth
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X, y):
        """Train on images X (n, height, width, channels) in [0, 1] and classes y (n,)."""
        rng = check_random_state(self.random_state)
        self.classes_, labels = np.unique(y, return_inverse=True)
        weights_seed, training_seed = rng.randint(2**31 - 1, size=2)
        width, depth, rate = DEFAULTS[self.kind]
        sizes = self.patch_size, self.width or width, self.depth or depth
        with torch.random.fork_rng([]):
            torch.manual_seed(weights_seed)
            self.module_ = NETWORKS[self.kind](X.shape[1:], len(self.classes_), *sizes)
        self.loss_curve_ = train(
            self.module_,
            label_loss,
            training_views(X, rng, self.augmentation),
            labels,
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate or rate,
            seed=training_seed,
        )
        return self

    @torch.inference_mode()
    def predict_proba(self, X):
        """Return class probabilities, (n, n_classes)."""
        check_is_fitted(self)
        logits = [self.module_(2 * batch - 1) for batch in pixels(X).split(BATCH_SIZE)]
        return torch.cat(logits).double().softmax(1).numpy()

    def predict(self, X):
        """Return the most probable class of each image."""
        return self.classes_[self.predict_proba(X).argmax(1)]

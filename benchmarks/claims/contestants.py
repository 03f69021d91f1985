"""The contestants and their tasks; ``plans.py`` contains their settings."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils import check_random_state

from skaocls import AnyOrderARClassifier, PatchTokenizer

from .. import common
from .data import digits, glyphs, textures
from .diffusion import DiffusionClassifier
from .loops import training_views
from .masked import MaskedClassifier
from .networks import NetworkClassifier

CHARACTERS = "ABEFHKNPR2"  # some differ by one stroke only
N_GLYPHS = 120  # training images of each character
GENERATIVE = ("any-order AR", "raster AR", "diffusion", "masked", "shared trunk", "our defaults")
BOUNDED = "our defaults, bounded"  # in the experiments with shortcuts only
DISCRIMINATIVE = ("ResNet", "ViT", "SVC", "LogisticRegression", "MLPClassifier")
MAX_ORDERS, MAX_TIMESTEPS, MAX_MASKS = 32, 32, 32


def load(task, seed, fonts=None):
    """Return training images and labels, test images and labels; `fonts` is a folder of fonts."""
    if task == "glyphs":
        return glyphs(seed, characters=CHARACTERS, n_train=N_GLYPHS, folder=fonts)
    return {"digits": digits, "textures": textures}[task](seed)


class OnViews(ClassifierMixin, BaseEstimator):
    """A classifier of flat rows, trained on the same views of images as the networks.

    Parameters
    ----------
    estimator : classifier
    augmentation : int, default=16
        Number of views of each image in the training set.
    random_state : int, RandomState instance or None, default=None
    """

    def __init__(self, estimator, augmentation=16, random_state=None):
        self.estimator = estimator
        self.augmentation = augmentation
        self.random_state = random_state

    def fit(self, X, y):
        views = training_views(X, check_random_state(self.random_state), self.augmentation)
        rows = views.float().permute(0, 1, 3, 4, 2).flatten(0, 1).flatten(1).numpy()
        self.estimator_ = clone(self.estimator).fit(rows, y.repeat(self.augmentation))
        self.classes_ = self.estimator_.classes_
        return self

    def predict(self, X):
        return self.estimator_.predict(X.reshape(len(X), -1))

    def predict_proba(self, X):
        return self.estimator_.predict_proba(X.reshape(len(X), -1))


class StandardizedTokenizer(PatchTokenizer):
    """Standardizes the brightness and contrast of images before it encodes them."""

    def fit(self, X, y=None):
        return super().fit(standardized(X))

    def transform(self, X, **noise):
        return super().transform(standardized(X), **noise)


def standardized(images):
    """Give each image the mean 0.5 and the standard deviation 0.25, clipped to [0, 1]."""
    axes = tuple(range(1, images.ndim))
    spread = np.maximum(images.std(axes, keepdims=True), 1e-6)
    return (0.5 + (images - images.mean(axes, keepdims=True)) / spread / 4).clip(0, 1)


def make(contestant, seed, params):
    """Make an unfitted classifier of images."""
    params = dict(params)
    if contestant == BOUNDED:
        params["aggregation"] = "bounded"
    if contestant in ("our defaults", BOUNDED):
        return AnyOrderARClassifier(device="cpu", random_state=seed, **params)
    if contestant in ("any-order AR", "raster AR", "shared trunk"):
        tokenizer = {k: params.pop(k) for k in ("patch_size", "n_codes") if k in params}
        kind = StandardizedTokenizer if params.pop("standardize", False) else PatchTokenizer
        order = "raster" if contestant == "raster AR" else "random"
        architecture = "shared_trunk" if contestant == "shared trunk" else "randar"
        sizes = params.pop("prior", None)
        params["prior"] = architecture if sizes is None else {"architecture": architecture} | sizes
        return AnyOrderARClassifier(
            tokenizer=kind(normalize=None, **tokenizer), order=order, n_orders=MAX_ORDERS,
            device="cpu", random_state=seed, **common.LIKELIHOOD_ONLY | params,
        )  # fmt: skip
    if contestant == "diffusion":
        return DiffusionClassifier(n_timesteps=MAX_TIMESTEPS, random_state=seed, **params)
    if contestant == "masked":
        return MaskedClassifier(n_masks=MAX_MASKS, random_state=seed, **params)
    if contestant in ("ResNet", "ViT"):
        return NetworkClassifier(contestant.lower(), random_state=seed, **params)
    views = {"augmentation": params.pop("augmentation"), "random_state": seed}
    if contestant == "SVC":  # its kernel width adapts to the variance of the pixels
        return OnViews(SVC(**params), **views)
    if contestant == "LogisticRegression":
        model = LogisticRegression(**{"max_iter": 300} | params)
    else:
        model = MLPClassifier(random_state=seed, **params)
    return OnViews(make_pipeline(StandardScaler(), model), **views)

"""Who competes on which tasks; with which settings, ``plans.py`` says."""

import numpy as np
from data import digits, glyphs, textures
from diffusion import DiffusionClassifier
from loops import training_views
from masked import MaskedClassifier
from networks import NetworkClassifier
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils import check_random_state

from skaocls import AnyOrderARClassifier, PatchTokenizer

CHARACTERS = "ABEFHKNPR2"  # several differ by one stroke
GLYPHS = 120  # training images of each character
GENERATIVE = ("any-order AR", "raster AR", "diffusion", "masked", "shared trunk", "our defaults")
DISCRIMINATIVE = ("ResNet", "ViT", "SVC", "LogisticRegression", "MLPClassifier")
MAX_ORDERS, MAX_TIMESTEPS, MAX_MASKS = 32, 32, 32


def load(task, seed, fonts=None):
    """Training images, their labels, test images and theirs; glyphs in the fonts of a folder."""
    if task == "glyphs":
        return glyphs(seed, characters=CHARACTERS, n_train=GLYPHS, folder=fonts)
    return {"digits": digits, "textures": textures}[task](seed)


class OnViews(ClassifierMixin, BaseEstimator):
    """A classifier of flat rows, trained on the views of images that the networks train on.

    Parameters
    ----------
    estimator : classifier
    augmentation : int, default=16
        Views of each image, all of them in the training set.
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
    """Tokens of images whose brightness and contrast have been made the same."""

    def fit(self, X, y=None):
        return super().fit(standardized(X))

    def transform(self, X, **noise):
        return super().transform(standardized(X), **noise)


def standardized(images):
    """Each image with mean 0.5 and standard deviation 0.25, what is beyond 0 and 1 cut off."""
    axes = tuple(range(1, images.ndim))
    spread = np.maximum(images.std(axes, keepdims=True), 1e-6)
    return (0.5 + (images - images.mean(axes, keepdims=True)) / spread / 4).clip(0, 1)


def make(contestant, seed, params):
    """An unfitted classifier of images."""
    params = dict(params)
    if contestant == "our defaults":
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
            device="cpu", random_state=seed, **{"crop": "center", "posterior_weight": 0.0} | params,
        )  # fmt: skip
    if contestant == "diffusion":
        return DiffusionClassifier(n_timesteps=MAX_TIMESTEPS, random_state=seed, **params)
    if contestant == "masked":
        return MaskedClassifier(n_masks=MAX_MASKS, random_state=seed, **params)
    if contestant in ("ResNet", "ViT"):
        return NetworkClassifier(contestant.lower(), random_state=seed, **params)
    views = {"augmentation": params.pop("augmentation"), "random_state": seed}
    if contestant == "SVC":  # whose kernel is as wide as the pixels vary
        return OnViews(SVC(**params), **views)
    if contestant == "LogisticRegression":
        model = LogisticRegression(**{"max_iter": 300} | params)
    else:
        model = MLPClassifier(random_state=seed, **params)
    return OnViews(make_pipeline(StandardScaler(), model), **views)

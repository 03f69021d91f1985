"""Tasks that need no download, or that a package contains: images and tables.

The animals are those of the package ``animal-mnist`` (MIT licence). Only its two data files are
read:

    pip install --no-deps animal-mnist==0.4
"""

import gzip
import importlib
import importlib.util
import pickle
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier

from ... import common
from ...characters import characters
from ...claims.contestants import load

IMAGES = ("digits", "glyphs", "textures", "characters", "animals")
LOADERS = {
    "iris": load_iris,
    "wine": load_wine,
    "breast cancer": load_breast_cancer,
    "digits as a table": load_digits,
}
TABLES = tuple(LOADERS)
N_CHARACTERS, PER_CHARACTER = 100, 20  # training images of each; the test images are as many


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numeric arrays only."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
        ("numpy", "ndarray"): "numpy",
        ("numpy", "dtype"): "numpy",
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a numeric array.")
        return getattr(importlib.import_module(self.ALLOWED[module, name]), name)


def animals():
    """Load silhouettes of ten animals, 10,000 images of 28 x 28 in grey, and their labels."""
    spec = importlib.util.find_spec("animal_mnist")
    if spec is None:
        raise SystemExit("Install animal-mnist: pip install --no-deps animal-mnist==0.4")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "Animal_MNIST"
    arrays = []
    for name in ("data", "label"):
        with gzip.open(folder / f"animal_{name}_version_3.gz") as file:
            arrays.append(ArrayUnpickler(file).load())
    images, labels = arrays
    return images.reshape(-1, 28, 28, 1).astype(np.float32) / 255, labels


def split(X, y, seed):
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=seed
    )
    return X_train, y_train, X_test, y_test


def load_task(name, seed, fonts=None):
    """Return training data, training labels, test data and test labels."""
    if name == "animals":
        return split(*animals(), seed)
    if name == "characters":
        X, y = characters(N_CHARACTERS, 2 * PER_CHARACTER, seed)
        train = np.arange(len(y)) % (2 * PER_CHARACTER) < PER_CHARACTER
        return X[train][..., None], y[train], X[~train][..., None], y[~train]
    if name in TABLES:
        return split(*LOADERS[name](return_X_y=True), seed)
    return load(name, seed, fonts)


def fit_held_out(name, seed, fonts=None, **params):
    """Fit the classifier to 80 % of a task's training data.

    Returns
    -------
    clf : AnyOrderARClassifier
    X, y : array
        The other 20 %.
    result : dict
        ``"machine"``, and ``"fit_s"``: CPU seconds of `fit`.
    """
    X, y = load_task(name, seed, fonts)[:2]
    X, X_held, y, y_held = train_test_split(X, y, test_size=0.2, stratify=y, random_state=seed)
    clf = AnyOrderARClassifier(random_state=seed, device="cpu", **params)
    start = time.process_time()
    clf.fit(X, y)
    result = {"machine": common.processor(), "fit_s": time.process_time() - start}
    return clf, X_held, y_held, result

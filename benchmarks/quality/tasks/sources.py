"""The tasks: images and tables that need no download, or come in a package.

Each is a function of a seed that returns training data, their labels, test data and theirs. The
animals are those of the package ``animal-mnist`` (MIT licence), of which only the two data files
are read:

    pip install --no-deps animal-mnist==0.4
"""

import gzip
import importlib
import importlib.util
import pickle
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import train_test_split

sys.path.append(str(Path(__file__).parents[1]))  # the other benchmarks
sys.path.append(str(Path(__file__).parents[1] / "claims"))

from contestants import load
from strokes import characters

IMAGES = ("digits", "glyphs", "textures", "characters", "animals")
TABLES = ("iris", "wine", "breast cancer", "digits as a table")
N_CHARACTERS, OF_EACH = 100, 20  # training images of each; as many are tests
TEST = 0.25


class OnlyArrays(pickle.Unpickler):
    """Unpickles arrays of numbers, and refuses everything else."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
        ("numpy", "ndarray"): "numpy",
        ("numpy", "dtype"): "numpy",
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array of numbers")
        return getattr(importlib.import_module(self.ALLOWED[module, name]), name)


def animals():
    """Silhouettes of ten animals, 10,000 images of 28 x 28 in grey, and their labels."""
    spec = importlib.util.find_spec("animal_mnist")
    if spec is None:
        raise SystemExit("animal-mnist is missing: pip install --no-deps animal-mnist==0.4")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "Animal_MNIST"
    read = []
    for what in ("data", "label"):
        with gzip.open(folder / f"animal_{what}_version_3.gz") as file:
            read.append(OnlyArrays(file).load())
    images, labels = read
    return images.reshape(-1, 28, 28, 1).astype(np.float32) / 255, labels


def halves(X, y, seed):
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=TEST, stratify=y, random_state=seed
    )
    return X_train, y_train, X_test, y_test


def task(name, seed, fonts=None):
    """Training data, labels, test data and theirs."""
    if name == "animals":
        return halves(*animals(), seed)
    if name == "characters":
        X, y = characters(N_CHARACTERS, 2 * OF_EACH, seed)
        X = X.reshape(len(X), *X.shape[1:3], -1)
        train = np.concatenate([np.flatnonzero(y == label)[:OF_EACH] for label in np.unique(y)])
        test = np.setdiff1d(np.arange(len(y)), train)
        return X[train], y[train], X[test], y[test]
    if name in TABLES:
        of = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
        return halves(*of.get(name, load_digits)(return_X_y=True), seed)
    return load(name, seed, fonts)

"""Data and small models that several test modules share."""

import json
import os
from pathlib import Path

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # enables scikit-learn's array API checks
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread per worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from joblib import cpu_count
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

# These modules run last, so that most failures show early.
SLOW = {
    "test_demo",
    "test_estimator_checks",
    "test_parallel",
    "test_partial_fit",
    "test_pretrained",
    "test_torchrun",
}
if os.environ.get("OMP_NUM_THREADS") == "1":
    # Plugins may have loaded these libraries before the variable was set.
    torch.set_num_threads(1)
    threadpool_limits(1)
settings.register_profile("long", max_examples=10_000)


def pytest_xdist_auto_num_workers(config):
    """Limit the number of workers: some tests need much memory or start processes."""
    return min(4, cpu_count())


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem in SLOW)


@pytest.fixture(scope="session")
def golden():
    """Return the folder of golden numbers, computed with the published code on made-up weights."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_prior(golden):
    """Return the golden prior and its expected numbers."""
    from safetensors.torch import load_file

    from skaocls import AnyOrderPrior

    meta = json.loads((golden / "meta.json").read_text())["randar_tiny"]
    side = round(meta["block_size"] ** 0.5)
    prior = AnyOrderPrior(
        meta["vocab_size"],
        (side, side),
        meta["num_classes"],
        dim=meta["dim"],
        n_layer=meta["n_layer"],
        n_head=meta["n_head"],
        multiple_of=meta["multiple_of"],
    )
    prior.load_state_dict(load_file(golden / "randar_tiny.safetensors"))
    return prior.eval(), dict(np.load(golden / "randar_tiny_expected.npz"))


@pytest.fixture(scope="session")
def digits():
    """Return training images and labels, and test images and labels, of three digits."""
    data = load_digits(n_class=3)
    return data.images[:300], data.target[:300], data.images[300:400], data.target[300:400]


@pytest.fixture(scope="session")
def fitted(digits):
    """Return a small classifier fitted to three digits. Copy it before changing it."""
    from skaocls import AnyOrderARClassifier

    X, y, _, _ = digits
    return small_classifier(AnyOrderARClassifier).fit(X, y)


def small_classifier(cls, **params):
    """Return a classifier with the published architecture that trains in about a second."""
    sizes = {"architecture": "randar", "dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
    defaults = {"prior": sizes, "max_iter": 20, "batch_size": 16, "learning_rate_init": 5e-3}
    # Reference computations use the same tokens for all orders, in float32, and read all orders.
    defaults |= {"n_orders": 4, "random_state": 0, "tol": 10.0, "crop": "center"}
    defaults |= {"precision": "float32", "search": "exhaustive"}
    return cls(**(defaults | params))

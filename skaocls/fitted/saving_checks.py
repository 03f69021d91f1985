"""Check a saved configuration before the loader creates large objects."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from skaocls.fitted.model import CLASS_ARRAYS, FittedModel
from skaocls.fitted.pretrained import check_match
from skaocls.tokenizers.normalization import NORMALIZATIONS

MAX_TOKENS = 2**18  # number of tokens per image
MAX_ORDER_ENTRIES = 2**24  # number of orders times number of tokens
MAX_PIXELS = 2**30  # number of pixels times number of channels, per image
MAX_LABEL_BYTES = 2**30

Config = dict[str, Any]  # a JSON object


def check_config(config: Config) -> None:
    """Raise a ValueError if sizes in the configuration are invalid or contradict each other."""
    grid = check_sizes("grid", config["prior"]["grid"], 2, MAX_TOKENS)
    check_sizes("n_head", [config["prior"]["n_head"]], 1, MAX_TOKENS)
    n_orders = config.get("params", {}).get("n_orders", 1)
    check_sizes("n_orders", [n_orders, *grid], 3, MAX_ORDER_ENTRIES)
    n_classes = len(config["classes"]["values"])
    label_bytes = np.dtype(config["classes"]["dtype"]).itemsize
    check_sizes("classes", [label_bytes, n_classes], 2, MAX_LABEL_BYTES)
    shape = config["reader"]["image_shape"]
    if shape is not None:
        check_sizes("image_shape", shape, 3, MAX_PIXELS)
    fitted = config["tokenizer"].get("attributes", {})
    if tuple(fitted.get("grid_", grid)) != tuple(grid):
        raise ValueError(
            f"the tokenizer has the grid {fitted['grid_']}, but the prior has the grid {grid}"
        )
    if "patch_size_" in fitted and shape is not None:
        patch = check_sizes("patch_size_", fitted["patch_size_"], 2, MAX_PIXELS)
        if any(p > size for p, size in zip(patch, shape)):
            raise ValueError(f"patches of shape {patch} are larger than images of shape {shape}")
    if (method := fitted.get("normalize_")) is not None:
        reference = np.array(fitted.get("reference_statistics_"), dtype=np.float64)
        valid = method in NORMALIZATIONS and reference.shape == (2, shape[2])
        if not valid or not reference[1].all():
            raise ValueError(f"normalization {method!r} with reference {reference} is invalid")


def check_sizes(name: str, sizes: Sequence[int], n: int, maximum: int) -> list[int]:
    """Return `sizes` if valid: n positive integers with a product of at most `maximum`."""
    integers = all(isinstance(s, Integral) and not isinstance(s, bool) for s in sizes)
    if not integers or len(sizes) != n or min(sizes) < 1 or math.prod(sizes) > maximum:
        raise ValueError(f"{name}={sizes} is not valid or too large")
    return list(sizes)


def check_model(model: FittedModel) -> None:
    """Raise a ValueError if the parts of a model do not match."""
    n = len(model.classes)
    for name in CLASS_ARRAYS:
        values = getattr(model, name)
        optional = name in ("class_names", "wordnet_ids")
        if np.shape(values) != (n,) and not (optional and values is None):
            raise ValueError(f"{name} has shape {np.shape(values)}, but the model has {n} classes")
    statistics = model.statistics
    if statistics is not None and not (len(statistics) == n and np.isfinite(statistics).all()):
        raise ValueError(f"the statistics of {len(statistics)} classes are invalid")
    if not 0 <= model.sources.min() <= model.sources.max() < len(model.priors):
        raise ValueError(f"sources={model.sources} do not match {len(model.priors)} priors")
    limits = np.array([prior.num_classes for prior in model.priors])[model.sources]
    if not ((model.rows >= 0) & (model.rows <= limits)).all():
        raise ValueError(f"rows={model.rows} are not valid rows of the class tables")
    check_sizes("order_seed", [model.order_seed + 1], 1, 2**32)
    if not isinstance(model.views, bool):
        raise ValueError(f"views={model.views!r} is not a boolean")
    for prior in model.priors:
        if not all(weight.isfinite().all() for weight in prior.state_dict().values()):
            raise ValueError("the weights of a prior contain NaN or infinity")
        check_match(prior, model.tokenizer)

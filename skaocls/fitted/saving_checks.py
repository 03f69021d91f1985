"""Whether what a folder says of a model can be true, before anything large is made of it."""

import math
from numbers import Integral
from typing import Any

import numpy as np

from skaocls.fitted.model import FittedModel
from skaocls.tokenizers.normalization import NORMALIZATIONS

MOST_TOKENS = 2**18  # of an image
MOST_ORDERS = 2**24  # numbers in all orders together
MOST_PIXELS = 2**30  # numbers in an image
MOST_BYTES = 2**30  # of labels


def check_config(config: dict[str, Any]) -> None:
    """Refuse sizes that no model has, and those that contradict each other.

    Raises
    ------
    ValueError
    """
    grid = check_sizes("grid", config["prior"]["grid"], 2, MOST_TOKENS)
    check_sizes("n_head", [config["prior"]["n_head"]], 1, MOST_TOKENS)
    check_sizes("n_orders", [config.get("params", {}).get("n_orders", 1), *grid], 3, MOST_ORDERS)
    n = len(config["classes"]["values"])
    check_sizes("classes", [np.dtype(config["classes"]["dtype"]).itemsize, n], 2, MOST_BYTES)
    shape = config["reader"]["image_shape"]
    if shape is not None:
        check_sizes("image_shape", shape, 3, MOST_PIXELS)
    learned = config["tokenizer"].get("attributes", {})
    if tuple(learned.get("grid_", grid)) != tuple(grid):
        raise ValueError(f"the tokenizer's grid {learned['grid_']} is not the prior's, {grid}")
    if "patch_size_" in learned and shape is not None:
        patch = check_sizes("patch_size_", learned["patch_size_"], 2, MOST_PIXELS)
        if any(p > size for p, size in zip(patch, shape)):
            raise ValueError(f"patches {patch} are larger than the images, {shape}")
    if (how := learned.get("normalize_")) is not None:
        reference = np.array(learned.get("reference_statistics_"), dtype=np.float64)
        is_valid = reference.shape == (2, shape[2]) and reference[1].all()
        if how not in NORMALIZATIONS or not is_valid:
            raise ValueError(f"images cannot be normalized by {how!r} to statistics {reference}")


def check_sizes(name: str, sizes: Any, n: int, most: int) -> list[int]:
    """So many positive integers, whose product is not absurd."""
    whole = all(isinstance(s, Integral) and not isinstance(s, bool) for s in sizes)
    if not whole or len(sizes) != n or min(sizes) < 1 or math.prod(sizes) > most:
        raise ValueError(f"{name} is {sizes}, which no model has")
    return list(sizes)


def check_model(model: FittedModel) -> None:
    """Refuse a model whose parts do not belong together.

    Raises
    ------
    ValueError
    """
    n = len(model.classes)
    for name in ("sources", "rows", "class_count", "class_names", "wordnet_ids"):
        values = getattr(model, name)
        if values is None and name in ("class_names", "wordnet_ids"):
            continue
        if np.shape(values) != (n,):
            raise ValueError(f"{name} has shape {np.shape(values)}, but there are {n} classes")
    if not 0 <= model.sources.min() <= model.sources.max() < len(model.priors):
        raise ValueError(f"sources {model.sources} are not among {len(model.priors)} priors")
    most = np.array([prior.num_classes for prior in model.priors])[model.sources]
    if not ((model.rows >= 0) & (model.rows <= most)).all():
        raise ValueError(f"rows {model.rows} are not in the class tables")
    check_sizes("order_seed", [model.order_seed + 1], 1, 2**32)
    if not isinstance(model.views, bool):
        raise ValueError(f"views is {model.views!r}, neither true nor false")
    tokenizer = model.tokenizer
    for prior in model.priors:
        if not all(bool(weight.isfinite().all()) for weight in prior.state_dict().values()):
            raise ValueError("its weights are no finite numbers")
        have, want = (prior.vocab_size, prior.grid), (tokenizer.n_codes_, tuple(tokenizer.grid_))
        if have != want:
            raise ValueError(f"the prior reads tokens {have}, the tokenizer writes {want}")

"""Prepare a prior for training: load a pretrained prior, or create a new one."""

import copy
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from skaocls.devices import own_torch_state, resolve_device
from skaocls.fitted.pretrained import (
    grid_for,
    load_published,
    precomputed_for,
    published_tokenizer,
)
from skaocls.fitted.saving import load
from skaocls.images.lazy import first_views
from skaocls.parameter_objects import FineTuning, PretrainedWeights, validated_weights
from skaocls.priors.shared_trunk import SharedTrunkPrior, similar_slots
from skaocls.priors.transformer import AnyOrderPrior, Prior
from skaocls.progress import say
from skaocls.tokenizers import PrecomputedTokenizer
from skaocls.training.config import TrainingConfig
from skaocls.training.finetuning import prepare_finetuning, set_classes

ARCHITECTURES: dict[str, type[SharedTrunkPrior] | type[AnyOrderPrior]] = {
    "shared_trunk": SharedTrunkPrior,
    "randar": AnyOrderPrior,
}
FINETUNING_DROPOUT = 0.1  # rate in the published training recipe (arXiv 2412.01827, appendix)

# Sizes of new priors. In the same training time, a small prior makes more steps than a large prior,
# and reaches a better accuracy (benchmarks/quality/digits.py and tables.py).
SMALL_SIZES = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
DEFAULT_SIZES = {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
# If the number of tokens, images or table rows is below its minimum, a new prior has SMALL_SIZES.
MIN_TOKENS = 8
MIN_IMAGES, MIN_TABLE_ROWS = 200, 1000

POSITIVE = [Interval(Integral, 1, None, closed="left")]
SIZE_CONSTRAINTS = {
    "dim": POSITIVE,
    "n_layer": POSITIVE,
    "n_head": POSITIVE,
    "multiple_of": POSITIVE,
    "dropout": [Interval(Real, 0, 1, closed="left")],
}
HEAD_SIZE_CONSTRAINTS = {"width": POSITIVE, "rank": POSITIVE}


def is_new(prior: object) -> bool:
    """Return whether the classifier trains a new prior if its parameter `prior` has this value."""
    return isinstance(prior, dict) or (isinstance(prior, str) and prior in ("auto", *ARCHITECTURES))


@own_torch_state(grad=True)
def resolve_prior(
    prior: str | os.PathLike[str] | dict[str, Any] | Prior | PretrainedWeights,
    tokenizer: str | BaseEstimator,
    image_shape: tuple[int, ...] | None,
) -> tuple[Prior | None, str | BaseEstimator, tuple[int, ...] | None]:
    """Return the prior, the tokenizer and the image shape for three parameters of the classifier.

    The first result is the prior to fine-tune, or None if `fit` must create a prior. The second
    result is the tokenizer. If the tokenizer was saved with the prior, it is frozen. The third
    result is the shape to which image files are resized. With ``tokenizer="precomputed"``, the
    function ignores the saved tokenizer.
    """
    if isinstance(tokenizer, str) and tokenizer == "precomputed":
        pretrained = resolve_prior(prior, PrecomputedTokenizer(), None)[0]
        known = PrecomputedTokenizer() if pretrained is None else precomputed_for(pretrained)
        return pretrained, known, None
    if isinstance(prior, Prior):
        return copy.deepcopy(prior), tokenizer, image_shape
    if is_new(prior):
        return None, tokenizer, image_shape
    assert not isinstance(prior, dict)
    weights = validated_weights(prior)
    saved = load(weights)
    if saved is not None:
        model = saved[0]
        pretrained, own = model.prior, FrozenEstimator(model.tokenizer)
        own_shape = model.reader.declared_shape
    else:
        pretrained = load_published(weights, default_grid=grid_for(tokenizer, image_shape))
        own = published_tokenizer(pretrained) if isinstance(tokenizer, str) else None
        own_shape = getattr(own or tokenizer, "image_shape", None)
    return pretrained, own if isinstance(tokenizer, str) else tokenizer, image_shape or own_shape


def initial_prior(
    pretrained: Prior | None,
    tokenizer: BaseEstimator,
    codes: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    config: TrainingConfig,
    rng: np.random.RandomState,
) -> Prior:
    """Prepare the pretrained prior for fine-tuning. If it is None, create a new prior."""
    seed, device = rng.randint(2**31 - 1), resolve_device(config.device)
    if pretrained is None:
        return new_prior(tokenizer, len(labels), n_classes, config, seed).to(device)
    finetune = config.finetune
    if finetune.mode == "head" and isinstance(pretrained, AnyOrderPrior):
        pretrained = SharedTrunkPrior(
            pretrained.vocab_size,
            pretrained.grid,
            n_classes,
            slots=code_slots(tokenizer),
            generator=torch.Generator().manual_seed(seed),
            body=pretrained,
        ).to(device)
    else:
        pretrained.to(device)
        if pretrained.num_classes != n_classes or not config.keep_classes:
            first = first_views(codes)
            set_classes(pretrained, first, labels, n_classes, finetune.new_classes, seed)
    start_finetuning(pretrained, finetune, finetune.mode, seed)
    return pretrained


def new_prior(
    tokenizer: BaseEstimator, n_samples: int, n_classes: int, config: TrainingConfig, seed: int
) -> Prior:
    """Create a prior with random weights on the CPU."""
    rows, cols = tokenizer.grid_
    sizes = dict(config.sizes or default_sizes(rows * cols, n_samples, config.tabular))
    say(
        config.verbose,
        f"new {config.architecture} prior for {rows * cols} tokens and {n_samples} samples: "
        f"{sizes}",
        2,
    )
    generator = torch.Generator().manual_seed(seed)
    if config.architecture == "shared_trunk":
        sizes["slots"] = code_slots(tokenizer)
    architecture = ARCHITECTURES[config.architecture]
    return architecture(tokenizer.n_codes_, (rows, cols), n_classes, **sizes, generator=generator)


def start_finetuning(prior: Prior, finetune: FineTuning, mode: str, seed: int) -> None:
    """Set the dropout of a prior, and select the weights to train. `finetune.mode` is ignored."""
    dropout = finetune.dropout
    if isinstance(dropout, str):
        dropout = FINETUNING_DROPOUT if mode in ("full", "lora") else 0.0
    prior.transformer.set_dropout(dropout)
    prepare_finetuning(
        prior,
        mode,
        rank=finetune.lora_rank,
        alpha=finetune.lora_alpha,
        generator=torch.Generator().manual_seed(seed),
    )


def new_prior_sizes(prior: object) -> dict[str, Any]:
    """Return the architecture and the sizes that the parameter `prior` sets for a new prior."""
    if isinstance(prior, str) and prior in ARCHITECTURES:
        return {"architecture": prior, "sizes": None}
    sizes = dict(prior) if isinstance(prior, Mapping) else {}
    architecture = sizes.pop("architecture", "shared_trunk")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"prior has the architecture {architecture!r}, but must be one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    constraints = dict(SIZE_CONSTRAINTS)
    if architecture == "shared_trunk":
        constraints |= HEAD_SIZE_CONSTRAINTS
    if unknown := [name for name in sizes if name not in constraints]:
        raise ValueError(
            f"prior={prior!r} has the unknown size {unknown[0]!r}. The sizes of {architecture!r} "
            f"are {', '.join(constraints)}."
        )
    validate_parameter_constraints(constraints, sizes, f"prior={prior!r}, a new")
    with torch.device("meta"):  # raises an error if the sizes contradict each other
        ARCHITECTURES[architecture](2, (1, 1), 2, **sizes)
    return {"architecture": architecture, "sizes": sizes or None}


def code_slots(tokenizer: BaseEstimator) -> np.ndarray | None:
    """Sort the codes by similarity, and return their positions, or None without a codebook."""
    codebook = getattr(tokenizer, "codebook_", None)
    codebook = np.asarray([] if codebook is None else codebook)
    return similar_slots(codebook) if codebook.ndim == 2 else None


def default_sizes(n_tokens: int, n_samples: int, tabular: bool = False) -> dict[str, int]:
    """Return the sizes of a new prior. Small images and small data sets get a small prior."""
    min_samples = MIN_TABLE_ROWS if tabular else MIN_IMAGES
    small = n_tokens < MIN_TOKENS or n_samples < min_samples
    return SMALL_SIZES if small else DEFAULT_SIZES

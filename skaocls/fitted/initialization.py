"""What training starts from: priors and tokenizers that parameters name, and new priors."""

import copy
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from skaocls.devices import own_torch_state, resolve_device
from skaocls.fitted.config import TrainingConfig
from skaocls.fitted.pretrained import (
    check_match,
    grid_for,
    is_published,
    load_published,
    precomputed_for,
    published_tokenizer,
)
from skaocls.fitted.saving import load, read_config
from skaocls.images.lazy import first_views
from skaocls.parameters import validated_weights
from skaocls.priors.interface import Prior
from skaocls.priors.shared_trunk import SharedTrunkPrior, similar_slots
from skaocls.priors.transformer import AnyOrderPrior
from skaocls.progress import say
from skaocls.tokenizers import PrecomputedTokenizer
from skaocls.training.finetuning import prepare_finetuning, set_classes

ARCHITECTURES: dict[str, type[Prior]] = {
    "shared_trunk": SharedTrunkPrior,
    "randar": AnyOrderPrior,
}


PUBLISHED_DROPOUT = 0.1
POSITIVE = [Interval(Integral, 1, None, closed="left")]
SIZES: dict[str, Any] = {
    "dim": POSITIVE,
    "n_layer": POSITIVE,
    "n_head": POSITIVE,
    "multiple_of": POSITIVE,
    "dropout": [Interval(Real, 0, 1, closed="left")],
}
SIZES_OF_HEAD = {"width": POSITIVE, "rank": POSITIVE}


def is_new(prior: Any) -> bool:
    """Whether the classifier's parameter `prior` asks for a new one, not for a given one."""
    return isinstance(prior, dict) or (isinstance(prior, str) and prior in ("auto", *ARCHITECTURES))


@own_torch_state(grad=True)
def resolve_prior(prior: Any, tokenizer: Any, image_shape: Any) -> tuple[Prior | None, Any, Any]:
    """Find what the classifier's parameters of these names stand for.

    Tokens that were made elsewhere are those that a given prior reads; a tokenizer that was saved
    with it is not asked.

    Returns
    -------
    given : Prior or None
        A prior to fine-tune, which may be changed; None is a new one.
    tokenizer : "auto" or transformer
        Frozen if it belongs to the prior.
    image_shape : tuple of int or None
        To which files are resized.
    """
    if isinstance(tokenizer, str) and tokenizer == "precomputed":
        given = resolve_prior(prior, PrecomputedTokenizer(), None)[0]
        tokenizer = PrecomputedTokenizer() if given is None else precomputed_for(given)
        return given, tokenizer, None
    if isinstance(prior, Prior):
        return copy.deepcopy(prior), tokenizer, image_shape
    if is_new(prior):
        return None, tokenizer, image_shape
    weights = validated_weights(prior)
    source, filename, revision = weights.source, weights.filename, weights.revision
    known = is_published(source) or filename is not None
    config = None if known else read_config(source, revision=revision)
    if config is not None:
        model = load(config, source, revision=revision)
        given, own = model.prior, FrozenEstimator(model.tokenizer)
        own_shape = model.reader.declared_shape
    else:
        grid = grid_for(tokenizer, image_shape)
        given = load_published(source, filename, revision=revision, grid=grid)
        own = published_tokenizer(given) if isinstance(tokenizer, str) else None
        own_shape = getattr(own or tokenizer, "image_shape", None)
    return given, own if isinstance(tokenizer, str) else tokenizer, image_shape or own_shape


def initial_prior(
    given: Prior | None,
    tokenizer: Any,
    codes: np.ndarray,
    rows: np.ndarray,
    n_classes: int,
    recipe: TrainingConfig,
    rng: np.random.RandomState,
) -> Prior:
    """The prior that training starts from: a new one, or the given one with its new classes."""
    seed, device = rng.randint(2**31 - 1), resolve_device(recipe.device)
    if given is None:
        grid = tuple(tokenizer.grid_)
        sizes = dict(recipe.sizes or default_sizes(grid, len(rows), recipe.tabular))
        sizes["generator"] = torch.Generator().manual_seed(seed)
        if recipe.architecture == "shared_trunk":
            sizes["slots"] = code_slots(tokenizer)
        why = f"for {grid[0] * grid[1]} tokens and {len(rows)} samples"
        shown = {name: value for name, value in sizes.items() if name in SIZES | SIZES_OF_HEAD}
        say(recipe.verbose, f"a new {recipe.architecture} prior {why}: {shown}", 2)
        architecture: Any = ARCHITECTURES[recipe.architecture]
        prior: Prior = architecture(tokenizer.n_codes_, grid, n_classes, **sizes)
        return prior.to(device)
    check_match(given, tokenizer)
    if recipe.finetune.mode == "head" and isinstance(given, AnyOrderPrior):
        random = torch.Generator().manual_seed(seed)
        given = SharedTrunkPrior(
            given.vocab_size,
            given.grid,
            n_classes,
            slots=code_slots(tokenizer),
            generator=random,
            body=given,
        )
        prepare(given, recipe, seed)
        return given.to(device)
    given.to(device)
    if given.num_classes != n_classes or not recipe.keep_classes:
        set_classes(given, first_views(codes), rows, n_classes, recipe.finetune.new_classes, seed)
    prepare(given, recipe, seed)
    return given


def prepare(prior: Prior, recipe: TrainingConfig, seed: int) -> None:
    """Choose what fine-tuning changes, and drops."""
    options = recipe.finetune
    dropout = options.dropout
    if isinstance(dropout, str):
        dropout = PUBLISHED_DROPOUT if options.mode in ("full", "lora") else 0.0
    prior.transformer.set_dropout(dropout)
    random = torch.Generator().manual_seed(seed)
    sizes: dict[str, Any] = {"rank": options.lora_rank, "alpha": options.lora_alpha}
    prepare_finetuning(prior, options.mode, **sizes, generator=random)


def new_prior_sizes(prior: Any) -> dict[str, Any]:
    """`architecture` and `sizes` of a new prior, from the classifier's parameter `prior`."""
    if isinstance(prior, str) and prior in ARCHITECTURES:
        return {"architecture": prior, "sizes": None}
    sizes = dict(prior) if isinstance(prior, dict) else {}
    architecture = sizes.pop("architecture", "shared_trunk")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"prior has architecture {architecture!r}, which is none of {', '.join(ARCHITECTURES)}."
        )
    known = SIZES | (SIZES_OF_HEAD if architecture == "shared_trunk" else {})
    if unknown := [name for name in sizes if name not in known]:
        raise ValueError(
            f"prior={prior!r} has {unknown[0]!r}, which is no size of {architecture!r}. Its sizes "
            f"are {', '.join(known)}."
        )
    validate_parameter_constraints(known, sizes, f"prior={prior!r}, a new")
    return {"architecture": architecture, "sizes": sizes or None}


def code_slots(tokenizer: Any) -> np.ndarray | None:
    """Places of a tokenizer's codes among their like; None if they have no codebook."""
    codebook = getattr(tokenizer, "codebook_", None)
    codebook = np.asarray([] if codebook is None else codebook)
    return similar_slots(codebook) if codebook.ndim == 2 else None


def default_sizes(grid: tuple[int, ...], n_samples: int, tabular: bool = False) -> dict[str, int]:
    """Sizes of a new prior that suit the data: wider with more tokens and samples.

    Many steps of a small prior beat few of a large one in the same time.
    """
    if grid[0] * grid[1] < 8 or n_samples < (1000 if tabular else 200):
        return {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
    return {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}

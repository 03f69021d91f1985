"""Load published weights, with their tokenizers and classes.

`load_published` loads a RandAR prior. `load_pretrained_model` adds a tokenizer and the ImageNet
classes. The resulting model can classify images without `fit`.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from csv import DictReader
from dataclasses import replace
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from sklearn.base import TransformerMixin, clone
from sklearn.frozen import FrozenEstimator

from skaocls.fitted.model import FittedModel
from skaocls.images.reader import Reader, token_reader
from skaocls.images.shapes import check_image_shape, shorten
from skaocls.parameter_objects import PretrainedWeights, validated_weights
from skaocls.priors.loading import load_prior
from skaocls.priors.transformer import AnyOrderPrior, Prior
from skaocls.tokenizers import LlamaGenTokenizer, MaskGITTokenizer, PrecomputedTokenizer

RANDAR = "ziqipang/RandAR"
AR_CLASSIFIER = "iasudakov/ar_classifier"
N_IMAGENET_CLASSES = 1000
PIXELS_PER_TOKEN = 16  # height and width of a token in pixels, for all published tokenizers


class Published(NamedTuple):
    repo: str
    filename: str | None


PUBLISHED = {
    "randar-l": Published(RANDAR, "randar_0.3b_llamagen_360k_bs_1024_lr_0.0004.safetensors"),
    "randar-xl": Published(RANDAR, "randar_0.7b_llamagen_360k_bs_1024_lr_0.0004.safetensors"),
    "randar-l-maskgit": Published(RANDAR, "randar_0.3b_maskgit_360k_bs_1024_lr_0.0004.safetensors"),
    "randar-l-classifier": Published(AR_CLASSIFIER, None),
}
PUBLISHED_TOKENIZERS = {t._network.n_codes: t for t in (LlamaGenTokenizer, MaskGITTokenizer)}


def load_published(
    weights: str | os.PathLike[str] | PretrainedWeights,
    *,
    default_grid: Sequence[int] | None = None,
    token: str | bool | None = None,
) -> AnyOrderPrior:
    """Load a RandAR prior. `token` is an access token of the hub, as in ``huggingface_hub``."""
    weights = validated_weights(weights)
    source, filename = weights.source, weights.filename
    if source in PUBLISHED:
        published = PUBLISHED[str(source)]
        source, filename = published.repo, filename or published.filename
    elif source == RANDAR and filename is None:  # default file: the L model
        filename = PUBLISHED["randar-l"].filename
    return load_prior(
        source,
        filename,
        revision=weights.revision,
        token=token,
        grid=weights.grid or default_grid,
        n_head=weights.n_head,
        num_classes=weights.num_classes,
    )


def published_tokenizer(prior: Prior) -> LlamaGenTokenizer | MaskGITTokenizer:
    """Return the published tokenizer for a prior's vocabulary and grid, before `fit`."""
    if prior.vocab_size not in PUBLISHED_TOKENIZERS:
        known = ", ".join(f"{n} ({t.__name__})" for n, t in PUBLISHED_TOKENIZERS.items())
        raise ValueError(
            f"The prior has a vocabulary of {prior.vocab_size} tokens, but the vocabularies of the "
            f"published tokenizers have these sizes: {known}. Pass tokenizer."
        )
    shape = (prior.grid[0] * PIXELS_PER_TOKEN, prior.grid[1] * PIXELS_PER_TOKEN)
    return PUBLISHED_TOKENIZERS[prior.vocab_size](image_shape=shape)


def grid_for(
    tokenizer: str | TransformerMixin, image_shape: Sequence[int] | None
) -> tuple[int, int] | None:
    """Return the token grid that a tokenizer or an image shape implies, or None if unknown."""
    if not isinstance(tokenizer, (str, LlamaGenTokenizer, MaskGITTokenizer)):
        return getattr(tokenizer, "grid_", None)
    shape = image_shape if isinstance(tokenizer, str) else tokenizer.image_shape
    shape = check_image_shape(shape)
    return None if shape is None else (shape[0] // PIXELS_PER_TOKEN, shape[1] // PIXELS_PER_TOKEN)


def load_pretrained_model(
    source: str | os.PathLike[str] | PretrainedWeights | Prior,
    tokenizer: str | TransformerMixin,
    rng: np.random.RandomState,
    owner: str,
    *,
    image_shape: Sequence[int] | None = None,
    decoding: str = "as_seen",
    token: str | bool | None = None,
) -> FittedModel:
    """Load published weights as a model that can classify images without `fit`.

    `rng` draws the seed of the orders. `owner` is the name of the estimator in messages. For the
    other arguments, see :meth:`skaocls.AnyOrderARClassifier.from_pretrained`.
    """
    if isinstance(tokenizer, FrozenEstimator):
        tokenizer = tokenizer.estimator
    elif not isinstance(tokenizer, str) and not hasattr(tokenizer, "n_codes_"):
        tokenizer = clone(tokenizer).fit()
    if isinstance(source, Prior):
        prior = copy.deepcopy(source).eval()
    else:
        default_grid = grid_for(tokenizer, image_shape)
        prior = load_published(source, default_grid=default_grid, token=token)
    if isinstance(tokenizer, str):
        precomputed = tokenizer == "precomputed"
        tokenizer = (precomputed_for if precomputed else published_tokenizer)(prior).fit()
    check_match(prior, tokenizer)
    reader = published_reader(tokenizer, image_shape, owner, decoding)
    n_classes = prior.num_classes
    imagenet = imagenet_classes() if n_classes == N_IMAGENET_CLASSES else None
    return FittedModel(
        reader=reader,
        tokenizer=tokenizer,
        priors=(prior,),
        classes=np.arange(n_classes),
        sources=np.zeros(n_classes, dtype=int),
        rows=np.arange(n_classes),
        class_count=np.ones(n_classes),
        order_seed=rng.randint(2**31 - 1),
        class_names=None if imagenet is None else np.array([c["name"] for c in imagenet]),
        wordnet_ids=None if imagenet is None else np.array([c["wordnet_id"] for c in imagenet]),
    )


def published_reader(
    tokenizer: TransformerMixin, image_shape: Sequence[int] | None, owner: str, decoding: str
) -> Reader:
    """Return a reader of the images or tokens that a published tokenizer expects."""
    if isinstance(tokenizer, PrecomputedTokenizer):
        return token_reader(owner, tokenizer.grid_)
    shape = (*tokenizer.image_shape_, 3)[:3]  # published tokenizers expect RGB images
    expected = check_image_shape(image_shape) or shape
    if expected != shape[: len(expected)]:
        raise ValueError(
            f"image_shape={image_shape} does not match {type(tokenizer).__name__}, which encodes "
            f"images of shape {shape[:2]}. One token covers {PIXELS_PER_TOKEN} x "
            f"{PIXELS_PER_TOKEN} pixels."
        )
    # do not set value_range, because the tokenizer itself checks that values are in [0, 1]
    return Reader(owner, shape, shape, int(np.prod(shape)), decoding=decoding)


def precomputed_for(prior: Prior) -> PrecomputedTokenizer:
    """Return a PrecomputedTokenizer with the vocabulary and grid of a prior."""
    return PrecomputedTokenizer(prior.vocab_size, prior.grid)


def with_image_shape(reader: Reader, image_shape: Sequence[int] | None) -> Reader:
    """Return a copy of a reader that resizes files and reshapes flat rows to `image_shape`."""
    declared = check_image_shape(image_shape)
    if declared is not None and declared != (reader.image_shape or ())[: len(declared)]:
        seen = f"images of shape {reader.image_shape}" if reader.image_shape else "other data"
        raise ValueError(
            f"image_shape={image_shape} does not match the saved classifier, which was fitted on "
            f"{seen}."
        )
    return replace(reader, declared_shape=declared)


def reading_tokens(model: FittedModel) -> FittedModel:
    """Return a copy of the model that expects tokens in X instead of images."""
    tokenizer = precomputed_for(model.prior).fit()
    reader = token_reader(model.reader.owner, tokenizer.grid_)
    return replace(model, tokenizer=tokenizer, reader=reader, views=False, statistics=None)


def check_match(prior: Prior, tokenizer: TransformerMixin) -> None:
    """Raise a ValueError if a prior and a tokenizer differ in vocabulary size or grid."""
    prior_sizes = {"vocab_size": prior.vocab_size, "grid": prior.grid}
    tokenizer_sizes = {"vocab_size": tokenizer.n_codes_, "grid": tuple(tokenizer.grid_)}
    if prior_sizes != tokenizer_sizes:
        raise ValueError(
            f"prior and tokenizer do not match: the prior has {prior_sizes}, but "
            f"{type(tokenizer).__name__} has {tokenizer_sizes}."
        )


def imagenet_classes() -> list[dict[str, str]]:
    """Return `wordnet_id` and `name` of the ImageNet classes, in the order of their indices."""
    with (files("skaocls.fitted") / "imagenet_classes.csv").open(encoding="utf-8") as file:
        return list(DictReader(file))


def only_classes(model: FittedModel, classes: Iterable[object]) -> FittedModel:
    """Return a model with some of the classes, given as labels, ImageNet names or WordNet IDs."""
    arrays = (model.classes, model.class_names, model.wordnet_ids)
    names_of_columns = list(zip(*(array for array in arrays if array is not None)))
    columns: list[int] = []
    for c in classes:
        matches = [column for column, names in enumerate(names_of_columns) if c in names]
        if not matches and model.wordnet_ids is not None:
            raise ValueError(
                f"{c!r} is not an ImageNet class. Pass indices from 0 to 999, WordNet IDs such as "
                "'n01443537', or names such as 'goldfish'."
            )
        if not matches:
            known = shorten([repr(label) for label in model.classes.tolist()])
            raise ValueError(f"{c!r} in classes is unknown. The classes are {known}.")
        if len(matches) > 1:
            raise ValueError(f"Several ImageNet classes are called {c!r}. Pass a WordNet ID.")
        columns += matches
    if len(set(columns)) < len(columns):
        raise ValueError(f"classes={classes} contains the same class twice.")
    if not columns:
        raise ValueError("classes is empty. Pass at least one class, or None for all classes.")
    return model.restricted(sorted(columns))

"""Published priors and tokenizers, by short name."""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from csv import DictReader
from dataclasses import replace
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import TransformerMixin, clone
from sklearn.frozen import FrozenEstimator

from skaocls.fitted.model import FittedModel
from skaocls.images.reader import Reader, token_reader
from skaocls.images.shapes import check_image_shape
from skaocls.parameters import PretrainedWeights, validated_weights
from skaocls.priors.loading import load_prior
from skaocls.priors.transformer import AnyOrderPrior, Prior
from skaocls.tokenizers import LlamaGenTokenizer, MaskGITTokenizer, PrecomputedTokenizer

RANDAR = "ziqipang/RandAR"
AR_CLASSIFIER = "iasudakov/ar_classifier"
N_IMAGENET_CLASSES = 1000
PIXELS_PER_TOKEN = 16  # height and width, of the published tokenizers


class Published(NamedTuple):
    """Repository and file of published weights."""

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
    source: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **sizes: Any,
) -> AnyOrderPrior:
    """Load a RandAR prior.

    Parameters
    ----------
    source : str or path
        A short name, a hub repository, a folder or a file. The short names are ``"randar-l"``,
        ``"randar-xl"``, ``"randar-l-maskgit"`` and ``"randar-l-classifier"``, the weights of the
        paper, trained on random crops. The repository ``ziqipang/RandAR`` stands for its L model
        unless `filename` is given.
    filename : str, default=None
        File in the repository or folder. None selects the only file of weights.
    revision : str, default=None
        Branch, tag or commit of the repository.
    token : str or bool, default=None
        Access token, as in ``huggingface_hub``.
    **sizes
        `grid`, `n_head` and `num_classes`, which cannot be read from the weights; see
        :func:`skaocls.priors.loading.prior_from_state_dict`.

    Returns
    -------
    prior : AnyOrderPrior

    Raises
    ------
    OSError
        If the weights cannot be found or downloaded.
    ValueError
        If the weights are not those of a RandAR prior.
    """
    if is_published(source):
        published = PUBLISHED[str(source)]
        source, filename = published.repo, filename or published.filename
    elif source == RANDAR and filename is None:
        filename = PUBLISHED["randar-l"].filename
    return load_prior(source, filename, revision=revision, token=token, **sizes)


def is_published(source: object) -> bool:
    """Return whether this is a short name of published weights."""
    return isinstance(source, str) and source in PUBLISHED


def published_tokenizer(prior: Prior) -> LlamaGenTokenizer | MaskGITTokenizer:
    """Return the published tokenizer with the vocabulary and grid of a prior, unfitted."""
    if prior.vocab_size not in PUBLISHED_TOKENIZERS:
        known = ", ".join(f"{n} ({t.__name__})" for n, t in PUBLISHED_TOKENIZERS.items())
        raise ValueError(
            f"The prior has a vocabulary of {prior.vocab_size} tokens, but the vocabularies of the "
            f"published tokenizers are {known}. Pass tokenizer."
        )
    shape = (prior.grid[0] * PIXELS_PER_TOKEN, prior.grid[1] * PIXELS_PER_TOKEN)
    return PUBLISHED_TOKENIZERS[prior.vocab_size](image_shape=shape)


def grid_for(
    tokenizer: str | TransformerMixin, image_shape: Sequence[int] | None
) -> tuple[int, int] | None:
    """Return the token grid that a tokenizer or image shape implies, or None if unknown."""
    if not isinstance(tokenizer, (str, LlamaGenTokenizer, MaskGITTokenizer)):
        return getattr(tokenizer, "grid_", None)
    shape = image_shape if isinstance(tokenizer, str) else tokenizer.image_shape
    shape = check_image_shape(shape)
    return None if shape is None else (shape[0] // PIXELS_PER_TOKEN, shape[1] // PIXELS_PER_TOKEN)


def load_pretrained_model(
    source: str | os.PathLike[str] | PretrainedWeights | Prior,
    tokenizer: str | TransformerMixin,
    classes: Iterable[int | str] | None,
    rng: np.random.RandomState,
    owner: str,
    *,
    image_shape: Sequence[int] | None = None,
    decoding: str = "as_seen",
    token: str | bool | None = None,
    sizes: Mapping[str, object],
) -> FittedModel:
    """Load published weights as a model that classifies without `fit`.

    Parameters
    ----------
    source : str, path, PretrainedWeights or Prior
        Location of the weights, see :func:`load_published`, or a prior, which is copied.
    tokenizer : "auto", "precomputed" or transformer
        ``"auto"`` loads the published tokenizer with the same vocabulary. ``"precomputed"`` makes
        the model read tokens. A transformer is cloned and fitted if it is not fitted yet.
    classes : iterable of int or str, or None
        Subset of the classes, see :func:`find_imagenet_classes`. None uses all classes.
    rng : RandomState
        Draws the seed of the orders.
    owner : str
        Name of the estimator in messages.
    image_shape : tuple of int (height, width), default=None
        Expected shape of the images of the tokenizer.
    decoding : {"as_seen", "plain"}, default="as_seen"
        How files are decoded, see :func:`skaocls.images.to_pixels`.
    token : str or bool, default=None
        Access token, as in ``huggingface_hub``.
    sizes : dict
        `grid`, `n_head` and `num_classes`; None where unknown.

    Returns
    -------
    model : FittedModel
        Its classes are the rows of the class table.

    Raises
    ------
    OSError
        If a file cannot be found or downloaded.
    ValueError
        If an argument is invalid, or prior and tokenizer do not match.
    """
    if isinstance(tokenizer, FrozenEstimator):
        tokenizer = tokenizer.estimator
    elif not isinstance(tokenizer, str) and not hasattr(tokenizer, "n_codes_"):
        tokenizer = clone(tokenizer).fit()
    if isinstance(source, Prior):
        if any(size is not None for size in sizes.values()):
            raise ValueError(
                "grid, n_head and num_classes describe files of weights, but source is a "
                f"{type(source).__name__}. Remove them."
            )
        prior = copy.deepcopy(source).eval()
    else:
        weights = validated_weights(source)
        grid = sizes.get("grid") or grid_for(tokenizer, image_shape)
        prior = load_published(
            weights.source,
            weights.filename,
            revision=weights.revision,
            token=token,
            **{**sizes, "grid": grid},
        )
    if isinstance(tokenizer, str):
        precomputed = tokenizer == "precomputed"
        tokenizer = (precomputed_for if precomputed else published_tokenizer)(prior).fit()
    check_match(prior, tokenizer)
    reader = published_reader(tokenizer, image_shape, owner, decoding)
    return zero_shot_model(prior, tokenizer, reader, rng.randint(2**31 - 1), classes)


def zero_shot_model(
    prior: Prior,
    tokenizer: TransformerMixin,
    reader: Reader,
    order_seed: int,
    classes: Iterable[int | str] | None,
) -> FittedModel:
    """Return a model of the classes of a prior, or of a subset."""
    n_classes = prior.num_classes
    imagenet = imagenet_classes() if n_classes == N_IMAGENET_CLASSES else None
    model = FittedModel(
        reader=reader,
        tokenizer=tokenizer,
        priors=(prior,),
        classes=np.arange(n_classes),
        sources=np.zeros(n_classes, dtype=int),
        rows=np.arange(n_classes),
        class_count=np.ones(n_classes),
        order_seed=order_seed,
        class_names=None if imagenet is None else np.array([c["name"] for c in imagenet]),
        wordnet_ids=None if imagenet is None else np.array([c["wordnet_id"] for c in imagenet]),
    )
    if classes is None:
        return model
    if imagenet is not None:
        return model.restricted(find_imagenet_classes(classes))
    if not set(classes) <= set(range(n_classes)):
        raise ValueError(f"classes must be between 0 and {n_classes - 1}, got {classes}.")
    return model.restricted(sorted(int(c) for c in set(classes)))


def published_reader(
    tokenizer: TransformerMixin, image_shape: Sequence[int] | None, owner: str, decoding: str
) -> Reader:
    """Return the reader for a tokenizer that was not fitted to data."""
    if isinstance(tokenizer, PrecomputedTokenizer):
        return token_reader(owner, tokenizer.grid_)
    height, width = tokenizer.image_shape_[:2]
    shape = (height, width, 3)
    expected = check_image_shape(image_shape) or shape
    if expected != shape[: len(expected)]:
        raise ValueError(
            f"image_shape={image_shape} does not match {type(tokenizer).__name__}, which encodes "
            f"images of shape {(height, width)}. One token is {PIXELS_PER_TOKEN} x "
            f"{PIXELS_PER_TOKEN} pixels."
        )
    # without value_range: the tokenizer itself checks that values are in [0, 1]
    return Reader(owner, shape, shape, int(np.prod(shape)), decoding=decoding)


def precomputed_for(prior: Prior) -> PrecomputedTokenizer:
    """Return a tokenizer for tokens with the vocabulary and grid of a prior."""
    return PrecomputedTokenizer(prior.vocab_size, prior.grid)


def reading_tokens(model: FittedModel) -> FittedModel:
    """Return a copy of the model that reads tokens instead of images."""
    tokenizer = precomputed_for(model.prior).fit()
    reader = token_reader(model.reader.owner, tokenizer.grid_)
    return replace(model, tokenizer=tokenizer, reader=reader)


def check_match(prior: Prior, tokenizer: TransformerMixin) -> None:
    """Check that a prior has the vocabulary and grid of a tokenizer."""
    prior_sizes = {"vocab_size": prior.vocab_size, "grid": prior.grid}
    tokenizer_sizes = {"vocab_size": tokenizer.n_codes_, "grid": tuple(tokenizer.grid_)}
    if prior_sizes != tokenizer_sizes:
        raise ValueError(
            f"prior and tokenizer do not match: the prior has {prior_sizes}, "
            f"{type(tokenizer).__name__} has {tokenizer_sizes}."
        )


def imagenet_classes() -> list[dict[str, str]]:
    """Return ImageNet's 1000 classes in the order of the published weights.

    Returns
    -------
    classes : list of dict
        With the keys ``"wordnet_id"`` and ``"name"``.

    Examples
    --------
    >>> from skaocls.fitted.pretrained import imagenet_classes
    >>> imagenet_classes()[1]
    {'wordnet_id': 'n01443537', 'name': 'goldfish'}
    """
    with (files("skaocls.fitted") / "imagenet_classes.csv").open(encoding="utf-8") as file:
        return [{"wordnet_id": r["wordnet_id"], "name": r["name"]} for r in DictReader(file)]


def find_imagenet_classes(classes: Iterable[int | str]) -> list[int]:
    """Return the sorted indices of ImageNet classes.

    Parameters
    ----------
    classes : iterable of int or str
        Indices, WordNet IDs or names.

    Returns
    -------
    indices : list of int

    Raises
    ------
    ValueError
        If a class is unknown, ambiguous or repeated.

    Examples
    --------
    >>> from skaocls.fitted.pretrained import find_imagenet_classes
    >>> find_imagenet_classes(["goldfish", "n01440764"])
    [0, 1]
    """
    table = imagenet_classes()
    by_id = {row["wordnet_id"]: i for i, row in enumerate(table)}
    by_name: dict[str, list[int]] = {}
    for i, row in enumerate(table):
        by_name.setdefault(row["name"], []).append(i)
    indices = []
    for c in classes:
        if isinstance(c, str):
            matches = [by_id[c]] if c in by_id else by_name.get(c, [])
        else:
            matches = [int(c)] if 0 <= int(c) < len(table) else []
        if not matches:
            raise ValueError(
                f"{c!r} is not an ImageNet class. Pass indices from 0 to 999, WordNet IDs such as "
                "'n01443537', or names such as 'goldfish'."
            )
        if len(matches) > 1:
            raise ValueError(f"Several ImageNet classes are called {c!r}. Pass a WordNet ID.")
        indices += matches
    if len(set(indices)) < len(indices):
        raise ValueError(f"classes={classes} contains an ImageNet class twice.")
    return sorted(indices)

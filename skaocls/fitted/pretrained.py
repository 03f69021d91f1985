"""The published combinations of prior and tokenizer, under short names."""

import os
from collections.abc import Iterable
from csv import DictReader
from dataclasses import replace
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skaocls.fitted.model import FittedModel
from skaocls.images.reader import Reader, token_reader
from skaocls.images.shapes import check_image_shape
from skaocls.priors.interface import Prior
from skaocls.priors.loading import load_prior
from skaocls.priors.transformer import AnyOrderPrior
from skaocls.tokenizers import LlamaGenTokenizer, MaskGITTokenizer, PrecomputedTokenizer

RANDAR = "ziqipang/RandAR"
AR_CLASSIFIER = "iasudakov/ar_classifier"
N_IMAGENET = 1000  # classes


class Published(NamedTuple):
    repo: str
    filename: str | None


PUBLISHED = {
    "randar-l": Published(RANDAR, "randar_0.3b_llamagen_360k_bs_1024_lr_0.0004.safetensors"),
    "randar-xl": Published(RANDAR, "randar_0.7b_llamagen_360k_bs_1024_lr_0.0004.safetensors"),
    "randar-l-maskgit": Published(RANDAR, "randar_0.3b_maskgit_360k_bs_1024_lr_0.0004.safetensors"),
    "randar-l-classifier": Published(AR_CLASSIFIER, None),
}
SIDE = 16  # pixels of a token of the published tokenizers


def load_published(
    source: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **sizes: Any,
) -> AnyOrderPrior:
    """A RandAR prior by short name, hub repository, folder or file.

    Parameters
    ----------
    source : str or path
        ``"randar-l"``, ``"randar-xl"``, ``"randar-l-maskgit"``; ``"randar-l-classifier"``, the
        paper's own weights, trained on random crops (its repository ``iasudakov/ar_classifier`` may
        hold several files: `filename` says which); a hub repository (of
        ``ziqipang/RandAR`` the L model unless `filename` says otherwise); a folder; a file.
    filename, revision, token
        As in :func:`skaocls.files.find_file`.
    **sizes
        `grid`, `n_head` and `num_classes`, which weights do not tell, see
        :func:`skaocls.priors.loading.prior_from_state_dict`.

    Returns
    -------
    prior : AnyOrderPrior

    Raises
    ------
    OSError
        If the weights cannot be found or fetched.
    ValueError
        If they are no RandAR prior.
    """
    if is_published(source):
        source, usual = PUBLISHED[str(source)]
        filename = filename or usual
    elif source == RANDAR and filename is None:
        filename = PUBLISHED["randar-l"].filename
    return load_prior(source, filename, revision=revision, token=token, **sizes)


def is_published(source: Any) -> bool:
    """Whether this is one of the short names."""
    return isinstance(source, str) and source in PUBLISHED


def published_tokenizer(prior: Prior) -> Any:
    """The tokenizer that a prior of the published vocabularies was trained with."""
    by_vocabulary = {t._network.n_codes: t for t in (LlamaGenTokenizer, MaskGITTokenizer)}
    if prior.vocab_size not in by_vocabulary:
        known = ", ".join(f"{n} ({t.__name__})" for n, t in by_vocabulary.items())
        raise ValueError(
            f"The prior reads {prior.vocab_size} token values; tokenizers are known for {known}. "
            "Pass tokenizer."
        )
    shape = (prior.grid[0] * SIDE, prior.grid[1] * SIDE)
    return by_vocabulary[prior.vocab_size](image_shape=shape)


def ready_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer that needs no data, fitted; ``"auto"`` and ``"precomputed"`` as they are."""
    if isinstance(tokenizer, str) or hasattr(tokenizer, "n_codes_"):
        return tokenizer.estimator if isinstance(tokenizer, FrozenEstimator) else tokenizer
    return clone(tokenizer).fit()


def grid_for(tokenizer: Any, image_shape: Any) -> tuple[int, int] | None:
    """The grid that a published prior has to have: the tokenizer's, or the image's in tokens.

    None if neither is known. Weights do not tell.
    """
    if not isinstance(tokenizer, (str, LlamaGenTokenizer, MaskGITTokenizer)):
        return getattr(tokenizer, "grid_", None)
    shape = image_shape if isinstance(tokenizer, str) else tokenizer.image_shape
    shape = check_image_shape(shape)
    return None if shape is None else (shape[0] // SIDE, shape[1] // SIDE)


def published_model(
    prior: Prior,
    tokenizer: Any,
    classes: Any,
    rng: np.random.RandomState,
    owner: str,
    *,
    image_shape: Any = None,
    decoding: str = "as_seen",
) -> FittedModel:
    """Published weights as a model that classifies at once.

    Parameters
    ----------
    prior : Prior
    tokenizer : "auto", "precomputed" or fitted transformer
        ``"auto"`` is the one of the prior's vocabulary, with its own published weights;
        ``"precomputed"`` makes a model that reads tokens.
    classes : list of int or str, or None
        Only these classes.
    rng : RandomState
        Of the seed of the orders.
    owner : str
        How messages call the classifier.
    image_shape : tuple of int (height, width), default=None
        Must be that of the tokenizer, if it is given.
    decoding : {"as_seen", "plain"}, default="as_seen"
        How files are read, see :func:`skaocls.images.to_pixels`.

    Returns
    -------
    model : FittedModel
        Its classes are rows of the class table.
    """
    if isinstance(tokenizer, str):
        of_tokens = tokenizer == "precomputed"
        tokenizer = (precomputed_for if of_tokens else published_tokenizer)(prior).fit()
    check_agreement(prior, tokenizer)
    n_rows = prior.num_classes
    imagenet = imagenet_classes() if n_rows == N_IMAGENET else None
    model = FittedModel(
        reader=published_reader(tokenizer, image_shape, owner, decoding),
        tokenizer=tokenizer,
        priors=(prior,),
        classes=np.arange(n_rows),
        sources=np.zeros(n_rows, dtype=int),
        rows=np.arange(n_rows),
        class_count=np.ones(n_rows),
        order_seed=rng.randint(2**31 - 1),
        class_names=None if imagenet is None else np.array([c["name"] for c in imagenet]),
        wordnet_ids=None if imagenet is None else np.array([c["wordnet_id"] for c in imagenet]),
    )
    if classes is None:
        return model
    if imagenet is not None:
        return model.restricted(find_imagenet_classes(classes))
    if not set(classes) <= set(range(n_rows)):
        raise ValueError(f"classes must be among 0 ... {n_rows - 1}, got {classes}.")
    return model.restricted(sorted(set(classes)))


def published_reader(tokenizer: Any, image_shape: Any, owner: str, decoding: str) -> Reader:
    """What reads the data of a tokenizer that was not fitted to them."""
    if isinstance(tokenizer, PrecomputedTokenizer):
        return token_reader(owner, tokenizer.grid_)
    height, width = tokenizer.image_shape_[:2]
    wanted = check_image_shape(image_shape) or (height, width)
    if wanted != (height, width, 3)[: len(wanted)]:
        raise ValueError(
            f"image_shape={image_shape} was asked for, but {type(tokenizer).__name__} reads images "
            f"of shape {(height, width)}. One token is {SIDE} x {SIDE} pixels."
        )
    shape = (height, width, 3)
    # numbers of any type in 0 ... 1, which the tokenizer checks
    return Reader(owner, shape, shape, int(np.prod(shape)), decoding=decoding)


def precomputed_for(prior: Prior) -> PrecomputedTokenizer:
    """What takes the tokens that a prior reads."""
    return PrecomputedTokenizer(prior.vocab_size, prior.grid)


def reading_tokens(model: FittedModel) -> FittedModel:
    """The model, to be given the tokens that its tokenizer writes."""
    tokenizer = precomputed_for(model.prior).fit()
    reader = token_reader(model.reader.owner, tokenizer.grid_)
    return replace(model, tokenizer=tokenizer, reader=reader)


def check_agreement(prior: Prior, tokenizer: Any) -> None:
    """A prior must know the tokenizer's vocabulary and grid."""
    have = {"vocab_size": prior.vocab_size, "grid": prior.grid}
    want = {"vocab_size": tokenizer.n_codes_, "grid": tuple(tokenizer.grid_)}
    if have != want:
        raise ValueError(
            f"prior and tokenizer disagree: the prior reads {have}, "
            f"{type(tokenizer).__name__} writes {want}."
        )


def imagenet_classes() -> list[dict[str, str]]:
    """ImageNet's 1000 classes in the order of the published weights.

    Returns
    -------
    classes : list of dict
        With ``"wordnet_id"`` and ``"name"``.

    Examples
    --------
    >>> from skaocls.fitted.pretrained import imagenet_classes
    >>> imagenet_classes()[1]
    {'wordnet_id': 'n01443537', 'name': 'goldfish'}
    """
    with (files("skaocls.fitted") / "imagenet_classes.csv").open(encoding="utf-8") as file:
        return [{"wordnet_id": r["wordnet_id"], "name": r["name"]} for r in DictReader(file)]


def find_imagenet_classes(classes: Iterable[int | str]) -> list[int]:
    """Indices of ImageNet classes given as indices, WordNet ids or names, in increasing order.

    Raises
    ------
    ValueError
        If one is unknown or given twice.
    """
    table = imagenet_classes()
    index = {row["wordnet_id"]: i for i, row in enumerate(table)}
    for i, row in enumerate(table):
        index[row["name"]] = -1 if row["name"] in index else i
    found = []
    for c in classes:
        i = index.get(c, -2) if isinstance(c, str) else int(c)
        if i == -2 or i >= len(table) or (i < 0 and not isinstance(c, str)):
            raise ValueError(
                f"{c!r} is no ImageNet class: pass indices 0 ... 999, WordNet ids such as "
                "'n01443537' or names such as 'goldfish'."
            )
        if i == -1:
            raise ValueError(f"Several ImageNet classes are called {c!r}: pass its WordNet id.")
        found.append(i)
    if len(set(found)) < len(found):
        raise ValueError("classes names an ImageNet class twice.")
    return sorted(found)

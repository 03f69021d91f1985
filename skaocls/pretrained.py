"""The published combinations of prior and tokenizer, under short names."""

from csv import DictReader
from importlib.resources import files
from typing import NamedTuple

from skaocls.loading import load_prior
from skaocls.prior import AnyOrderPrior
from skaocls.tokenizers import LlamaGenTokenizer, MaskGITTokenizer

RANDAR = "ziqipang/RandAR"
CLASSIFIER = "iasudakov/ar_classifier"


class Published(NamedTuple):
    repo: str
    filename: str


PUBLISHED = {
    "randar-l": Published(RANDAR, "randar_0.3b_llamagen_360k_bs_1024_lr_0.0004.safetensors"),
    "randar-xl": Published(RANDAR, "randar_0.7b_llamagen_360k_bs_1024_lr_0.0004.safetensors"),
    "randar-l-maskgit": Published(RANDAR, "randar_0.3b_maskgit_360k_bs_1024_lr_0.0004.safetensors"),
}


def load_published(source, filename=None, *, revision=None, token=None) -> AnyOrderPrior:
    """A RandAR prior by short name, hub repository, folder or file.

    Parameters
    ----------
    source : str or path
        ``"randar-l"``, ``"randar-xl"``, ``"randar-l-maskgit"``; a hub repository (of
        ``ziqipang/RandAR`` the L model unless `filename` says otherwise); a folder; a file.
    filename, revision, token
        As in :func:`skaocls.loading.find_file`.

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
    if source in PUBLISHED:
        source, filename = PUBLISHED[source]
    elif source == RANDAR and filename is None:
        filename = PUBLISHED["randar-l"].filename
    return load_prior(source, filename, revision=revision, token=token)


def published_tokenizer(prior: AnyOrderPrior):
    """The tokenizer that a prior of the published vocabularies was trained with."""
    by_vocabulary = {t._network.n_codes: t for t in (LlamaGenTokenizer, MaskGITTokenizer)}
    if prior.vocab_size not in by_vocabulary:
        known = ", ".join(f"{n} ({t.__name__})" for n, t in by_vocabulary.items())
        raise ValueError(
            f"The prior reads {prior.vocab_size} token values; tokenizers are known for {known}. "
            "Pass tokenizer."
        )
    side = 16  # pixels of a token
    shape = (prior.grid[0] * side, prior.grid[1] * side)
    return by_vocabulary[prior.vocab_size](image_shape=shape)


def check_agreement(prior: AnyOrderPrior, tokenizer) -> None:
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
    >>> from skaocls.pretrained import imagenet_classes
    >>> imagenet_classes()[1]
    {'wordnet_id': 'n01443537', 'name': 'goldfish'}
    """
    with (files("skaocls") / "imagenet_classes.csv").open(encoding="utf-8") as file:
        return [{"wordnet_id": r["wordnet_id"], "name": r["name"]} for r in DictReader(file)]


def find_imagenet_classes(classes) -> list[int]:
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

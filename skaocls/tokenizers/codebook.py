"""Codebooks of patches, and how large one should be for telling classes apart."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils.multiclass import type_of_target

SIZES = tuple(2**n for n in range(4, 11))
PATCHES_EACH = 64  # training patches to each code, where there are no labels
# Times the least loss, up to which more codes are better: a prior also learns across places and
# classes, and makes more of them
WORSE = 1.5
NOTHING = 0.95  # of the loss of a guess: naive Bayes tells nothing apart, and so chooses nothing
PATIENCE = 2  # sizes in a row that are worse, after which larger ones are not tried
IMAGES, FOLDS = 4096, 3  # of the images with which sizes are compared
FEWEST = 4  # images of a class, on average, that make a comparison
COMPARED, SIZE = 2048, 64  # images and codes with which normalizations are compared
# Times the least loss, and of that of a guess in addition: up to there tokens that know less of the
# light are better. Two codebooks of the same patches differ by as much
COSTS, SLACK = 1.1, 0.03
MAX_NUMBERS = 192  # of a patch that are clustered as they are
N_COMPONENTS, COMPONENTS_FROM = 64, 4096  # of larger ones, and patches from which they are learned
SMOOTHING = 2.0  # how many tokens of a place what is known of all places weighs


def learn_codebook(patches: np.ndarray, n_codes: int, rng: np.random.RandomState) -> np.ndarray:
    """Centres (at most n_codes, n_numbers) of the patches (n_patches, n_numbers)."""
    kmeans = MiniBatchKMeans(
        min(n_codes, len(np.unique(patches, axis=0))),
        batch_size=2048,
        n_init=1,
        compute_labels=False,
        random_state=rng.randint(2**31 - 1),
    )
    centres: np.ndarray = kmeans.fit(patches).cluster_centers_
    return centres


def components(patches: np.ndarray, rng: np.random.RandomState) -> PCA | None:
    """The space in which patches of many numbers are clustered; None for others."""
    if patches.shape[1] <= MAX_NUMBERS:
        return None
    some = patches[rng.permutation(len(patches))[:COMPONENTS_FROM]]
    n_components, seed = min(N_COMPONENTS, len(some)), rng.randint(2**31 - 1)
    with np.errstate(invalid="ignore"):  # equal patches have no variance to share out
        return PCA(n_components, svd_solver="randomized", random_state=seed).fit(some)


def held_out_loss(codes: np.ndarray, labels: np.ndarray, n_codes: int, folds: np.ndarray) -> float:
    """Cross-entropy, in nats, of classes that naive Bayes finds from tokens of held-out images.

    Parameters
    ----------
    codes : int array of shape (n_images, n_tokens)
    labels : int array of shape (n_images,)
        0 ... n_classes - 1.
    n_codes : int
    folds : int array of shape (n_images,)
        Each fold is classified by what the others say.

    Returns
    -------
    loss : float
        With posteriors at the temperature that suits them best, as neighbouring tokens tell the
        same twice.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.tokenizers.codebook import held_out_loss
    >>> labels, folds = np.arange(40) % 2, np.arange(40) // 2 % 2
    >>> round(held_out_loss(labels[:, None], labels, 2, folds), 2)
    0.0
    >>> round(held_out_loss(folds[:, None], labels, 2, folds), 2)
    0.69
    """
    n_classes, n_tokens = int(labels.max()) + 1, codes.shape[1]
    joint = np.zeros((len(codes), n_classes))
    for fold in np.unique(folds):
        rest, mine = folds != fold, folds == fold
        of = labels[rest] * n_codes
        common = np.bincount(codes[rest].ravel(), minlength=n_codes) + 0.5
        of_class = np.bincount((of[:, None] + codes[rest]).ravel(), minlength=n_classes * n_codes)
        of_class = of_class.reshape(n_classes, n_codes) + SMOOTHING * common / common.sum()
        of_class /= of_class.sum(1, keepdims=True)
        for place in range(n_tokens):
            count = np.bincount(of + codes[rest, place], minlength=n_classes * n_codes)
            p = count.reshape(n_classes, n_codes) + SMOOTHING * of_class
            log_p = np.log(p) - np.log(p.sum(1, keepdims=True))
            joint[mine] += log_p[:, codes[mine, place]].T

    def loss(log_scale: float) -> float:
        tempered = log_softmax(joint * np.exp(log_scale), axis=1)
        return float(-tempered[np.arange(len(labels)), labels].mean())

    return float(minimize_scalar(loss, bounds=(-8, 2), method="bounded").fun)


def best_codebook(
    patches: np.ndarray, labels: np.ndarray | None, rng: np.random.RandomState
) -> np.ndarray:
    """A codebook of the size, of :data:`SIZES`, that suits the data.

    Parameters
    ----------
    patches : array of shape (n_images * n_tokens, n_numbers)
        Image by image.
    labels : int array of shape (n_images,) or None
    rng : RandomState

    Returns
    -------
    codebook : array of shape (n_codes, n_numbers)
    """
    by_count = int(2 ** np.clip(np.log2(len(patches) / PATCHES_EACH), 4, 10).astype(int))
    if labels is None:
        return learn_codebook(patches, by_count, rng)
    some = rng.permutation(len(labels))[:IMAGES]
    few = patches.reshape(len(labels), -1, patches.shape[1])[some].reshape(-1, patches.shape[1])
    labels, folds = labels[some], np.arange(len(some)) % FOLDS
    tried: list[tuple[float, np.ndarray]] = []
    for size in SIZES:
        codebook = learn_codebook(patches, size, rng)
        if tried and len(codebook) == len(tried[-1][1]):  # there are no more distinct patches
            break
        codes = pairwise_distances_argmin(few, codebook).reshape(len(some), -1)
        tried.append((held_out_loss(codes, labels, len(codebook), folds), codebook))
        least = min(loss for loss, _ in tried)
        if all(loss > WORSE * least for loss, _ in tried[-PATIENCE:]):
            break
    if least > NOTHING * np.log(labels.max() + 1):
        return learn_codebook(patches, by_count, rng)
    return [codebook for loss, codebook in tried if loss <= WORSE * least][-1]


def best_normalization(
    patches: Callable[[Any, np.ndarray], np.ndarray],
    candidates: Sequence[Any],
    labels: np.ndarray,
    rng: np.random.RandomState,
) -> Any:
    """The last candidate that tells classes apart about as well as the best.

    Parameters
    ----------
    patches : callable
        From a candidate and indices of images to their patches, (n * n_tokens, n_numbers).
    candidates : sequence
        The first is taken if naive Bayes tells nothing apart.
    labels : int array of shape (n_images,)
    rng : RandomState
    """
    some = rng.permutation(len(labels))[:COMPARED]
    labels, folds = labels[some], np.arange(len(some)) % FOLDS
    guess = np.log(labels.max() + 1)
    losses, seed = [], rng.randint(2**31 - 1)
    for candidate in candidates:
        of_candidate = np.random.RandomState(seed)
        few = patches(candidate, some)
        pca = components(few, of_candidate)
        few = few if pca is None else pca.transform(few)
        codebook = learn_codebook(few, SIZE, of_candidate)
        codes = pairwise_distances_argmin(few, codebook).reshape(len(some), -1)
        losses.append(held_out_loss(codes, labels, len(codebook), folds))
    if min(losses) > NOTHING * guess:
        return candidates[0]
    most = COSTS * min(losses) + SLACK * guess
    return [c for c, loss in zip(candidates, losses, strict=True) if loss <= most][-1]


def class_labels(y: Any, n_samples: int, chosen: np.ndarray) -> np.ndarray | None:
    """The classes 0, 1, ... of the chosen samples; None if y says too little of classes."""
    y = np.asarray(y)
    if len(y) != n_samples:
        raise ValueError(f"y has {len(y)} labels, but X has {n_samples} images.")
    if type_of_target(y) not in ("binary", "multiclass"):
        return None
    labels: np.ndarray = np.unique(y[chosen], return_inverse=True)[1]
    counts = np.bincount(labels)
    return labels if len(counts) > 1 and len(labels) >= FEWEST * len(counts) else None

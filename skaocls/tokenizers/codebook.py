"""Codebooks of patches, and the choice of codebook size and normalization by class labels.

A codebook consists of k-means centers. If labels are known, a naive Bayes classifier is trained on
the tokens for each codebook size and each normalization, and the losses on held-out images are
compared. Training a prior each time would take too long.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.multiclass import type_of_target

from skaocls.devices import own_torch_state

# Codebook size (chosen with benchmarks/quality/codebooks.py)
SIZES = tuple(2**n for n in range(4, 11))
PATCHES_PER_CODE = 64  # training patches per code if labels are unknown
# Largest acceptable loss of a size, relative to the smallest loss of all sizes. The tolerance
# exceeds 1, because a prior benefits from larger codebooks than naive Bayes does: a prior learns
# across positions and classes. More than 256 codes slow down the training, so they are only used if
# fewer codes have a clearly larger loss.
SIZE_TOLERANCE, MANY_CODES, CLOSE = 1.5, 256, 1.05
MAX_WORSE_SIZES = 2  # the search ends when this many consecutive sizes exceed the tolerance
SIZE_IMAGES = 4096  # largest number of images on which sizes are compared

# Normalization (chosen with benchmarks/quality/normalization.py)
NORMALIZATION_IMAGES, NORMALIZATION_CODES = 2048, 64  # images and codes in each comparison
# A normalization is acceptable if its loss is at most TOLERANCE times the smallest loss, plus SLACK
# times the loss of uniform guessing. Changing only the seed of k-means changes the loss by about as
# much.
NORMALIZATION_TOLERANCE, NORMALIZATION_SLACK = 1.1, 0.03

# Both comparisons
GUESSING = 0.95  # naive Bayes is used only if its loss is below 0.95 times the loss of guessing
FOLDS = 3
MIN_IMAGES_PER_CLASS = 4  # on average; if there are fewer, labels are ignored
SMOOTHING = 2.0  # pseudo-counts at each position, in proportion to the code counts of the class

# Principal components of large patches (benchmarks/quality/large_images.py)
MAX_NUMBERS = 192  # patches with more values are projected by PCA before clustering
N_COMPONENTS, COMPONENT_PATCHES = 64, 4096

PRODUCTS_AT_ONCE = 2**18  # products of vectors and codes in one matrix product


def learn_codebook(patches: np.ndarray, n_codes: int, rng: np.random.RandomState) -> np.ndarray:
    """Cluster patches (n_patches, n_values) by k-means and return at most `n_codes` centers."""
    kmeans = MiniBatchKMeans(
        min(n_codes, len(np.unique(patches, axis=0))),
        batch_size=2048,
        n_init=1,
        compute_labels=False,
        random_state=rng.randint(2**31 - 1),
    )
    centers: np.ndarray = kmeans.fit(patches).cluster_centers_
    return centers


@own_torch_state()
def nearest_codes(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return the index of the codebook entry that is nearest to each vector (n, n_values).

    All matrix products have the same shape, so the rounding does not depend on the number of
    vectors. They have type float64, because codes can be almost equal.
    """
    codes = torch.from_numpy(codebook).double()
    bias = codes.square().sum(1) / -2  # the nearest code c of x has the largest c x - c c / 2
    n_rows = max(1, PRODUCTS_AT_ONCE // len(codes))
    block = np.zeros((n_rows, codes.shape[1]))
    nearest = np.empty(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), n_rows):
        part = vectors[start : start + n_rows]
        block[: len(part)] = part
        score = torch.addmm(bias, torch.from_numpy(block), codes.T).numpy()
        nearest[start : start + n_rows] = score.argmax(1)[: len(part)]
    return nearest


def choose_codebook(
    patches: np.ndarray,
    n_codes: int | str,
    labels: np.ndarray | None,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Learn a codebook; if `n_codes` is "auto", use the labels to choose one of :data:`SIZES`.

    Patches have shape (n_images * n_tokens, n_values); all patches of the first image come first.
    """
    if not isinstance(n_codes, str):
        return learn_codebook(patches, n_codes, rng)
    default_size = 2 ** int(np.clip(np.log2(len(patches) / PATCHES_PER_CODE), 4, 10))
    if labels is None:
        return learn_codebook(patches, default_size, rng)
    images = rng.permutation(len(labels))[:SIZE_IMAGES]
    sample = patches.reshape(len(labels), -1, patches.shape[1])[images]
    tried: list[tuple[float, np.ndarray]] = []
    for size in SIZES:
        codebook = learn_codebook(patches, size, rng)
        if tried and len(codebook) == len(tried[-1][1]):  # all distinct patches are codes already
            break
        tried.append((classification_loss(sample, codebook, labels[images]), codebook))
        smallest = min(loss for loss, _ in tried)
        if all(loss > SIZE_TOLERANCE * smallest for loss, _ in tried[-MAX_WORSE_SIZES:]):
            break
    if smallest > GUESSING * np.log(labels[images].max() + 1):
        return learn_codebook(patches, default_size, rng)
    few = [loss for loss, codebook in tried if len(codebook) <= MANY_CODES]
    largest = MANY_CODES if min(few) <= CLOSE * smallest else SIZES[-1]
    return [
        codebook
        for loss, codebook in tried
        if loss <= SIZE_TOLERANCE * smallest and len(codebook) <= largest
    ][-1]


def fit_components(patches: np.ndarray, rng: np.random.RandomState) -> PCA | FunctionTransformer:
    """Fit a PCA if patches are large; for small patches, return the identity transformation."""
    if patches.shape[1] <= MAX_NUMBERS:
        return FunctionTransformer().fit(patches)
    sample = patches[rng.permutation(len(patches))[:COMPONENT_PATCHES]]
    n_components, seed = min(N_COMPONENTS, len(sample)), rng.randint(2**31 - 1)
    with np.errstate(invalid="ignore"):  # if all patches are equal, PCA divides by a variance of 0
        return PCA(n_components, svd_solver="randomized", random_state=seed).fit(sample)


def best_normalization(
    patches: Callable[[str | None, np.ndarray], np.ndarray],
    candidates: Sequence[str | None],
    labels: np.ndarray,
    rng: np.random.RandomState,
) -> str | None:
    """Return the last candidate whose naive Bayes loss is close to the smallest loss.

    `patches(candidate, indices)` returns patches (n * n_tokens, n_values) of the indexed images.
    If naive Bayes is no better than guessing, the first candidate is returned.
    """
    images = rng.permutation(len(labels))[:NORMALIZATION_IMAGES]
    guess = np.log(labels[images].max() + 1)
    losses, seed = [], rng.randint(2**31 - 1)
    for candidate in candidates:
        candidate_rng = np.random.RandomState(seed)
        sample = patches(candidate, images)
        sample = fit_components(sample, candidate_rng).transform(sample)
        codebook = learn_codebook(sample, NORMALIZATION_CODES, candidate_rng)
        sample = sample.reshape(len(images), -1, sample.shape[1])
        losses.append(classification_loss(sample, codebook, labels[images]))
    if min(losses) > GUESSING * guess:
        return candidates[0]
    limit = NORMALIZATION_TOLERANCE * min(losses) + NORMALIZATION_SLACK * guess
    return [c for c, loss in zip(candidates, losses, strict=True) if loss <= limit][-1]


def classification_loss(patches: np.ndarray, codebook: np.ndarray, labels: np.ndarray) -> float:
    """Return the held-out loss of naive Bayes on the tokens of patches (n, n_tokens, n_values)."""
    codes = nearest_codes(patches.reshape(-1, patches.shape[2]), codebook)
    folds = np.arange(len(labels)) % FOLDS
    return held_out_loss(codes.reshape(len(labels), -1), labels, len(codebook), folds)


def held_out_loss(codes: np.ndarray, labels: np.ndarray, n_codes: int, folds: np.ndarray) -> float:
    """Compute the cross-validated cross-entropy of naive Bayes on codes (n_images, n_tokens).

    `labels` are integers from 0 to n_classes - 1. Each fold is predicted by a model trained on the
    other folds. The loss is the average in nats per image. If neighboring tokens are dependent,
    naive Bayes is overconfident. The loss is therefore computed at the best temperature.
    """
    n_classes, n_tokens = int(labels.max()) + 1, codes.shape[1]
    joint = np.zeros((len(codes), n_classes))
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        offsets = labels[train] * n_codes  # start of each class in a flattened table of counts
        counts = np.bincount(codes[train].ravel(), minlength=n_codes) + 0.5
        class_counts = np.bincount(
            (offsets[:, None] + codes[train]).ravel(), minlength=n_classes * n_codes
        ).reshape(n_classes, n_codes)
        class_frequency = class_counts + SMOOTHING * counts / counts.sum()
        class_frequency /= class_frequency.sum(1, keepdims=True)
        for position in range(n_tokens):
            count = np.bincount(offsets + codes[train, position], minlength=n_classes * n_codes)
            p = count.reshape(n_classes, n_codes) + SMOOTHING * class_frequency
            log_p = np.log(p) - np.log(p.sum(1, keepdims=True))
            joint[test] += log_p[:, codes[test, position]].T

    def loss(log_scale: float) -> float:
        tempered = log_softmax(joint * np.exp(log_scale), axis=1)
        return float(-tempered[np.arange(len(labels)), labels].mean())

    return float(minimize_scalar(loss, bounds=(-8, 2), method="bounded").fun)


def class_labels(y: object, n_samples: int, rows: np.ndarray) -> np.ndarray | None:
    """Return y[rows] as classes 0, 1, ..., or None for regression targets and too few images."""
    targets = np.asarray(y)
    if len(targets) != n_samples:
        raise ValueError(f"y has {len(targets)} labels, but X has {n_samples} images.")
    if type_of_target(targets) not in ("binary", "multiclass"):
        return None
    labels: np.ndarray = np.unique(targets[rows], return_inverse=True)[1]
    n_classes = int(labels.max()) + 1
    return labels if n_classes > 1 and len(labels) >= MIN_IMAGES_PER_CLASS * n_classes else None

"""Statistics of the training data that the tokens do not contain.

The tokens of normalized images do not contain brightness, contrast, polarity or colour cast. The
tokens of table rows do not say how far a value lies outside the training range. `fit` therefore
stores statistics of each class, as an array with one entry per class:

- images: mean and contrast of `N_IMAGES` training images, (n_classes, N_IMAGES, 2, channels);
- tables: smallest and largest value of each feature, (n_classes, 2, n_features).

`score_samples` adds the log density of these statistics to the log-likelihood of the tokens.
`sample` draws the mean and contrast of an image from the images of its class. The class posterior
does not use the statistics.
"""

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.base import TransformerMixin

from skaocls.fitted.model import FittedModel
from skaocls.images.batch import Batch
from skaocls.tokenizers import QuantileTokenizer

N_IMAGES = 64  # training images per class, drawn with replacement
MAX_POINTS = 2048  # largest number of training images in the density
BANDWIDTH = 0.5  # relative to Scott's rule, which assumes a single peak
MIN_BANDWIDTH = 0.02  # relative to the typical contrast
ROUNDING = 1e-10  # relative to the total variance; makes the covariance matrix invertible
TAIL_POWER = 4  # beyond the training range, the density falls as (1 + distance) ** -TAIL_POWER


def learn_statistics(
    tokenizer: TransformerMixin,
    batch: Batch,
    columns: np.ndarray,
    weights: np.ndarray,
    n_classes: int,
    seed: int,
) -> np.ndarray | None:
    """Return the statistics of each class, or None if the tokenizer has no statistics.

    `columns` and `weights` contain the class column and the weight of each sample. The entry of a
    class without samples is zero.
    """
    seen, counts = np.unique(columns, return_counts=True)
    rows_by_class = np.split(np.argsort(columns, kind="stable"), np.cumsum(counts)[:-1])
    if isinstance(tokenizer, QuantileTokenizer):
        values = batch.values().astype(np.float64)
        ranges = np.zeros((n_classes, 2, values.shape[1]))
        for k, rows in zip(seen, rows_by_class, strict=True):
            ranges[k] = values[rows].min(0), values[rows].max(0)
        return ranges
    if batch.reader.image_shape is None or not normalizes(tokenizer):
        return None
    rng = np.random.RandomState([seed, 3])
    drawn = [rng.choice(rows, N_IMAGES, p=share(weights[rows])) for rows in rows_by_class]
    rows, index = np.unique(drawn, return_inverse=True)  # load each image once
    found = statistics_of_images(tokenizer, batch.take(rows))
    found = found[index.reshape(len(seen), N_IMAGES)]
    statistics = np.zeros((n_classes, *found.shape[1:]))
    statistics[seen] = found
    return statistics


def normalizes(tokenizer: TransformerMixin) -> bool:
    """Return whether the tokenizer removes the mean and the contrast of images."""
    optional = getattr(tokenizer, "normalize_", "image")  # None if a PatchTokenizer does not
    return optional is not None and hasattr(tokenizer, "image_statistics")


def statistics_of_images(tokenizer: TransformerMixin, batch: Batch) -> np.ndarray:
    """Return the mean and contrast of each image, as an array (n, 2, channels)."""
    blocks = [tokenizer.image_statistics(images) for _, images in batch.image_blocks()]
    return np.concatenate(blocks)


def share(weights: np.ndarray) -> np.ndarray:
    """Return weights divided by their sum."""
    shares: np.ndarray = weights / weights.sum()
    return shares


def merge_statistics(
    old: np.ndarray | None,
    new: np.ndarray | None,
    old_count: np.ndarray,
    new_count: np.ndarray,
    seed: int,
) -> np.ndarray | None:
    """Combine the statistics of earlier and new training data with these class counts."""
    if old is None or new is None:
        return old
    shape = (-1,) + (1,) * (old.ndim - 1)
    has_old, has_new = ((count > 0).reshape(shape) for count in (old_count, new_count))
    if old.ndim == 3:  # tables
        merged = np.stack([np.minimum(old, new)[:, 0], np.maximum(old, new)[:, 1]], axis=1)
    else:
        of_new = new_count / np.maximum(old_count + new_count, np.finfo(float).tiny)
        drawn = np.random.RandomState([seed, 4]).uniform(size=old.shape[:2])
        merged = np.where((drawn < of_new[:, None])[..., None, None], new, old)
    return np.where(has_old & has_new, merged, np.where(has_new, new, old))


def log_density(model: FittedModel, batch: Batch) -> np.ndarray:
    """Return the log density of the statistics of each sample, up to a constant.

    If the model has no statistics, the result is zero.
    """
    if model.statistics is None:
        return np.zeros(len(batch))
    seen = model.class_count > 0
    statistics, counts = model.statistics[seen], model.class_count[seen]
    if statistics.ndim == 3:
        return log_density_of_rows(model.tokenizer.bin_means_, statistics, batch.values())
    return log_density_of_images(statistics, counts, statistics_of_images(model.tokenizer, batch))


def log_density_of_rows(
    bin_means: list[np.ndarray], ranges: np.ndarray, X: np.ndarray
) -> np.ndarray:
    """Return log densities of table rows: zero for a row inside the training range.

    Let d be the distance of a value from the training range of its feature, divided by the distance
    between the two outermost bins on this side. The log density of the row is the sum of
    ``-TAIL_POWER * log(1 + d)`` over its features.
    """
    spacings = np.array([outer_spacings(means) for means in bin_means]).T
    low, high = ranges[:, 0].min(0), ranges[:, 1].max(0)
    with np.errstate(over="ignore"):
        distance = np.maximum(low - X, 0) / spacings[0] + np.maximum(X - high, 0) / spacings[1]
    distance = np.minimum(distance, np.finfo(np.float64).max)
    result: np.ndarray = -TAIL_POWER * np.log1p(distance).sum(1)
    return result


def outer_spacings(means: np.ndarray) -> tuple[float, float]:
    """Return the distances between the first two and between the last two bin means."""
    if len(means) == 1:
        scale = abs(means[0]) or 1.0
        return scale, scale
    gaps = np.maximum(np.diff(means), np.spacing(abs(means).max()))
    return gaps[0], gaps[-1]


def log_density_of_images(
    training: np.ndarray, counts: np.ndarray, statistics: np.ndarray
) -> np.ndarray:
    """Estimate log densities of the statistics of images by a Gaussian kernel density estimate.

    `training` contains statistics of training images of each class, and `counts` the weights of
    the classes.
    """
    training = training[:, : max(1, MAX_POINTS // len(training))]
    weights = np.repeat(share(counts), training.shape[1]) / training.shape[1]
    contrast = np.median(abs(training[:, :, 1]))
    if (training == training[..., :1]).all():  # the channels were normalized together
        training, statistics = training[..., :1], statistics[..., :1]
    points, X = training.reshape(len(weights), -1), statistics.reshape(len(statistics), -1)
    n_values, n_distinct = points.shape[1], len(np.unique(points, axis=0))
    bandwidth = BANDWIDTH * n_distinct ** (-1 / (n_values + 4))
    covariance = bandwidth**2 * np.cov(points.T, aweights=weights, bias=True)
    least = (MIN_BANDWIDTH * contrast) ** 2 + ROUNDING * np.trace(covariance)
    covariance += least * np.eye(n_values)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    # einsum, because the rounding errors of a matrix product depend on the number of images
    X, points = (np.einsum("nj,kj->nk", x, whitening) for x in (X, points))
    squared = cdist(X, points, "sqeuclidean")
    result: np.ndarray = logsumexp(np.log(weights) - squared / 2, axis=1)
    return result


def draw_statistics(
    model: FittedModel, columns: np.ndarray, rng: np.random.RandomState
) -> np.ndarray | None:
    """Draw the statistics of images of the classes in `columns`, or return None for tables.

    A class without training images uses the images of another class.
    """
    if model.statistics is None or model.statistics.ndim == 3:
        return None
    index, seen = rng.randint(N_IMAGES, size=len(columns)), np.flatnonzero(model.class_count)
    columns = np.where(model.class_count[columns] > 0, columns, rng.choice(seen, len(columns)))
    drawn: np.ndarray = model.statistics[columns, index]
    return drawn

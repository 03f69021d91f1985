"""Find classes that one place of the image decides, such as a watermark.

For each class, :func:`deciding_places` compares the place with the most evidence to the place with
the third most evidence, because a mark can cover two tokens. In digits and glyphs without marks,
this ratio was 1.0 to 1.7. With a mark in a corner that agrees with the class, it was 1.4 to 4.4.
"""

import numpy as np

from skaocls.fitted.model import FittedModel
from skaocls.fitted.prediction import ScoringOptions, log_likelihoods
from skaocls.images.lazy import ArrayOrLazy, first_views, in_memory

N_ORDERS, MAX_IMAGES, MAX_IMAGES_PER_CLASS = 4, 400, 20
CLASSES_AT_ONCE = 10  # classes that are compared with each other
# Places are reported if the ratio is at least SURE for one class. Then all classes are reported
# with a ratio of at least LIKELY. Places with less than MIN_EVIDENCE nats are ignored.
SURE, LIKELY, MIN_EVIDENCE = 2.0, 1.5, 1.0
MAX_NAMED = 12  # classes in one message


def place_evidence(
    model: FittedModel, codes: ArrayOrLazy, columns: np.ndarray, options: ScoringOptions
) -> np.ndarray:
    """Return the mean evidence of each place for each class: (n_classes, n_rows, n_cols), in nats.

    `codes` (n, n_views, n_tokens) are the tokens of training images, and `columns` (n,) are their
    classes. For the images of a class, the evidence of a place is the log-likelihood of the token
    under this class, minus the mean of the log-likelihoods under up to nine other classes. Only
    the first view of a few images per class is scored. Classes without images are NaN.
    """
    seen, orders = np.unique(columns), model.orders("random", N_ORDERS)
    rng = np.random.RandomState(model.order_seed)
    n_images = min(MAX_IMAGES_PER_CLASS, max(1, MAX_IMAGES // len(seen)))
    evidence = np.full((len(model.classes), model.prior.n_tokens), np.nan)
    for group in np.array_split(rng.permutation(seen), -(-len(seen) // CLASSES_AT_ONCE)):
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(columns == label))[:n_images] for label in group]
        )
        of_group = model.restricted(group.tolist())
        ll = log_likelihoods(of_group, in_memory(first_views(codes, rows)), orders, options)
        place = ll.mean(1, dtype=np.float64)
        for k, label in enumerate(group):
            own = place[columns[rows] == label]
            others = np.delete(own, k, axis=2).mean(2) if len(group) > 1 else own[..., k]
            evidence[label] = (own[..., k] - others).mean(0)
    return evidence.reshape(-1, *model.prior.grid)


def deciding_places(evidence: np.ndarray) -> dict[int, tuple[int, int]]:
    """Return {class column: (row, column of the grid)} for classes that one place decides.

    `evidence` is the result of :func:`place_evidence`.
    """
    n_places = evidence[0].size
    if n_places < 3:
        return {}
    flat = np.nan_to_num(evidence.reshape(len(evidence), -1))
    top = np.sort(flat, 1)[:, ::-1]
    ratio = np.where(top[:, 0] >= MIN_EVIDENCE, top[:, 0] / np.maximum(top[:, 2], 1e-9), 0)
    if ratio.max() < SURE:
        return {}
    places = zip(*np.unravel_index(flat.argmax(1), evidence.shape[1:]))
    return {k: (int(r), int(c)) for k, (r, c) in enumerate(places) if ratio[k] >= LIKELY}


def describe(places: dict[int, tuple[int, int]], names: np.ndarray, grid: tuple[int, int]) -> str:
    """Return a sentence that names the classes and the places that decide them."""
    parts: dict[str, list[str]] = {}
    for column, (row, col) in places.items():
        vertical = ("upper", "middle", "lower")[3 * row // grid[0]]
        horizontal = ("left", "center", "right")[3 * col // grid[1]]
        part = f"the {vertical} {horizontal} (row {row + 1} and column {col + 1} of the tokens)"
        parts.setdefault(part, []).append(str(names[column]))
    listed = "; ".join(f"{part}: {', '.join(of[:MAX_NAMED])}" for part, of in parts.items())
    return (
        "In these classes, most of the evidence comes from one place of the training images. It "
        f"may be a watermark or another mark. {listed}. To limit the evidence of a place, set "
        'aggregation="bounded".'
    )

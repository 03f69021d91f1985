"""Random orders against antithetic pairs and Latin squares, on scikit-learn's digits.

    python -m benchmarks.quality.orders

Measures the accuracy, and the fraction of images whose predicted class differs from the prediction
with 200 random orders, for several numbers of orders and methods to draw them. Writes
``orders.md``.
"""

import numpy as np

from skaocls import AnyOrderARClassifier
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders

from .. import common

COUNTS = (1, 2, 4, 8, 16)
DRAWS = 6
N_REFERENCE = 200


def random(rng, n_orders, n_tokens):
    return np.stack([rng.permutation(n_tokens) for _ in range(n_orders)])


def antithetic(rng, n_orders, n_tokens):
    """Follow each random order with its reverse."""
    half = random(rng, -(-n_orders // 2), n_tokens)
    return np.stack([half, half[:, ::-1]], 1).reshape(-1, n_tokens)[:n_orders]


def latin(rng, n_orders, n_tokens):
    """Shift one random order, so that all orders have different positions in each step."""
    order = rng.permutation(n_tokens)
    shifts = np.concatenate([rng.permutation(n_tokens) for _ in range(-(-n_orders // n_tokens))])
    return np.stack([np.roll(order, s) for s in shifts[:n_orders]])


def spread_starts(rng, n_orders, n_tokens):
    """Draw random orders whose first positions differ."""
    orders = random(rng, n_orders, n_tokens)
    starts = np.concatenate([rng.permutation(n_tokens) for _ in range(-(-n_orders // n_tokens))])
    for order, start in zip(orders, starts, strict=False):
        i = int(np.flatnonzero(order == start)[0])
        order[[0, i]] = order[[i, 0]]
    return orders


DESIGNS = (random, antithetic, latin, spread_starts)


def measure(seed, params):
    """Yield design, number of orders, accuracy and share of changed classes, for each draw."""
    X_train, X_test, y_train, y_test = common.digits(seed)
    clf = AnyOrderARClassifier("randar", random_state=seed, **common.LIKELIHOOD_ONLY, **params)
    codes = common.codes_of(clf.fit(X_train, y_train), X_test)
    n_tokens = codes.shape[1]

    def scores(orders):
        return log_likelihoods(clf.prior_, codes, orders, clf.model_.rows)

    reference = scores(draw_orders(N_REFERENCE, n_tokens, seed=99)).mean(1).argmax(1)
    rng = np.random.RandomState(seed)
    for design in DESIGNS:
        for _ in range(DRAWS):
            ll = scores(design(rng, max(COUNTS), n_tokens))
            for count in COUNTS:
                predicted = ll[:, :count].mean(1).argmax(1)
                differs = np.mean(predicted != reference)
                yield design, count, np.mean(predicted == y_test), differs


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--max-iter", default="auto", type=int)
    args = parser.parse_args(argv)
    results = {}
    for seed in range(args.seeds):
        for design, count, *measured in measure(seed, {"max_iter": args.max_iter}):
            results.setdefault((design, count), []).append(measured)
    rows = []
    for design in DESIGNS:
        cells = []
        for count in COUNTS:
            draws = np.array(results[design, count])
            (accuracy, differs), (_, error) = draws.mean(0), draws.std(0) / len(draws) ** 0.5
            cells.append(f"{accuracy:.4f} ({100 * differs:.2f} ± {100 * error:.2f} %)")
        rows.append([design.__name__.replace("_", " "), *cells])
    text = common.page(
        "Orders",
        f"Measured with `python -m benchmarks.quality.orders` on {common.machine()}. The digits "
        f"are split into training and test images in two ways, and the orders are drawn {DRAWS} "
        "times for each split. Each cell contains the test accuracy. The brackets contain the "
        f"percentage of test images for which {N_REFERENCE} random orders predict another class, ± "
        "the standard error of this percentage over the draws.",
        common.table(["orders", *COUNTS], rows),
    )
    common.write_page(args.output / "orders.md", text)


if __name__ == "__main__":
    main()

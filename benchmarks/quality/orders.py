"""Are there better orders than random ones? Antithetic pairs and Latin squares on the digits.

    python benchmarks/orders.py

Writes ``results/orders.md``: accuracy, and how often the class differs from that of 200 random
orders, by number of orders and how they were drawn.
"""

import numpy as np
from digits import HERE, PLAIN, machine
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders

COUNTS = (1, 2, 4, 8, 16)
DRAWS = 6
REFERENCE = 200


def random(rng, n_orders, n_tokens):
    return np.stack([rng.permutation(n_tokens) for _ in range(n_orders)])


def antithetic(rng, n_orders, n_tokens):
    """Each order, and the same one backwards."""
    half = random(rng, -(-n_orders // 2), n_tokens)
    return np.stack([half, half[:, ::-1]], 1).reshape(-1, n_tokens)[:n_orders]


def latin(rng, n_orders, n_tokens):
    """In each step a different place in each order: shifts of one order, in random sequence."""
    order = rng.permutation(n_tokens)
    shifts = np.concatenate([rng.permutation(n_tokens) for _ in range(-(-n_orders // n_tokens))])
    return np.stack([np.roll(order, s) for s in shifts[:n_orders]])


def spread_starts(rng, n_orders, n_tokens):
    """Random, but for first places that do not repeat."""
    orders = random(rng, n_orders, n_tokens)
    starts = np.concatenate([rng.permutation(n_tokens) for _ in range(-(-n_orders // n_tokens))])
    for order, start in zip(orders, starts, strict=False):
        at = int(np.flatnonzero(order == start)[0])
        order[[0, at]] = order[[at, 0]]
    return orders


def main():
    X, y = load_digits().images, load_digits().target
    found = {}
    for seed in range(2):
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, test_size=0.25, stratify=y, random_state=seed
        )
        clf = AnyOrderARClassifier("randar", random_state=seed, **PLAIN).fit(X_train, y_train)
        codes = clf.tokenizer_.transform(X_test).reshape(len(X_test), -1)
        n_tokens = codes.shape[1]

        def scores(orders, clf=clf, codes=codes):
            return log_likelihoods(clf.prior_, codes, orders, clf.class_rows_)

        best = scores(draw_orders(REFERENCE, n_tokens, seed=99)).mean(1).argmax(1)
        rng = np.random.RandomState(seed)
        for draw in (random, antithetic, latin, spread_starts):
            for _ in range(DRAWS):
                ll = scores(draw(rng, max(COUNTS), n_tokens))
                for count in COUNTS:
                    winner = ll[:, :count].mean(1).argmax(1)
                    kept = found.setdefault((draw.__name__, count), [])
                    kept.append((np.mean(winner == y_test), np.mean(winner != best)))
    lines = [
        "# Orders",
        "",
        f"`python benchmarks/orders.py`; {machine()}. Digits, two splits, {DRAWS} draws each: test "
        f"accuracy, and in brackets the share of images whose class differs from that of "
        f"{REFERENCE} random orders; standard errors over the draws.",
        "",
        f"| orders | {' | '.join(f'{count}' for count in COUNTS)} |",
        f"|---|{'---|' * len(COUNTS)}",
    ]
    for draw in (random, antithetic, latin, spread_starts):
        cells = []
        for count in COUNTS:
            kept = np.array(found[draw.__name__, count])
            (accuracy, differs), (_, error) = kept.mean(0), kept.std(0) / len(kept) ** 0.5
            cells.append(f"{accuracy:.4f} ({100 * differs:.2f} ± {100 * error:.2f} %)")
        lines.append(f"| {draw.__name__.replace('_', ' ')} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    (HERE / "results" / "orders.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

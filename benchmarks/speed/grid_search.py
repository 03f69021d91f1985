"""A grid search over the number of orders, with `memory`, against plain cross-validation.

    python benchmarks/grid_search.py

Times both in turn, in one run, on scikit-learn's digits. Writes ``results/grid_search.md``.
"""

import argparse
import statistics
import tempfile
import time

from digits import HERE, PLAIN, machine
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score

from skaocls import AnyOrderARClassifier

GRID = {"n_orders": [1, 2, 5, 10, 20]}


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-iter", type=int, default=30)
    args = parser.parse_args()
    X, y = load_digits().images, load_digits().target
    clf = AnyOrderARClassifier("randar", max_iter=args.max_iter, random_state=0, **PLAIN)
    rows = []
    for _ in range(args.repeats):
        plain = timed(lambda: cross_val_score(clf, X, y, cv=3))
        with tempfile.TemporaryDirectory() as folder:
            kept = AnyOrderARClassifier(**clf.get_params()).set_params(memory=folder)
            first, again = (
                timed(lambda kept=kept: GridSearchCV(kept, GRID, cv=3).fit(X, y)) for _ in range(2)
            )
        rows.append((plain, first, again))
        print("  ".join(f"{seconds:.1f} s" for seconds in rows[-1]), flush=True)
    names = [
        "`cross_val_score`, 3 folds, 20 orders",
        f"`GridSearchCV`, 3 folds, `n_orders` in {GRID['n_orders']}, and the refit on all data",
        "the same again",
    ]
    lines = [
        "# Grid search",
        "",
        f"`python benchmarks/grid_search.py`; {machine()}. Digits, {args.max_iter} epochs; medians "
        f"of {args.repeats} runs, taken in turn.",
        "",
        "| | s | times `cross_val_score` |",
        "|---|---|---|",
    ]
    for name, seconds in zip(names, zip(*rows)):
        ratio = statistics.median(s / row[0] for s, row in zip(seconds, rows))
        lines.append(f"| {name} | {statistics.median(seconds):.1f} | {ratio:.2f} |")
    (HERE / "results" / "grid_search.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

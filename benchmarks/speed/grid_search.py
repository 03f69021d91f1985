"""Time of a grid search over prediction parameters with `memory`, against plain cross-validation.

    python -m benchmarks.speed.grid_search

Times both alternately on scikit-learn's digits. Writes ``grid_search.md``.
"""

import statistics
import tempfile

from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score

from skaocls import AnyOrderARClassifier

from .. import common

GRID = {"n_orders": [1, 2, 5, 10, 20]}


def measure(clf, X, y):
    """Return the seconds of cross-validation, of a grid search and of the same search again."""
    plain, _ = common.timed(cross_val_score, clf, X, y, cv=3)
    with tempfile.TemporaryDirectory() as folder:
        search = GridSearchCV(clone(clf).set_params(memory=folder), GRID, cv=3)
        return plain, *(common.timed(clone(search).fit, X, y)[0] for _ in range(2))


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-iter", type=int, default=30)
    parser.add_argument("--images", type=int, help="use only the first images")
    args = parser.parse_args(argv)
    X, y = load_digits().images[: args.images], load_digits().target[: args.images]
    clf = AnyOrderARClassifier(
        "randar", max_iter=args.max_iter, random_state=0, **common.LIKELIHOOD_ONLY
    )
    runs = []
    for _ in range(args.repeats):
        runs.append(measure(clf, X, y))
        print("  ".join(f"{seconds:.1f} s" for seconds in runs[-1]), flush=True)
    names = [
        "`cross_val_score`, 3 folds, 20 orders",
        f"`GridSearchCV`, 3 folds, `n_orders` in {GRID['n_orders']}, and the refit on all data",
        "the same search again",
    ]
    rows = []
    for name, seconds in zip(names, zip(*runs)):
        ratio = statistics.median(s / run[0] for s, run in zip(seconds, runs))
        rows.append([name, f"{statistics.median(seconds):.1f}", f"{ratio:.2f}"])
    text = common.page(
        "Grid search",
        f"Measured with `python -m benchmarks.speed.grid_search` on {common.machine()}. The data "
        f"are the digits. Each fit takes {args.max_iter} epochs. The variants run alternately, and "
        f"each time is the median of {args.repeats} runs.",
        common.table(["", "s", "relative to `cross_val_score`"], rows),
    )
    common.write_page(args.output / "grid_search.md", text)


if __name__ == "__main__":
    main()

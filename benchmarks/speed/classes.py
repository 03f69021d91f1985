"""Prediction time against the number of classes.

    python -m benchmarks.speed.classes [--large]

The priors have random weights: small ones with two codebooks and, with ``--large``, one of
RandAR-L's shape in bfloat16. The images are sampled from the priors, so that early-stopped scoring
meets classes that differ. Each time is the best of several runs. Writes ``classes.json``,
``classes.md`` and ``docs/classes.png``.
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch

from skaocls import AnyOrderPrior, SharedTrunkPrior
from skaocls.scoring.early_stopping import score_until_decided
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders
from skaocls.scoring.token_sampling import generate

from .. import common
from ..claims.flops import ar_flops

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COUNTS = (1, 3, 10, 30, 100, 300, 1000)
LARGE_PRIOR = {"dim": 1024, "n_layer": 24, "n_head": 16}
N_ORDERS, N_IMAGES, RUNS = 20, 10, 3
PRIORS = {common.PUBLISHED: AnyOrderPrior, common.SHARED: SharedTrunkPrior}
CODEBOOKS = (64, 1024)


def random_prior(kind, vocab_size, grid, n_classes, sizes):
    """Make a prior whose classes differ about as much as the classes of a trained prior."""
    generator = torch.Generator().manual_seed(0)
    prior = kind(vocab_size, grid, n_classes, **sizes, generator=generator)
    body = prior.transformer
    torch.nn.init.normal_(body.output.weight, std=2 * body.dim**-0.5, generator=generator)
    if kind is SharedTrunkPrior:
        for weight in (prior.head.tokens, prior.head.groups.weight, prior.head.classes.weight):
            torch.nn.init.normal_(weight, std=1.0, generator=generator)
    else:
        torch.nn.init.normal_(prior.class_table, std=2.0, generator=generator)
    return prior.eval()


def sample_codes(prior, n_images):
    """Sample the codes of one image of each of the first classes."""
    labels = np.arange(n_images) % prior.num_classes
    orders = np.stack([np.random.RandomState(i).permutation(prior.n_tokens) for i in labels])
    return generate(prior, labels, orders, seed=0)


def best_seconds(function, *args, **kwargs):
    return min(common.timed(function, *args, **kwargs)[0] for _ in range(RUNS))


def measure_small(vocab_size, counts):
    """Measure seconds and operations per image, exhaustive and early-stopped."""
    rows = []
    for name, kind in PRIORS.items():
        prior = random_prior(kind, vocab_size, (4, 4), max(counts), common.SMALL_PRIOR)
        orders, codes = draw_orders(N_ORDERS, prior.n_tokens, 0), sample_codes(prior, N_IMAGES)
        for n in counts:
            # fewer images where every class reads them anew
            timed = codes[: N_IMAGES if n < 100 or kind is SharedTrunkPrior else 2]
            work = orders, np.arange(n)
            exhaustive = best_seconds(log_likelihoods, prior, timed, *work) / len(timed)
            job = prior, codes, *work, common.uniform(n)
            stopped = best_seconds(score_until_decided, *job) / len(codes)
            read = score_until_decided(*job).evaluations.mean() / orders.size
            row = {"vocab_size": vocab_size, "prior": name, "classes": n, "seconds": exhaustive}
            row |= {"flops": ar_flops(prior, N_ORDERS, n)}
            rows.append(row | {"stopped_seconds": stopped, "stopped_orders": read})
            print(rows[-1], flush=True)
    return rows


def measure_large():
    """Measure RandAR-L's shape: seconds for one image and order, in bfloat16."""
    rows = []
    prior = random_prior(SharedTrunkPrior, 16384, (16, 16), 1000, LARGE_PRIOR)
    codes = np.random.RandomState(0).randint(16384, size=(1, 256))
    orders = draw_orders(1, 256, 0)
    for n in (1, 10, 100, 1000):
        job = prior, codes, orders, np.arange(n)
        seconds = best_seconds(log_likelihoods, *job, dtype=torch.bfloat16)
        rows.append({"classes": n, "seconds": seconds, "flops": ar_flops(prior, 1, n)})
        print(rows[-1], flush=True)
    return rows


def curves(rows):
    """Yield codebook size, prior and rows of each curve."""
    for vocab_size in sorted({row["vocab_size"] for row in rows}):
        for name in PRIORS:
            curve = [r for r in rows if (r["vocab_size"], r["prior"]) == (vocab_size, name)]
            yield vocab_size, name, curve


def ratio_table(rows):
    """Return a table of costs relative to exhaustive scoring of one class."""
    counts = sorted({row["classes"] for row in rows})
    lines = []
    for vocab_size, name, curve in curves(rows):
        for cost, key, base in (
            ("operations", "flops", "flops"),
            ("seconds", "seconds", "seconds"),
            ("seconds, early-stopped", "stopped_seconds", "seconds"),
        ):
            cells = [f"{row[key] / curve[0][base]:.3g}" for row in curve]
            lines.append([f"{vocab_size} codes, {name}, {cost}", *cells])
    return common.table(["", *(f"{n} class{'es' * (n > 1)}" for n in counts)], lines)


def page(record, command):
    stopped = [r["stopped_orders"] for r in record["small"] if r["prior"] == common.SHARED]
    blocks = [
        ratio_table(record["small"]),
        f"With early-stopped scoring, the shared trunk uses a fraction between {min(stopped):.2f} "
        f"and {max(stopped):.2f} of the orders. The fraction depends on the number of classes."
        + record.get("note", ""),
    ]
    if "large" in record:
        one = record["large"][0]
        blocks += [
            "The next table contains the time and the operations needed to score one image in one "
            "order in bfloat16. The prior has a shared trunk with RandAR-L's shape (256 tokens, "
            "16384 codes):",
            common.table(
                ["classes", "seconds", "seconds relative to one class",
                 "operations relative to one class"],
                [
                    [r["classes"], f"{r['seconds']:.2f}", f"{r['seconds'] / one['seconds']:.2f}",
                     f"{r['flops'] / one['flops']:.2f}"]
                    for r in record["large"]
                ],
            ),
        ]  # fmt: skip
    about = (
        f"Measured with `{command}` on {record['machine']}. The priors have two layers of width 64 "
        f"and random weights. Images have 16 tokens and are scored in {N_ORDERS} orders. "
        "Operations and seconds are relative to exhaustive scoring of one class with the same "
        "prior."
    )
    return common.page("Cost of classes", about, *blocks)


def plot(rows, file):
    codebooks = sorted({row["vocab_size"] for row in rows})
    figure, axes = plt.subplots(
        1, len(codebooks), figsize=(5 * len(codebooks), 4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for i, (vocab_size, name, curve) in enumerate(curves(rows)):
        ax, colour = axes[0, codebooks.index(vocab_size)], f"C{i % len(PRIORS)}"
        x, one = [row["classes"] for row in curve], curve[0]["seconds"]
        ax.plot(x, [r["seconds"] / one for r in curve], f"{colour}o-", label=name)
        stopped = [r["stopped_seconds"] / one for r in curve]
        ax.plot(x, stopped, f"{colour}s--", label=f"{name}, early-stopped")
        ax.set(xscale="log", yscale="log", xlabel="classes", title=f"{vocab_size} codes")
    for ax in axes[0]:
        ax.axhline(1, color="grey", linewidth=1)
    axes[0, 0].set_ylabel("seconds over those of one class")
    axes[0, 0].legend()
    figure.savefig(file, dpi=110)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--large", action="store_true", help="add RandAR-L's shape (2 GiB)")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of classes")
    parser.add_argument("--docs", type=Path, default=common.DOCS, help="folder of the plot")
    args = parser.parse_args(argv)
    record = {"machine": common.machine()}
    record["small"] = [row for v in CODEBOOKS for row in measure_small(v, args.counts)]
    if args.large:
        record["large"] = measure_large()
    common.write_json(args.output / "classes.json", record)
    command = f"python -m benchmarks.speed.classes{' --large' * args.large}"
    common.write_page(args.output / "classes.md", page(record, command))
    plot(record["small"], args.docs / "classes.png")


if __name__ == "__main__":
    main()

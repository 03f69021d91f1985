"""What classes cost: scoring with 1 to 1000 classes, over scoring with one.

    python benchmarks/classes.py

Made-up weights: of small priors of two codebooks, and with ``--large`` of RandAR-L's shape in
bfloat16. Images are drawn from the priors, so that races are among classes that differ. Each figure
is the best of a few runs that take turns. Writes ``results/classes.json``, the table
``results/classes.md`` and the picture ``docs/classes.png``.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from digits import HERE, machine

from skaocls import AnyOrderPrior, SharedTrunkPrior
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.scoring.orders import draw_orders
from skaocls.scoring.racing import race
from skaocls.scoring.sampling import generate

sys.path.append(str(HERE / "claims"))
from flops import ar_flops

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COUNTS = (1, 3, 10, 30, 100, 300, 1000)
SMALL = {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
LARGE = {"dim": 1024, "n_layer": 24, "n_head": 16}
N_ORDERS, N_IMAGES, RUNS = 20, 10, 3
PRIORS = {"a reading for each class": AnyOrderPrior, "shared trunk": SharedTrunkPrior}


def made_up(kind, vocab_size, grid, n_classes, sizes):
    """A prior whose classes differ, about as much as those of priors that were trained."""
    random = torch.Generator().manual_seed(0)
    prior = kind(vocab_size, grid, n_classes, **sizes, generator=random)
    body = prior.transformer
    torch.nn.init.normal_(body.output.weight, std=2 * body.dim**-0.5, generator=random)
    if kind is SharedTrunkPrior:
        for weight in (prior.head.tokens, prior.head.groups.weight, prior.head.classes.weight):
            torch.nn.init.normal_(weight, std=1.0, generator=random)
    else:
        torch.nn.init.normal_(prior.class_table, std=2.0, generator=random)
    return prior.eval()


def drawn(prior, n_images):
    """Codes of images of the first classes, one each."""
    labels = np.arange(n_images) % prior.num_classes
    orders = np.stack([np.random.RandomState(i).permutation(prior.n_tokens) for i in labels])
    return generate(prior, labels, orders, seed=0)


def seconds(function, *args, **params):
    """Of the fastest of a few calls."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        function(*args, **params)
        times.append(time.perf_counter() - start)
    return min(times)


def small(vocab_size):
    """Seconds and operations for an image, exhaustive and in a race, for each count of classes."""
    rows = []
    for name, kind in PRIORS.items():
        prior = made_up(kind, vocab_size, (4, 4), max(COUNTS), SMALL)
        orders, codes = draw_orders(N_ORDERS, prior.n_tokens, 0), drawn(prior, N_IMAGES)
        for n in COUNTS:
            some, prior_of = np.arange(n), np.log(np.full(n, 1 / n))
            few = codes[: N_IMAGES if n < 100 or kind is SharedTrunkPrior else 2]
            # an image is of a class that is among those scored, or of none of them
            full = seconds(log_likelihoods, prior, few, orders, some) / len(few)
            raced = seconds(race, prior, codes, orders, some, prior_of) / len(codes)
            read = race(prior, codes, orders, some, prior_of).evaluations.mean()
            row = {"vocab_size": vocab_size, "prior": name, "classes": n, "seconds": full}
            row |= {"flops": ar_flops(prior, N_ORDERS, n), "raced_seconds": raced}
            rows.append(row | {"raced_orders": read / orders.size})
            print(rows[-1], flush=True)
    return rows


def large():
    """RandAR-L's shape: seconds of one image and order, in bfloat16."""
    rows = []
    prior = made_up(SharedTrunkPrior, 16384, (16, 16), 1000, LARGE)
    codes = np.random.RandomState(0).randint(16384, size=(1, 256))
    orders = draw_orders(1, 256, 0)
    for n in (1, 10, 100, 1000):
        what = np.arange(n)
        taken = seconds(log_likelihoods, prior, codes, orders, what, dtype=torch.bfloat16)
        rows.append({"classes": n, "seconds": taken, "flops": ar_flops(prior, 1, n)})
        print(rows[-1], flush=True)
    return rows


def ratio_table(rows):
    """Markdown: cost over that of one class."""
    heads = [f"{n} class{'es' * (n > 1)}" for n in COUNTS]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for vocab_size in sorted({row["vocab_size"] for row in rows}):
        for name in PRIORS:
            mine = [r for r in rows if (r["vocab_size"], r["prior"]) == (vocab_size, name)]
            one = mine[0]
            for what, key in (("operations", "flops"), ("seconds", "seconds"),
                              ("seconds of a race", "raced_seconds")):  # fmt: skip
                base = one["seconds" if key == "raced_seconds" else key]
                cells = [f"{row[key] / base:.3g}" for row in mine]
                label = f"{vocab_size} codes, {name}, {what}"
                lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def plot(rows, file):
    counts = sorted({row["vocab_size"] for row in rows})
    figure, axes = plt.subplots(
        1, len(counts), figsize=(5 * len(counts), 4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, vocab_size in zip(axes[0], counts):
        for i, name in enumerate(PRIORS):
            mine = [r for r in rows if (r["vocab_size"], r["prior"]) == (vocab_size, name)]
            x, one = [row["classes"] for row in mine], mine[0]["seconds"]
            ax.plot(x, [r["seconds"] / one for r in mine], f"C{i}o-", label=name)
            ax.plot(x, [r["raced_seconds"] / one for r in mine], f"C{i}s--", label=f"{name}, race")
        ax.axhline(1, color="grey", linewidth=1)
        ax.set(xscale="log", yscale="log", xlabel="classes", title=f"{vocab_size} codes")
    axes[0, 0].set_ylabel("seconds over those of one class")
    axes[0, 0].legend()
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="RandAR-L's shape too: 2 GiB, minutes")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    args = parser.parse_args()
    results = {"machine": machine(), "small": [row for v in (64, 1024) for row in small(v)]}
    if args.large:
        results["large"] = large()
    (args.output / "classes.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "# What classes cost",
        "",
        f"`python benchmarks/classes.py{' --large' * args.large}`; {results['machine']}. Made-up "
        f"weights; images of 16 tokens, {N_ORDERS} orders, priors of two layers of 64. Costs are "
        "multiples of what one class costs with the same prior; every class is read to the end.",
        "",
        *ratio_table(results["small"]),
    ]
    orders = [r["raced_orders"] for r in results["small"] if r["prior"] == "shared trunk"]
    lines += ["", f"Races of the shared trunk read {min(orders):.2f} to {max(orders):.2f} of the "
              "orders."]  # fmt: skip
    if args.large:
        one = results["large"][0]
        lines += [
            "",
            "RandAR-L's shape with a shared trunk, 256 tokens, 16384 codes, one image and order, "
            "bfloat16:",
            "",
            "| classes | seconds | over one class | operations over one class |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['classes']} | {row['seconds']:.2f} | {row['seconds'] / one['seconds']:.2f} "
            f"| {row['flops'] / one['flops']:.2f} |"
            for row in results["large"]
        ]
    (args.output / "classes.md").write_text("\n".join(lines) + "\n")
    plot(results["small"], args.docs / "classes.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""How many sequences a CUDA device should read together.

    python benchmarks/tiles.py

Scoring reads tiles of one size, filled up if there is less to read, so that an answer does not
depend on what else is asked: a large tile keeps the device busy, a small one is ready sooner for a
single image and takes less memory. Made-up weights, of the shapes of ``benchmarks/scoring.py`` and
of a prior of 28 x 28 pixels by default. Writes ``results/tiles.md``, after each row.
"""

from functools import partial

import numpy as np
import torch
from digits import HERE
from scoring import PRECISIONS, SHAPES, best_of, make_prior, make_work, table_row

from skaocls import SharedTrunkPrior
from skaocls.scoring import exhaustive

SIZES = [2**k for k in (20, 22, 24, 25, 27)]  # numbers in the stream
AMOUNTS = {"default": (2000, 20, 10), "tiny": (2000, 20, 10), "small": (50, 4, 100)}
AMOUNTS |= {"RandAR-L": (2, 1, 125)}
RUNS = 3  # of which the first warms up


def prior_of(name, device):
    if name in SHAPES:
        return make_prior(SHAPES[name][0], device)
    random = torch.Generator().manual_seed(0)
    sizes = {"dim": 128, "n_layer": 3, "n_head": 4, "multiple_of": 64}
    return SharedTrunkPrior(256, (7, 7), 10, **sizes, generator=random).to(device).eval()


def rows_of(name, device):
    prior, amount = prior_of(name, device), AMOUNTS[name]
    all_of_it, one = make_work(prior, *amount), make_work(prior, 1, *amount[1:])
    used = exhaustive.STREAM_CUDA
    for precision, dtype in PRECISIONS.items():
        score = partial(exhaustive.log_likelihoods, prior, dtype=dtype)
        for exhaustive.STREAM_CUDA in SIZES:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            rate = np.prod(amount) / best_of(device, score, *all_of_it, times=RUNS)
            ms = 1e3 * best_of(device, score, *one, times=RUNS)
            peak = torch.cuda.max_memory_allocated() / 2**30
            n = exhaustive.lanes_at_once(prior)
            mark = " (used)" if used == exhaustive.STREAM_CUDA else ""
            yield [name, precision, f"{n}{mark}", f"{rate:,.0f}", f"{ms:.1f}", f"{peak:.2f}"]
    exhaustive.STREAM_CUDA = used


def main():
    device = torch.device("cuda")
    lines = [
        "# Sequences read together on CUDA",
        "",
        f"`python benchmarks/tiles.py`; {torch.cuda.get_device_name(device)}, torch "
        f"{torch.__version__}. Best of {RUNS} runs. A sequence is one image in one order under "
        "one class; one image is in all orders and classes of its row: "
        + "; ".join(f"{name} {o} orders, {c} classes" for name, (_, o, c) in AMOUNTS.items())
        + ".",
        "",
        "| prior | precision | together | sequences/s | one image alone, ms | memory, GiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in AMOUNTS:
        for row in rows_of(name, device):
            lines.append(table_row(row))
            print(lines[-1], flush=True)
            (HERE / "results" / "tiles.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Number of sequences that a CUDA device should score in one forward pass.

    python -m benchmarks.speed.cuda_tiles

Scoring processes tiles of fixed size and pads the last one, so that results do not depend on the
batch. A large tile keeps the device busy. A small tile returns a single image sooner and takes less
memory. Random weights; the shapes of ``scoring.py``, and of a default prior for 28 x 28 pixels.
Writes ``cuda_tiles.md`` after each row.
"""

from functools import partial

import numpy as np
import torch

from skaocls import SharedTrunkPrior
from skaocls.scoring import exhaustive

from .. import common
from .scoring import PRECISIONS, SHAPES, best_of, make_prior, make_work

STREAM_SIZES = [2**k for k in (20, 22, 24, 25, 27)]  # numbers in the residual stream of a tile
AMOUNTS = {"default": (2000, 20, 10), "tiny": (2000, 20, 10), "small": (50, 4, 100)}
AMOUNTS |= {"RandAR-L": (2, 1, 125)}  # images, orders, classes
RUNS = 3


def prior_of(name, device):
    if name in SHAPES:
        return make_prior(SHAPES[name][0], device)
    generator = torch.Generator().manual_seed(0)
    sizes = {"dim": 128, "n_layer": 3, "n_head": 4, "multiple_of": 64}
    return SharedTrunkPrior(256, (7, 7), 10, **sizes, generator=generator).to(device).eval()


def measure(name, device):
    """Yield a table row for each precision and tile size."""
    prior, amount = prior_of(name, device), AMOUNTS[name]
    all_images, one_image = make_work(prior, *amount), make_work(prior, 1, *amount[1:])
    default = exhaustive.STREAM_CUDA
    for precision, dtype in PRECISIONS.items():
        score = partial(exhaustive.log_likelihoods, prior, dtype=dtype)
        for exhaustive.STREAM_CUDA in STREAM_SIZES:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            rate = np.prod(amount) / best_of(device, score, *all_images, times=RUNS)
            ms = 1e3 * best_of(device, score, *one_image, times=RUNS)
            peak = torch.cuda.max_memory_allocated() / 2**30
            n = exhaustive.lanes_at_once(prior)
            mark = " (used)" if default == exhaustive.STREAM_CUDA else ""
            yield [name, precision, f"{n}{mark}", f"{rate:,.0f}", f"{ms:.1f}", f"{peak:.2f}"]
    exhaustive.STREAM_CUDA = default


def main(argv=None):
    args = common.parser(__doc__).parse_args(argv)
    device = torch.device("cuda")
    about = (
        f"Measured with `python -m benchmarks.speed.cuda_tiles` on {common.machine(device)}, torch "
        f"{torch.__version__}. Each number is the best of {RUNS} runs. The first of these runs is "
        "a warm-up. A sequence is one image, scored in one order for one class. *Single image* is "
        "the time to score one image in several orders for several classes. The numbers of orders "
        "and classes for each prior are: "
        + "; ".join(f"{name} {o} orders, {c} classes" for name, (_, o, c) in AMOUNTS.items())
        + "."
    )
    heads = ["prior", "precision", "sequences in a tile", "sequences/s", "single image, ms"]
    heads += ["memory, GiB"]
    rows = []
    for name in AMOUNTS:
        for row in measure(name, device):
            rows.append(row)
            text = common.page("Size of tiles on CUDA", about, common.table(heads, rows))
            common.write_page(args.output / "cuda_tiles.md", text)


if __name__ == "__main__":
    main()

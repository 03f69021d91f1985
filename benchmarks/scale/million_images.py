"""Cost of a million and a billion images: measured here, counted and projected for RandAR-L.

    OMP_NUM_THREADS=1 python -m benchmarks.scale.million_images

Times are measured with a small prior on this processor. For RandAR-L's shape, operations are
counted and divided by an assumed share of a GPU's peak rate; these projections were not run. A
seeded simulation then assigns chunks to workers, some of which are slow or die, and is compared
with two real processes. Needs the results of ``benchmarks.scale.parallel_scoring``,
``benchmarks.speed.early_stopping_errors`` and ``benchmarks.speed.many_classes``. Writes
``million_images.json`` and ``million_images.md``.
"""

import heapq
import io
import os
import statistics
import sys

import joblib
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from skaocls import AnyOrderARClassifier, AnyOrderPrior, SharedTrunkPrior
from skaocls.fitted.joblib_workers import map_pieces
from skaocls.fitted.prediction import ScoringOptions, score_piece
from skaocls.images.reader import learn_reader
from skaocls.tokenizers.vq_networks import LlamaGenVQ

from .. import common
from ..claims.flops import ar_flops
from .parallel_scoring import DASK, empty_task, make_job, no_arguments, one_process

PEAK, UTILIZATION = 989e12, 0.4  # dense bfloat16 of an H100, and the assumed share of it
GPUS = (8, 64, 1024)
IMAGES = {"1 M": 10**6, "1 B": 10**9}
N_ORDERS, N_CLASSES = 20, 1000
RANDAR_L = {"vocab_size": 16384, "grid": (16, 16), "num_classes": 1000}
RANDAR_L |= {"dim": 1024, "n_layer": 24, "n_head": 16}
FILE_BYTES = 110_000  # mean size of an image of ImageNet
# Simulated cluster: hours between failures of a worker, seconds until it is replaced, share of slow
# workers, and their slowdown
LIFETIME, RESTART, SLOW_SHARE, SLOWDOWN = 10.0, 120.0, 0.02, 3.0
CHUNKS = (16, 64, 256, 1024)
STOPPED = {name: f"scoring, {name}, early-stopped" for name in common.ARCHITECTURES}


def median_seconds(function, repeats, *args):
    return statistics.median(common.timed(function, *args)[0] for _ in range(repeats))


def measure_cpu(n_images, repeats):
    """Return the seconds per image of each step with a small prior."""
    clf, X = make_job(n_images)
    steps = {
        "tokenizing": lambda: common.codes_of(clf, X),
        "scoring, exhaustive": lambda: one_process(clf.set_params(search="exhaustive"), X),
        "scoring, early-stopped": lambda: one_process(clf.set_params(search="auto"), X),
    }
    seconds = {name: median_seconds(step, repeats) / n_images for name, step in steps.items()}
    seconds["training, per epoch"] = epoch_seconds(X, repeats)
    return seconds


def epoch_seconds(X, repeats):
    """Return the training time per image and epoch, without work that is done once."""
    y = np.arange(len(X)) % 10
    params = {"augmentation": None, "random_state": 0, "tol": 10.0, "batch_size": 64}

    def fit(epochs):
        return common.timed(AnyOrderARClassifier(max_iter=epochs, **params).fit, X, y)[0]

    return statistics.median((fit(3) - fit(1)) / 2 / len(X) for _ in range(repeats))


def decoding_seconds(repeats, n=50):
    pixels = np.random.RandomState(0).randint(256, size=(12, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    smooth.save(file, "JPEG", quality=90)
    batch = learn_reader([file.getvalue()] * n, "decoding", (256, 256, 3))
    return median_seconds(batch.images, repeats) / n


def count_randar_l():
    """Count the operations per image of RandAR-L's shape, without making weights."""
    with torch.device("meta"):
        trunk, published = SharedTrunkPrior(**RANDAR_L), AnyOrderPrior(**RANDAR_L)
        tokenizer = LlamaGenVQ()
        with FlopCounterMode(display=False) as counter:
            tokenizer.encode(torch.empty(1, 3, 256, 256))
    one = ar_flops(published, 1, 1)
    tokens_read, orders_read = early_stopping_shares()
    exhaustive = ar_flops(trunk, N_ORDERS, N_CLASSES)
    return {
        "weights": sum(p.numel() for p in published.parameters()),
        "operations": {
            "tokenizing": counter.get_total_flops(),
            f"scoring, {common.PUBLISHED}, exhaustive": ar_flops(published, N_ORDERS, N_CLASSES),
            STOPPED[common.PUBLISHED]: tokens_read * N_ORDERS * N_CLASSES * one,
            f"scoring, {common.SHARED}, exhaustive": exhaustive,
            STOPPED[common.SHARED]: orders_read * exhaustive,
            "training, an epoch": 3 * one,  # the backward pass needs twice the operations
        },
        "tokens_read": tokens_read,
        "orders_read": orders_read,
    }


def early_stopping_shares():
    """Return the measured shares of token evaluations and of orders that early stopping reads."""
    errors = common.read_json(common.RESULTS / "early_stopping_errors.json")["characters"]
    (fewer,) = [r["times_fewer"] for r in errors["errors"] if r["error"] == common.ALLOWED_ERROR]
    rows = common.read_json(common.RESULTS / "many_classes.json")["rows"]
    (passes,) = [
        r["passes"] for r in rows
        if (r["prior"], r["search"]) == (common.SHARED, "early-stopped")
    ]  # fmt: skip
    return 1 / fewer, passes / N_ORDERS


def simulate(n_chunks, seconds, n_workers, overhead, rng, *, lifetime=np.inf, slow=0.0, noise=0.05):
    """Simulate a client that assigns chunks to free workers, one after the other.

    A chunk takes `seconds` with some noise, and `SLOWDOWN` times as long on a slow worker. Workers
    live for `lifetime` hours on average. The chunk of a dead worker is assigned again, and another
    worker replaces it after `RESTART` seconds.

    Returns
    -------
    wall : float
        Wall time in seconds.
    deaths : int
    """
    speed = np.where(rng.uniform(size=n_workers) < slow, SLOWDOWN, 1.0)
    death = 3600 * lifetime * rng.exponential(size=n_workers)
    free = [(0.0, worker) for worker in range(n_workers)]
    lost: list[float] = []  # times at which lost chunks become known
    left, client, wall, deaths = n_chunks, 0.0, 0.0, 0
    while left or lost:
        now, worker = heapq.heappop(free)
        if left:
            left -= 1
        else:
            now = max(now, heapq.heappop(lost))
        start = client = max(now, client) + overhead
        end = start + seconds * speed[worker] * rng.lognormal(0, noise)
        if end > death[worker]:
            deaths += 1
            died = max(start, death[worker])
            heapq.heappush(lost, died)
            end = died + RESTART
            death[worker] = end + 3600 * lifetime * rng.exponential()
        else:
            wall = max(wall, end)
        heapq.heappush(free, (end, worker))
    return wall, deaths


def check_simulation(n_images, repeats):
    """Compare the simulation with two real processes that score the same chunks."""
    clf, X = make_job(n_images)
    model, orders = clf.model_, clf.orders_
    options = ScoringOptions("center", device="cpu", precision="float32")
    batch = model.reader.open(X)

    def arguments(part):
        return batch.take(part), orders, slice(0, len(orders)), options

    def score(size):
        parts = [slice(start, start + size) for start in range(0, size * n_chunks, size)]
        return list(map_pieces(score_piece, model, parts, arguments, 2))

    def empty(n):
        return list(map_pieces(empty_task, model, range(n), no_arguments, 2))

    rows = []
    empty(2)
    for n_chunks in (4, 16, 64):
        size = n_images // n_chunks
        real, simulated = [], []
        for repeat in range(repeats):
            chunk = common.timed(score_piece, model, *arguments(slice(0, size)))[0]
            two, many = common.timed(empty, 2)[0], common.timed(empty, 66)[0]
            overhead, rng = max(0.0, many - two) / 64, np.random.RandomState(repeat)
            simulated.append(two + simulate(n_chunks, chunk, 2, overhead, rng)[0])
            real.append(common.timed(score, size)[0])
        row = {"images": size, "chunks": n_chunks, "real": statistics.median(real)}
        rows.append(row | {"simulated": statistics.median(simulated)})
    return rows


def simulate_clusters(seconds_per_image, overhead, n_images):
    """Return the wall time by chunk size and number of workers."""
    rows = []
    for n_workers in GPUS:
        ideal = n_images * seconds_per_image / n_workers
        for size in CHUNKS:
            row = {"workers": n_workers, "images": size, "ideal": ideal}
            for name, faults in {
                "alike": {},
                "slow": {"slow": SLOW_SHARE},
                "dying": {"slow": SLOW_SHARE, "lifetime": LIFETIME},
            }.items():
                job = -(-n_images // size), size * seconds_per_image, n_workers, overhead
                row[name], row["deaths"] = simulate(*job, np.random.RandomState(0), **faults)
            rows.append(row)
    return rows


def duration(seconds):
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms"


def volume(n):
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def measured_section(record):
    seconds = record["cpu"] | {"decoding a JPEG of 500 x 375 to 256 x 256": record["decoding"]}
    return [
        "## Measured: a small prior on this processor",
        "These times were measured on digits with 16 tokens, 20 orders and 10 classes, with a "
        "prior of the default size.",
        common.table(
            ["step", "ms per image", "1 M images, one processor"],
            [(name, f"{1e3 * s:.3g}", duration(1e6 * s)) for name, s in seconds.items()],
        ),
        common.table(
            ["", "bytes per image"],
            [("pixels, 8 bit", 64), ("tokens, 16 bit", 32), ("class probabilities", 80)],
        ),
    ]


def projected_section(record):
    large = record["large"]
    blocks = [
        "## Counted and projected: the shape of RandAR-L",
        f"RandAR-L has {large['weights'] / 1e6:.0f} M weights and 256 tokens. Images are scored in "
        f"{N_ORDERS} orders for {N_CLASSES} classes. The numbers of operations are counted. For "
        "early-stopped scoring, we assume the same savings as in measurements with small priors. "
        f"In these measurements, the {common.PUBLISHED} evaluated 1/{1 / large['tokens_read']:.0f} "
        f"of the tokens (1000 synthetic characters). The {common.SHARED} used "
        f"{large['orders_read']:.0%} of the orders (300 synthetic characters). **The times are "
        f"projected, not measured**: we assume that GPUs reach {UTILIZATION:.0%} of "
        f"{PEAK / 1e12:.0f} TFLOP/s throughout the job.",
    ]
    for n, n_images in IMAGES.items():
        rows = [
            [name, f"{flop / 1e12:.3g}"]
            + [duration(n_images * flop / (PEAK * UTILIZATION * g)) for g in GPUS]
            for name, flop in large["operations"].items()
        ]
        heads = [f"{n} images", "TFLOP per image", *(f"{g} GPUs" for g in GPUS)]
        blocks.append(common.table(heads, rows))
    sizes = {
        "files, as in ImageNet (assumed)": FILE_BYTES,
        "pixels, 256 x 256, 8 bit": 3 * 256 * 256,
        "tokens, 16 bit": 2 * 256,
        "class probabilities, float64": 8 * N_CLASSES,
        "log-likelihoods of all orders, float64": 8 * N_CLASSES * N_ORDERS,
        "label, 16 bit": 2,
    }
    rows = [(k, volume(v), *(volume(v * n) for n in IMAGES.values())) for k, v in sizes.items()]
    trunk, published = (
        large["operations"][STOPPED[name]] / (PEAK * UTILIZATION)
        for name in (common.SHARED, common.PUBLISHED)
    )
    decode = record["decoding"]
    return [
        *blocks,
        common.table(["", "per image", *IMAGES], rows),
        f"With early-stopped scoring, one GPU would score {1 / trunk:.0f} images per second with a "
        f"{common.SHARED}, and {1 / published:.1f} images per second with the {common.PUBLISHED}. "
        f"With a {common.SHARED}, decoding the image files for one GPU would keep "
        f"{decode / trunk:.1f} CPU cores busy, and loading the files would need "
        f"{volume(FILE_BYTES / trunk)}/s. With the {common.PUBLISHED}, "
        f"{100 * decode / published:.0f} % of one CPU core and {volume(FILE_BYTES / published)}/s "
        "would be enough.",
    ]


def simulated_section(record):
    published = record["large"]["operations"][STOPPED[common.PUBLISHED]] / (PEAK * UTILIZATION)
    cluster = [
        [r["workers"], r["images"], duration(r["ideal"])]
        + [f"{r[k] / r['ideal']:.2f}" for k in ("alike", "slow", "dying")]
        + [r["deaths"]]
        for r in record["scheduling"]
    ]
    check = [
        [r["images"], r["chunks"], f"{r['real']:.2f}", f"{r['simulated']:.2f}",
         f"{r['simulated'] / r['real']:.2f}"]
        for r in record["check"]
    ]  # fmt: skip
    heads = ["workers", "images per chunk", "ideal", "all alike", "some slow", "and some die"]
    return [
        "## Simulated: scheduling",
        f"The simulated job scores 1 M images, and each image takes {1e3 * published:.0f} ms "
        f"({common.PUBLISHED}, early-stopped). The client needs {1e3 * record['overhead']:.1f} ms "
        "to assign a chunk of images, and assigns the chunks one by one. *Some slow*: "
        f"{SLOW_SHARE:.0%} of the workers take {SLOWDOWN:.0f} times as long as the others. *And "
        f"some die*: in addition, each worker dies after {LIFETIME:.0f} h on average. The chunk of "
        f"a dead worker is lost, and a new worker replaces the dead worker after {RESTART:.0f} s. "
        "The columns *all alike*, *some slow* and *and some die* contain the wall time divided by "
        "the ideal wall time:",
        common.table([*heads, "deaths"], cluster),
        "The next table compares the simulation with two real processes that score the digits. "
        "The simulation assumes that a chunk takes as long as in one process that runs alone:",
        common.table(
            ["images per chunk", "chunks", "s, real", "s, simulated", "simulated / real"], check
        ),
    ]


def page(record, command):
    return common.page(
        "Cost of a million images",
        f"Measured with `{command}` on {record['machine']}. The load average of the machine before "
        f"the run was {record['load']:.1f}." + record.get("note", ""),
        *measured_section(record),
        *projected_section(record),
        *simulated_section(record),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    record = {"machine": common.machine(), "load": os.getloadavg()[0]}
    record["cpu"] = measure_cpu(args.images, args.repeats)
    record["decoding"] = decoding_seconds(args.repeats)
    record["large"] = count_randar_l()
    overheads = common.read_json(common.RESULTS / "parallel_scoring.json")["overhead"]
    record["overhead"] = overheads[DASK]["task"]
    seconds = record["large"]["operations"][STOPPED[common.PUBLISHED]] / (PEAK * UTILIZATION)
    record["scheduling"] = simulate_clusters(seconds, record["overhead"], 10**6)
    with joblib.parallel_config("loky"):
        record["check"] = check_simulation(args.images, args.repeats)
    record = common.write_json(args.output / "million_images.json", record)
    command = " ".join(["python -m benchmarks.scale.million_images", *(argv or sys.argv[1:])])
    common.write_page(args.output / "million_images.md", page(record, command))


if __name__ == "__main__":
    main()

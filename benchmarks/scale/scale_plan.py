"""What a million or a billion images cost: measured here, counted for RandAR-L, projected to GPUs.

    OMP_NUM_THREADS=1 python benchmarks/scale_plan.py

Seconds are measured with a small prior on this processor. For RandAR-L's shape operations are
counted, and divided by what a GPU does at a stated share of its peak: those are projections,
nothing of them ran. A seeded simulation then hands out chunks to workers of which some are slow and
some die; it is checked against two real processes. Writes ``results/scale_plan.json`` and
``results/scale_plan.md`` beside this script. ``benchmarks/scaleout.py`` runs before it: it measures
what a task costs.
"""

import argparse
import heapq
import io
import json
import os
import statistics
import sys

import joblib
import numpy as np
import torch
from digits import HERE, machine
from PIL import Image
from scaleout import alone, made_up, nothing, timed
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(HERE / "claims"))
from flops import ar_flops

from skaocls import AnyOrderARClassifier, AnyOrderPrior, SharedTrunkPrior
from skaocls.fitted.parallel import map_pieces
from skaocls.fitted.prediction import ScoringOptions, score_piece
from skaocls.fitted.tokenization import encode
from skaocls.images import load_images
from skaocls.tokenizers.vq_networks import LlamaGenVQ

PEAK, SHARE = 989e12, 0.4  # an H100's dense bfloat16, and the share of it that is assumed
GPUS = (8, 64, 1024)
IMAGES = {"1 M": 10**6, "1 B": 10**9}
N_ORDERS, N_CLASSES = 20, 1000
RANDAR_L = {"vocab_size": 16384, "grid": (16, 16), "num_classes": 1000}
LARGE = {"dim": 1024, "n_layer": 24, "n_head": 16}
FILE_BYTES = 110_000  # of an image of ImageNet, about
# Of a cluster that is simulated: hours between two deaths of a worker, seconds until there is
# another one, the share of slow workers and how slow they are
LIFE, RESTART, SLOW_SHARE, SLOWER = 10.0, 120.0, 0.02, 3.0
CHUNKS = (16, 64, 256, 1024)


def on_cpu(n_images, repeats):
    """Seconds per image of each step with a small prior, and bytes per image."""
    clf, X = made_up(n_images)
    model = clf.model_
    batch = model.reader.open(X)
    steps = {
        "tokenizing": lambda: encode(model.tokenizer, model.reader, batch, slice(0, len(X))),
        "scoring, exhaustive": lambda: alone(clf.set_params(search="exhaustive"), X),
        "scoring, racing": lambda: alone(clf.set_params(search="racing"), X),
    }
    seconds = {name: [timed(step)[0] for _ in range(repeats)] for name, step in steps.items()}
    found = {name: statistics.median(taken) / n_images for name, taken in seconds.items()}
    found["training, for each epoch"] = training(X, repeats)
    files = {"decoding a JPEG of 500 x 375 to 256 x 256": decoding(repeats)}
    n = model.prior.n_tokens
    sizes = {"pixels, 8 bit": 64, "tokens, 16 bit": 2 * n, "class probabilities": 8 * 10}
    return found, files, sizes


def training(X, repeats):
    """Seconds per image and epoch: what one epoch more takes."""
    y = np.arange(len(X)) % 10

    def fit(epochs):
        how = {"augmentation": None, "random_state": 0, "tol": 10.0, "batch_size": 64}
        return timed(AnyOrderARClassifier(max_iter=epochs, **how).fit, X, y)[0]

    return statistics.median((fit(3) - fit(1)) / 2 / len(X) for _ in range(repeats))


def decoding(repeats, n=50):
    pixels = np.random.RandomState(0).randint(256, size=(12, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    smooth.save(file, "JPEG", quality=90)
    images = [file.getvalue()] * n
    how = {"shape": (256, 256, 3), "resize": True, "decoding": "as_seen"}
    seconds = [timed(lambda: load_images(images, **how))[0] for _ in range(repeats)]
    return statistics.median(seconds) / n


def of_randar_l():
    """Operations per image, counted; no weights are made."""
    with torch.device("meta"):
        trunk = SharedTrunkPrior(**RANDAR_L, **LARGE)
        plain = AnyOrderPrior(**RANDAR_L, **LARGE)
        tokenizer = LlamaGenVQ()
        with FlopCounterMode(display=False) as counter:
            tokenizer.encode(torch.empty(1, 3, 256, 256))
    weights = sum(p.numel() for p in plain.parameters())
    one = ar_flops(plain, 1, 1)
    raced, orders = races_measured()
    return {
        "weights": weights,
        "operations": {
            "tokenizing": counter.get_total_flops(),
            "scoring, a reading for each class, exhaustive": ar_flops(plain, N_ORDERS, N_CLASSES),
            "scoring, a reading for each class, racing": raced * N_ORDERS * N_CLASSES * one,
            "scoring, shared trunk, exhaustive": ar_flops(trunk, N_ORDERS, N_CLASSES),
            "scoring, shared trunk, racing": orders * ar_flops(trunk, N_ORDERS, N_CLASSES),
            # forward once, backward twice
            "training, an epoch": 3 * one,
        },
        "raced": raced,
        "orders": orders,
    }


def races_measured():
    """Shares of the work that races took: of token evaluations, and of the orders."""
    results = HERE / "results"
    characters = json.loads((results / "racing.json").read_text())["characters"]
    (fewer,) = [r["times_fewer"] for r in characters["race"] if r["error"] == 1e-3]
    rows = json.loads((results / "many_classes.json").read_text())["rows"]
    (orders,) = [
        r["orders"] for r in rows if (r["prior"], r["search"]) == ("shared trunk", "racing")
    ]
    return 1 / fewer, orders / N_ORDERS


def simulate(n_chunks, seconds, n_workers, overhead, rng, *, life=np.inf, slow=0.0, noise=0.05):
    """Wall time of chunks that a client hands to whichever worker is free, one after the other.

    A chunk takes `seconds`, up to noise, on a slow worker `SLOWER` times as long. Workers live for
    `life` hours on average; what one had begun when it died is handed out again, and another
    worker takes its place `RESTART` seconds later.

    Returns
    -------
    wall : float
        Seconds.
    deaths : int
    """
    speed = np.where(rng.uniform(size=n_workers) < slow, SLOWER, 1.0)
    dies = 3600 * life * rng.exponential(size=n_workers)
    free = [(0.0, w) for w in range(n_workers)]
    again: list[float] = []  # when chunks that were lost are known to be
    left, client, wall, deaths = n_chunks, 0.0, 0.0, 0
    while left or again:
        at, worker = heapq.heappop(free)
        if left:
            left -= 1
        else:
            at = max(at, heapq.heappop(again))
        start = client = max(at, client) + overhead
        end = start + seconds * speed[worker] * rng.lognormal(0, noise)
        if end > dies[worker]:
            deaths += 1
            gone = max(start, dies[worker])
            heapq.heappush(again, gone)
            end = gone + RESTART
            dies[worker] = end + 3600 * life * rng.exponential()
        else:
            wall = max(wall, end)
        heapq.heappush(free, (end, worker))
    return wall, deaths


def check(n_images, repeats):
    """Real runs of two processes, and what the simulation says to the same chunks."""
    clf, X = made_up(n_images)
    model, orders = clf.model_, clf.orders_
    options = ScoringOptions("center", None, "cpu", "float32", None, None)
    batch = model.reader.open(X)

    def argument(part):
        return batch.take(part), orders, slice(0, len(orders)), options

    def shared(size):
        parts = [slice(start, start + size) for start in range(0, size * n_chunks, size)]
        return list(map_pieces(score_piece, model, parts, argument, 2))

    def empty(n):
        return list(map_pieces(nothing, model, range(n), lambda piece: (), 2))

    rows = []
    empty(2)
    for n_chunks in (4, 16, 64):
        size = n_images // n_chunks
        real, predicted = [], []
        for repeat in range(repeats):
            one = timed(score_piece, model, *argument(slice(0, size)))[0]
            few, many = timed(empty, 2)[0], timed(empty, 66)[0]
            rng = np.random.RandomState(repeat)
            each = max(0.0, many - few) / 64
            predicted.append(few + simulate(n_chunks, one, 2, each, rng)[0])
            real.append(timed(shared, size)[0])
        rows.append(
            {
                "images": size,
                "chunks": n_chunks,
                "real": statistics.median(real),
                "simulated": statistics.median(predicted),
            }
        )
    return rows


def scheduling(seconds_per_image, overhead, n_images):
    """Wall time over the ideal, by chunk size and number of workers."""
    rows = []
    for n_workers in GPUS:
        ideal = n_images * seconds_per_image / n_workers
        for size in CHUNKS:
            row = {"workers": n_workers, "images": size, "ideal": ideal}
            for name, how in {
                "alike": {},
                "slow": {"slow": SLOW_SHARE},
                "slow and dying": {"slow": SLOW_SHARE, "life": LIFE},
            }.items():
                rng = np.random.RandomState(0)
                n_chunks = -(-n_images // size)
                seconds = size * seconds_per_image
                wall, deaths = simulate(n_chunks, seconds, n_workers, overhead, rng, **how)
                row |= {name: wall, f"deaths, {name}": deaths}
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


def table(head, rows):
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def page(found, command):
    cpu, large = found["cpu"], found["large"]
    lines = [
        "# What scale costs",
        "",
        f"`{command}`; {found['machine']}; load of the machine before: {found['load']:.1f}.",
        "",
        "## Measured: a small prior on this processor",
        "",
        "Digits: 16 tokens, 20 orders, 10 classes, a prior of the default size.",
        "",
        *table(
            ("step", "ms an image", "1 M images, one processor"),
            [(k, f"{1e3 * v:.3g}", duration(1e6 * v)) for k, v in (cpu | found["files"]).items()],
        ),
        *table(("what", "bytes an image"), found["bytes"].items()),
        "## Counted and projected: the shape of RandAR-L",
        "",
        f"{large['weights'] / 1e6:.0f} M weights, 256 tokens, {N_ORDERS} orders, {N_CLASSES} "
        "classes. Operations are counted. Races are taken to read as much as those that were "
        f"measured with small priors: 1/{1 / large['raced']:.0f} of the tokens with a reading for "
        f"each class (1000 made-up characters), {large['orders']:.0%} of the orders with a shared "
        "trunk (300 of them). **Projected, not run**: GPUs that do "
        f"{SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s, all of them busy all the time.",
        "",
    ]
    names = list(large["operations"])
    for n, n_images in IMAGES.items():
        head = (f"{n} images", "TFLOP an image", *(f"{g} GPUs" for g in GPUS))
        rows = []
        for name in names:
            flop = large["operations"][name]
            times = [duration(n_images * flop / (PEAK * SHARE * g)) for g in GPUS]
            rows.append((name, f"{flop / 1e12:.3g}", *times))
        lines += table(head, rows)
    sizes = {
        "files, as ImageNet's (assumed)": FILE_BYTES,
        "pixels, 256 x 256, 8 bit": 3 * 256 * 256,
        "tokens, 16 bit": 2 * 256,
        "class probabilities, float64": 8 * N_CLASSES,
        "log-likelihoods of all orders, float64": 8 * N_CLASSES * N_ORDERS,
        "label, 16 bit": 2,
    }
    lines += table(
        ("what", "an image", *IMAGES),
        [(k, volume(v), *(volume(v * n) for n in IMAGES.values())) for k, v in sizes.items()],
    )
    fastest = large["operations"]["scoring, shared trunk, racing"] / (PEAK * SHARE)
    slower = large["operations"]["scoring, a reading for each class, racing"] / (PEAK * SHARE)
    decode = next(iter(found["files"].values()))
    lines += [
        f"One such GPU would score {1 / fastest:.0f} images a second by racing with a shared "
        f"trunk, {1 / slower:.1f} with a reading for each class. Decoding their files takes "
        f"{decode / fastest:.1f} and {decode / slower:.2f} of these processors, reading them "
        f"{volume(FILE_BYTES / fastest)}/s and {volume(FILE_BYTES / slower)}/s.",
        "",
        "## Simulated: who waits for whom",
        "",
        f"1 M images, {1e3 * slower:.0f} ms each (a reading for each class, racing); a client "
        f"that hands out a chunk in {1e3 * found['overhead']:.1f} ms, one after the other. Slow: "
        f"{SLOW_SHARE:.0%} of the workers take {SLOWER:.0f} times as long. Dying: after "
        f"{LIFE:.0f} h on average, what was begun is lost, and {RESTART:.0f} s later there is "
        "another worker. Wall time over the ideal:",
        "",
        *table(
            (
                "workers",
                "images in a chunk",
                "ideal",
                "all alike",
                "some slow",
                "and some die",
                "deaths",
            ),
            [
                (
                    r["workers"],
                    r["images"],
                    duration(r["ideal"]),
                    *(f"{r[k] / r['ideal']:.2f}" for k in ("alike", "slow", "slow and dying")),
                    r["deaths, slow and dying"],
                )
                for r in found["scheduling"]
            ],
        ),
        "The simulation beside two real processes, digits as above; its chunk takes as long as one "
        "process takes for it alone:",
        "",
        *table(
            ("images in a chunk", "chunks", "s, real", "s, simulated", "simulated / real"),
            [
                (
                    r["images"],
                    r["chunks"],
                    f"{r['real']:.2f}",
                    f"{r['simulated']:.2f}",
                    f"{r['simulated'] / r['real']:.2f}",
                )
                for r in found["check"]
            ],
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    results = HERE / "results"
    cpu, files, sizes = on_cpu(args.images, args.repeats)
    found = {"machine": machine(), "load": load, "cpu": cpu, "files": files, "bytes": sizes}
    found["large"] = of_randar_l()
    flop = found["large"]["operations"]["scoring, a reading for each class, racing"]
    costs = json.loads((results / "scaleout.json").read_text())["overhead"]
    found["overhead"] = costs["Dask, 2 workers"]["task"]
    found["scheduling"] = scheduling(flop / (PEAK * SHARE), found["overhead"], 10**6)
    with joblib.parallel_config("loky"):
        found["check"] = check(args.images, args.repeats)
    found = json.loads(json.dumps(found))
    (results / "scale_plan.json").write_text(json.dumps(found, indent=1) + "\n")
    command = " ".join(["python benchmarks/scale_plan.py", *sys.argv[1:]])
    (results / "scale_plan.md").write_text(page(found, command))
    print(page(found, command))


if __name__ == "__main__":
    main()

"""The engine against a literal transcription of the published procedure, on the same weights.

    python benchmarks/scoring.py

Times both side by side in one run, in float32 and bfloat16, for three shapes, and measures the
peak memory of processes that do nothing else. Images come encoded, which costs the transcription
nothing for encoding them again with each order. Compiling happens before the clock runs; the engine
does it by itself for long jobs on CUDA only, so on CUDA it is tried where such jobs are: with a
large prior in bfloat16.

Keeps one record for each processor (or CUDA device) in ``results/scoring.json``: what another one
measures is added, the same one measures anew. ``results/scoring-<device>.md`` is written from all
records, first of all the range of what they say; ``--tables`` only writes it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
import transcription
from digits import HERE, machine
from torch.nn import functional as F

from skaocls import AnyOrderPrior
from skaocls.scoring import exhaustive
from skaocls.scoring.engine import linear, token_log_prob
from skaocls.scoring.exhaustive import log_likelihoods

# sizes of the prior; images, orders and classes on a CPU; the same on a CUDA device
SHAPES = {
    "tiny": (
        {"vocab_size": 256, "grid": (4, 4), "dim": 64, "n_layer": 2, "multiple_of": 64},
        (50, 4, 10),
        (50, 10, 10),
    ),
    "small": (
        {"vocab_size": 1024, "grid": (8, 8), "dim": 256, "n_layer": 6, "n_head": 8},
        (4, 1, 100),
        (25, 4, 100),
    ),
    "RandAR-L": (
        {"vocab_size": 16384, "grid": (16, 16), "dim": 1024, "n_layer": 24, "n_head": 16},
        (1, 1, 8),
        (1, 1, 500),
    ),
}
LARGE_DIM = 512
RECORDS = HERE / "results" / "scoring.json"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_prior(sizes, device):
    torch.manual_seed(0)
    prior = AnyOrderPrior(num_classes=1000, **sizes)
    torch.nn.init.normal_(prior.output.weight, std=sizes["dim"] ** -0.5)
    return prior.to(device).eval()


def make_work(prior, n_images, n_orders, n_classes):
    rng = np.random.RandomState(0)
    codes = rng.randint(prior.vocab_size, size=(n_images, prior.n_tokens))
    orders = np.stack([rng.permutation(prior.n_tokens) for _ in range(n_orders)])
    return codes, orders, np.arange(n_classes)


def engine(prior, work, precision):
    return log_likelihoods(prior, *work, dtype=PRECISIONS[precision])


def published(prior, work, precision):
    codes, orders, labels = work
    autocast = None if precision == "float32" else PRECISIONS[precision]
    return transcription.log_likelihoods(prior, lambda a: a, codes, orders, labels, autocast)


def engine_compiled(prior, work, precision):
    with patch.dict(exhaustive.COMPILE_FROM, {"cpu": 0, "cuda": 0}):
        return engine(prior, work, precision)


PROCEDURES = {"published": published, "engine": engine, "engine, compiled": engine_compiled}


def timed(procedure, prior, work, precision):
    if prior.output.weight.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = procedure(prior, work, precision)
    return time.perf_counter() - start, result


def matmul_rate(dtype, device, size):
    """FLOP/s of the best matrix product of that width, torch's or the engine's."""
    best = 0.0
    for rows in (1024, 4096, 16384):
        a = torch.randn(rows, size, device=device, dtype=dtype)
        b = torch.randn(4 * size, size, device=device, dtype=dtype)
        for product in (F.linear, linear):
            best = max(best, 8 * rows * size**2 / best_of(device, product, a, b))
    return best


def sequence_flops(prior):
    """Of one sequence as published: two for each weight and token, and attention's."""
    body = sum(p.numel() for p in prior.layers.parameters() if p.ndim == 2)
    length, dim = 2 * prior.n_tokens, prior.output.weight.shape[1]
    attention = 4 * len(prior.blocks) * dim * length * length / 2
    return 2 * (body + prior.output.weight.numel()) * length + attention


def compare(name, sizes, amount, device, repeats):
    prior = make_prior(sizes, device)
    work = make_work(prior, *amount)
    n = np.prod(amount)
    rows, exact, medians = [], None, {}
    for precision, dtype in PRECISIONS.items():
        procedures = dict(PROCEDURES)
        if device.type == "cuda" and (dtype == torch.float32 or sizes["dim"] < LARGE_DIM):
            del procedures["engine, compiled"]
        rate = matmul_rate(dtype, device, sizes["dim"])
        seconds: dict[str, list[float]] = {procedure: [] for procedure in procedures}
        for repeat in range(repeats + 1):
            for procedure, do in procedures.items():
                took, ll = timed(do, prior, work, precision)
                exact = ll if exact is None else exact
                if not repeat:
                    print(f"  {procedure}, {precision}: first run {took:.1f} s", flush=True)
                if repeat:  # the first warms up
                    seconds[procedure].append(took)
        for procedure in procedures:
            median = medians[procedure, precision] = statistics.median(seconds[procedure])
            share = sequence_flops(prior) * n / median / rate
            faster = statistics.median(
                a / b for a, b in zip(seconds["published"], seconds[procedure], strict=True)
            )
            row = [
                f"{name}, {n} sequences",
                procedure,
                precision,
                f"{n / median:.2f}",
                f"{faster:.2f}",
                f"{medians['published', 'float32'] / median:.2f}",
                f"{100 * share:.0f} %",
            ]
            rows.append(row)
            print(table_row(row), flush=True)
        distance = [a - a.mean(-1, keepdims=True) for a in (ll, exact)]
        print(f"  class distances off by {np.abs(distance[0] - distance[1]).max():.2g} at most")
    return rows


def cross_entropy(device):
    """Log-probabilities of 512 tokens from RandAR-L's codebook, against torch's fused function."""
    lines = []
    for precision, dtype in PRECISIONS.items():
        hidden = torch.randn(512, 1024, device=device, dtype=dtype)
        weight = torch.randn(16384, 1024, device=device, dtype=dtype)
        targets = torch.randint(16384, (512,), device=device)
        ours = best_of(device, token_log_prob, hidden, weight, targets)
        if not hasattr(F, "linear_cross_entropy"):
            continue
        fused = best_of(
            device, partial(F.linear_cross_entropy, reduction="none"), hidden, weight, targets
        )
        lines.append(
            f"Log-probabilities of 512 tokens from a codebook of 16384 x 1024, {precision}: "
            f"{1e3 * ours:.1f} ms, `torch.nn.functional.linear_cross_entropy` {1e3 * fused:.1f} ms."
        )
    return lines


def best_of(device, function, *args, times=8):
    best = np.inf
    with torch.inference_mode():
        for _ in range(times):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            function(*args)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return best


def peak(procedure, precision, n_images, n_classes):
    """GiB above the weights, of RandAR-L on the CPU; run in a process of its own."""
    before = peak_so_far()
    prior = make_prior(SHAPES["RandAR-L"][0], torch.device("cpu"))
    weights = sum(p.numel() * p.element_size() for p in prior.parameters())
    PROCEDURES[procedure](prior, make_work(prior, n_images, 1, n_classes), precision)
    return (peak_so_far() - before - weights) / 2**30


def peak_so_far():
    """Bytes. Unlike ru_maxrss it owes nothing to the process that started this one."""
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])


def memory():
    rows = []
    for precision in PRECISIONS:
        for procedure, n_images, n_classes in [
            ("published", 1, 8),
            ("engine", 1, 8),
            ("engine", 1, 80),
            ("engine", 10, 8),
        ]:
            if precision == "float32" and n_images * n_classes > 8:
                continue  # minutes on a CPU; bfloat16 shows it
            job = [procedure, precision, str(n_images), str(n_classes)]
            found = subprocess.run(
                [sys.executable, __file__, "--peak", *job], capture_output=True, text=True
            )
            rows.append([*job, found.stdout.strip()])
            print(table_row(rows[-1]), flush=True)
    return rows


def measure(device, repeats):
    """What one processor or CUDA device takes: a record, JSON as it is."""
    rows = []
    for name, (sizes, on_cpu, on_cuda) in SHAPES.items():
        amount = on_cuda if device.type == "cuda" else on_cpu
        rows += compare(name, sizes, amount, device, repeats)
    return {
        "torch": torch.__version__,
        "repeats": repeats,
        "speeds": rows,
        "cross_entropy": cross_entropy(device),
        "memory": memory() if device.type == "cpu" else [],
    }


def table_row(cells):
    return f"| {' | '.join(map(str, cells))} |"


def ranges(records):
    """A table of the engine's speed over that of the published procedure, over all records."""
    lines = [
        table_row(["shape", "float32", "bfloat16", "bfloat16 against published float32"]),
        "|---|---|---|---|",
    ]
    found: dict[str, dict[tuple[str, int], list[float]]] = {}
    for record in records.values():
        for shape, procedure, precision, _, *times, _ in record["speeds"]:
            if procedure == "engine":
                at = found.setdefault(shape.rpartition(", ")[0], {})
                for column, value in enumerate(times):
                    at.setdefault((precision, column), []).append(float(value))
    for shape, at in found.items():
        columns = [at["float32", 0], at["bfloat16", 0], at["bfloat16", 1]]
        ends = [dict.fromkeys([f"{min(c):.2f}", f"{max(c):.2f}"]) for c in columns]
        lines.append(table_row([shape, *map(" to ".join, ends)]))
    return lines


def page(kind, records):
    """The document of all records of CPUs, or of CUDA devices."""
    lines = [
        f"# Scoring speed, {'CUDA' if kind == 'cuda' else 'CPU'}",
        "",
        "`python benchmarks/scoring.py`, once on each of these machines: "
        f"{'; '.join(records)}. How many times as fast as a literal transcription of the "
        "published procedure the engine is, from the least to the most of them:",
        "",
        *ranges(records),
        "",
        "A sequence is one image in one order under one class. The share of the matmul rate "
        "counts the operations of the published procedure, so work that a procedure avoids "
        "counts as done.",
    ]
    for where, record in records.items():
        lines += [
            "",
            f"## Scoring speed on {where}",
            "",
            f"torch {record['torch']}. Medians of {record['repeats']} runs, taken in turn.",
            "",
            "| shape | procedure | precision | sequences/s | times published, same precision "
            "| times published in float32 | share of the matmul rate |",
            "|---|---|---|---|---|---|---|",
            *map(table_row, record["speeds"]),
            "",
            *record["cross_entropy"],
        ]
        if record["memory"]:
            lines += [
                "",
                "Peak memory above the weights and the imports, RandAR-L, one process for each "
                "row:",
                "",
                "| procedure | precision | images | classes | GiB |",
                "|---|---|---|---|---|",
                *map(table_row, record["memory"]),
            ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tables", action="store_true", help="of the records that there are")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        procedure, precision, n_images, n_classes = args.peak
        print(f"{peak(procedure, precision, int(n_images), int(n_classes)):.2f}")
        return
    device = torch.device(args.device)
    kept = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    if not args.tables:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
        kept.setdefault(device.type, {})[where] = measure(device, args.repeats)
        RECORDS.write_text(json.dumps(kept, indent=1) + "\n")
    for kind, records in kept.items():
        (HERE / "results" / f"scoring-{kind}.md").write_text(page(kind, records))


if __name__ == "__main__":
    main()

"""Speed of the scoring engine against a literal implementation of the published procedure.

    python -m benchmarks.speed.scoring

Times both alternately with the same weights, in float32 and bfloat16, for three shapes of the
prior, and measures the peak memory of processes that do nothing else. The images are encoded
beforehand, which spares the baseline its repeated encoding. Compilation is not timed. On CUDA, the
compiled engine is timed for a large prior in bfloat16 only, because the engine compiles by itself
only for such jobs.

``scoring.json`` keeps one record for each processor or CUDA device; a run replaces its own record.
``scoring-cpu.md`` and ``scoring-cuda.md`` are written from all records. With ``--tables``, the
script only writes these pages.
"""

import statistics
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

from skaocls import AnyOrderPrior
from skaocls.scoring import exhaustive
from skaocls.scoring.engine import linear, token_log_prob
from skaocls.scoring.exhaustive import log_likelihoods

from .. import common
from . import published_procedure

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
COMPILED_DIM = 512  # width from which the compiled engine is timed on CUDA
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
    autocast = None if precision == "float32" else PRECISIONS[precision]
    return published_procedure.log_likelihoods(prior, lambda codes: codes, *work, autocast)


def engine_compiled(prior, work, precision):
    with patch.dict(exhaustive.COMPILE_FROM, {"cpu": 0, "cuda": 0}):
        return engine(prior, work, precision)


PROCEDURES = {"published": published, "engine": engine, "engine, compiled": engine_compiled}


def synchronized(device, function, *args):
    """Return the seconds of a call including its work on the CUDA device, and its result."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()

    def call():
        result = function(*args)
        wait()
        return result

    return common.timed(call)


def best_of(device, function, *args, times=8):
    with torch.inference_mode():
        return min(synchronized(device, function, *args)[0] for _ in range(times))


def matmul_rate(dtype, device, size):
    """Return the FLOP/s of the fastest matrix product of that width, by torch or the engine."""
    best = 0.0
    for n in (1024, 4096, 16384):
        a = torch.randn(n, size, device=device, dtype=dtype)
        b = torch.randn(4 * size, size, device=device, dtype=dtype)
        for product in (F.linear, linear):
            best = max(best, 8 * n * size**2 / best_of(device, product, a, b))
    return best


def sequence_flops(prior):
    """Count the operations of the published procedure for one sequence."""
    body = sum(p.numel() for p in prior.layers.parameters() if p.ndim == 2)
    length, dim = 2 * prior.n_tokens, prior.output.weight.shape[1]
    attention = 4 * len(prior.blocks) * dim * length * length / 2
    return 2 * (body + prior.output.weight.numel()) * length + attention


def compare(name, sizes, amount, device, repeats):
    """Return a table row for each procedure and precision, for one shape."""
    prior = make_prior(sizes, device)
    work, n = make_work(prior, *amount), np.prod(amount)
    rows, exact, medians = [], None, {}
    for precision, dtype in PRECISIONS.items():
        procedures = dict(PROCEDURES)
        if device.type == "cuda" and (dtype == torch.float32 or sizes["dim"] < COMPILED_DIM):
            del procedures["engine, compiled"]
        rate = matmul_rate(dtype, device, sizes["dim"])
        seconds: dict[str, list[float]] = {procedure: [] for procedure in procedures}
        for repeat in range(repeats + 1):
            for procedure, run in procedures.items():
                taken, ll = synchronized(device, run, prior, work, precision)
                exact = ll if exact is None else exact
                if repeat:  # the first run warms up
                    seconds[procedure].append(taken)
        for procedure in procedures:
            median = medians[procedure, precision] = statistics.median(seconds[procedure])
            share = sequence_flops(prior) * n / median / rate
            faster = statistics.median(
                a / b for a, b in zip(seconds["published"], seconds[procedure], strict=True)
            )
            rows.append(
                [
                    f"{name}, {n} sequences",
                    procedure,
                    precision,
                    f"{n / median:.2f}",
                    f"{faster:.2f}",
                    f"{medians['published', 'float32'] / median:.2f}",
                    f"{100 * share:.0f} %",
                ]
            )
            print(common.row(rows[-1]), flush=True)
        centred = [a - a.mean(-1, keepdims=True) for a in (ll, exact)]
        print(f"  largest error between classes: {np.abs(centred[0] - centred[1]).max():.2g}")
    return rows


def cross_entropy(device):
    """Compare log-probabilities from RandAR-L's codebook with torch's fused function."""
    lines = []
    if not hasattr(F, "linear_cross_entropy"):
        return lines
    torch_fused = partial(F.linear_cross_entropy, reduction="none")
    for precision, dtype in PRECISIONS.items():
        hidden = torch.randn(512, 1024, device=device, dtype=dtype)
        weight = torch.randn(16384, 1024, device=device, dtype=dtype)
        args = hidden, weight, torch.randint(16384, (512,), device=device)
        ours, fused = (1e3 * best_of(device, f, *args) for f in (token_log_prob, torch_fused))
        lines.append(
            f"In {precision}, the engine computes the log-probabilities of 512 tokens from a "
            f"codebook of 16384 x 1024 in {ours:.1f} ms, and "
            f"`torch.nn.functional.linear_cross_entropy` in {fused:.1f} ms."
        )
    return lines


def measure_peak(procedure, precision, n_images, n_classes):
    """Return the peak GiB above the weights of RandAR-L on the CPU, for this process."""
    before = peak_memory()
    prior = make_prior(SHAPES["RandAR-L"][0], torch.device("cpu"))
    weights = sum(p.numel() * p.element_size() for p in prior.parameters())
    work = make_work(prior, int(n_images), 1, int(n_classes))
    PROCEDURES[procedure](prior, work, precision)
    return (peak_memory() - before - weights) / 2**30


def peak_memory():
    """Return the peak memory in bytes; unlike ru_maxrss it does not include the parent's."""
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])


def measure_memory():
    rows = []
    for precision in PRECISIONS:
        for procedure, n_images, n_classes in [
            ("published", 1, 8),
            ("engine", 1, 8),
            ("engine", 1, 80),
            ("engine", 10, 8),
        ]:
            if precision == "float32" and n_images * n_classes > 8:
                continue  # takes minutes on a CPU; bfloat16 shows the same
            job = [procedure, precision, str(n_images), str(n_classes)]
            found = common.run_module("benchmarks.speed.scoring", "--peak", *job)
            rows.append([*job, found.strip()])
            print(common.row(rows[-1]), flush=True)
    return rows


def measure(device, repeats, shapes):
    """Return the record of one processor or CUDA device."""
    rows = []
    for name in shapes:
        sizes, on_cpu, on_cuda = SHAPES[name]
        amount = on_cuda if device.type == "cuda" else on_cpu
        rows += compare(name, sizes, amount, device, repeats)
    whole = device.type == "cpu" and "RandAR-L" in shapes
    return {
        "torch": torch.__version__,
        "repeats": repeats,
        "speeds": rows,
        "cross_entropy": cross_entropy(device),
        "memory": measure_memory() if whole else [],
    }


def range_table(records):
    """Return a table of the speed-up over the published procedure, over all records."""
    speedups: dict[str, dict[tuple[str, int], list[float]]] = {}
    for record in records.values():
        for shape, procedure, precision, _, *times, _ in record["speeds"]:
            if procedure == "engine":
                columns = speedups.setdefault(shape.rpartition(", ")[0], {})
                for i, value in enumerate(times):
                    columns.setdefault((precision, i), []).append(float(value))
    rows = []
    for shape, columns in speedups.items():
        values = [columns["float32", 0], columns["bfloat16", 0], columns["bfloat16", 1]]
        ends = [dict.fromkeys([f"{min(v):.2f}", f"{max(v):.2f}"]) for v in values]
        rows.append([shape, *map(" to ".join, ends)])
    heads = ["shape", "float32", "bfloat16", "engine in bfloat16 against published in float32"]
    return common.table(heads, rows)


def page(kind, records):
    """Return the page of all records of CPUs, or of CUDA devices."""
    blocks = [
        range_table(records),
        "A sequence is one image, scored in one order for one class. *Percentage of the matmul "
        "rate* is the number of operations per second, as a percentage of the rate of the fastest "
        "matrix product on the same machine. For the engine, we count the operations that the "
        "published procedure would need, including operations that the engine avoids.",
    ]
    for device, record in records.items():
        heads = [
            "shape",
            "procedure",
            "precision",
            "sequences/s",
            "times published, same precision",
        ]
        heads += ["times published in float32", "percentage of the matmul rate"]
        blocks += [
            f"## Scoring speed on {device}",
            f"The procedures run alternately with torch {record['torch']}, and all speeds are "
            f"medians of {record['repeats']} runs.",
            common.table(heads, record["speeds"]),
            record["cross_entropy"],
        ]
        if record["memory"]:
            blocks += [
                "The next table contains the peak memory of RandAR-L, minus the memory for the "
                "weights and the imports. Each row was measured in a separate process:",
                common.table(
                    ["procedure", "precision", "images", "classes", "GiB"], record["memory"]
                ),
            ]
    about = (
        "Measured with `python -m benchmarks.speed.scoring`, once on each of these machines: "
        f"{'; '.join(records)}. The table shows how many times as fast the library's engine is as "
        "a literal implementation of the published procedure. If the speed-up differs between the "
        "machines, the table contains the lowest and the highest speed-up:"
    )
    return common.page(f"Scoring speed, {'CUDA' if kind == 'cuda' else 'CPU'}", about, *blocks)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tables", action="store_true", help="only write the pages")
    parser.add_argument("--peak", nargs=4, help="measure the memory of one job, in this process")
    args = parser.parse_args(argv)
    if args.peak:
        print(f"{measure_peak(*args.peak):.2f}")
        return
    device = torch.device(args.device)
    records = common.read_json(args.output / "scoring.json", {})
    if not args.tables:
        measured = measure(device, args.repeats, args.shapes)
        records.setdefault(device.type, {})[common.machine(device)] = measured
        common.write_json(args.output / "scoring.json", records)
    for kind, found in records.items():
        common.write_page(args.output / f"scoring-{kind}.md", page(kind, found))


if __name__ == "__main__":
    main()

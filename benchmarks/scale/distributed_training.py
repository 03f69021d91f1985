"""Training with two processes of torchrun against one: steps per second and bytes per step.

    python -m benchmarks.scale.distributed_training [--sizes "dim 64, 2 layers"] [--repeats 5]

Each process computes with one thread. Both are started once for each size and measured alternately:
the first trains alone while the second waits, then both train. Where ``unshare`` can give them a
network of their own, the bytes they send are counted there. Writes ``distributed_training.md``.
"""

import fcntl
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from skaocls import SharedTrunkPrior, distributed
from skaocls.training.config import ResolvedConfig
from skaocls.training.loop import train_prior

from .. import common

BATCH, GRID, N_CODES, N_CLASSES = 64, (8, 8), 256, 10
SIZES = {
    "dim 64, 2 layers": ({"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}, 16),
    "dim 192, 4 layers": ({"dim": 192, "n_layer": 4, "n_head": 6}, 4),
    "dim 384, 6 layers": ({"dim": 384, "n_layer": 6, "n_head": 6}, 2),
}  # and the number of steps
MODULE = "benchmarks.scale.distributed_training"


def train(sizes, steps):
    """Return the seconds and the bytes sent of a training, including its start."""
    generator = torch.Generator().manual_seed(0)
    prior = SharedTrunkPrior(N_CODES, GRID, N_CLASSES, **sizes, generator=generator)
    rng = np.random.RandomState(0)
    codes = rng.randint(N_CODES, size=(BATCH * steps, 1, GRID[0] * GRID[1]))
    labels = rng.randint(N_CLASSES, size=len(codes))
    config = ResolvedConfig(max_iter=1, batch_size=BATCH, learning_rate_init=1e-4)
    before = bytes_sent()
    seconds, _ = common.timed(train_prior, prior, codes, labels, config)
    return seconds, bytes_sent() - before


def per_step(sizes, steps):
    """Return the seconds and bytes of a step, without the start of the training."""
    short, long = train(sizes, 1), train(sizes, 1 + steps)
    return [(b - a) / steps for a, b in zip(short, long)]


def bytes_sent():
    """Return the bytes that all processes have sent over the loopback interface."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def enable_loopback():
    """Switch on the loopback interface, which is off in a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)
        fcntl.ioctl(sock, 0x8914, request)


def run_rank(name, repeats, file):
    """Measure one size in this process of torchrun, and write the result to a file."""
    torch.set_num_threads(1)
    sizes, steps = SIZES[name]
    prior = SharedTrunkPrior(N_CODES, GRID, N_CLASSES, **sizes)
    result = {"parameters": sum(p.numel() for p in prior.parameters()), "rounds": []}
    for _ in range(1 + repeats):
        one = distributed.run_on_main(lambda: per_step(sizes, steps))
        result["rounds"].append({"one": one, "two": per_step(sizes, steps)})
        print(name, result["rounds"][-1], flush=True)
    if distributed.is_main():
        file.write_text(json.dumps(result))


def launch(name, repeats, own_network):
    """Run :func:`run_rank` in two processes, in a network of their own if possible."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m", MODULE]
        command += ["--rank-of", name, "--repeats", str(repeats), "--file", str(file)]
        if own_network:
            prefix = ["unshare", "-rn", sys.executable, "-m", MODULE, "--enable-loopback"]
            command = [*prefix, *command]
        env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        subprocess.run(command, check=True, cwd=common.ROOT, env=env)
        return json.loads(file.read_text())


def can_unshare():
    test = ["unshare", "-rn", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(test, check=False).returncode == 0


def measure(sizes, repeats, own_network):
    """Return a table row for each size."""
    rows = []
    for name in sizes:
        result = launch(name, repeats, own_network)
        rounds = result["rounds"][1:]  # the first round warms up
        one = statistics.median(r["one"][0] for r in rounds)
        speedups = [r["one"][0] / r["two"][0] for r in rounds]
        sent = statistics.median(r["two"][1] for r in rounds) / 2e6
        rows.append(
            [name, f"{result['parameters'] / 1e6:.2f} M", f"{1 / one:.2f}",
             f"{statistics.median(speedups):.2f}x ({min(speedups):.2f} to {max(speedups):.2f})",
             f"{sent:.2f}", f"{4e-6 * result['parameters']:.2f}"]
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rank-of", choices=SIZES, help="run as a process of torchrun")
    parser.add_argument("--file", type=Path, help="result file of that process")
    parser.add_argument("--enable-loopback", nargs="...", help="run a command with loopback on")
    args = parser.parse_args(argv)
    if args.enable_loopback:
        enable_loopback()
        os.execv(args.enable_loopback[0], args.enable_loopback)
    if args.rank_of:
        run_rank(args.rank_of, args.repeats, args.file)
        return
    load, own_network = os.getloadavg()[0], can_unshare()
    rows = measure(args.sizes, args.repeats, own_network)
    network = (
        "a network of their own"
        if own_network
        else "a shared network, so the numbers of bytes are too high"
    )
    heads = ["prior", "parameters", "steps/s, one process", "two processes", "sent, MB per step"]
    text = common.page(
        "Training with two processes",
        f"Measured with `python -m {MODULE}` on {common.machine()}, torch {torch.__version__}, "
        f"float32, one thread in each process, batch size {BATCH}, {GRID[0] * GRID[1]} tokens. The "
        f"processes communicate through gloo in {network}. Before the run, the load average of the "
        f"machine was {load:.1f}. Each of {args.repeats} rounds measures training with one process "
        "and training with two processes. The table contains medians, with the lowest and the "
        "highest value in brackets. *Sent* is the number of bytes that each of the two processes "
        "sends in a training step.",
        common.table([*heads, "4 bytes x parameters, MB"], rows),
    )
    common.write_page(args.output / "distributed_training.md", text)


if __name__ == "__main__":
    main()

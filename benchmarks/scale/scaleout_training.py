"""Training by two processes of torchrun against one: steps in a second, and bytes sent in a step.

    python benchmarks/scaleout_training.py [--sizes "dim 64, 2 layers"] [--repeats 5]

Each process computes with one thread. Both are started once for each size, and take turns: the
first trains alone while the second waits, then both train, and again. Where ``unshare`` can give
them a network of their own, what they send is counted there. Writes
``results/scaleout_training.md`` beside this script.
"""

import argparse
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
import time
from pathlib import Path

import numpy as np
import torch
from digits import HERE, machine

from skaocls import SharedTrunkPrior, distributed
from skaocls.training.loop import train_prior

BATCH, GRID, CODES, CLASSES = 64, (8, 8), 256, 10
SIZES = {
    "dim 64, 2 layers": ({"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}, 16),
    "dim 192, 4 layers": ({"dim": 192, "n_layer": 4, "n_head": 6}, 4),
    "dim 384, 6 layers": ({"dim": 384, "n_layer": 6, "n_head": 6}, 2),
}


def train(sizes, steps, parallel="ddp"):
    """Seconds that so many steps take, with all that comes before them, and bytes sent."""
    random = torch.Generator().manual_seed(0)
    prior = SharedTrunkPrior(CODES, GRID, CLASSES, **sizes, generator=random)
    rng = np.random.RandomState(0)
    codes = rng.randint(CODES, size=(BATCH * steps, 1, GRID[0] * GRID[1]))
    labels = rng.randint(CLASSES, size=len(codes))
    how = {"max_iter": 1, "batch_size": BATCH, "learning_rate": 1e-4, "parallel": parallel}
    start, sent = time.perf_counter(), bytes_sent()
    train_prior(prior, codes, labels, **how)
    return time.perf_counter() - start, bytes_sent() - sent


def per_step(sizes, steps, parallel="ddp"):
    """Seconds and bytes of a step: what more steps take beyond one."""
    few, many = train(sizes, 1, parallel), train(sizes, 1 + steps, parallel)
    return [(b - a) / steps for a, b in zip(few, many)]


def bytes_sent():
    """Over the loopback interface, by all processes."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def loopback_up():
    """In a network of one's own the loopback interface is down at first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)
        fcntl.ioctl(sock, 0x8914, request)


def work(name, repeats, into):
    torch.set_num_threads(1)
    sizes, steps = SIZES[name]
    prior = SharedTrunkPrior(CODES, GRID, CLASSES, **sizes)
    found = {"parameters": sum(p.numel() for p in prior.parameters()), "rounds": []}
    for _ in range(1 + repeats):
        ways = {"one": distributed.run_on_main(lambda: per_step(sizes, steps))}
        ways |= {how: per_step(sizes, steps, how) for how in ("ddp", "fsdp")}
        print(name, ways, flush=True)
        found["rounds"].append(ways)
    if distributed.is_main():
        into.write_text(json.dumps(found))


def launch(name, repeats, alone):
    """What :func:`work` found, in two processes and perhaps a network of their own."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "found.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
        command += [__file__, "--work", name, "--repeats", str(repeats), "--into", str(into)]
        if alone:
            command = ["unshare", "-rn", sys.executable, __file__, "--up", *command]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        subprocess.run(command, check=True, env=environment)
        return json.loads(into.read_text())


def report(sizes, repeats):
    test = ["unshare", "-rn", "true"]
    alone = bool(shutil.which("unshare")) and subprocess.run(test, check=False).returncode == 0
    lines = [
        "| prior | parameters | steps/s, one process | two, ddp | two, fsdp | ddp sends, MB a step "
        "| 4 bytes x parameters | fsdp sends, MB a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    load = os.getloadavg()[0]
    for name in sizes:
        found = launch(name, repeats, alone)
        rounds = found["rounds"][1:]  # the first warms up
        one = statistics.median(r["one"][0] for r in rounds)
        cells = [name, f"{found['parameters'] / 1e6:.2f} M", f"{1 / one:.2f}"]
        for how in ("ddp", "fsdp"):
            gains = [r["one"][0] / r[how][0] for r in rounds]
            low, high = min(gains), max(gains)
            cells.append(f"{statistics.median(gains):.2f}x ({low:.2f} to {high:.2f})")
        sent = {h: statistics.median(r[h][1] for r in rounds) / 2e6 for h in ("ddp", "fsdp")}
        cells += [f"{sent['ddp']:.2f}", f"{4e-6 * found['parameters']:.2f}", f"{sent['fsdp']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    network = "their own network" if alone else "a network shared with others: bytes are too many"
    text = (
        "# Training by two processes\n\n"
        f"`python benchmarks/scaleout_training.py`; {machine()}, torch {torch.__version__}, "
        f"float32, one thread in each process, gloo in {network}; batch {BATCH}, "
        f"{GRID[0] * GRID[1]} tokens. Load of the machine before: {load:.1f}. Medians over "
        f"{repeats} rounds, in each of which one process and two took turns; in brackets the "
        "least and the most. What is sent is by each of the two processes.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    (HERE / "results" / "scaleout_training.md").write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", choices=SIZES)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--up", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.up:
        loopback_up()
        os.execv(args.up[0], args.up)
    elif args.work:
        work(args.work, args.repeats, args.into)
    else:
        report(args.sizes, args.repeats)


if __name__ == "__main__":
    main()

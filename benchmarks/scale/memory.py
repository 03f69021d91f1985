"""Peak host memory of RandAR-L with made-up weights: loading, scoring, fine-tuning.

    python benchmarks/memory.py

Each job runs in a process of its own. Writes ``results/memory.md`` beside this script.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from digits import HERE, machine
from safetensors.torch import save_file

from skaocls import AnyOrderPrior
from skaocls.priors.loading import load_prior
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.training.finetuning import prepare_finetuning
from skaocls.training.loop import train_prior

JOBS = {
    "load": "load",
    "score": "score 1 image, 2 classes x 1 order",
    "full": "a step of full fine-tuning, batch 4, micro-batches of 1, checkpointing",
    "lora": "a step of LoRA, batch 4, micro-batches of 1, checkpointing",
}


def make_weights(path):
    torch.manual_seed(0)
    prior = AnyOrderPrior(16384, (16, 16), 1000, dim=1024, n_layer=24, n_head=16)
    save_file(prior.state_dict(), path)


def work(job, path):
    prior = load_prior(path)
    rng = np.random.RandomState(0)
    codes = rng.randint(16384, size=(4, 256))
    if job == "score":
        log_likelihoods(prior, codes[:1], np.arange(256)[None], np.arange(2))
    if job in ("full", "lora"):
        prepare_finetuning(prior, job)
        train_prior(
            prior, codes[:, None], np.arange(4), max_iter=1, batch_size=4, micro_batch_size=1,
            learning_rate=1e-5, checkpointing=True,
        )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=["make", *JOBS])
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    if args.job == "make":  # in a process of its own: a child starts at its parent's peak
        make_weights(args.weights)
    elif args.job:
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        work(args.job, args.weights)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(base / 2**20, peak / 2**20, time.perf_counter() - start)
    else:
        report()


def run(job, weights):
    command = [sys.executable, __file__, "--job", job, "--weights", str(weights)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def report():
    lines = ["| job | peak, GiB | above the imports, GiB | s |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "randar-l.safetensors")
        run("make", weights)
        size = weights.stat().st_size / 2**30
        for job, title in JOBS.items():
            base, peak, seconds = map(float, run(job, weights).split())
            lines.append(f"| {title} | {peak:.1f} | {peak - base:.1f} | {seconds:.0f} |")
            print(lines[-1], flush=True)
    text = (
        "# Memory of RandAR-L\n\n"
        f"`python benchmarks/memory.py`; {machine()}, torch {torch.__version__}, float32. The "
        f"weights take {size:.2f} GiB.\n\n" + "\n".join(lines) + "\n"
    )
    (HERE / "results" / "memory.md").write_text(text)


if __name__ == "__main__":
    main()

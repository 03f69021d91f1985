"""Peak host memory of RandAR-L with random weights: loading, scoring and fine-tuning.

    python -m benchmarks.scale.memory

Each job runs in a process of its own. Writes ``memory.md``.
"""

import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from skaocls import AnyOrderARClassifier, AnyOrderPrior
from skaocls.priors.loading import load_prior
from skaocls.scoring.exhaustive import log_likelihoods

from .. import common

JOBS = {
    "load": "load",
    "score": "score 1 image, 2 classes x 1 order",
    "full": "a step of full fine-tuning, batch 4",
    "lora": "a step of LoRA, batch 4",
}


def write_weights(path):
    torch.manual_seed(0)
    prior = AnyOrderPrior(16384, (16, 16), 1000, dim=1024, n_layer=24, n_head=16)
    save_file(prior.state_dict(), path)


def run(job, path):
    codes = np.random.RandomState(0).randint(16384, size=(4, 16, 16))
    if job in ("full", "lora"):
        AnyOrderARClassifier(
            str(path),
            tokenizer="precomputed",
            finetune=job,
            max_iter=1,
            batch_size=4,
            learning_rate_init=1e-5,
            precision="float32",
        ).fit(codes, np.arange(4))
        return
    prior = load_prior(path)
    if job == "score":
        log_likelihoods(prior, codes[:1].reshape(1, -1), np.arange(256)[None], np.arange(2))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument(
        "--job", nargs=2, metavar=("JOB", "WEIGHTS"), help="run one, in this process"
    )
    args = parser.parse_args(argv)
    if args.job:
        job, weights = args.job
        if job == "make":  # in a process of its own: a child starts at the peak of its parent
            write_weights(weights)
            return
        base = peak()
        seconds, _ = common.timed(run, job, weights)
        print(base, peak(), seconds)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "randar-l.safetensors")
        common.run_module("benchmarks.scale.memory", "--job", "make", weights)
        size = weights.stat().st_size / 2**30
        for job, title in JOBS.items():
            printed = common.run_module("benchmarks.scale.memory", "--job", job, weights)
            base, top, seconds = map(float, printed.split()[-3:])
            rows.append([title, f"{top:.1f}", f"{top - base:.1f}", f"{seconds:.0f}"])
            print(rows[-1], flush=True)
    text = common.page(
        "Memory of RandAR-L",
        f"Measured with `python -m benchmarks.scale.memory` on {common.machine()}, torch "
        f"{torch.__version__}, float32. The weights take {size:.2f} GiB. *Above the imports* is "
        "the peak memory minus the memory that the process uses after all imports.",
        common.table(["job", "peak, GiB", "above the imports, GiB", "s"], rows),
    )
    common.write_page(args.output / "memory.md", text)


if __name__ == "__main__":
    main()

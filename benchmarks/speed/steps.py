"""Training steps a second, now and in another checkout of the project.

    git worktree add /tmp/before 673b4ae  # before default fits were to take a minute
    python benchmarks/steps.py --before /tmp/before

Each is timed in a process of its own, in turn, on digits as they are and enlarged to 28 x 28; a
step is of 64 images (16 tokens) or 20 (49 tokens). What it takes is the difference of two fits of
one and of five epochs, so neither the tokenizer nor what is done once counts. Muon is not in it:
its price is in ``results/optimizers.md``. Writes ``results/steps.md``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
DATA = {"digits, 16 tokens": (1, 2, 64), "digits of 28 x 28, 49 tokens": (3.5, 4, 20)}
N, FEW, MANY, REPEATS = 640, 1, 5, 3
VARIANTS = {
    "before": {},
    "now, by likelihood alone": {"posterior_weight": 0.0},
    "now": {"posterior_weight": 5.0},
    "now, in bfloat16": {"posterior_weight": 5.0, "precision": "bfloat16"},
    "now, compiled by torch": {"posterior_weight": 5.0},
}


def timed(data, variant):
    """Steps a second of this process's package."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits

    from skaocls import AnyOrderARClassifier, PatchTokenizer

    times, patch, batch = DATA[data]
    X, y = load_digits(return_X_y=True)
    index = (np.arange(int(8 * times)) / times).astype(int)
    X = X.reshape(-1, 8, 8)[:N][:, index][:, :, index] / 16
    params = {"tokenizer": PatchTokenizer(patch, n_codes=128), "batch_size": batch, "tol": 10.0}
    params |= {"augmentation": None, "random_state": 0, "device": "cpu"} | VARIANTS[variant]
    if "compiled" in variant:
        from skaocls.training import parallel

        parallel.Loss.forward = torch.compile(parallel.Loss.forward)
    took = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epochs in (FEW, FEW, MANY):  # the first warms up
            clf = AnyOrderARClassifier(max_iter=epochs, **params)
            start = time.perf_counter()
            clf.fit(X, y[:N])
            took[epochs] = time.perf_counter() - start
    return (MANY - FEW) * (N // batch) / (took[MANY] - took[FEW])


def in_process(root, data, variant):
    """The same in a process that has the package of that folder."""
    call = [sys.executable, __file__, "--timed", data, variant]
    env = os.environ | {"PYTHONPATH": str(root)}
    return float(subprocess.run(call, env=env, stdout=subprocess.PIPE, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--timed", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.timed:
        print(timed(*args.timed))
        return
    if args.before is None:
        parser.error("--before needs a checkout to compare with, see the head of this file")
    import torch
    from digits import machine

    lines = [
        "# Training steps a second",
        "",
        f"`python benchmarks/steps.py --before ...`; {machine()}, torch {torch.__version__}. "
        f"Medians of {REPEATS} runs in turn. *Before* is the project before default fits were to "
        "take a minute (`git worktree add ... 673b4ae`). AdamW in all rows.",
        "",
        "| data | what | steps a second | times before |",
        "|---|---|---:|---:|",
    ]
    for data in DATA:
        rates = {variant: [] for variant in VARIANTS}
        for _ in range(REPEATS):
            for variant, found in rates.items():
                root = args.before if variant == "before" else HERE.parent
                found.append(in_process(root, data, variant))
        first = statistics.median(rates["before"])
        for variant, found in rates.items():
            rate = statistics.median(found)
            lines.append(f"| {data} | {variant} | {rate:.1f} | {rate / first:.2f} |")
            print(lines[-1], flush=True)
    (HERE / "results" / "steps.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Training steps per CPU second of one thread, in this checkout and in another one.

    git worktree add /tmp/before REVISION
    python -m benchmarks.speed.training_steps --before /tmp/before

Each variant is timed in a process of its own, alternately, on digits of 8 x 8 pixels and enlarged
to 28 x 28. A step trains on 64 images (16 tokens) or 20 images (49 tokens). Its time is the
difference between fits of one and of three epochs, which excludes the tokenizer and other work done
once. All variants use AdamW; ``optimizers.md`` compares AdamW with Muon. Writes
``training_steps.md``.
"""

import os
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = {"digits, 16 tokens": (1, 2, 64), "digits of 28 x 28, 49 tokens": (3.5, 4, 20)}
N_IMAGES, SHORT, LONG, REPEATS = 640, 1, 3, 3
VARIANTS = {
    "before": {},
    "now, likelihood alone": {"posterior_weight": 0.0},
    "now": {"posterior_weight": 5.0},
    "now, bfloat16": {"posterior_weight": 5.0, "precision": "bfloat16"},
}


def steps_per_second(data, variant):
    """Measure the package that this process imports."""
    import time

    import numpy as np
    from sklearn.datasets import load_digits

    from skaocls import AnyOrderARClassifier, PatchTokenizer

    zoom, patch, batch = DATA[data]
    X, y = load_digits(return_X_y=True)
    index = (np.arange(int(8 * zoom)) / zoom).astype(int)
    X = X.reshape(-1, 8, 8)[:N_IMAGES][:, index][:, :, index] / 16
    params = {"tokenizer": PatchTokenizer(patch, n_codes=128), "batch_size": batch, "tol": 10.0}
    params |= {"augmentation": None, "random_state": 0, "device": "cpu"} | VARIANTS[variant]
    seconds = {}
    warnings.simplefilter("ignore")
    for epochs in (SHORT, SHORT, LONG):  # the first fit warms up
        clf = AnyOrderARClassifier(max_iter=epochs, **params)
        start = time.process_time()
        clf.fit(X, y[:N_IMAGES])
        seconds[epochs] = time.process_time() - start
    return (LONG - SHORT) * (N_IMAGES // batch) / (seconds[LONG] - seconds[SHORT])


def in_process(root, data, variant):
    """Measure the package in a folder, in a process that imports it from there."""
    command = [sys.executable, __file__, "--variant", data, variant]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)


def main(argv=None):
    from .. import common

    parser = common.parser(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    args = parser.parse_args(argv)
    rows = []
    for data in DATA:
        rates = {variant: [] for variant in VARIANTS}
        for _ in range(REPEATS):
            for variant, found in rates.items():
                root = args.before if variant == "before" else ROOT
                found.append(in_process(root, data, variant))
        before = statistics.median(rates["before"])
        for variant, found in rates.items():
            rate = statistics.median(found)
            rows.append([data, variant, f"{rate:.1f}", f"{rate / before:.2f}"])
            print(rows[-1], flush=True)
    text = common.page(
        "Training steps per CPU second",
        f"Measured with `python -m benchmarks.speed.training_steps` on {common.machine()}. The "
        f"variants run alternately, and the table contains medians of {REPEATS} runs. *Before* is "
        f"revision {common.revision(args.before)}. All variants use AdamW.",
        common.table(["data", "variant", "steps per CPU second", "relative to before"], rows),
    )
    common.write_page(args.output / "training_steps.md", text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--variant"]:  # run as a file, so that another skaocls can be imported
        print(steps_per_second(*sys.argv[2:]))
    else:
        main()

"""Peak memory with data on disk: fit, token cache, and fit from the token cache.

    python -m benchmarks.scale.larger_than_memory

The data are synthetic images of 28 x 28 pixels in ten classes, stored as one memory-mapped array or
as PNG files. Each job runs in a process of its own. A thread reads /proc/self/status: anonymous
memory, and pages mapped from files, which the system may drop at any time. Writes
``larger_than_memory.json`` and ``larger_than_memory.md``.
"""

import json
import os
import re
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from skaocls import AnyOrderARClassifier, PatchTokenizer, load_tokens, tokenize_dataset

from .. import common

SIDE, N_CLASSES, CHUNK = 28, 10, 1000
N_VIEWS = 6
PRIOR = {"dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16}
PARAMS = {"prior": PRIOR, "max_iter": 1, "batch_size": 256, "n_orders": 1, "random_state": 0}
JOBS = {
    "fit": "fit, one epoch",
    "tokenize": "tokenize_dataset",
    "from tokens": "fit from tokens, one epoch",
}


def make_chunk(chunk):
    """Return a thousand images and their labels, which depend on the number of the chunk."""
    patterns = np.random.RandomState(0).randint(256, size=(N_CLASSES, 4, 4))
    rng = np.random.RandomState([1, chunk])
    y = rng.randint(N_CLASSES, size=CHUNK)
    sharp = patterns[y].repeat(7, axis=1).repeat(7, axis=2)
    return (0.7 * sharp + 0.3 * rng.randint(256, size=sharp.shape)).astype(np.uint8), y


def write_data(kind, folder, n):
    """Write n images as an array or as files."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "labels.npy", np.concatenate([make_chunk(i)[1] for i in range(n // CHUNK)]))
    if kind == "memmap":
        shape = n, SIDE, SIDE
        array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    for chunk in range(n // CHUNK):
        images = make_chunk(chunk)[0]
        if kind == "memmap":
            array[chunk * CHUNK : (chunk + 1) * CHUNK] = images
            continue
        subfolder = folder / "files" / f"{chunk:04d}"
        subfolder.mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(subfolder / f"{i:03d}.png", compress_level=1)


class PeakMemory(threading.Thread):
    """Records the peak memory of this process by kind, in MiB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = {"VmRSS": 0.0, "RssAnon": 0.0, "RssFile": 0.0}
        self.start()

    def run(self):
        while True:
            status = Path("/proc/self/status").read_text()
            for name, peak in self.peak.items():
                found = re.search(rf"{name}:\s+(\d+) kB", status)
                self.peak[name] = max(peak, int(found[1]) / 1024)
            time.sleep(0.02)


def run_job(job, kind, folder, n):
    """Run a job, and return its accuracy or the bytes per image."""
    y = np.load(folder / "labels.npy")
    if kind == "memmap":
        X = np.load(folder / "images.npy", mmap_mode="r")
    else:
        X = [str(folder / "files" / f"{i // CHUNK:04d}" / f"{i % CHUNK:03d}.png") for i in range(n)]
    tokenizer = PatchTokenizer(patch_size=7, n_codes=64, random_state=0)
    if job == "fit":
        clf = AnyOrderARClassifier(tokenizer=tokenizer, augmentation=N_VIEWS, **PARAMS).fit(X, y)
        return {"accuracy": clf.score(X[:2000], y[:2000])}
    if job == "tokenize":
        tokenizer.fit(np.concatenate([make_chunk(chunk)[0] for chunk in range(2)]))
        tokens = tokenize_dataset(tokenizer, X, folder / "tokens", y=y, n_views=N_VIEWS)
        size = sum(path.stat().st_size for path in tokens.folder.iterdir())
        return {"bytes": size / n}
    tokens = load_tokens(folder / "tokens")
    clf = AnyOrderARClassifier(tokenizer="precomputed", **PARAMS).fit(tokens, tokens.labels)
    return {"accuracy": clf.score(tokens[:2000, 0], y[:2000])}


def measure(job, kind, folder, n):
    """Return the result, times and peak memory of a job that runs in this process."""
    memory = PeakMemory()
    time.sleep(0.1)
    base = memory.peak["VmRSS"]
    cpu = time.process_time()
    seconds, result = common.timed(run_job, job, kind, folder, n)
    result |= {"seconds": seconds, "cpu": time.process_time() - cpu}
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result |= {"base": base, "peak": max(top, memory.peak["VmRSS"])}
    return result | {"anonymous": memory.peak["RssAnon"], "mapped": memory.peak["RssFile"]}


def run_child(*job):
    env = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return common.run_module("benchmarks.scale.larger_than_memory", "--job", *job, env=env)


def page(record):
    jobs = list(JOBS)
    results = sorted(record["rows"], key=lambda r: (jobs.index(r["job"]), r["kind"], r["images"]))
    rows = [
        [JOBS[r["job"]], r["kind"], f"{r['images']:,}", f"{r['peak']:.0f}", f"{r['anonymous']:.0f}",
         f"{r['mapped']:.0f}", f"{r['base']:.0f}", f"{1000 * r['cpu'] / r['images']:.2f}",
         f"{r['bytes']:.0f}" if "bytes" in r else ""]
        for r in results
    ]  # fmt: skip
    heads = ["job", "X", "images", "peak, MiB", "anonymous, MiB", "mapped from files, MiB"]
    heads += ["at the start, MiB"]
    return common.page(
        "Data larger than memory",
        f"Measured with `python -m benchmarks.scale.larger_than_memory` on {record['machine']}, "
        f"torch {record['torch']}. Each image has {SIDE} x {SIDE} pixels and {N_VIEWS} views of 16 "
        f"tokens. The prior has the parameters {PRIOR}. *Peak* is the peak of the resident memory "
        "of the process. *Anonymous* is the peak of the memory that the process allocated, "
        "without mapped files. *Mapped from files* is the peak of the memory that was mapped from "
        "files, including libraries. The system can free mapped pages at any time. *CPU ms* is "
        "the CPU time of all threads. In the rows *fit from tokens*, the CPU time includes the "
        "check of the hashes of the token files.",
        common.table([*heads, "CPU ms per image", "bytes per image"], rows),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--kinds", nargs="+", default=["memmap", "files"])
    parser.add_argument("--job", nargs=4, help="run one job, in this process")
    args = parser.parse_args(argv)
    if args.job:
        job, kind, folder, n = args.job
        if job == "make":
            write_data(kind, Path(folder), int(n))
        else:
            print(json.dumps(measure(job, kind, Path(folder), int(n))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in args.sizes:
            for kind in args.kinds:
                place = Path(folder, str(n), kind)
                run_child("make", kind, place, n)
                for job in JOBS:
                    result = json.loads(run_child(job, kind, place, n).splitlines()[-1])
                    rows.append({"images": n, "kind": kind, "job": job} | result)
                    print(rows[-1], flush=True)
    record = {"machine": common.machine(), "torch": torch.__version__, "rows": rows}
    common.write_json(args.output / "larger_than_memory.json", record)
    common.write_page(args.output / "larger_than_memory.md", page(record))


if __name__ == "__main__":
    main()

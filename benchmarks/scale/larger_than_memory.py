"""Peak memory of data that stay on disk: fit, the token cache, and a fit from it.

Made-up images of 28 x 28 pixels in ten classes, as one array that is mapped from a file and as PNG
files. Each job runs in a process of its own, in which a thread looks at /proc/self/status: memory
of the process itself (anonymous), and pages of files that are mapped, which the system may drop at
any time.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from digits import HERE, machine
from PIL import Image

from skaocls import AnyOrderARClassifier, PatchTokenizer, load_tokens, tokenize_dataset

SIDE, N_CLASSES, CHUNK = 28, 10, 1000
N_VIEWS = 6
PRIOR = {"dim": 16, "n_layer": 1, "n_head": 1, "multiple_of": 16}
HOW = {"prior": PRIOR, "max_iter": 1, "batch_size": 256, "n_orders": 1, "random_state": 0}
MIB = 2**20


def images_of(chunk):
    """A thousand images and their labels, always the same."""
    patterns = np.random.RandomState(0).randint(256, size=(N_CLASSES, 4, 4))
    rng = np.random.RandomState([1, chunk])
    y = rng.randint(N_CLASSES, size=CHUNK)
    sharp = patterns[y].repeat(7, axis=1).repeat(7, axis=2)
    return (0.7 * sharp + 0.3 * rng.randint(256, size=sharp.shape)).astype(np.uint8), y


def make(kind, folder, n):
    """Write n images as an array or as files."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "labels.npy", np.concatenate([images_of(i)[1] for i in range(n // CHUNK)]))
    if kind == "memmap":
        shape = n, SIDE, SIDE
        array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    for chunk in range(n // CHUNK):
        images = images_of(chunk)[0]
        if kind == "memmap":
            array[chunk * CHUNK : (chunk + 1) * CHUNK] = images
            continue
        place = folder / "files" / f"{chunk:04d}"
        place.mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(place / f"{i:03d}.png", compress_level=1)


class Peak(threading.Thread):
    """The most memory that this process had, by kind, in MiB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most = {"VmRSS": 0.0, "RssAnon": 0.0, "RssFile": 0.0}
        self.start()

    def run(self):
        while True:
            status = Path("/proc/self/status").read_text()
            for name, most in self.most.items():
                found = re.search(rf"{name}:\s+(\d+) kB", status)
                self.most[name] = max(most, int(found[1]) / 1024)
            time.sleep(0.02)


def work(job, kind, folder, n):
    """Run a job; what it gave."""
    y = np.load(folder / "labels.npy")
    if kind == "memmap":
        X = np.load(folder / "images.npy", mmap_mode="r")
    else:
        X = [str(folder / "files" / f"{i // CHUNK:04d}" / f"{i % CHUNK:03d}.png") for i in range(n)]
    tokenizer = PatchTokenizer(patch_size=7, n_codes=64, random_state=0)
    if job == "fit":
        clf = AnyOrderARClassifier(tokenizer=tokenizer, augmentation=N_VIEWS, **HOW).fit(X, y)
        return {"accuracy": clf.score(X[:2000], y[:2000])}
    if job == "tokenize":
        tokenizer.fit(np.concatenate([images_of(chunk)[0] for chunk in range(2)]))
        tokens = tokenize_dataset(tokenizer, X, folder / "tokens", y=y, n_views=N_VIEWS)
        size = sum(path.stat().st_size for path in tokens.folder.iterdir())
        return {"bytes": size / n}
    tokens = load_tokens(folder / "tokens")
    clf = AnyOrderARClassifier(tokenizer="precomputed", **HOW).fit(tokens, tokens.labels)
    return {"accuracy": clf.score(tokens[:2000, 0], y[:2000])}


JOBS = {
    "fit": "fit, one epoch",
    "tokenize": "tokenize_dataset",
    "from tokens": "fit from tokens, one epoch",
}


def child(job, kind, folder, n):
    peak = Peak()
    time.sleep(0.1)
    base = peak.most["VmRSS"]
    begin, of_process = time.perf_counter(), time.process_time()
    found = work(job, kind, folder, n)
    seconds = time.perf_counter() - begin
    found |= {"seconds": seconds, "cpu": time.process_time() - of_process}
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found |= {"base": base, "peak": max(top, peak.most["VmRSS"])}
    found |= {"anonymous": peak.most["RssAnon"], "mapped": peak.most["RssFile"]}
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--kinds", nargs="+", default=["memmap", "files"])
    parser.add_argument("--work", nargs=4, metavar=("JOB", "KIND", "FOLDER", "N"))
    args = parser.parse_args()
    if args.work:
        job, kind, folder, n = args.work
        if job == "make":
            make(kind, Path(folder), int(n))
        else:
            child(job, kind, Path(folder), int(n))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in args.sizes:
            for kind in args.kinds:
                place = Path(folder, str(n), kind)
                run("make", kind, place, n)
                for job in JOBS:
                    found = json.loads(run(job, kind, place, n).splitlines()[-1])
                    rows.append({"images": n, "kind": kind, "job": job} | found)
                    print(rows[-1], flush=True)
    report(rows)


def run(*what):
    command = [sys.executable, __file__, "--work", *map(str, what)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout


def report(rows):
    lines = [
        "| job | X | images | peak, MiB | anonymous | mapped from files | at the start "
        "| CPU ms an image | bytes an image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(
        rows, key=lambda row: (list(JOBS).index(row["job"]), row["kind"], row["images"])
    ):
        size = f"{row['bytes']:.0f}" if "bytes" in row else ""
        lines.append(
            f"| {JOBS[row['job']]} | {row['kind']} | {row['images']:,} | {row['peak']:.0f} | "
            f"{row['anonymous']:.0f} | {row['mapped']:.0f} | {row['base']:.0f} | "
            f"{1000 * row['cpu'] / row['images']:.2f} | {size} |"
        )
    text = (
        "# Data larger than memory\n\n"
        f"`python benchmarks/larger_than_memory.py`; {machine()}, torch {torch.__version__}. "
        f"Images of {SIDE} x {SIDE} pixels, 16 tokens, {N_VIEWS} views of each; the prior "
        f"is of size {PRIOR}. Peaks are those of the whole process; pages that are mapped from "
        "files, libraries among them, may be dropped by the system at any time. CPU time is of "
        "all threads, that of the fit from tokens with the check of their hashes.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    (HERE / "results" / "larger_than_memory.md").write_text(text)
    (HERE / "results" / "larger_than_memory.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

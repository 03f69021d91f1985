"""Are the method's claims true? Training, tests and a page, from data that need no download.

    python benchmarks/claims                              # all of it: under three hours on 2 cores
    python benchmarks/claims --short --output SOMEWHERE   # each step on a few images: minutes
    python benchmarks/claims --tune                       # the choice of settings

A job is one contestant on one task with one seed. Its result is a file, so what was interrupted
goes on. Writes ``benchmarks/results/claims.json``, the page ``docs/claims.md`` and its plots;
tuning, on training images alone, writes ``benchmarks/results/claims-tuning.json``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import sklearn
import torch

sys.path.append(str(Path(__file__).parents[1]))  # the other benchmarks

from digits import processor
from experiments import EXPERIMENTS
from page import write_page
from plans import FULL, SHORT, TUNING

import skaocls
from skaocls.files import write_all

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="claims", description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few images, epochs and orders")
    parser.add_argument("--tune", action="store_true", help="try the settings to choose from")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time, a core each")
    parser.add_argument(
        "--output", type=Path, default=None,
        help="folder for results, page and plots; by default their places in the repository",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, default=HERE.parent / "cache" / "claims",
        help="folder of the finished jobs; with --output it is in there",
    )  # fmt: skip
    parser.add_argument("--fonts", help="folder of fonts, if not those of fonts.txt")
    args = parser.parse_args(argv)
    if args.short and args.output is None:
        parser.error("--short needs --output: its figures mean nothing and replace no others")
    if args.output is not None:
        args.cache = args.output / "jobs"
    return args


def name_of(job):
    words = [job["experiment"], job["task"], job.get("kind"), job["seed"], job["contestant"]]
    words.append(job.get("variant"))
    return "-".join(str(word).replace(" ", "-") for word in words if word is not None)


def commit():
    """Of the code that runs, with "+" if files under version control have been changed."""
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
            for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())


def finished(job, cache):
    """The result of a job, if there is one of the same settings."""
    file = cache / f"{name_of(job)}.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return result if result and result["job"] == json.loads(json.dumps(job)) else None


def run(job, cache):
    torch.set_num_threads(1)
    start = time.perf_counter()
    what = {k: v for k, v in job.items() if k != "experiment"}
    row = EXPERIMENTS[job["experiment"]](**what)
    result = {"job": job, "commit": commit(), "machine": processor()}
    result |= {"job_seconds": time.perf_counter() - start} | row
    text = json.dumps(result) + "\n"
    write_all(cache, {f"{name_of(job)}.json": lambda path: Path(path).write_text(text)})
    print(f"{name_of(job)}: {result['job_seconds']:.0f} s", flush=True)


def main(argv=None):
    args = parse_args(argv)
    jobs = SHORT if args.short else TUNING if args.tune else FULL
    if args.fonts:
        jobs = [job | {"fonts": args.fonts} if job["task"] == "glyphs" else job for job in jobs]
    args.cache.mkdir(parents=True, exist_ok=True)
    left = [job for job in jobs if finished(job, args.cache) is None]
    print(f"{len(jobs)} jobs, {len(left)} of them to do", flush=True)
    # processes of one thread each: matrices are small
    joblib.Parallel(args.jobs)(joblib.delayed(run)(job, args.cache) for job in left)
    results = [finished(job, args.cache) for job in jobs]
    machines = sorted({result["machine"] for result in results})
    about = {
        "machine": f"{' and '.join(machines)}, one thread for each of {args.jobs} jobs at a time",
        "commits": sorted({result["commit"] or "unknown" for result in results}),
        "core_hours": sum(result["job_seconds"] for result in results) / 3600,
        "skaocls": skaocls.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
    }
    record = {"about": about, "results": results}
    results_folder = args.output or HERE.parent / "results"
    results_folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    name = "claims-tuning.json" if args.tune else "claims.json"
    write_all(results_folder, {name: lambda path: Path(path).write_text(text)})
    if not args.tune:
        write_page(record, args.output or ROOT / "docs")


if __name__ == "__main__":
    main()

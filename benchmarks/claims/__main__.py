"""Test the claims of the paper: training, evaluation and a page, with data that need no download.

    python -m benchmarks.claims                             # under three hours on 2 cores
    python -m benchmarks.claims --short --output FOLDER     # every step on a few images
    python -m benchmarks.claims --tune                      # the choice of settings

A job is one contestant on one task with one seed. Each result is a file, so an interrupted run
continues. Writes ``claims.json``, the page ``docs/claims.md`` and its plots. Tuning uses training
images only and writes ``claims-tuning.json``.
"""

import json
import os
import subprocess
from pathlib import Path

import joblib
import numpy as np
import sklearn
import torch

import skaocls

from .. import common
from .experiments import EXPERIMENTS
from .page import write_page
from .plans import FULL, SHORT, TUNING


def parse_args(argv=None):
    parser = common.parser(__doc__, prog="claims")
    parser.add_argument("--short", action="store_true", help="few images, epochs and orders")
    parser.add_argument("--tune", action="store_true", help="try the candidate settings")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel jobs")
    parser.add_argument("--cache", type=Path, help="folder of finished jobs")
    parser.add_argument("--fonts", help="folder of fonts, instead of those of fonts.txt")
    args = parser.parse_args(argv)
    in_repository = args.output == common.RESULTS
    if args.short and in_repository:
        parser.error("--short needs --output: its figures must not replace those of a full run.")
    args.docs = common.DOCS if in_repository else args.output
    if args.cache is None:
        args.cache = common.CACHE / "claims" if in_repository else args.output / "jobs"
    return args


def name_of(job):
    words = [job["experiment"], job["task"], job.get("kind"), job["seed"], job["contestant"]]
    words.append(job.get("variant"))
    return "-".join(str(word).replace(" ", "-") for word in words if word is not None)


def commit():
    """Return the commit of the code that runs, with "+" if tracked files have changed."""
    try:
        head, changed = (
            subprocess.run(
                ["git", *words], cwd=common.ROOT, check=True, capture_output=True, text=True
            )
            for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())


def finished(job, cache):
    """Return the result of a job if one with the same settings exists, otherwise None."""
    result = common.read_json(cache / f"{name_of(job)}.json")
    return result if result and result["job"] == json.loads(json.dumps(job)) else None


def run(job, cache):
    torch.set_num_threads(1)
    params = {k: v for k, v in job.items() if k != "experiment"}
    seconds, found = common.timed(EXPERIMENTS[job["experiment"]], **params)
    result = {"job": job, "commit": commit(), "machine": common.processor()}
    file = cache / f"{name_of(job)}.json"
    common.write_json(file.with_suffix(".tmp"), result | {"job_seconds": seconds} | found)
    file.with_suffix(".tmp").rename(file)  # an interrupted job leaves no result
    print(f"{name_of(job)}: {seconds:.0f} s", flush=True)


def main(argv=None):
    args = parse_args(argv)
    jobs = SHORT if args.short else TUNING if args.tune else FULL
    if args.fonts:
        jobs = [job | {"fonts": args.fonts} if job["task"] == "glyphs" else job for job in jobs]
    missing = [job for job in jobs if finished(job, args.cache) is None]
    print(f"{len(jobs)} jobs, {len(missing)} of them to do", flush=True)
    # one thread for each process, because the matrices are small
    joblib.Parallel(args.jobs)(joblib.delayed(run)(job, args.cache) for job in missing)
    results = [finished(job, args.cache) for job in jobs]
    machines = sorted({result["machine"] for result in results})
    about = {
        "machine": f"{'; '.join(machines)}, with {args.jobs} jobs in parallel, one thread each",
        "commits": sorted({result["commit"] or "unknown" for result in results}),
        "core_hours": sum(result["job_seconds"] for result in results) / 3600,
        "skaocls": skaocls.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
    }
    name = "claims-tuning.json" if args.tune else "claims.json"
    record = common.write_json(args.output / name, {"about": about, "results": results})
    if not args.tune:
        write_page(record, args.docs)


if __name__ == "__main__":
    main()

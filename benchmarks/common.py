"""Helpers that the benchmarks share: data, timing, machine names and result files."""

import argparse
import json
import platform
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from skaocls.training import config

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
CACHE = Path(__file__).parent / "cache"
DOCS = ROOT / "docs"
# Train by likelihood alone, and use the centre crop of the image for every order, as published
LIKELIHOOD_ONLY = {"crop": "center", "posterior_weight": 0.0}
SMALL_PRIOR = {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
PUBLISHED, SHARED = "published architecture", "shared trunk"
ARCHITECTURES = {PUBLISHED: "randar", SHARED: "shared_trunk"}
ALLOWED_ERROR = 1e-3  # of early-stopped scoring, as in search="auto"


def uniform(n_classes):
    """Return equal log-probabilities for all classes."""
    return np.full(n_classes, -np.log(n_classes))


@contextmanager
def optimizer(muon):
    """Train all new priors with Muon, or with AdamW if `muon` is False; None keeps the default."""
    if muon is None:
        yield
        return
    with patch.object(config, "uses_muon", lambda *args: muon):
        yield


# Data and scores --------------------------------------------------------------------------------


def digits(seed=0):
    """Split scikit-learn's digits into X_train, X_test, y_train and y_test (a quarter)."""
    data = load_digits()
    return train_test_split(
        data.images, data.target, test_size=0.25, stratify=data.target, random_state=seed
    )


def codes_of(clf, X):
    """Return the tokens of images, (n_images, n_tokens)."""
    return clf.tokenizer_.transform(X).reshape(len(X), -1)


def log_likelihoods(clf, X):
    """Return log p(tokens | class, order), (n_images, n_orders, n_classes)."""
    return np.concatenate(list(clf._log_likelihoods(X)))


def quality(clf, X, y):
    """Return accuracy, and nats: the mean negative log-probability of the true class."""
    proba = np.clip(clf.predict_proba(X), 1e-12, 1)  # rounding to zero must not cost infinity
    proba /= proba.sum(1, keepdims=True)
    return {
        "accuracy": float(np.mean(clf.classes_[proba.argmax(1)] == y)),
        "nats": float(log_loss(y, proba, labels=clf.classes_)),
    }


# Time and place ---------------------------------------------------------------------------------


def timed(function, *args, **kwargs):
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - start, result


def processor():
    """Return the processor's name, with family and model where the system tells them."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
        facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        name = facts.get("model name", name)
        if "cpu family" in facts:  # processors of one name can differ in speed
            name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def machine(device="cpu"):
    """Return the name of the CUDA device, or the processor and the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}"


def machines(rows):
    """Return the names of all machines that measured these rows."""
    return "; ".join(sorted({row["machine"] for row in rows}))


def revision(folder=ROOT):
    """Return the abbreviated hash of the commit that a folder has checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=folder, check=False, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def run_module(module, *options, env=None):
    """Run a benchmark in a process of its own and return what it prints."""
    command = [sys.executable, "-m", module, *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


# Result files -----------------------------------------------------------------------------------


def parser(doc, **kwargs):
    """Return an argument parser with the option that every benchmark has."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0], **kwargs)
    made.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    return made


def read_json(path, default=None):
    """Return the content of a JSON file, or the default if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def write_json(path, value):
    """Write JSON, and return the value as it would be read again."""
    text = json.dumps(value, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return json.loads(text)


def add_missing(path, jobs, run):
    """Run the jobs that a record does not contain yet, and write the record after each.

    Parameters
    ----------
    path : Path
        JSON file of the record, which maps a job (as JSON) to its result.
    jobs : list of list or dict
    run : callable
        Returns the result of a job.

    Returns
    -------
    record : dict
    """
    for job in jobs:
        key = json.dumps(job)
        if key not in read_json(path, {}):
            result = run(job)
            print(key, result, flush=True)
            write_json(path, read_json(path, {}) | {key: result})
    return read_json(path, {})


def row(cells):
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def table(heads, rows):
    """Return the lines of a Markdown table."""
    return [row(heads), "|---" * len(heads) + "|", *map(row, rows)]


def page(title, about, *blocks):
    """Return a page: a title, a paragraph about the run, and blocks of text or lines."""
    texts = [b if isinstance(b, str) else "\n".join(b) for b in blocks if b]
    return "\n\n".join([f"# {title}", about, *texts]) + "\n"


def write_page(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)

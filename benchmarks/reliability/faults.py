"""What is killed goes on, and what is damaged harms nobody.

    python benchmarks/faults.py --kills 20 --images 10000 --models 2000

A `fit` with `checkpoint_dir` and a prediction with `memory` are ended by SIGKILL at random moments
and called again; image and model files with random bytes changed are read. What is counted is
printed and written to ``benchmarks/results/faults.md``.
"""

import argparse
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from digits import machine
from PIL import Image
from sklearn.datasets import load_digits

from skaocls import AnyOrderARClassifier
from skaocls.fitted import store
from skaocls.images import image_shape_of, load_images

RESULTS = Path(__file__).parent / "results" / "faults.md"
SIZES = {"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 32}
SECONDS = 5  # that one file may take
MEMORY = 2 * 2**30  # bytes that reading files may take
AT_ONCE = 250  # files that one process reads


def in_child(function, *args):
    """Start function(*args) in a process of its own.

    Nothing here has run threads of torch before, so that a fork is safe.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        warnings.simplefilter("ignore")
        function(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def finished(pid):
    """Wait for a process; whether it came to its end."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a call that was not killed has failed, see above")
    return os.WIFEXITED(status)


def killed(pid, seconds):
    """Kill a process after some time; whether it was still there."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return not finished(pid)


# Kills ------------------------------------------------------------------------------------------


def digits(n=None):
    X, y = load_digits(n_class=3, return_X_y=True)
    return (X[:n] / 16).reshape(-1, 8, 8), y[:n]


def fit(out, n_digits, folder=None):
    """Write the weights and the curves of a fit."""
    X, y = digits(n_digits)
    clf = AnyOrderARClassifier(
        device="cpu",  # another cannot be used in processes that are forked
        prior=SIZES,
        max_iter=12,
        augmentation=2,
        early_stopping=True,
        tol=0.0,
        n_iter_no_change=12,
        random_state=0,
        checkpoint_dir=folder,
    ).fit(X, y)
    weights = {name: weight.numpy() for name, weight in clf.prior_.state_dict().items()}
    np.savez(out, loss=clf.loss_curve_, scores=clf.validation_scores_, **weights)


def predict(out, n_digits, model, folder, log):
    """Write the probabilities of many images, and a letter for each order of some that is read."""
    X, _ = digits(n_digits)
    read = store.log_likelihoods

    def reading(*args, **kwargs):
        with open(log, "a") as file:
            file.write("x")
        return read(*args, **kwargs)

    store.log_likelihoods = reading
    clf = AnyOrderARClassifier.from_pretrained(model, memory=folder, n_orders=12)
    np.savez(out, proba=clf.predict_proba(np.concatenate([X, X[::-1], 1 - X])))


def damaged_checkpoints(folder):
    """Checkpoints whose tensors are not those that were written."""
    count = 0
    for rest in Path(folder).glob("checkpoint-*.json"):
        content = rest.with_suffix(".safetensors").read_bytes()
        hashed = hashlib.blake2b(content, digest_size=16).hexdigest()
        count += json.loads(rest.read_text())["hash"] != hashed
    return count


def damaged_entries(folder):
    """Entries of `memory` that do not end with a hash of what is before it."""
    count = 0
    for path in (Path(folder) / "skaocls-memory").glob("[!.]*"):
        if path.is_file():
            content = path.read_bytes()
            hashed = hashlib.blake2b(content[:-16], digest_size=16).digest()
            count += content[-16:] != hashed
    return count


def same(first, second):
    first, second = np.load(first), np.load(second)
    names = sorted(first.files)
    return names == sorted(second.files) and all((first[k] == second[k]).all() for k in names)


def timed(function, *args):
    begin = time.monotonic()
    finished(in_child(function, *args))
    return time.monotonic() - begin


def kill_fits(n, rng, work, n_digits):
    """How often a fit was killed, found what to go on from, and ended as if never killed."""
    counts = Counter()
    seconds = timed(fit, work / "whole.npz", n_digits)
    for i in range(n):
        folder = work / f"fit-{i}"
        while not killed(
            in_child(fit, work / "killed.npz", n_digits, folder), rng.uniform(0, seconds)
        ):
            counts["ended before the kill"] += 1
        counts["killed"] += 1
        counts["damaged files"] += damaged_checkpoints(folder)
        counts["with a checkpoint"] += any(folder.glob("checkpoint-*.json"))
        finished(in_child(fit, work / "resumed.npz", n_digits, folder))
        counts["equal"] += same(work / "whole.npz", work / "resumed.npz")
        (work / "resumed.npz").unlink()
        counts["left behind"] += len([p for p in folder.iterdir() if p.suffix != ".lock"])
    return counts


def save_model(folder):
    X, y = digits()
    params = {"prior": SIZES, "max_iter": 3, "augmentation": None, "random_state": 0}
    AnyOrderARClassifier(device="cpu", **params).fit(X, y).save_pretrained(folder)


def kill_predictions(n, rng, work, n_digits):
    """How often a prediction was killed and ended as if never killed, and what was read twice."""
    counts, log = Counter(), work / "log"
    model = work / "model"
    finished(in_child(save_model, model))
    seconds = timed(predict, work / "whole.npz", n_digits, model, work / "memory", log)
    parts = log.stat().st_size
    for i in range(n):
        folder = work / f"memory-{i}"
        log.write_text("")
        args = n_digits, model, folder, log
        while not killed(in_child(predict, work / "killed.npz", *args), rng.uniform(0, seconds)):
            counts["ended before the kill"] += 1
            shutil.rmtree(folder)
            log.write_text("")
        counts["killed"] += 1
        counts["damaged files"] += damaged_entries(folder)
        counts["with entries"] += any((folder / "skaocls-memory").glob("[!.l]*"))
        finished(in_child(predict, work / "resumed.npz", *args))
        counts["equal"] += same(work / "whole.npz", work / "resumed.npz")
        (work / "resumed.npz").unlink()
        counts["most parts read twice"] = max(
            counts["most parts read twice"], log.stat().st_size - parts
        )
    return counts


# Damaged files ----------------------------------------------------------------------------------


def some_images():
    """Content of small image files of many kinds."""
    rng = np.random.RandomState(0)
    rgb = Image.fromarray(rng.randint(256, size=(24, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010F] = 6, 72.0, "a camera"
    kinds = [
        (rgb, "png", {}),
        (rgb, "png", {"exif": exif}),
        (rgb.convert("L"), "png", {}),
        (rgb.convert("1"), "png", {}),
        (rgb.convert("P"), "png", {"transparency": 3}),
        (rgb.convert("RGBA"), "png", {}),
        (Image.fromarray(rng.randint(65536, size=(8, 8)).astype(np.uint16)), "png", {}),
        (rgb, "jpeg", {}),
        (rgb, "jpeg", {"exif": exif}),
        (rgb, "jpeg", {"progressive": True, "exif": exif}),
        (rgb.convert("L"), "jpeg", {}),
        (rgb.convert("CMYK"), "jpeg", {}),
    ]
    contents = []
    for image, kind, options in kinds:
        out = io.BytesIO()
        image.save(out, kind, **options)
        contents.append(out.getvalue())
    return contents


def mutated(content, rng):
    """Content with a few bytes changed, cut out, put in, or cut off."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        if not content:
            break
        at = rng.randrange(len(content))
        kind = rng.choice(["byte"] * 6 + ["bit", "cut", "out", "in", "digit"])
        if kind == "byte":
            content[at] = rng.randrange(256)
        elif kind == "bit":
            content[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del content[at:]
        elif kind == "out":
            del content[at : at + rng.randrange(1, 9)]
        elif kind == "in":
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            content[at:at] = b"9" * rng.randrange(1, 12)
    return bytes(content)


def with_checksums(png):
    """A PNG whose chunks have the checksums that belong to them, so that they are looked into."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        body = png[at + 4 : at + 8 + length]
        out += png[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out + png[at:])


def read_image(content):
    load_images([content], image_shape_of([content], (8, 8)), resize=True)


def read_model(name, content, folder):
    """Restore a model of which one file has another content, and ask it."""
    path = folder / name
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        clf = AnyOrderARClassifier.from_pretrained(folder)
        clf.predict_proba(digits()[0][:3])
    finally:
        path.write_bytes(before)


def read_all(cases, read, out):
    """Count what reading each case leads to, and write it as JSON."""
    counts, faults, slowest = Counter(), [], 0.0
    for case in cases:
        begin = time.monotonic()
        try:
            read(*case)
            counts["answers"] += 1
        except (ValueError, OSError):
            counts["errors in words"] += 1
        except BaseException as exc:
            faults.append(repr(exc)[:200])
        slowest = max(slowest, time.monotonic() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"counts": counts, "faults": faults, "slowest": slowest, "peak": peak}
    Path(out).write_text(json.dumps(result))


def read_in_children(cases, read, work):
    """As :func:`read_all`, a few at a time; a process that ends itself is a crash."""
    total = Counter()
    for at in range(0, len(cases), AT_ONCE):
        some = cases[at : at + AT_ONCE]
        pid = in_child(read_all, some, read, work / "counts.json")
        deadline = time.monotonic() + SECONDS * len(some)
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.02)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if status:
            total["hangs" if os.WTERMSIG(status) == signal.SIGKILL else "crashes"] += 1
            continue
        result = json.loads((work / "counts.json").read_text())
        total += Counter(result["counts"])
        total["other errors"] += len(result["faults"])
        for fault in result["faults"]:
            print("not in our words:", fault, file=sys.stderr)
        total["longer than 5 s"] += result["slowest"] > SECONDS
        total["above 2 GiB"] += result["peak"] > MEMORY
        total["peak MiB"] = max(total["peak MiB"], result["peak"] >> 20)
        total["slowest ms"] = max(total["slowest ms"], round(1000 * result["slowest"]))
    return total


def damage_images(n, rng, work, _):
    contents, cases = some_images(), []
    for _ in range(n):
        content = mutated(rng.choice(contents), rng)
        if content.startswith(b"\x89PNG") and rng.random() < 0.7:
            content = with_checksums(content)
        cases.append((content,))
    return read_in_children(cases, read_image, work)


def damage_models(n, rng, work, _):
    folder = work / "damaged"
    finished(in_child(save_model, folder))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    cases = []
    for _ in range(n):
        name = rng.choice(sorted(files))
        # of safetensors mostly the header, which is what is understood
        content, end = files[name], len(files[name])
        if name.endswith("safetensors") and rng.random() < 0.7:
            end = 8 + int.from_bytes(content[:8], "little")
        cases.append((name, mutated(content[:end], rng) + content[end:], folder))
    return read_in_children(cases, read_model, work)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of a fit, and of a prediction")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=2_000)
    parser.add_argument("--digits", type=int, default=500, help="images to fit, and to predict")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    lines = ["| what | counted |", "|---|---|"]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        for what, n, run in [
            ("fits killed", options.kills, kill_fits),
            ("predictions killed", options.kills, kill_predictions),
            ("image files changed", options.images, damage_images),
            ("model files changed", options.models, damage_models),
        ]:
            if n:
                place = Path(work) / run.__name__
                place.mkdir()
                counts = run(n, rng, place, options.digits)
                told = ", ".join(f"{name}: {count}" for name, count in counts.items())
                lines.append(f"| {n} {what} | {told} |")
                print(lines[-1], flush=True)
    about = (
        f"`python benchmarks/faults.py --kills {options.kills} --images {options.images} --models "
        f"{options.models} --digits {options.digits} --seed {options.seed}`; {machine()}, "
        f"{time.monotonic() - begin:.0f} s. Errors in words are ValueError and OSError; a part is "
        "one order of up to 256 images."
    )
    text = "\n".join(["# Faults", "", about, "", *lines]) + "\n"
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

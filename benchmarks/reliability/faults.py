"""Kill calls at random moments and damage files at random, and count the outcomes.

    python -m benchmarks.reliability.faults --kills 20 --images 10000 --models 2000

A `fit` with `checkpoint_dir` and a prediction with `memory` are ended by SIGKILL and called again.
Image and model files with random changes are read. Writes ``faults.md``.
"""

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
from PIL import Image
from sklearn.datasets import load_digits

from skaocls import AnyOrderARClassifier
from skaocls.fitted import result_cache
from skaocls.hashing import hash_file
from skaocls.images.reader import learn_reader

from .. import common

PRIOR = {"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 32}
CPU_SECONDS = 5  # limit for one file
HANG_SECONDS = 1800  # wall-clock limit for a batch of files, which only a hang exceeds
MEMORY = 2 * 2**30  # limit for a process that reads files, in bytes
BATCH_SIZE = 250  # files that one process reads


def start(function, *args):
    """Run function(*args) in a forked process, and return its id.

    The parent must not have used several threads of torch before the fork.
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
    """Wait for a process, and return False if a signal ended it."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("A call that was not killed has failed; its traceback is above.")
    return os.WIFEXITED(status)


def run(function, *args):
    """Run a function in a forked process, and return the seconds that it takes."""
    return common.timed(lambda: finished(start(function, *args)))[0]


def killed(pid, seconds):
    """Kill a process after some time, and return whether it was still running."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return not finished(pid)


# Kills ------------------------------------------------------------------------------------------


def three_digits(n=None):
    X, y = load_digits(n_class=3, return_X_y=True)
    return (X[:n] / 16).reshape(-1, 8, 8), y[:n]


def fit(out, n_digits, folder=None):
    """Write the weights and the training curves of a fit to a file."""
    X, y = three_digits(n_digits)
    clf = AnyOrderARClassifier(
        device="cpu",  # CUDA cannot be used in forked processes
        prior=PRIOR,
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
    """Write probabilities to a file, and a letter to the log for each part that is computed."""
    X, _ = three_digits(n_digits)
    log_likelihoods = result_cache.log_likelihoods

    def logged(*args, **kwargs):
        with open(log, "a") as file:
            file.write("x")
        return log_likelihoods(*args, **kwargs)

    result_cache.log_likelihoods = logged
    clf = AnyOrderARClassifier.from_pretrained(model, memory=folder, n_orders=12)
    np.savez(out, proba=clf.predict_proba(np.concatenate([X, X[::-1], 1 - X])))


def damaged_checkpoints(folder):
    """Count checkpoints whose tensors do not match their hash."""
    return sum(
        json.loads(path.read_text())["hash"] != hash_file(path.with_suffix(".safetensors"))
        for path in Path(folder).glob("checkpoint-*.json")
    )


def damaged_entries(folder):
    """Count cache entries that cannot be read."""
    cache = result_cache.ResultCache(folder)
    entries = [path for path in cache.folder.glob("[!.]*") if path.is_file()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(cache.read(path) is None for path in entries)


def same(first, second):
    first, second = np.load(first), np.load(second)
    names = sorted(first.files)
    return names == sorted(second.files) and all((first[k] == second[k]).all() for k in names)


def kill_fits(n, rng, work, n_digits):
    """Kill fits, and count those that continue to the same result as an undisturbed fit."""
    counts = Counter()
    seconds = run(fit, work / "whole.npz", n_digits)
    for i in range(n):
        folder = work / f"fit-{i}"
        job = fit, work / "killed.npz", n_digits, folder
        while not killed(start(*job), rng.uniform(0, seconds)):
            counts["ended before the kill"] += 1
        counts["killed"] += 1
        counts["damaged files"] += damaged_checkpoints(folder)
        counts["with a checkpoint"] += any(folder.glob("checkpoint-*.json"))
        run(fit, work / "resumed.npz", n_digits, folder)
        counts["equal"] += same(work / "whole.npz", work / "resumed.npz")
        (work / "resumed.npz").unlink()
        counts["files left"] += len([p for p in folder.iterdir() if p.suffix != ".lock"])
    return counts


def save_model(folder):
    X, y = three_digits()
    params = {"prior": PRIOR, "max_iter": 3, "augmentation": None, "random_state": 0}
    AnyOrderARClassifier(device="cpu", **params).fit(X, y).save_pretrained(folder)


def kill_predictions(n, rng, work, n_digits):
    """Kill predictions, and count equal results and parts that were computed twice."""
    counts, log = Counter(), work / "log"
    model = work / "model"
    run(save_model, model)
    seconds = run(predict, work / "whole.npz", n_digits, model, work / "memory", log)
    n_parts = log.stat().st_size
    for i in range(n):
        folder = work / f"memory-{i}"
        log.write_text("")
        job = n_digits, model, folder, log
        while not killed(start(predict, work / "killed.npz", *job), rng.uniform(0, seconds)):
            counts["ended before the kill"] += 1
            shutil.rmtree(folder)
            log.write_text("")
        counts["killed"] += 1
        counts["damaged files"] += damaged_entries(folder)
        counts["with entries"] += any((folder / "skaocls-memory").glob("[!.l]*"))
        run(predict, work / "resumed.npz", *job)
        counts["equal"] += same(work / "whole.npz", work / "resumed.npz")
        (work / "resumed.npz").unlink()
        repeated = log.stat().st_size - n_parts
        counts["most parts computed twice"] = max(counts["most parts computed twice"], repeated)
    return counts


# Damaged files ----------------------------------------------------------------------------------


def image_files():
    """Return the content of small image files in several formats."""
    rng = np.random.RandomState(0)
    rgb = Image.fromarray(rng.randint(256, size=(24, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010F] = 6, 72.0, "a camera"
    formats = [
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
    for image, name, options in formats:
        file = io.BytesIO()
        image.save(file, name, **options)
        contents.append(file.getvalue())
    return contents


def damaged(content, rng):
    """Change, remove or insert some bytes, or truncate the content."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        if not content:
            break
        i = rng.randrange(len(content))
        change = rng.choice(["byte"] * 6 + ["bit", "truncate", "remove", "insert", "digits"])
        if change == "byte":
            content[i] = rng.randrange(256)
        elif change == "bit":
            content[i] ^= 1 << rng.randrange(8)
        elif change == "truncate":
            del content[i:]
        elif change == "remove":
            del content[i : i + rng.randrange(1, 9)]
        elif change == "insert":
            content[i:i] = rng.randbytes(rng.randrange(1, 9))
        else:
            content[i:i] = b"9" * rng.randrange(1, 12)
    return bytes(content)


def with_checksums(png):
    """Correct the checksums of a PNG's chunks, so that a reader parses the chunks."""
    out, i = bytearray(png[:8]), 8
    while i + 12 <= len(png):
        length = int.from_bytes(png[i : i + 4], "big")
        body = png[i + 4 : i + 8 + length]
        out += png[i : i + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        i += 12 + length
    return bytes(out + png[i:])


def read_image(content):
    learn_reader([content], "faults", (8, 8)).images()


def read_model(name, content, folder):
    """Load a model with one damaged file, and predict with it."""
    path = folder / name
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        clf = AnyOrderARClassifier.from_pretrained(folder)
        clf.predict_proba(three_digits()[0][:3])
    finally:
        path.write_bytes(original)


def read_cases(cases, read, out):
    """Read each case, count the outcomes, and write them as JSON."""
    counts, faults, slowest = Counter(), [], 0.0
    for case in cases:
        begin = time.process_time()
        try:
            read(*case)
            counts["results"] += 1
        except (ValueError, OSError):
            counts["clear errors"] += 1
        except BaseException as exc:
            faults.append(repr(exc)[:200])
        slowest = max(slowest, time.process_time() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"counts": counts, "faults": faults, "slowest": slowest, "peak": peak}
    Path(out).write_text(json.dumps(result))


def read_in_children(cases, read, work):
    """Read batches of cases in forked processes; a process that does not finish has crashed."""
    total = Counter()
    for i in range(0, len(cases), BATCH_SIZE):
        pid = start(read_cases, cases[i : i + BATCH_SIZE], read, work / "counts.json")
        deadline = time.monotonic() + HANG_SECONDS
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
            print("other error:", fault, file=sys.stderr)
        total[f"above {CPU_SECONDS} CPU s"] += result["slowest"] > CPU_SECONDS
        total["above 2 GiB"] += result["peak"] > MEMORY
        total["peak MiB"] = max(total["peak MiB"], result["peak"] >> 20)
        total["slowest CPU ms"] = max(total["slowest CPU ms"], round(1000 * result["slowest"]))
    return total


def damage_images(n, rng, work, _):
    contents, cases = image_files(), []
    for _ in range(n):
        content = damaged(rng.choice(contents), rng)
        if content.startswith(b"\x89PNG") and rng.random() < 0.7:
            content = with_checksums(content)
        cases.append((content,))
    return read_in_children(cases, read_image, work)


def damage_models(n, rng, work, _):
    folder = work / "damaged"
    run(save_model, folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    cases = []
    for _ in range(n):
        name = rng.choice(sorted(files))
        content, end = files[name], len(files[name])
        if name.endswith("safetensors") and rng.random() < 0.7:
            end = 8 + int.from_bytes(content[:8], "little")  # damage the header only
        cases.append((name, damaged(content[:end], rng) + content[end:], folder))
    return read_in_children(cases, read_model, work)


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=20, help="killed fits, killed predictions")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=2_000)
    parser.add_argument("--digits", type=int, default=500, help="images to fit and to predict")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    rows, begin = [], time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        for test, n, count in [
            ("killed fits", args.kills, kill_fits),
            ("killed predictions", args.kills, kill_predictions),
            ("damaged image files", args.images, damage_images),
            ("damaged model files", args.models, damage_models),
        ]:
            if n:
                folder = Path(work) / count.__name__
                folder.mkdir()
                counts = count(n, rng, folder, args.digits)
                rows.append([f"{n} {test}", ", ".join(f"{k}: {v}" for k, v in counts.items())])
                print(rows[-1], flush=True)
    about = (
        f"Measured with `python -m benchmarks.reliability.faults --kills {args.kills} --images "
        f"{args.images} --models {args.models} --digits {args.digits} --seed {args.seed}` on "
        f"{common.machine()}, in {time.monotonic() - begin:.0f} s. *Clear errors* are ValueError "
        "and OSError. A *part* is the unit in which the classifier caches predictions: the scores "
        "of up to 256 images in one order."
    )
    text = common.page("Faults", about, common.table(["test", "counts"], rows))
    common.write_page(args.output / "faults.md", text)


if __name__ == "__main__":
    main()

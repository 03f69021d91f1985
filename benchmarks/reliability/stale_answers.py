"""Change one property at a time, and count the answers that belong to the earlier property.

    python -m benchmarks.reliability.stale_answers

Each path can return results of an earlier call. For each property, all paths compute an answer.
Then only this property changes, and all paths compute their answers again. An answer is stale if it
differs from the answer that is computed without earlier results. Writes the table
``stale_answers.md``, and fails if an answer is stale.
"""

import contextlib
import copy
import os
import pickle
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import ImageFile
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skaocls import AnyOrderARClassifier, tokenize_dataset
from skaocls.fitted.labels import read_labels
from skaocls.images.decoding import BadImage
from skaocls.images.reader import learn_reader
from skaocls.scoring.exhaustive import bfloat16_is_safe
from skaocls.training import checkpoints

from .. import common
from . import properties
from .properties import DIGITS, JOB, LABELS, PARAMS, PATCHES, TURNED

TOLERANCE = 1e-4  # nats; in other batches, predictions round differently
RIGHT, REFUSED, STALE = "right", "refused", "**stale**"


# Paths: the first call stores results in a folder, and the second call may use them -------------


def fitted(job, clf=None, **params):
    clf = AnyOrderARClassifier() if clf is None else clf
    own = {name: job[name] for name in job.keys() & clf.get_params(deep=False).keys()}
    clf.set_params(**PARAMS | own | params)
    return clf.fit(job["X"], job["y"], job["sample_weight"])


def answer(clf, job):
    codebook = getattr(clf.tokenizer_, "codebook_", None)
    answers = clf.predict_joint_log_proba(job["X"]), clf.score_samples(job["X"])
    return clf.classes_, [] if codebook is None else codebook, *answers


def with_memory(job, folder):
    """Fit the same classifier again, so that answers of the earlier fit would be found."""
    return answer(fitted(job, job["clf"], memory=folder), job)


class Interrupted(Exception):
    pass


def with_checkpoints(job, folder):
    """Interrupt the first fit in its second epoch. The second fit may resume from a checkpoint."""
    save = checkpoints.Checkpoints.save_if_due

    def save_and_stop(self, state):
        save(self, state)
        if state.history.n_iter:
            raise Interrupted

    stop = patch.object(checkpoints.Checkpoints, "save_if_due", save_and_stop)
    with (
        patch.object(checkpoints, "INTERVAL_FACTOR", 0),
        contextlib.nullcontext() if folder.exists() else stop,
    ):
        return answer(fitted(job, checkpoint_dir=folder), job)


def in_workers(job, folder):
    return answer(copy.copy(job["fitted"]).set_params(n_jobs=2), job)


def tokens_in(job, folder):
    tokenizer = job.get("tokenizer", PATCHES)
    if not isinstance(tokenizer, FrozenEstimator):
        tokenizer = clone(tokenizer).fit(DIGITS)
    options = {"y": job["y"], "shard_size": 10} | job["options"]
    tokens = tokenize_dataset(tokenizer, job["X"], folder, **options)
    return tokens[:], tokens.labels


MEMORY, CHECKPOINTS, WORKERS, TOKENS = (
    ("`memory`", with_memory),
    ("`checkpoint_dir`", with_checkpoints),
    ("two workers", in_workers),
    ("`tokenize_dataset`", tokens_in),
)
MERGED = "equal images"
HEADS = [name for name, _ in (MEMORY, CHECKPOINTS, WORKERS, TOKENS)] + [MERGED]


def rows(folder):
    """Yield the properties, the paths on which they are tested, and whether to mix both inputs."""
    every, fits = (MEMORY, CHECKPOINTS, WORKERS, TOKENS), (MEMORY, CHECKPOINTS)
    yield from ((p, every, True) for p in properties.images())
    yield from ((p, every, False) for p in properties.stored_images(folder))
    yield from ((p, (*fits, TOKENS), False) for p in properties.labels())
    yield from ((p, (TOKENS,), False) for p in properties.views())
    yield from ((p, fits, False) for p in properties.parameters())
    yield from ((p, every, False) for p in properties.tokenizers(folder))
    yield from ((p, (*fits, WORKERS), False) for p in properties.priors(folder))
    yield from ((p, (*fits, WORKERS), False) for p in properties.tables(folder))


# Comparison -------------------------------------------------------------------------------------


def same(found, wanted):
    """Return whether the arrays of two answers are equal, except for rounding."""
    pairs = [tuple(map(np.asarray, pair)) for pair in zip(found, wanted, strict=True)]
    return all(
        a.shape == b.shape
        and (np.allclose(a, b, atol=TOLERANCE) if b.dtype.kind == "f" else (a == b).all())
        for a, b in pairs
    )


def compare(function, wanted):
    """Return whether an answer is right, refused or stale, or the error that was raised."""
    try:
        return RIGHT if same(function(), wanted()) else STALE
    except Exception as exc:  # an unexpected error is listed
        is_refused = isinstance(exc, ValueError) and re.search("contains .*other", str(exc))
        return REFUSED if is_refused else repr(exc)[:200]


def merged(first, second):
    """Compare the number of images that `fit` keeps with the number of distinct decoded images."""
    batch = learn_reader([*first["X"], *second["X"]], "Reader")
    y = np.tile(LABELS, 2)
    pixels = np.column_stack([batch.images().reshape(len(y), -1), y])
    kept = read_labels(batch, y, owner="Reader")[0]
    return RIGHT if len(kept) >= len(np.unique(pixels, axis=0)) else STALE


def examine(change, values, paths, mix, folder):
    """Return whether the property changes the answer, and the results of all paths."""
    clf, cells, stored = AnyOrderARClassifier(), dict.fromkeys(HEADS, ""), {}
    first = JOB | {"clf": clf} | change(values[0])
    first["fitted"] = fitted(first)
    before = answer(first["fitted"], first)
    for name, path in paths:
        with contextlib.suppress(Exception):  # an error counts if the second call fails, too
            stored[path] = path(first, folder / name)
    second = JOB | {"clf": clf} | change(values[1])
    second["fitted"] = fitted(second)
    after = answer(second["fitted"], second)
    new_tokens = partial(tokens_in, second, folder / "new tokens")
    for name, path in paths:
        wanted = new_tokens if path is tokens_in else lambda: after
        cells[name] = compare(partial(path, second, folder / name), wanted)
    if mix:
        cells[MERGED] = merged(first, second)
    if paths == (TOKENS,):
        before, after = stored[tokens_in], new_tokens()
    return not same(before, after), cells


def other_rows(folder):
    """Yield other places that keep results: the property, the place and the result."""
    prior = properties.wide_prior()
    first = bfloat16_is_safe(prior)
    prior.class_table.data.copy_(prior.class_table[:1] + 1e-3 * prior.class_table)
    result = RIGHT if first and not bfloat16_is_safe(prior) else STALE
    yield "weights of the prior", '`precision="auto"`', result
    tokenizer = properties.new_patches()
    tokens = tokenize_dataset(tokenizer, DIGITS, folder / "stored", y=LABELS)
    codes, copied = tokens[:], pickle.dumps(tokens)
    (folder / "stored").rename(folder / "earlier")
    tokenize_dataset(tokenizer, TURNED, folder / "stored", y=LABELS[::-1])
    clf = fitted(JOB | {"X": codes, "tokenizer": "precomputed"})
    wanted = clf.predict_joint_log_proba(codes)
    calls = {
        "opened tokens": lambda: (tokens[:], tokens.labels),
        "pickled tokens": lambda: (pickle.loads(copied)[:], LABELS),
    }
    for name, call in calls.items():
        yield "content of a folder of tokens", name, compare(call, lambda: (codes, LABELS))
    clf.set_params(n_jobs=2)
    found = compare(lambda: (clf.predict_joint_log_proba(tokens),), lambda: (wanted,))
    yield "content of a folder of tokens", WORKERS[0], found
    job = JOB | properties.truncated_files(folder / "truncated")
    with patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", True):
        fitted(job, memory=folder / "memory")
    result = STALE
    try:
        fitted(job, memory=folder / "memory")
    except BadImage:  # as without earlier results
        result = RIGHT
    yield "Pillow's `LOAD_TRUNCATED_IMAGES`", MEMORY[0], result
    clf = fitted(JOB, memory=folder / "memory")
    clf.predict(DIGITS)
    clf.partial_fit(TURNED, LABELS)
    found, clf.memory = clf.predict_joint_log_proba(DIGITS), None
    result = compare(lambda: (found,), lambda: (clf.predict_joint_log_proba(DIGITS),))
    yield "images in `partial_fit`", MEMORY[0], result


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--only", default="", help="test properties whose name contains this text")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    start, here, lines = time.process_time(), os.getcwd(), []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        # workers inherit the path when they start; compiled code would hide changes of a module
        stack = patch.multiple(sys, path=[name, *sys.path], dont_write_bytecode=True)
        with stack, patch.dict(vars(sys.modules["__main__"])):
            for i, ((name, change, *values), paths, mix) in enumerate(rows(folder)):
                if args.only in name:
                    changed, cells = examine(change, values, paths, mix, folder / f"results{i}")
                    lines.append([name, "yes" if changed else "no", *cells.values()])
                    print(*lines[-1], sep=" | ", flush=True)
                os.chdir(here)
            others = list(other_rows(folder))
    cells = [cell for line in lines for cell in line[2:] if cell] + [row[2] for row in others]
    counts = Counter(cell if cell in (RIGHT, REFUSED, STALE) else "errors" for cell in cells)
    text = common.page(
        "Stale answers",
        "Measured with `python -m benchmarks.reliability.stale_answers` on "
        f"{common.machine()}, torch {torch.__version__}, in {time.process_time() - start:.0f} s. "
        "The first columns contain a property of the input or a setting, and whether the answer "
        "changes with this property. In each of the other columns, a first call stores results. "
        "Then only this property changes, and a second call may use the results of the first call. "
        "The second answer is *right* if it equals the answer that is computed without earlier "
        "results, and *stale* otherwise. *Refused* means that an error says that the folder "
        "contains results of another call. In some rows, both calls have equal answers, but the "
        "folder refuses the second call, because the data have another type. The column *equal "
        "images* tests whether `fit` merges only images that are equal after decoding.",
        f"{len(cells)} answers: {counts[RIGHT]} right, {counts[REFUSED]} refused, "
        f"{counts[STALE]} stale, {counts['errors']} other errors.",
        common.table(["property", "changes", *HEADS], lines),
        "Other places that keep results:",
        common.table(["property", "place", "answer"], others),
    )
    common.write_page(args.output / "stale_answers.md", text)
    if counts[STALE] or counts["errors"]:
        raise SystemExit(f"{counts[STALE]} stale answers, {counts['errors']} other errors.")


if __name__ == "__main__":
    main()

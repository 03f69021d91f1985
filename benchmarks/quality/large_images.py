"""Letters of 64, 128 and 256 pixels: which patches, cut from the image or from a smaller one?

    python benchmarks/large_images.py

The classifier with its defaults but for the tokenizer; SVC reads the pixels. Writes
``results/large_images.json``, after each row, and the page ``results/large_images.md``.
"""

import json
import sys
import time
import warnings

import numpy as np
from digits import HERE, machine
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from skaocls import AnyOrderARClassifier, PatchTokenizer

sys.path.append(str(HERE / "claims"))
import data
from contestants import CHARACTERS

RECORD, PAGE = HERE / "results" / "large_images.json", HERE / "results" / "large_images.md"
N = 80  # images of each letter, a quarter held out
# Pixels of the images; to which they are made smaller first; of a patch, none for SVC; codes
TRIED = (
    (64, 64, 8), (64, 32, 4), (64, 32, None), (64, 64, 4), (64, 32, 2), (64, 32, 2, 32),
    (64, 64, 16), (64, 16, 2),
    (128, 128, 16), (128, 32, 4), (128, 32, None), (128, 64, 8), (128, 128, 8),
    (256, 256, 32), (256, 32, 4), (256, 32, None),
)  # fmt: skip


def shrunk(images, side):
    """By the mean of squares of pixels."""
    n, height, _, channels = images.shape
    times = height // side
    return images.reshape(n, side, times, side, times, channels).mean((2, 4), dtype=np.float32)


def run(pixels, side, patch, n_codes="auto", *, seed=0):
    data.GLYPH_SIZE = pixels
    X, y, *_ = data.glyphs(seed, characters=CHARACTERS, n_train=N, n_test=1)
    X = shrunk(X, side)
    X, X_held, y, y_held = train_test_split(X, y, test_size=0.25, stratify=y, random_state=seed)
    clf = SVC(C=10)
    if patch is None:
        X, X_held = X.reshape(len(X), -1), X_held.reshape(len(X_held), -1)
    else:
        clf = AnyOrderARClassifier(
            tokenizer=PatchTokenizer(patch, n_codes=n_codes), random_state=seed
        )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(X, y)
    row = {"accuracy": clf.score(X_held, y_held), "seconds": time.perf_counter() - start}
    if patch is not None:
        row |= {"tokens": clf.prior_.n_tokens, "codes": clf.tokenizer_.n_codes_}
    return row | {"machine": machine()}


def main():
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for tried in TRIED:
        key = json.dumps(tried)
        if key not in record:
            record[key] = run(*tried)
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
            print(tried, record[key], flush=True)
    machines = "; ".join(sorted({row["machine"] for row in record.values()}))
    lines = [
        "# Larger images",
        "",
        f"`python benchmarks/large_images.py`; {machines}. {len(CHARACTERS)} letters, {N} images "
        "of each, a quarter held out; one seed. The classifier has defaults but for the patches. "
        "Seconds are rough, other work ran beside.",
        "",
        "| pixels | made smaller to | patch | tokens | codes | fit and score, s | accuracy, % |",
        "|---" * 7 + "|",
    ]
    for tried in TRIED:
        row = record[json.dumps(tried)]
        pixels, side, patch, *_ = tried
        smaller = "" if side == pixels else side
        sizes = f"{patch} | {row['tokens']} | {row['codes']}" if patch else "`SVC(C=10)` | | "
        lines.append(
            f"| {pixels} | {smaller} | {sizes} | {row['seconds']:.0f} "
            f"| {100 * row['accuracy']:.1f} |"
        )
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

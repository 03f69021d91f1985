"""Letters of 64 and 128 pixels: patches of which size, cut from the image or from a smaller one?

    python benchmarks/large_images.py

Naive Bayes reads the tokens, as in ``benchmarks/light.py``. Writes ``results/large_images.json``,
after each row, and the page ``results/large_images.md``.
"""

import json
import sys
import time
import warnings

import numpy as np
from digits import HERE, machine
from light import TokenBayes
from sklearn.model_selection import train_test_split

from skaocls import PatchTokenizer

sys.path.append(str(HERE / "claims"))
import data
from contestants import CHARACTERS

RECORD, PAGE = HERE / "results" / "large_images.json", HERE / "results" / "large_images.md"
N = 40  # images of each letter, a quarter held out
# Pixels of the images; to which they are made smaller first; of a patch
TRIED = (
    (64, 64, 8), (64, 32, 4), (64, 64, 6), (64, 64, 4), (64, 32, 2),
    (128, 128, 16), (128, 64, 8), (128, 32, 4), (128, 128, 11), (128, 64, 6), (128, 128, 8),
    (128, 64, 4),
)  # fmt: skip


def shrunk(images, side):
    """By the mean of squares of pixels."""
    n, height, _, channels = images.shape
    times = height // side
    return images.reshape(n, side, times, side, times, channels).mean((2, 4), dtype=np.float32)


def run(pixels, side, patch, seed=0):
    data.GLYPH_SIZE = pixels
    X, y, *_ = data.glyphs(seed, characters=CHARACTERS, n_train=N, n_test=1)
    X = shrunk(X, side)
    X, X_held, y, y_held = train_test_split(X, y, test_size=0.25, stratify=y, random_state=seed)
    tokenizer = PatchTokenizer(patch, normalize="image", random_state=seed)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bayes = TokenBayes(tokenizer).fit(X, y)
    seconds = time.perf_counter() - start
    rows, cols = tokenizer.grid_
    return {
        "tokens": rows * cols, "codes": tokenizer.n_codes_, "seconds": seconds,
        "accuracy": float((bayes.predict(X_held) == y_held).mean()), "machine": machine(),
    }  # fmt: skip


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
        f"`python benchmarks/large_images.py`; {machines}. Ten letters, {N} images of each, a "
        "quarter held out; the images standardized. Naive Bayes on the tokens.",
        "",
        "| pixels | made smaller to | patch | tokens | codes | accuracy, % |",
        "|---" * 6 + "|",
    ]
    for key, row in record.items():
        pixels, side, patch = json.loads(key)
        smaller = "" if side == pixels else side
        lines.append(
            f"| {pixels} | {smaller} | {patch} | {row['tokens']} | {row['codes']} "
            f"| {100 * row['accuracy']:.0f} |"
        )
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

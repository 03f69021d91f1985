"""Patch sizes for letters of 64, 128 and 256 pixels, at full size and downscaled.

    python -m benchmarks.quality.large_images

The classifier has default parameters except for the tokenizer. `SVC` uses pixel values. Writes
``large_images.json`` after each job, and ``large_images.md``.
"""

import json
import warnings

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from skaocls import AnyOrderARClassifier, PatchTokenizer

from .. import common
from ..claims import data
from ..claims.contestants import CHARACTERS

N_IMAGES = 80  # of each letter, a quarter held out
# Size of the images, size after downscaling, size of a patch (None for SVC), codes
JOBS = (
    (64, 64, 8), (64, 32, 4), (64, 32, None), (64, 64, 4), (64, 32, 2), (64, 32, 2, 32),
    (64, 64, 16), (64, 16, 2),
    (128, 128, 16), (128, 32, 4), (128, 32, None), (128, 64, 8), (128, 128, 8),
    (256, 256, 32), (256, 32, 4), (256, 32, None),
)  # fmt: skip


def downscaled(images, side):
    """Average blocks of pixels."""
    n, height, _, channels = images.shape
    factor = height // side
    return images.reshape(n, side, factor, side, factor, channels).mean((2, 4), dtype=np.float32)


def run(job):
    pixels, side, patch, *n_codes = job
    data.GLYPH_SIZE = pixels
    X, y, *_ = data.glyphs(0, characters=CHARACTERS, n_train=N_IMAGES, n_test=1)
    X = downscaled(X, side)
    X, X_held, y, y_held = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
    if patch is None:
        clf = SVC(C=10)
        X, X_held = X.reshape(len(X), -1), X_held.reshape(len(X_held), -1)
    else:
        tokenizer = PatchTokenizer(patch, n_codes=n_codes[0] if n_codes else "auto")
        clf = AnyOrderARClassifier(tokenizer=tokenizer, random_state=0)
    seconds, accuracy = common.timed(lambda: clf.fit(X, y).score(X_held, y_held))
    result = {"accuracy": accuracy, "seconds": seconds}
    if patch is not None:
        result |= {"tokens": clf.prior_.n_tokens, "codes": clf.tokenizer_.n_codes_}
    return result | {"machine": common.machine()}


def page(record):
    rows = []
    for job in JOBS:
        result = record[json.dumps(job)]
        pixels, side, patch, *_ = job
        sizes = (patch, result["tokens"], result["codes"]) if patch else ("`SVC(C=10)`", "", "")
        rows.append([pixels, "" if side == pixels else side, *sizes])
        rows[-1] += [f"{result['seconds']:.0f}", f"{100 * result['accuracy']:.1f}"]
    heads = ["pixels", "downscaled to", "patch", "tokens", "codes", "fit and score, s"]
    return common.page(
        "Larger images",
        "Measured with `python -m benchmarks.quality.large_images` on "
        f"{common.machines(record.values())}. The data are {N_IMAGES} images of each of "
        f"{len(CHARACTERS)} letters, for one seed. A quarter of the images is held out to measure "
        "the accuracy. The classifier has default parameters except for the patch size and the "
        "number of codes. Other programs ran on the machine at the same time, so the times are "
        "not exact.",
        common.table([*heads, "accuracy, %"], rows),
    )


def main(argv=None):
    args = common.parser(__doc__).parse_args(argv)
    warnings.simplefilter("ignore")
    record = common.add_missing(args.output / "large_images.json", JOBS, run)
    common.write_page(args.output / "large_images.md", page(record))


if __name__ == "__main__":
    main()

"""The classifier of 1000 made-up characters that other benchmarks score with.

    python benchmarks/characters.py folder

Trains it, in under half an hour on two cores, and saves it to the folder.
"""

import json
import sys
import time
from pathlib import Path

from digits import PLAIN
from strokes import characters

from skaocls import AnyOrderARClassifier, PatchTokenizer

N_CLASSES = 1000
PER_CLASS = 100
EPOCHS = 20
TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 0, 1, 2


def trained(folder, n_classes=N_CLASSES, per_class=PER_CLASS, epochs=EPOCHS, architecture="randar"):
    """The classifier, from the folder if it is there already."""
    if (Path(folder) / "config.json").exists():
        return AnyOrderARClassifier.from_pretrained(folder)
    X, y = characters(n_classes, per_class, TRAIN_SEED)
    clf = AnyOrderARClassifier(
        prior={
            "architecture": architecture,
            "dim": 64,
            "n_layer": 2,
            "n_head": 4,
            "multiple_of": 64,
        },
        tokenizer=PatchTokenizer(patch_size=6, n_codes=512),
        **PLAIN,
        augmentation=None,
        max_iter=epochs,
        batch_size=128,
        random_state=0,
        verbose=1,
    )
    start = time.perf_counter()
    clf.fit(X, y)
    clf.save_pretrained(folder)
    facts = {"fit_s": time.perf_counter() - start, "loss_curve": clf.loss_curve_}
    (Path(folder) / "training.json").write_text(json.dumps(facts, indent=1))
    return clf


if __name__ == "__main__":
    trained(sys.argv[1])

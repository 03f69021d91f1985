"""Programs that test_torchrun.py runs on two ranks, and helpers that it shares with them."""

import atexit
import faulthandler
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch import distributed as dist

from skaocls import AnyOrderARClassifier, FineTuning, PatchTokenizer, distributed
from skaocls.training import checkpoints, defaults

TIMEOUT = 1200  # seconds after which a hanging process ends itself
SHORT = {"max_iter": 2}
# The tokenizer reads 530 images in two batches. A batch of 51 images is not divisible by two.
CASES = {
    "weighted": {"augmentation": 3, "verbose": 1},  # 50 steps
    "accumulating": SHORT | {"early_stopping": True, "temperature": "auto"},
    "mixed precision": SHORT | {"precision": "bfloat16"},
    "extended": {"max_iter": 1},
}
SMALL_BUDGET = 2 * 10**6  # bytes of activations of about ten images


def data():
    """Return training images, their labels, and test images."""
    digits = load_digits(n_class=3)
    return digits.images[:530], digits.target[:530], digits.images[500:]


def make(case="weighted", **params):
    sizes = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
    default = {"prior": sizes, "tokenizer": PatchTokenizer(n_codes=16), "augmentation": None}
    default |= {"max_iter": 5, "batch_size": 51, "learning_rate_init": 1e-3, "n_orders": 3}
    default |= {"random_state": 0, "device": "cpu"}
    return AnyOrderARClassifier(**(default | CASES[case] | params))


def fit(case, clf=None):
    """Fit a classifier in the way that the case describes."""
    X, y, _ = data()
    clf = make(case) if clf is None else clf
    if case == "extended":
        clf.fit(X[y < 2], y[y < 2]).set_params(finetune=FineTuning(dropout=0.0))
        return clf.partial_fit(X[y == 2], y[y == 2])
    weights = np.random.RandomState(0).rand(len(y)) if case == "weighted" else None
    budget = defaults.ACTIVATION_BUDGET
    defaults.ACTIVATION_BUDGET = SMALL_BUDGET if case == "accumulating" else budget
    try:
        return clf.fit(X, y, weights)
    finally:
        defaults.ACTIVATION_BUDGET = budget


def results(clf):
    """Return everything that a classifier learned, and its predictions, as arrays."""
    priors = clf.model_.priors
    arrays = {f"{i}.{k}": v for i, p in enumerate(priors) for k, v in p.state_dict().items()}
    arrays |= {"loss": np.array(clf.loss_curve_), "temperature": np.array(clf.temperature_)}
    arrays |= {"scores": np.array(clf.validation_scores_ or []), "best": np.array(clf.best_iter_)}
    return arrays | {"proba": clf.predict_proba(data()[2])}


def save_results(folder, name, clf):
    """Save the results of this rank, with predictions that it computed alone."""
    arrays = {k: np.asarray(v) for k, v in results(clf).items()}
    with distributed.single_process():
        arrays["proba of one process"] = clf.predict_proba(data()[2])
    np.savez(folder / f"{name}-{distributed.rank()}.npz", **arrays)


def error_message(function):
    try:
        function()
    except (OSError, ValueError) as exc:
        return str(exc)
    return "no error"


def fit_and_predict(folder):
    """Fit all cases; save error messages and the number of warnings."""
    for name in CASES:
        save_results(folder, name, fit(name))
    X, y, _ = data()
    short = {"max_iter": 1, "memory": folder / "memory"}
    unseeded = make("extended", random_state=None, **short)
    save_results(folder, "unseeded", unseeded.fit(X, y))
    save_results(folder, "cached", unseeded.fit(X, y))
    labels = y if distributed.is_main() else y[::-1]
    messages = [error_message(lambda: make("extended").fit(X, labels))]
    # the last file does not exist; only the second rank reads it
    files = [str(folder / f"{distributed.rank()}-{i}.png") for i in range(4)]
    for i, file in enumerate(files[:3]):
        Image.fromarray((X[i] * 15).astype(np.uint8)).save(file)
    with warnings.catch_warnings(record=True) as caught:
        clf = make("extended", image_shape=(8, 8), batch_size=1).fit(files[:3], y[:3])
    messages.append(error_message(lambda: clf.predict(files)))
    messages.append(f"{len(caught)} warnings")
    program = "from skaocls import distributed; print(distributed.world_size())"
    started = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    messages.append(f"world size of a program that the rank starts: {started.stdout.strip()}")
    (folder / f"messages-{distributed.rank()}.txt").write_text("\n".join(messages))


def lose_one_rank(folder):
    """Save a checkpoint after each step. Rank 1 ends after step 14; save the error of rank 0."""
    original, steps = checkpoints.Checkpoints.save_if_due, iter(range(1, 15))

    def save_and_end(self, state):
        original(self, state)
        if next(steps) == 14 and distributed.rank() == 1:
            os._exit(0)  # torchrun does not stop the other rank

    checkpoints.INTERVAL_FACTOR = 0
    checkpoints.Checkpoints.save_if_due = save_and_end
    try:
        fit("weighted", make(checkpoint_dir=folder / "two"))
    except distributed.PeerError as error:
        (folder / "error.txt").write_text(str(error))


def resume(folder):
    """Continue from the checkpoints of one process and of two."""
    for number in ("one", "two"):
        clf = fit("weighted", make(checkpoint_dir=folder / number))
        save_results(folder, f"{number}, then two", clf)


def leave(folder):
    """Fit, and save the names of gloo's threads that are left at exit (on Linux)."""
    file = folder / f"threads-{os.environ['RANK']}.txt"

    def save_thread_names():
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        file.write_text("".join(name for name in names if "gloo" in name))

    atexit.register(save_thread_names)  # runs last because it is registered first
    fit("extended")
    save_thread_names()
    assert not Path("/proc/self/task").exists() or file.read_text().count("gloo") > 1
    distributed.all_gather("the end")


def leave_group_of_caller(folder):
    """Like `leave`, with a process group that the caller creates and destroys."""
    dist.init_process_group("gloo")
    leave(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    programs = (fit_and_predict, lose_one_rank, resume, leave, leave_group_of_caller)
    {function.__name__: function for function in programs}[sys.argv[1]](Path(sys.argv[2]))

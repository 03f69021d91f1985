"""What test_torchrun.py has the processes of torchrun do, and one process, to compare."""

import atexit
import faulthandler
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch import distributed as dist

from skaocls import AnyOrderARClassifier, PatchTokenizer, distributed
from skaocls.training import checkpoints

SECONDS = 400  # after which a process ends itself: none is left hanging
SHORT = {"max_iter": 2}
GROWING = {"max_iter": 1}
# 530 images are two lots for the tokenizer; a batch of 51 does not divide by two
CASES = {
    "ddp": {"augmentation": 3, "weighted": True, "verbose": 1},  # 50 steps
    "accumulating": SHORT | {"micro_batch_size": 10, "early_stopping": True, "temperature": "auto"},
    "fsdp": SHORT
    | {"parallel": "fsdp", "micro_batch_size": 20, "early_stopping": True, "augmentation": 2},
    "mixed": SHORT | {"precision": "bfloat16"},
    "mixed, fsdp": SHORT | {"precision": "bfloat16", "parallel": "fsdp", "weighted": True},
    "grown": GROWING,
}


def data():
    """Training images and labels, and others."""
    digits = load_digits(n_class=3)
    return digits.images[:530], digits.target[:530], digits.images[500:]


def make(case="ddp", **params):
    sizes = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
    defaults = {"prior": sizes, "tokenizer": PatchTokenizer(n_codes=16), "augmentation": None}
    defaults |= {"max_iter": 5, "batch_size": 51, "learning_rate_init": 1e-3, "n_orders": 3}
    wanted = defaults | {"random_state": 0, "device": "cpu"} | CASES[case] | params
    return AnyOrderARClassifier(**{k: v for k, v in wanted.items() if k != "weighted"})


def fit(case, clf=None):
    """A classifier fitted as that case says."""
    X, y, _ = data()
    clf = make(case) if clf is None else clf
    if CASES[case] is GROWING:
        clf.fit(X[y < 2], y[y < 2]).set_params(finetune_dropout=0.0)
        return clf.partial_fit(X[y == 2], y[y == 2])
    weights = np.random.RandomState(0).rand(len(y)) if "weighted" in CASES[case] else None
    return clf.fit(X, y, weights)


def learned(clf):
    """All that was learned, as arrays."""
    priors = [clf.prior_, *clf.added_priors_]
    found = {f"{i}.{k}": v for i, p in enumerate(priors) for k, v in p.state_dict().items()}
    found |= {"loss": np.array(clf.loss_curve_), "T": np.array(clf.temperature_)}
    found |= {"scores": np.array(clf.validation_scores_ or []), "best": np.array(clf.best_iter_)}
    return found | {"proba": clf.predict_proba(data()[2])}


def keep(folder, name, clf):
    arrays = {k: np.asarray(v) for k, v in learned(clf).items()}
    with distributed.single_process():
        arrays["alone"] = clf.predict_proba(data()[2])
    np.savez(folder / f"{name}-{distributed.rank()}.npz", **arrays)


def message(function):
    try:
        function()
    except (OSError, ValueError) as exc:
        return str(exc)
    return "no error"


def work_together(folder):
    for name in CASES:
        keep(folder, name, fit(name))
    X, y, _ = data()
    short = {"max_iter": 1, "memory": folder / "memory"}
    unseeded = make("grown", random_state=None, **short)
    keep(folder, "unseeded", unseeded.fit(X, y))
    keep(folder, "kept", unseeded.fit(X, y))
    main = distributed.is_main()
    said = [message(lambda: make("grown").fit(X, y if main else y[::-1]))]
    # an image that only the second process reads
    files = [str(folder / f"{distributed.rank()}-{i}.png") for i in range(4)]
    for i, file in enumerate(files):
        if i < 3:
            Image.fromarray((X[i] * 15).astype(np.uint8)).save(file)
    with warnings.catch_warnings(record=True) as warned:
        clf = make("grown", image_shape=(8, 8), batch_size=1).fit(files[:3], y[:3])
    said.append(message(lambda: clf.predict(files)))
    said.append(f"{len(warned)} warnings")
    (folder / f"said-{distributed.rank()}.txt").write_text("\n".join(said))


def die(folder):
    """Rank 1 is killed in step 14, after a checkpoint of each step."""
    whole, count = checkpoints.Checkpoints.keep, iter(range(13, -1, -1))

    def keep_and_die(self, state):
        whole(self, state)
        if next(count) == 0 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.SHARE = 0
    checkpoints.Checkpoints.keep = keep_and_die
    fit("ddp", make(checkpoint_dir=folder / "two"))


def go_on(folder):
    keep(folder, "one, then two", fit("ddp", make(checkpoint_dir=folder / "one")))
    params = {"checkpoint_dir": folder / "two", "parallel": "fsdp"}
    keep(folder, "two, then two", fit("ddp", make(**params)))


def part(folder):
    """They talk until the end; then says which of gloo's threads are left, where Linux tells."""
    file = folder / f"threads-{os.environ['RANK']}.txt"

    def tell():
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        file.write_text("".join(name for name in names if "gloo" in name))

    atexit.register(tell)  # what is registered first is called last
    fit("grown")
    tell()
    assert not Path("/proc/self/task").exists() or file.read_text().count("gloo") > 1
    distributed.all_gather("the end")


def part_as_called(folder):
    """The same, where the caller sets up torch.distributed and ends it."""
    dist.init_process_group("gloo")
    part(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    todo = (work_together, die, go_on, part, part_as_called)
    {function.__name__: function for function in todo}[sys.argv[1]](Path(sys.argv[2]))

"""Fine-tuning against training from scratch, with few images.

    python -m benchmarks.quality.finetuning [--characters]

A small prior is trained on the digits 0-6, saved and loaded. It is then fine-tuned to the digits
7-9 and to all ten, with 5, 10 and 50 images per class. All methods take the same number of steps.
With ``--characters``, the prior is trained on 200 synthetic characters and fine-tuned to 100
others. Writes ``finetuning.json`` and ``finetuning.md``, or ``finetuning_characters.json`` and
``finetuning_characters.md``.
"""

import json
import tempfile

import numpy as np

import skaocls
from skaocls import AnyOrderARClassifier, FineTuning

from .. import common
from ..characters import TEST_SEED, TOKENIZER, TRAIN_SEED, characters

SHOTS = (5, 10, 50)
N_ORDERS = 8
METHODS = {
    "from scratch": None,
    "from scratch, larger, five times the steps": None,
    "full": FineTuning("full"),
    "full, no dropout": FineTuning("full", dropout=0.0),
    "full, no dropout, from the null class": FineTuning("full", dropout=0.0, new_classes="null"),
    "lora": FineTuning("lora"),
    "lora, no dropout": FineTuning("lora", dropout=0.0),
    "class_embedding": FineTuning("class_embedding"),
    "class_embedding, from the null class": FineTuning("class_embedding", new_classes="null"),
    "head": FineTuning("head"),
}


def n_trainable(clf, finetuning):
    """Count the parameters that training changes."""
    sizes = {name: p.numel() for name, p in clf.prior_.named_parameters()}
    table = len(clf.classes_) * clf.prior_.class_table.shape[1]
    mode = "full" if finetuning is None else finetuning.mode
    if mode == "class_embedding":
        return table
    if mode == "head":
        return sum(size for name, size in sizes.items() if name.startswith("head."))
    if mode == "lora":
        matrices = [p for _, p in clf.prior_.layers.named_parameters() if p.ndim == 2]
        return table + finetuning.lora_rank * sum(sum(p.shape) for p in matrices)
    return sum(sizes.values())


def finetune(name, train, test, *, seed, batch, steps, folder, **settings):
    """Train one method for a number of steps, and return its accuracy and cost."""
    (X, y), finetuning = train, METHODS[name]
    clf = AnyOrderARClassifier(
        n_orders=N_ORDERS, random_state=seed, **common.LIKELIHOOD_ONLY, **settings
    )
    if finetuning is not None:
        clf.set_params(prior=folder, finetune=finetuning)
    elif "larger" in name:
        clf.set_params(prior=common.SMALL_PRIOR)
        steps *= 5
    clf.set_params(batch_size=batch, max_iter=-(-steps // (len(X) // batch)))
    seconds, _ = common.timed(clf.fit, X, y)
    return {
        "method": name,
        "accuracy": clf.score(*test),
        "trainable": n_trainable(clf, finetuning),
        "seconds": seconds,
        "passes": clf.model_.readings,
    }


def measure_digits(seed, steps, shots, folder):
    X_train, X_test, y_train, y_test = common.digits(seed)
    old = y_train < 7
    clf = AnyOrderARClassifier("randar", random_state=seed, **common.LIKELIHOOD_ONLY)
    clf.fit(X_train[old], y_train[old]).save_pretrained(folder)
    print(f"seed {seed}: trained on digits 0-6 for {clf.n_iter_} epochs", flush=True)
    rng, rows = np.random.RandomState(seed), []
    for task, digits in (("7-9", range(7, 10)), ("0-9", range(10))):
        tested = np.isin(y_test, digits)
        test = X_test[tested], y_test[tested]
        order = rng.permutation(len(y_train))
        for n in shots:
            chosen = np.concatenate([order[y_train[order] == d][:n] for d in digits])
            train = X_train[chosen], y_train[chosen]
            batch = min(len(chosen), int(np.clip(len(chosen) // 8, 16, 64)))
            job = {"seed": seed, "batch": batch, "steps": steps, "folder": folder}
            for name in METHODS:
                row = finetune(name, train, test, **job)
                rows.append({"seed": seed, "task": task, "shots": n} | row)
                print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_characters(args, folder):
    """Train a prior on some characters, and fine-tune it to others."""
    X, y = characters(args.old + args.new, args.per_class, TRAIN_SEED)
    X_test, y_test = characters(args.old + args.new, 3, TEST_SEED)
    old, new, tested = y < args.old, y >= args.old, y_test >= args.old
    scratch = {"augmentation": None, "tokenizer": TOKENIZER()}
    clf = AnyOrderARClassifier(
        {"architecture": "randar"} | common.SMALL_PRIOR,
        max_iter=args.character_epochs,
        random_state=0,
        **common.LIKELIHOOD_ONLY,
        **scratch,
    )
    clf.fit(X[old], y[old]).save_pretrained(folder)
    rows = []
    for n in args.character_shots:
        chosen = np.flatnonzero(new).reshape(args.new, -1)[:, :n].ravel()
        train, test = (X[chosen], y[chosen]), (X_test[tested], y_test[tested])
        job = {"seed": 0, "batch": min(64, len(chosen)), "steps": args.character_steps}
        for name, finetuning in METHODS.items():
            if any(word in name for word in ("larger", "null", "no dropout")):
                continue
            own = {"augmentation": None}
            if finetuning is None:
                own = scratch | {"prior": common.SMALL_PRIOR}
            row = finetune(name, train, test, folder=folder, **job, **own)
            rows.append({"seed": 0, "shots": n, "task": "characters"} | row)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def result_table(rows):
    """Return a table with a column for each number of images per class."""
    all_shots = sorted({r["shots"] for r in rows})
    lines = []
    for task, name in dict.fromkeys((r["task"], r["method"]) for r in rows):
        results = [r for r in rows if r["task"] == task and r["method"] == name]
        cells = []
        for shots in all_shots:
            scores = [r["accuracy"] for r in results if r["shots"] == shots]
            spread = f" ± {np.std(scores):.3f}" if len(scores) > 1 else ""
            cells.append(f"{np.mean(scores):.3f}{spread}")
        counts = sorted({r["trainable"] for r in results})
        cells.append(f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}")
        seconds = np.mean([r["seconds"] for r in results])
        lines.append([task, name, *cells, results[0]["passes"], f"{seconds:.0f}"])
    heads = ["classes", "method", *(f"{n} per class" for n in all_shots), "trainable parameters"]
    return common.table([*heads, "transformer passes", "fit, s"], lines)


def page(record):
    settings, rows = record["settings"], record["rows"]
    if settings["characters"]:
        title, option = "many characters", " --characters"
        measured, means = f"after about {settings['character_steps']} training steps", ""
        trained_on = (
            f"{settings['old']} characters that are not among the {settings['new']} characters of "
            "this test"
        )
    else:
        title, option, trained_on = "few digits", "", "the digits 0-6"
        measured = f"after about {settings['steps']} training steps"
        means = f": mean and standard deviation over {len(settings['seeds'])} seeds"
    return common.page(
        f"Fine-tuning on {title}",
        f"Measured with `python -m benchmarks.quality.finetuning{option}` on {record['machine']}, "
        f"skaocls {record['skaocls']}.",
        f"The table contains test accuracies {measured}, with {N_ORDERS} orders{means}. "
        "Fine-tuning starts from a prior that has the published architecture and was trained on "
        f"{trained_on}. *Transformer passes* are the forward passes needed to score one image in "
        "one order." + record.get("note", ""),
        result_table(rows),
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS, help="images per class")
    parser.add_argument("--characters", action="store_true", help="use characters, not digits")
    parser.add_argument("--old", type=int, default=200, help="characters of the first training")
    parser.add_argument("--new", type=int, default=100, help="characters of the fine-tuning")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--character-epochs", type=int, default=15)
    parser.add_argument("--character-steps", type=int, default=200)
    parser.add_argument("--character-shots", type=int, nargs="+", default=[20])
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if args.characters:
            rows = measure_characters(args, folder)
        else:
            rows = [
                row
                for seed in args.seeds
                for row in measure_digits(seed, args.steps, args.shots, folder)
            ]
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    about = {"machine": common.machine(), "skaocls": skaocls.__version__, "settings": settings}
    name = "finetuning_characters" if args.characters else "finetuning"
    record = common.write_json(args.output / f"{name}.json", about | {"rows": rows})
    common.write_page(args.output / f"{name}.md", page(record))


if __name__ == "__main__":
    main()

"""Fine-tuning against training from scratch, on few digits.

    python benchmarks/finetuning.py

A small prior is trained on the digits 0-6, saved, loaded, and fine-tuned to the digits 7-9 and to
all ten with 5, 10 and 50 images a class; every contestant takes the same number of steps. With
``--characters`` it is trained on 200 made-up characters (see ``strokes.py``) and fine-tuned to 100
others. Writes ``results/finetuning.json`` and ``results/finetuning.md`` beside this script, or
``results/finetuning_characters.json`` and its table.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from characters import TEST_SEED, TRAIN_SEED
from digits import HERE, PLAIN, machine
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from strokes import characters

import skaocls
from skaocls import AnyOrderARClassifier, PatchTokenizer

SHOTS = (5, 10, 50)
CONTESTANTS = {
    "from scratch": {},
    "from scratch, larger, five times the steps": {},
    "full": {"finetune": "full"},
    "full, no dropout": {"finetune": "full", "finetune_dropout": 0.0},
    "full, no dropout, from the null class": {
        "finetune": "full",
        "finetune_dropout": 0.0,
        "new_classes": "null",
    },
    "lora": {"finetune": "lora"},
    "lora, no dropout": {"finetune": "lora", "finetune_dropout": 0.0},
    "class_embedding": {"finetune": "class_embedding"},
    "class_embedding, from the null class": {
        "finetune": "class_embedding",
        "new_classes": "null",
    },
    "head": {"finetune": "head"},
}


def trainable(clf, params):
    """How many numbers training changes."""
    sizes = {name: p.numel() for name, p in clf.prior_.named_parameters()}
    table = len(clf.classes_) * clf.prior_.class_table.shape[1]
    mode = params.get("finetune", "full")
    if mode == "class_embedding":
        return table
    if mode == "head":
        return sum(size for name, size in sizes.items() if name.startswith("head."))
    if mode == "lora":
        matrices = [p for n, p in clf.prior_.layers.named_parameters() if p.ndim == 2]
        return table + clf.lora_rank * sum(sum(p.shape) for p in matrices)
    return sum(sizes.values())


def run(seed, steps, folder):
    X, y = load_digits().images, load_digits().target
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=seed
    )
    old = y_train < 7
    pretrained = AnyOrderARClassifier("randar", random_state=seed, **PLAIN).fit(
        X_train[old], y_train[old]
    )
    pretrained.save_pretrained(folder)
    print(f"seed {seed}: digits 0-6 learned in {pretrained.n_iter_} epochs", flush=True)
    rng, rows = np.random.RandomState(seed), []
    for task, digits in (("7-9", range(7, 10)), ("0-9", range(10))):
        test = np.isin(y_test, digits)
        order = rng.permutation(len(y_train))
        for shots in SHOTS:
            few = np.concatenate([order[y_train[order] == d][:shots] for d in digits])
            batch = min(len(few), int(np.clip(len(few) // 8, 16, 64)))
            some = X_train[few], y_train[few], X_test[test], y_test[test]
            for name, params in CONTESTANTS.items():
                row = finetuned(name, params, *some, seed, batch, steps, folder)
                rows.append({"seed": seed, "task": task, "shots": shots} | row)
                print(json.dumps(rows[-1]), flush=True)
    return rows


def finetuned(name, params, X, y, X_test, y_test, seed, batch, steps, folder, **settings):
    """How one contestant does, after so many steps on X and y."""
    clf = AnyOrderARClassifier(n_orders=8, random_state=seed, **PLAIN, **settings)
    longer = 1
    if params:
        clf.set_params(prior=folder, **params)
    elif "five" in name:
        clf.set_params(prior={"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64})
        longer = 5
    clf.set_params(batch_size=batch, max_iter=-(-longer * steps // (len(X) // batch)))
    start = time.perf_counter()
    clf.fit(X, y)
    seconds = time.perf_counter() - start
    accuracy = clf.score(X_test, y_test)
    row = {"contestant": name, "accuracy": accuracy, "trainable": trainable(clf, params)}
    return row | {"seconds": seconds, "readings": clf.model_.readings}


def run_characters(args, folder):
    """A prior of the published architecture learns some characters; then others are learned."""
    X, y = characters(args.old + args.new, args.per_class, TRAIN_SEED)
    X_test, y_test = characters(args.old + args.new, 3, TEST_SEED)
    old, new, test = y < args.old, y >= args.old, y_test >= args.old
    settings = {"augmentation": None, "tokenizer": PatchTokenizer(patch_size=6, n_codes=512)}
    sizes = {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
    pretrained = AnyOrderARClassifier(
        {"architecture": "randar"} | sizes,
        max_iter=args.character_epochs,
        random_state=0,
        **PLAIN,
        **settings,
    )
    pretrained.fit(X[old], y[old]).save_pretrained(folder)
    print(f"{args.old} characters learned", flush=True)
    rows = []
    for shots in args.character_shots:
        few = np.flatnonzero(new).reshape(args.new, -1)[:, :shots].ravel()
        some = X[few], y[few], X_test[test], y_test[test]
        for name, params in CONTESTANTS.items():
            if "five" in name or "null" in name or "no dropout" in name:
                continue
            own = {"augmentation": None} | ({} if params else settings | {"prior": sizes})
            own["search"] = "racing"  # a hundred classes, each of which reads the image anew
            batch = min(64, len(few))
            row = finetuned(name, params, *some, 0, batch, args.character_steps, folder, **own)
            rows.append({"seed": 0, "shots": shots, "task": "characters"} | row)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows):
    """Markdown, of rows that have the same shots."""
    shots_of = sorted({r["shots"] for r in rows})
    lines = [
        "| classes | contestant | " + " | ".join(f"{k} a class" for k in shots_of)
        + " | trainable numbers | readings | fit, s |",
        "|---" * (len(shots_of) + 5) + "|",
    ]  # fmt: skip
    for task, name in dict.fromkeys((r["task"], r["contestant"]) for r in rows):
        mine = [r for r in rows if r["task"] == task and r["contestant"] == name]
        cells = []
        for shots in shots_of:
            scores = [r["accuracy"] for r in mine if r["shots"] == shots]
            spread = f" ± {np.std(scores):.3f}" if len(scores) > 1 else ""
            cells.append(f"{np.mean(scores):.3f}{spread}")
        counts = sorted({r["trainable"] for r in mine})
        count = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        seconds = np.mean([r["seconds"] for r in mine])
        cells += [count, str(mine[0]["readings"]), f"{seconds:.0f}"]
        lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--characters", action="store_true", help="these instead of digits")
    parser.add_argument("--old", type=int, default=200, help="characters learned first")
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--character-epochs", type=int, default=15)
    parser.add_argument("--character-steps", type=int, default=200)
    parser.add_argument("--character-shots", type=int, nargs="+", default=[20])
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds if not args.characters else ():
            rows += run(seed, args.steps, folder)
        if args.characters:
            rows = run_characters(args, folder)
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    about = {"machine": machine(), "skaocls": skaocls.__version__, "settings": settings}
    if args.characters:
        name, title, option = "finetuning_characters", "many characters", " --characters"
        how = f"Test accuracy after about {args.character_steps} steps each"
        first = f"{args.old} characters, not on the {args.new} that are learned here,"
    else:
        name, title, option = "finetuning", "few digits", ""
        how = (
            f"Test accuracy, mean and standard deviation over {len(args.seeds)} seeds, after about "
            f"{args.steps} steps each"
        )
        first = "0-6"
    text = (
        f"# Fine-tuning on {title}\n\n"
        f"`python benchmarks/finetuning.py{option}`; {about['machine']}, skaocls "
        f"{skaocls.__version__}.\n\n"
        f"{how}, at 8 orders. The model that is fine-tuned was trained on {first} and has the "
        "published architecture. Readings: how often the transformer reads an image in each "
        "order.\n\n"
        f"{table(rows)}\n"
    )
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{name}.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    (args.output / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

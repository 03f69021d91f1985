"""Fine-tuning against training from scratch, on few digits.

    python benchmarks/finetuning.py

A small prior is trained on the digits 0-6, saved, loaded, and fine-tuned to the digits 7-9 and to
all ten with 5, 10 and 50 images a class; every contestant takes the same number of steps. Writes
``results/finetuning.json`` and the table ``results/finetuning.md`` beside this script.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from digits import HERE, machine
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import skaocls
from skaocls import AnyOrderARClassifier

SHOTS = (5, 10, 50)
CONTESTANTS = {
    "from scratch": {},
    "from scratch, larger, five times the steps": {},
    "full": {"finetune": "full"},
    "full, from the null class": {"finetune": "full", "new_classes": "null"},
    "lora": {"finetune": "lora"},
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
    pretrained = AnyOrderARClassifier("randar", random_state=seed).fit(X_train[old], y_train[old])
    pretrained.save_pretrained(folder)
    print(f"seed {seed}: digits 0-6 learned in {pretrained.n_iter_} epochs", flush=True)
    rng, rows = np.random.RandomState(seed), []
    for task, digits in (("7-9", range(7, 10)), ("0-9", range(10))):
        test = np.isin(y_test, digits)
        order = rng.permutation(len(y_train))
        for shots in SHOTS:
            few = np.concatenate([order[y_train[order] == d][:shots] for d in digits])
            for name, params in CONTESTANTS.items():
                clf = AnyOrderARClassifier(n_orders=8, random_state=seed)
                longer = 1
                if params:
                    clf.set_params(prior=folder, **params)
                elif "five" in name:
                    clf.set_params(prior={"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64})
                    longer = 5
                batch = min(len(few), int(np.clip(len(few) // 8, 16, 64)))
                clf.set_params(batch_size=batch, max_iter=-(-longer * steps // (len(few) // batch)))
                start = time.perf_counter()
                clf.fit(X_train[few], y_train[few])
                seconds = time.perf_counter() - start
                accuracy = clf.score(X_test[test], y_test[test])
                rows.append(
                    {"seed": seed, "task": task, "shots": shots, "contestant": name}
                    | {"accuracy": accuracy, "trainable": trainable(clf, params)}
                    | {"seconds": seconds, "readings": clf.model_.readings}
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows):
    lines = [
        "| digits | contestant | " + " | ".join(f"{k} a class" for k in SHOTS)
        + " | trainable numbers | readings | fit, s |",
        "|---" * (len(SHOTS) + 5) + "|",
    ]  # fmt: skip
    for task in ("7-9", "0-9"):
        for name in CONTESTANTS:
            mine = [r for r in rows if r["task"] == task and r["contestant"] == name]
            cells = []
            for shots in SHOTS:
                scores = [r["accuracy"] for r in mine if r["shots"] == shots]
                cells.append(f"{np.mean(scores):.3f} ± {np.std(scores):.3f}")
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
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows += run(seed, args.steps, folder)
    about = {"machine": machine(), "skaocls": skaocls.__version__, "steps": args.steps}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "finetuning.json").write_text(
        json.dumps(about | {"rows": rows}, indent=1) + "\n"
    )
    text = (
        "# Fine-tuning on few digits\n\n"
        f"`python benchmarks/finetuning.py`; {about['machine']}, skaocls {skaocls.__version__}.\n\n"
        f"Test accuracy, mean and standard deviation over {len(args.seeds)} seeds, after about "
        f"{args.steps} steps each, at 8 orders. What is fine-tuned was trained on 0-6, with the "
        "published architecture. Readings: of an image by the transformer, in each order.\n\n"
        f"{table(rows)}\n"
    )
    (args.output / "finetuning.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

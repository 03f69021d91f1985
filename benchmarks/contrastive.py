"""Fine-tuning for classification: contrast of classes against plain likelihood, at equal time.

    python benchmarks/contrastive.py

A classifier is fitted to the training images; then its prior goes on, on the same images, for as
many seconds of the processor each way: by likelihood, as ``fit`` does, or by condition-contrastive
alignment (CCA: Chen et al., arXiv 2410.09347), which raises

    log sigmoid(beta r(true class)) + weight * log sigmoid(-beta r(another class))

with r the log-likelihood ratio of the prior to where it started. beta and weight are chosen on a
quarter of the training images of the first seed. Scikit-learn's digits, and made-up characters (see
``strokes.py``), these with a shared trunk alone: a reading for each class takes hours. Writes
``results/contrastive.json`` and ``results/contrastive.md``.
"""

import argparse
import copy
import json
import time
import warnings

import numpy as np
import torch
from characters import TEST_SEED, TRAIN_SEED
from digits import HERE, PLAIN, machine
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from strokes import characters
from torch.nn import functional as F

from skaocls import AnyOrderARClassifier, PatchTokenizer, SharedTrunkPrior
from skaocls.fitted.tokenization import training_tokens
from skaocls.scoring.exhaustive import log_likelihoods
from skaocls.training.loop import AVERAGING, CLIP_NORM, schedule
from skaocls.training.optimizer import make_optimizer

PRIORS = {"a reading for each class": "randar", "shared trunk": "shared_trunk"}
SIZES = {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
TRIED = [(beta, weight) for beta in (0.02, 0.1, 0.5) for weight in (1.0, 10.0)]
BATCH = 32
FULL_RATE = 0.1 * 0.4 / SIZES["dim"]  # the classifier's own, for all weights of a given prior


def data(task, seed, args):
    """Images and labels to train on, and to test with."""
    if task == "digits":
        X, y = load_digits().images, load_digits().target
        X, X_test, y, y_test = train_test_split(X, y, stratify=y, random_state=seed)
    else:
        X, y = characters(args.classes, args.per_class, TRAIN_SEED + 10 * seed)
        X_test, y_test = characters(args.classes, 5, TEST_SEED + 10 * seed)
    return X, y, X_test, y_test


def fitted(task, architecture, X, y, seed, args):
    clf = AnyOrderARClassifier({"architecture": architecture} | SIZES, random_state=seed, **PLAIN)
    if task == "characters":
        tokenizer = PatchTokenizer(patch_size=6, n_codes=512)
        clf.set_params(tokenizer=tokenizer, augmentation=None, max_iter=args.epochs)
    return clf.fit(X, y)


def log_prob(prior, codes, orders, labels):
    """log p(codes | labels) along orders, (n, 2), under two labels each."""
    if isinstance(prior, SharedTrunkPrior):  # reads them once
        hidden, gold = prior.hidden(codes, orders), codes.gather(1, orders)
        base = prior.base(hidden)
        both = [
            prior.head.log_prob(base, prior.head.tilt(hidden, label[:, None]), gold)
            for label in labels.T
        ]
        return torch.stack(both, 1).sum(2)
    twice = (a.repeat_interleave(2, 0) for a in (codes, orders))
    return prior.log_prob(*twice, labels.flatten()).sum(1).view(-1, 2)


def go_on(prior, codes, y, seconds, seed, contrast=None):
    """A copy of the prior, trained for so many seconds more; `contrast` is (beta, weight)."""
    start, prior = prior, copy.deepcopy(prior).train()
    optimizer, random = make_optimizer(prior, FULL_RATE, 0.05), torch.Generator().manual_seed(seed)
    codes, y, n_classes = torch.as_tensor(codes).long(), torch.as_tensor(y), int(y.max()) + 1
    weights = list(prior.parameters())
    mean = [p.detach().clone() for p in weights]
    began, steps = time.process_time(), 0
    while (done := (time.process_time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = FULL_RATE * schedule(int(done * 1000), 1000)
        i = torch.randint(len(y), (BATCH,), generator=random)
        batch = codes[i, torch.randint(codes.shape[1], (BATCH,), generator=random)]
        order = torch.rand(BATCH, codes.shape[2], generator=random).argsort(1)
        if contrast is None:
            null = torch.rand(BATCH, generator=random) < 0.1
            loss = -prior.log_prob(batch, order, y[i].masked_fill(null, n_classes)).mean()
        else:
            beta, weight = contrast
            others = (y[i] + torch.randint(1, n_classes, (BATCH,), generator=random)) % n_classes
            labels = torch.stack([y[i], others], 1)
            with torch.no_grad():
                before = log_prob(start, batch, order, labels)
            r = beta * (log_prob(prior, batch, order, labels) - before)
            loss = -(F.logsigmoid(r[:, 0]) + weight * F.logsigmoid(-r[:, 1])).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
        optimizer.step()
        steps += 1
        with torch.no_grad():
            torch._foreach_lerp_(mean, weights, 1 - min(AVERAGING, steps / (steps + 10)))
    with torch.no_grad():
        torch._foreach_copy_(weights, mean)
    return prior.eval(), steps


def measures(prior, codes, y, orders):
    ll = log_likelihoods(prior, codes, orders, np.arange(y.max() + 1))
    joint = ll.mean(1)
    return {
        "accuracy": float((joint.argmax(1) == y).mean()),
        "one_order": float((ll.argmax(2) == y[:, None]).mean()),
        "nll": float(-log_softmax(joint, axis=1)[np.arange(len(y)), y].mean()),
    }


def views(clf, X):
    model = clf.model_
    reading = model.tokenizer, model.reader, model.reader.open(X)
    return training_tokens(*reading, clf.augmentation, np.random.RandomState(0))


def run(task, name, seed, args, contrast):
    """Rows of one start, and the setting that was chosen if none is given."""
    X, y, X_test, y_test = data(task, seed, args)
    if contrast is None:
        A, B, a, b = train_test_split(X, y, stratify=y, random_state=0)
        clf = fitted(task, PRIORS[name], A, a, seed, args)
        codes, held = views(clf, A), views(clf, B)[:, 0]
        tried = {}
        for each in TRIED:
            prior, _ = go_on(clf.prior_, codes, a, args.seconds, 0, each)
            tried[each] = measures(prior, held, b, clf.orders_)
            print(task, name, each, tried[each], flush=True)
        contrast = max(TRIED, key=lambda each: (tried[each]["accuracy"], -tried[each]["nll"]))
    clf = fitted(task, PRIORS[name], X, y, seed, args)
    codes, test = views(clf, X), views(clf, X_test)[:, 0]
    rows = [{"way": "start", "steps": 0} | measures(clf.prior_, test, y_test, clf.orders_)]
    for way, how in (("likelihood", None), ("contrast", contrast)):
        prior, steps = go_on(clf.prior_, codes, y, args.seconds, seed, how)
        rows.append({"way": way, "steps": steps} | measures(prior, test, y_test, clf.orders_))
    about = {"task": task, "prior": name, "seed": seed}
    rows = [about | row | {"beta": contrast[0], "weight": contrast[1]} for row in rows]
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows, contrast


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["digits", "characters"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8, help="of the processor, each way")
    parser.add_argument("--classes", type=int, default=100, help="characters")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=15, help="of the characters")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(1)  # seconds of the processor are those of one thread
    rows = []
    for task in args.tasks:
        for name in list(PRIORS) if task == "digits" else ["shared trunk"]:
            contrast = None
            for seed in range(args.seeds):
                more, contrast = run(task, name, seed, args, contrast)
                rows += more
    write(rows, args)


def write(rows, args):
    settings = {k: v for k, v in vars(args).items() if k != "tasks"}
    results = {"machine": machine(), "settings": settings, "rows": rows}
    (HERE / "results" / "contrastive.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "# Contrast of classes against likelihood",
        "",
        f"`python benchmarks/contrastive.py`; {results['machine']}. Digits, and {args.classes} "
        f"characters with {args.per_class} training images each; {args.seconds:.0f} seconds more "
        f"after `fit`; {args.seeds} seed{'s' * (args.seeds > 1)}, 20 orders.",
        "",
        "| data | prior | trained on by | accuracy | with 1 order | NLL | steps |",
        "|---" * 7 + "|",
    ]
    for key in dict.fromkeys((r["task"], r["prior"], r["way"]) for r in rows):
        mine = [r for r in rows if (r["task"], r["prior"], r["way"]) == key]
        way = key[2]
        if way == "contrast":
            way += f", beta {mine[0]['beta']:g}, weight {mine[0]['weight']:g}"
        cells = [
            f"{np.mean([r[k] for r in mine]):.4f}"
            + (f" ± {np.std([r[k] for r in mine]):.4f}" if len(mine) > 1 else "")
            for k in ("accuracy", "one_order", "nll")
        ]
        steps = f"{np.mean([r['steps'] for r in mine]):.0f}"
        lines.append(f"| {key[0]} | {key[1]} | {way} | {' | '.join(cells)} | {steps} |")
    (HERE / "results" / "contrastive.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

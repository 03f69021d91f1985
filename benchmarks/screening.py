"""Can all classes be ranked from a few gradients? A first-order screen.

    python benchmarks/screening.py

log p(tokens | class, order) depends on the class through its values in each layer alone. Linearized
in them at an anchor, one forward and backward pass ranks all classes at once. Measured: how often
the exhaustive winner is among the first k, by number of orders and anchors, against reading a
prefix of the tokens for all classes; and what a screen as round zero saves a race. On 300 made-up
characters, with a classifier that is trained first and kept in ``benchmarks/cache``. Writes
``results/screening.md``.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from characters import TEST_SEED, trained
from digits import HERE, machine
from racing import exhaustive
from strokes import characters

from skaocls.scoring.engine import Engine
from skaocls.scoring.racing import race
from skaocls.scoring.screening import COST, N_ANCHORS, Anchors, find_anchors, first_order

KEPT = (3, 10, 30, 100)
N_ORDERS = (1, 2, 4)


def null_anchor(prior):
    """The null class as the only anchor."""
    labels = torch.arange(prior.num_classes + 1)
    with torch.no_grad():
        values = prior.class_values(labels)
    nearest = torch.zeros(prior.num_classes, dtype=torch.long)
    return Anchors([v[-1:] for v in values], [v[:-1] - v[-1:] for v in values], nearest)


@torch.inference_mode()
def prefix(prior, codes, order, n_tokens):
    """log p(the first tokens | class, order), (n_images, n_classes)."""
    engine = Engine(prior, torch.arange(prior.num_classes))
    label = torch.arange(prior.num_classes)
    rows = []
    for image in codes:
        pairs = engine.pairs(image[None], order[None])
        log_prob, _ = engine.read(pairs, torch.zeros_like(label), label, 0, n_tokens)
        rows.append(log_prob.sum(1))
    return torch.stack(rows)


def recalls(scores, winners):
    rank = (scores > scores.gather(1, winners[:, None])).sum(1)
    return [(rank < k).double().mean().item() for k in KEPT]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--classes", type=int, default=300)
    args = parser.parse_args()
    folder = args.cache / f"characters-{args.classes}"
    clf = trained(folder, args.classes)
    X, _ = characters(args.classes, -(-args.images // args.classes), TEST_SEED)
    pick = np.sort(np.random.RandomState(0).permutation(len(X))[: args.images])
    tokens = clf.tokenizer_.transform(X[pick]).reshape(len(pick), -1)
    _, exact = exhaustive(clf, tokens, folder / "exhaustive")
    winners = torch.from_numpy(exact.argmax(1))
    codes, orders = torch.from_numpy(tokens).long(), torch.from_numpy(clf.orders_)
    prior = clf.prior_.eval()
    n_tokens = codes.shape[1]
    lines = [
        "# A first-order screen",
        "",
        f"`python benchmarks/screening.py`; {machine()}. A classifier of {args.classes} "
        f"made-up characters, {len(codes)} test images: share of images whose class by exhaustive "
        "search in 20 orders is among the k classes that the ranking puts first.",
        "",
        f"| ranking | cost, token evaluations | {' | '.join(f'k = {k}' for k in KEPT)} |",
        f"|---|---|{'---|' * len(KEPT)}",
    ]

    def report(name, cost, scores):
        cells = [name, f"{cost:,}", *(f"{r:.3f}" for r in recalls(scores, winners))]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)

    for n_anchors in (0, 4, 16):
        anchors = null_anchor(prior)
        if n_anchors:
            anchors = find_anchors(prior, torch.arange(prior.num_classes), n_anchors)
        total = torch.zeros(len(codes), prior.num_classes)
        for k in range(max(N_ORDERS)):
            total += first_order(prior, codes, orders[k], anchors)
            if k + 1 in N_ORDERS:
                where = f"{n_anchors} cluster centres" if n_anchors else "the null class"
                cost = COST * n_tokens * max(1, n_anchors) * (k + 1)
                report(f"linearized at {where}, {k + 1} order{'s' * (k > 0)}", cost, total)
    for m in (1, 2, 4, 9):
        scores = prefix(prior, codes, orders[0], m)
        report(f"the first {m} token{'s' * (m > 1)} of one order", m * prior.num_classes, scores)
    lines += [
        "",
        f"Before a race, {N_ANCHORS} cluster centres, 1 order:",
        "",
        "| `racing_screen` | token evaluations an image | same class as exhaustive | s an image |",
        "|---|---|---|---|",
    ]
    log_prior = np.log(np.full(prior.num_classes, 1 / prior.num_classes))
    for screen in (None, *KEPT):
        start = time.perf_counter()
        how = tokens, clf.orders_, clf.class_rows_, log_prior
        found = race(prior, *how, screen=screen)
        seconds = (time.perf_counter() - start) / len(tokens)
        same = (found.log_likelihood.mean(1).argmax(1) == exact.argmax(1)).sum()
        cells = [str(screen), f"{found.evaluations.mean():,.0f}", f"{same} of {len(tokens)}"]
        lines.append(f"| {' | '.join([*cells, f'{seconds:.4f}'])} |")
        print(lines[-1], flush=True)
    (HERE / "results" / "screening.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

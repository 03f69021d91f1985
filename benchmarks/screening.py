"""Can all classes be ranked from a few gradients? A study of a first-order screen.

    python benchmarks/screening.py

log p(tokens | class, order) depends on the class through its values in each layer alone. Linearized
in them at an anchor, one forward and backward pass ranks all classes at once. Measured: how often
the exhaustive winner is among the first k, by number of orders and anchors, against reading a
prefix of the tokens for all classes at the same cost. On 300 made-up characters, with a classifier
that is trained first and kept in ``benchmarks/cache``. Writes ``results/screening.md``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from characters import TEST_SEED, trained
from digits import HERE, machine
from racing import exhaustive
from sklearn.cluster import KMeans
from strokes import characters

from skaocls.engine import Engine

KEPT = (3, 10, 30, 100)
N_ORDERS = (1, 2, 4)
BACKWARD = 3  # a forward and a backward pass in forward passes


def anchors_of(values, n_anchors):
    """Values to linearize at, one row for each anchor, and the anchor of each class."""
    together = torch.cat(values, 1)
    null = together[-1:]
    classes = together[:-1]
    if n_anchors == 0:
        at, which = null, np.zeros(len(classes), dtype=int)
    else:
        means = KMeans(n_anchors, n_init=4, random_state=0).fit(classes.numpy())
        at, which = torch.as_tensor(means.cluster_centers_, dtype=null.dtype), means.labels_
    return at.split([v.shape[1] for v in values], 1), torch.as_tensor(which)


def linearized(prior, codes, order, values, n_anchors):
    """Estimates of log p(tokens | class, order), (n_images, n_classes)."""
    at, which = anchors_of(values, n_anchors)
    estimate = torch.empty(len(codes), len(which))
    orders = order.expand_as(codes)
    targets = codes.gather(1, orders)
    for anchor in range(len(at[0])):
        here = [a[anchor].repeat(len(codes), 1).requires_grad_() for a in at]
        log_prob = prior.logits(codes, orders, here).log_softmax(-1)
        ll = log_prob.gather(-1, targets.unsqueeze(-1)).sum((1, 2))
        slopes = torch.autograd.grad(ll.sum(), here)
        near = which == anchor
        moved = [v[:-1][near] - a[anchor] for v, a in zip(values, at, strict=True)]
        rises = sum(g @ m.T for g, m in zip(slopes, moved, strict=True))
        estimate[:, near] = ll.detach()[:, None] + rises
    return estimate


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
    parser.add_argument("--images", type=int, default=300)
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
    with torch.no_grad():
        values = prior.class_values(torch.arange(prior.num_classes + 1))
    lines = [
        "# A first-order screen",
        "",
        f"`python benchmarks/screening.py`; {machine()}. A classifier of {args.classes} "
        f"made-up characters, {len(codes)} test images: share of images whose exhaustive winner "
        "(20 orders) is among the first k.",
        "",
        f"| ranking | cost, token evaluations | {' | '.join(f'k = {k}' for k in KEPT)} |",
        f"|---|---|{'---|' * len(KEPT)}",
    ]

    def report(name, cost, scores):
        cells = [name, f"{cost:,}", *(f"{r:.3f}" for r in recalls(scores, winners))]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)

    for n_anchors in (0, 4, 16):
        total = torch.zeros(len(codes), prior.num_classes)
        for k in range(max(N_ORDERS)):
            total += linearized(prior, codes, orders[k], values, n_anchors)
            if k + 1 in N_ORDERS:
                where = f"{n_anchors} cluster centres" if n_anchors else "the null class"
                cost = BACKWARD * n_tokens * max(1, n_anchors) * (k + 1)
                report(f"linearized at {where}, {k + 1} orders", cost, total)
    for m in (1, 2, 4, 9):
        scores = prefix(prior, codes, orders[0], m)
        report(f"the first {m} tokens of one order", m * prior.num_classes, scores)
    (HERE / "results" / "screening.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

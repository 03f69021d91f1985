"""Accuracy and time with hundreds of classes: shared trunk against published architecture.

    python -m benchmarks.speed.many_classes

Both priors train on the same synthetic characters for the same number of steps and are kept in
``benchmarks/cache``. The published architecture is only scored early-stopped, because exhaustive
scoring takes too long. Writes ``many_classes.json`` and ``many_classes.md``.
"""

from pathlib import Path

from .. import common
from ..characters import draw_test_images, trained
from ..claims.measures import stopped_flops

SEARCHES = {"exhaustive": "exhaustive", "early-stopped": "auto"}


def evaluate(clf, X, y, search):
    """Return accuracy, seconds and operations per image, and the predicted columns."""
    seconds, (joint, stats) = common.timed(
        clf.set_params(search=SEARCHES[search]).predict_joint_log_proba, X, return_stats=True
    )
    read = stats["evaluations"].mean()
    flops = stopped_flops(clf, len(clf.orders_), read / stats["exhaustive_evaluations"])
    row = {"search": search, "accuracy": float((clf.classes_[joint.argmax(1)] == y).mean())}
    row |= {"seconds": seconds / len(X), "flops": flops, "passes": read / clf.prior_.n_tokens}
    return row, joint.argmax(1)


def measure(args):
    X, y = draw_test_images(args.classes, args.images)
    rows = []
    for name, architecture in common.ARCHITECTURES.items():
        folder = args.cache / f"many-{args.classes}-{args.epochs}-{architecture}"
        clf = trained(folder, args.classes, args.per_class, args.epochs, architecture)
        about = {"prior": name}
        about["fit_seconds"] = common.read_json(folder / "training.json")["fit_s"]
        one_order, _ = evaluate(clf.set_params(n_orders=1), X, y, "early-stopped")
        about["one_order"] = one_order["accuracy"]
        clf.set_params(n_orders=20)
        predicted = {}
        for search in SEARCHES:
            if search == "exhaustive" and name == common.PUBLISHED:
                continue
            row, predicted[search] = evaluate(clf, X, y, search)
            rows.append(row | about)
        if len(predicted) == 2:
            same = predicted["exhaustive"] == predicted["early-stopped"]
            rows[-1]["agreement"] = float(same.mean())
        print(*rows[-len(predicted) :], sep="\n", flush=True)
    return {
        "machine": common.machine(),
        "classes": args.classes,
        "per_class": args.per_class,
        "epochs": args.epochs,
        "images": len(X),
        "rows": rows,
    }


def page(record, command):
    heads = ["prior", "search", "accuracy", "with 1 order", "transformer passes", "ms per image"]
    heads += ["MFLOP per image", "training, s"]
    rows = [
        [r["prior"], r["search"], f"{r['accuracy']:.4f}", f"{r['one_order']:.4f}",
         f"{r['passes']:.1f}", f"{1000 * r['seconds']:.3g}", f"{r['flops'] / 1e6:.3g}",
         f"{r['fit_seconds']:.0f}"]
        for r in record["rows"]
    ]  # fmt: skip
    return common.page(
        "Hundreds of classes",
        f"Measured with `{command}` on {record['machine']}. The classes are {record['classes']} "
        f"synthetic characters with {record['per_class']} training images each. Training takes "
        f"{record['epochs']} epochs. The {record['images']} test images have 36 tokens each and "
        "are scored in 20 orders. *Transformer passes* are the forward passes needed to score one "
        "image in all orders for all classes." + record.get("note", ""),
        common.table(heads, rows),
        "With the shared trunk, early-stopped scoring and exhaustive scoring predicted the same "
        f"class for {100 * record['rows'][-1]['agreement']:.1f} % of the images. For each order "
        "that early-stopped scoring uses, the operations include the output heads of all classes, "
        "even of dropped classes.",
    )


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--classes", type=int, default=300)
    parser.add_argument("--per-class", type=int, default=100, help="training images of a class")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--cache", type=Path, default=common.CACHE)
    args = parser.parse_args(argv)
    record = measure(args)
    common.write_json(args.output / "many_classes.json", record)
    given = {"images": args.images, "classes": args.classes, "epochs": args.epochs}
    options = [f" --{k} {v}" for k, v in given.items() if v != parser.get_default(k)]
    command = f"python -m benchmarks.speed.many_classes{''.join(options)}"
    common.write_page(args.output / "many_classes.md", page(record, command))


if __name__ == "__main__":
    main()

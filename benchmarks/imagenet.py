"""Accuracy against the number of orders on ImageNet and its variants.

    python benchmarks/imagenet.py --data imagenet=FOLDER --data imagenet-a=FOLDER --limit 1000

A FOLDER has one subfolder of images for each class, named by WordNet id, or by class index as in
ImageNetV2; ObjectNet's must be renamed to WordNet ids, and those that ImageNet lacks left out. Of
ImageNet-C, FOLDER is one severity, or a folder above: then every corruption/severity below is a
data set. The classifier chooses among the classes that a data set has: 200 of ImageNet-A and -R.

What was scored is kept in ``NAME.jsonl`` in the output folder: the same command, given again, goes
on where it was stopped. In the end come ``imagenet.json``, ``imagenet.png`` and a table.
"""

import argparse
import copy
import json
import os
import time
from pathlib import Path

import joblib
import numpy as np
import sklearn
import torch
from digits import HERE, N_ORDERS, machine
from tqdm import tqdm

import skaocls
from skaocls import AnyOrderARClassifier
from skaocls.__main__ import EXTENSIONS
from skaocls.devices import resolve_device, resolve_precision
from skaocls.files import write_all
from skaocls.learned.published import imagenet_classes, load_published, published_tokenizer
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba

AT_ONCE = 8  # images scored between two writes
WORDNET_IDS = [row["wordnet_id"] for row in imagenet_classes()]
CLASSES = {w: i for i, w in enumerate(WORDNET_IDS)} | {str(i): i for i in range(len(WORDNET_IDS))}
PARAMS = ("filename", "revision", "n_orders", "order", "crop", "latent_noise", "decoding")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=named_folder, action="append", required=True, metavar="NAME=FOLDER")
    add("--prior", default="randar-l", help="what from_pretrained takes (default: %(default)s)")
    add("--filename", help="file of the prior within a repository or folder")
    add("--revision", help="branch, tag or commit of the prior's repository")
    add("--tokenizer", help="file of the tokenizer's weights (default: the published ones)")
    add("--n-orders", type=int, default=20)
    add("--order", choices=["random", "antithetic", "raster"], default="random")
    add("--aggregation", choices=AGGREGATIONS, default=AGGREGATIONS[0], help="in the plot")
    add("--crop", choices=["center", "random"], default="center")
    add("--latent-noise", type=float, default=0.0)
    add("--decoding", choices=["plain", "as_seen"], default="plain", help="of odd files")
    add("--device", default="auto")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    add("--limit", type=int, help="images of each data set, spread evenly over its classes")
    add("--seed", type=int, default=0, help="of the orders and of --limit")
    add("--output", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if len(dict(args.data)) < len(args.data):
        parser.error("--data: two data sets have the same name")
    return args


def named_folder(text):
    name, _, folder = text.partition("=")
    if not name or not Path(folder).is_dir() or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER with a folder that exists")
    return name, Path(folder)


def subfolders(folder):
    with os.scandir(folder) as entries:
        return sorted(Path(e) for e in entries if e.is_dir() and not e.name.startswith("."))


def class_of(folder):
    """The class that a folder is named for, or None; severities are numbers, but hold folders."""
    severity = folder.name.isdecimal() and subfolders(folder)
    return None if severity else CLASSES.get(folder.name)


def find_data_sets(name, folder, depth=3):
    """The folder if its subfolders are classes, else the data sets below it: {name: folder}."""
    below = subfolders(folder)
    if any(class_of(f) is not None for f in below):
        return {name: folder}
    found = {}
    for f in below if depth else []:
        found |= find_data_sets(f"{name}/{f.name}", f, depth - 1)
    return found


def list_images(folder, limit, seed):
    """Files, their classes, and all classes of a data set.

    Files come shuffled, a round of one per class at a time: any number of them is a fair sample.
    """
    files, y = [], []
    for f in subfolders(folder):
        if class_of(f) is None:
            raise SystemExit(f"{f} is named for no ImageNet class: a WordNet id or 0 ... 999.")
        mine = sorted(p for p in f.iterdir() if p.suffix.lower() in EXTENSIONS)
        files += mine
        y += [class_of(f)] * len(mine)
    if not files:
        raise SystemExit(f"{folder} has class subfolders, but no images in them.")
    y, shuffled = np.array(y), np.random.RandomState(seed).permutation(len(y))
    classes, turn = np.unique(y), np.empty(len(y), dtype=int)
    for c in classes:
        mine = shuffled[y[shuffled] == c]
        turn[mine] = np.arange(len(mine))
    chosen = shuffled[np.argsort(turn[shuffled], kind="stable")][:limit]
    return [files[i] for i in chosen], y[chosen], classes


def make_tokenizer(args):
    if args.tokenizer is None:
        return "auto"
    prior = load_published(args.prior, args.filename, revision=args.revision)
    return published_tokenizer(prior).set_params(source=args.tokenizer)


def make_classifier(args):
    clf = AnyOrderARClassifier.from_pretrained(
        args.prior,
        tokenizer=make_tokenizer(args),
        device=args.device,
        precision=args.precision,
        random_state=args.seed,
        **{name: getattr(args, name) for name in PARAMS},
    )
    if "device" in clf.tokenizer_.get_params():
        clf.tokenizer_.set_params(device=args.device)
    return clf


def restrict(clf, full, classes):
    """Let the classifier choose among these classes, out of those that `full`, a copy, knows.

    A fine-tuned classifier's labels are taken for WordNet ids or ImageNet's indices.
    """
    labels = getattr(full, "wordnet_ids_", full.classes_)
    column = {CLASSES.get(str(label)): i for i, label in enumerate(labels)}
    unknown = [WORDNET_IDS[c] for c in classes if c not in column]
    if unknown:
        raise SystemExit(f"The classifier does not know the class {unknown[0]}.")
    keep = [column[c] for c in classes]
    clf.model_ = full.model_.restricted(keep)
    clf.class_log_prior_ = full.class_log_prior_[keep]


def weights_hash(clf):
    modules = [clf.prior_, getattr(clf.tokenizer_, "model_", torch.nn.Module())]
    return joblib.hash([v.cpu().numpy() for m in modules for v in m.state_dict().values()])


def score(clf, files, columns):
    """Whether each image is told right: for each aggregation, n rows of n_orders zeros and ones."""
    ll = np.concatenate(list(clf._log_likelihoods(files)))
    right = {how: np.zeros(ll.shape[:2], dtype=int) for how in AGGREGATIONS}
    for how in AGGREGATIONS:
        for k in range(ll.shape[1]):
            joint = joint_log_proba(ll[:, : k + 1], clf.class_log_prior_, how)
            right[how][:, k] = joint.argmax(1) == columns
    return right


def append(path, rows):
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_record(path, settings):
    """Images finished earlier, by file; a new record is begun, one of other settings refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):  # a crash cut the last line off
        os.truncate(path, whole)
    if not whole:
        append(path, [settings])
        return {}
    first, *rows = (json.loads(line) for line in content[:whole].splitlines())
    changed = [k for k in settings | first if settings.get(k) != first.get(k)]
    if changed:
        was = ", ".join(f"{k}={first.get(k)!r} (now {settings.get(k)!r})" for k in changed)
        raise SystemExit(
            f"{path} was made with {was}. Go on with those settings, choose another --output, or "
            "remove the file."
        )
    return {row["file"]: row for row in rows}


def evaluate(clf, full, name, folder, settings, args):
    """Score what is left of a data set, and sum up."""
    files, y, classes = list_images(folder, args.limit, args.seed)
    restrict(clf, full, classes)
    names = [f.relative_to(folder).as_posix() for f in files]
    sizes = {"images": len(files), "classes": len(classes)}
    content = {"files": joblib.hash([names, classes.tolist()])}
    path = args.output / f"{name}.jsonl"
    done = read_record(path, settings | sizes | content)
    left = [i for i, n in enumerate(names) if n not in done]
    columns = np.searchsorted(classes, y)
    n_right = sum(row["right"][args.aggregation][-1] for row in done.values())
    with tqdm(total=len(files), initial=len(done), desc=name, unit="image") as bar:
        for at in range(0, len(left), AT_ONCE):
            part, start = left[at : at + AT_ONCE], time.perf_counter()
            right = score(clf, [files[i] for i in part], columns[part])
            seconds = (time.perf_counter() - start) / len(part)
            rows = [
                {"file": names[i], "class": int(y[i]), "seconds": seconds}
                | {"right": {how: right[how][j].tolist() for how in AGGREGATIONS}}
                for j, i in enumerate(part)
            ]
            append(path, rows)
            done |= {row["file"]: row for row in rows}
            n_right += right[args.aggregation][:, -1].sum()
            bar.update(len(part))
            bar.set_postfix(accuracy=f"{n_right / len(done):.4f}")
    rows = [done[n] for n in names]
    rate = len(rows) / sum(row["seconds"] for row in rows)
    result = {"folder": str(folder), **sizes, "images_per_second": rate}
    result |= {"accuracy": {}, "standard_error": {}}
    for how in AGGREGATIONS:
        p = np.mean([row["right"][how] for row in rows], axis=0)
        result["accuracy"][how] = p.tolist()
        result["standard_error"][how] = np.sqrt(p * (1 - p) / len(rows)).tolist()
    return result


def table(results):
    """Markdown: a line for each data set and aggregation."""
    most = max(len(r["accuracy"][AGGREGATIONS[0]]) for r in results.values())
    shown = [k for k in N_ORDERS if k < most] + [most]
    heads = ["data", "images", "classes", "aggregation"]
    heads += [*(f"{k} order{'s' * (k > 1)}" for k in shown), "images/s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, r in results.items():
        for how in AGGREGATIONS:
            p, error = r["accuracy"][how], r["standard_error"][how]
            cells = [name, r["images"], r["classes"], how]
            cells += [f"{p[k - 1]:.4f} ± {error[k - 1]:.4f}" for k in shown]
            cells.append(f"{r['images_per_second']:.3g}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def plot(results, how, path):
    """Accuracy against the number of orders, with a band of one standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    for name, r in results.items():
        p, error = np.array(r["accuracy"][how]), np.array(r["standard_error"][how])
        k = np.arange(1, len(p) + 1)
        (line,) = ax.plot(k, p, "o-", markersize=3, label=name)
        ax.fill_between(k, p - error, p + error, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel="orders averaged over", ylabel="top-1 accuracy")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", ncols=1 + len(results) // 25)
    figure.savefig(path, dpi=150, format="png")


def main(argv=None):
    args = parse_args(argv)
    data = {}
    for name, folder in args.data:
        found = find_data_sets(name, folder)
        if not found:
            raise SystemExit(f"{folder} has no subfolders named by WordNet id or class index.")
        data |= found
    clf = make_classifier(args)
    full, device = copy.copy(clf), resolve_device(args.device)
    settings = {name: getattr(args, name) for name in ("prior", "tokenizer", *PARAMS)}
    settings |= {"limit": args.limit, "seed": args.seed}
    settings["precision"] = str(resolve_precision(args.precision, device) or torch.float32)
    settings["weights"] = weights_hash(clf)
    results = {}
    for name, folder in data.items():
        results[name] = evaluate(clf, full, name, folder, settings, args)
    about = {
        "settings": settings,
        "skaocls": skaocls.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else machine(),
    }
    text = json.dumps(about | {"data": results}, indent=1) + "\n"
    write_all(args.output, {"imagenet.json": lambda p: Path(p).write_text(text, encoding="utf-8")})
    print(table(results))
    write_all(args.output, {"imagenet.png": lambda p: plot(results, args.aggregation, p)})


if __name__ == "__main__":
    main()

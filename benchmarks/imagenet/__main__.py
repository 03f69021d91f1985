"""Evaluate published weights on ImageNet: any-order models, raster order, diffusion classifier.

    python -m benchmarks.imagenet --data imagenet=FOLDER --data imagenet-a=FOLDER --limit 4
    python -m benchmarks.imagenet --data imagenet=FOLDER --methods any-order raster diffusion

FOLDER contains one subfolder of images for each class. It is named by WordNet id, by class index as
in ImageNetV2, or as in ObjectNet. For ObjectNet, any of a subfolder's ImageNet classes is right,
and subfolders without one are skipped. For ImageNet-C, FOLDER is one severity, or a folder above:
then every corruption/severity is a data set, and the table shows their combination. Methods choose
among the classes of a data set: 200 of ImageNet-A and -R, 125 for ObjectNet's 113 subfolders.
``--classes imagenet=imagenet-a`` restricts another data set to these classes.

Accuracy with k of K orders is the mean over disjoint groups of k orders, with their standard
deviation. The diffusion classifier compares the predicted noise at steps spread over the diffusion,
and drops the worst classes: ``--stages 50:500 ... 1000:1`` keeps 500 classes after 50 steps and one
after 1000. Operations are those of matrix products, two for a multiplication and an addition,
without the encoding of an image.

``--write-tokens FOLDER`` stores the tokens of each image (``NAME/class/image.npy``, one grid, or
one for each order). ``--tokens FOLDER`` reads them instead of the images, without a tokenizer.

Results of images are stored in ``NAME/METHOD.jsonl`` in the output folder; the same command
continues an interrupted run. The final results are ``imagenet.json``, ``imagenet.png`` and a table.
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import sklearn
import torch
from tqdm import tqdm

import skaocls
from skaocls.devices import resolve_device
from skaocls.scoring.aggregation import AGGREGATIONS

from .. import common
from . import anyorder, dit
from .folders import SUBSETS, find_data_sets, read_folder
from .records import append, read_record
from .report import plot, summary, table

BATCH_SIZE = 8  # images scored between two writes
METHODS = ["any-order", "raster", "diffusion"]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="imagenet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=named_folder, action="append", required=True, metavar="NAME=FOLDER")
    add(
        "--classes", type=named_subset, action="append", default=[], metavar="NAME=SUBSET",
        help=f"use only the classes of {', '.join(SUBSETS)} in the data set NAME",
    )  # fmt: skip
    add("--methods", nargs="+", choices=METHODS, default=METHODS[:2])
    add("--limit", type=int, help="maximum number of images of each class")
    add("--seed", type=int, default=0, help="seed of orders, noises and --limit")
    add("--device", default="auto")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    add("--output", type=Path, default=common.RESULTS)
    add("--prior", default="randar-l", help="source for from_pretrained (default: %(default)s)")
    add("--filename", help="file of the prior in a repository or folder")
    add("--revision", help="branch, tag or commit of the prior's repository")
    add("--tokenizer", help="file of the tokenizer's weights (default: the published ones)")
    add("--n-orders", type=int, default=20)
    add("--order", choices=["random", "antithetic"], default="random", help="orders of any-order")
    add(
        "--aggregation", choices=AGGREGATIONS, default=AGGREGATIONS[0],
        help="in the table and the plot; imagenet.json contains all (default: %(default)s)",
    )  # fmt: skip
    add("--crop", choices=["center", "random"], default="center")
    add("--latent-noise", type=float, default=0.0)
    add("--decoding", choices=["plain", "as_seen"], default="plain", help="of unusual files")
    add("--write-tokens", type=Path, metavar="FOLDER", help="store the tokens of images")
    add("--tokens", type=Path, metavar="FOLDER", help="read stored tokens")
    add("--dit", default="facebook/DiT-XL-2-256", help="hub repository or folder of a DiTPipeline")
    add("--dit-revision", help="branch, tag or commit of its repository")
    add(
        "--stages", nargs="+", type=stage, metavar="STEPS:KEPT",
        default=[[50, 500], [100, 50], [500, 10], [1000, 1]],
        help="stages of the diffusion classifier (default: 50:500 100:50 500:10 1000:1)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.tokens is not None and (args.write_tokens or args.tokenizer or args.latent_noise
                                    or args.crop != "center"):  # fmt: skip
        parser.error("--tokens cannot be combined with a tokenizer, crop, noise or --write-tokens.")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1.")
    if len(dict(args.data)) < len(args.data):
        parser.error("--data: two data sets have the same name.")
    if unknown := dict(args.classes).keys() - dict(args.data).keys():
        parser.error(f"--classes: there is no data set {unknown.pop()!r}.")
    steps, kept = zip(*args.stages)
    if [0, *steps] != sorted({0, *steps}) or [*kept, 0] != sorted({*kept, 0}, reverse=True):
        parser.error("--stages: steps must increase, and the numbers of classes must decrease.")
    if kept[-1] != 1:
        parser.error("--stages: the last stage must keep one class.")
    return args


def named_folder(text):
    name, _, folder = text.partition("=")
    if not name or not Path(folder).is_dir() or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER with an existing folder.")
    return name, Path(folder)


def named_subset(text):
    name, _, subset = text.partition("=")
    if subset not in SUBSETS:
        known = ", ".join(SUBSETS)
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SUBSET with one of {known}.")
    return name, subset


def stage(text):
    steps, _, kept = text.partition(":")
    if not steps.isdecimal() or not kept.isdecimal() or int(kept) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not STEPS:KEPT with two integers.")
    return [int(steps), int(kept)]


def evaluate(score, data, path, settings, title):
    """Score the remaining images of a data set, BATCH_SIZE at a time.

    Parameters
    ----------
    score : callable
        Returns for each image which predictions are right, given files and right classes.
    data : DataSet
    path : Path
        File of the record.
    settings : dict
        Everything that the predictions depend on.
    title : str
        Title of the progress bar.

    Returns
    -------
    rows : list of dict
        Result of each image.
    """
    about = {"images": len(data.files), "classes": len(data.classes)}
    about["files"] = joblib.hash([data.names, data.classes.tolist()])
    done = read_record(path, settings | about)
    left = [i for i, name in enumerate(data.names) if name not in done]
    with tqdm(total=len(data.files), initial=len(done), desc=title, unit="image") as bar:
        for start in range(0, len(left), BATCH_SIZE):
            part = left[start : start + BATCH_SIZE]
            files = [data.files[i] for i in part]
            seconds, right = common.timed(score, files, data.truth[part])
            rows = [
                {"file": data.names[i], "seconds": seconds / len(part), "right": hits}
                for i, hits in zip(part, right)
            ]
            append(path, rows)
            done |= {row["file"]: row for row in rows}
            bar.update(len(part))
    return [done[name] for name in data.names]


def contestants(args):
    """Yield each method with its settings and a function that prepares a data set.

    The function takes the name of the data set and the classes to choose among. It returns `score`
    and the operations for one image.
    """
    clf = anyorder.make_classifier(args) if args.methods != ["diffusion"] else None
    for method in args.methods:
        if method == "diffusion":
            pipe = dit.load_dit(args)
            yield method, dit.settings_of(pipe, args), partial(dit.among, pipe, args)
        else:
            ordered = copy.copy(clf).set_params(
                order="raster" if method == "raster" else args.order
            )
            settings = anyorder.settings_of(ordered, args)
            yield method, settings, partial(anyorder.among, ordered, args)


def find(args):
    """Return the data sets, and results to fill in, also for combinations of data sets."""
    subsets, data, results = dict(args.classes), {}, {}
    for name, folder in args.data:
        found = find_data_sets(name, folder)
        if not found:
            raise SystemExit(f"{folder} has no subfolders named after ImageNet classes.")
        for part, path in found.items():
            d = data[part] = read_folder(path, args.limit, args.seed, subsets.get(name))
            about = {"folder": str(path), "images": len(d.files), "classes": len(d.classes)}
            results[part] = about | {"methods": {}}
        if len(found) > 1:
            images = sum(results[part]["images"] for part in found)
            about |= {"folder": str(folder), "images": images, "parts": list(found)}
            results[name] = about | {"methods": {}}
    return data, results


def main(argv=None):
    args = parse_args(argv)
    (data, results), settings = find(args), {}
    for method, method_settings, among in contestants(args):
        settings[method] = method_settings | {"limit": args.limit, "seed": args.seed}
        rows, flops = {}, {}
        for name, d in data.items():
            score, flops[name] = among(name, d.classes)
            path = args.output / name / f"{method}.jsonl"
            rows[name] = evaluate(score, d, path, settings[method], f"{name}, {method}")
        for name, result in results.items():
            parts = result.get("parts", [name])
            result["methods"][method] = summary([row for part in parts for row in rows[part]])
            mean = np.mean([flops[part] for part in parts], axis=0)
            result["methods"][method]["flops"] = mean.tolist()
    device = resolve_device(args.device)
    about = {
        "settings": settings,
        "skaocls": skaocls.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "device": common.machine(device),
    }
    common.write_json(args.output / "imagenet.json", about | {"data": results})
    print("\n".join(table(results, args.aggregation)))
    plot(results, args.aggregation, args.output / "imagenet.png")


if __name__ == "__main__":
    main()

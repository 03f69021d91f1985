"""The paper's table: any-order models, raster order and a diffusion classifier on ImageNet.

    python benchmarks/imagenet --data imagenet=FOLDER --data imagenet-a=FOLDER --limit 4
    python benchmarks/imagenet --data imagenet=FOLDER --methods any-order raster diffusion

A FOLDER has one subfolder of images for each class, named by WordNet id, by class index as in
ImageNetV2, or as in ObjectNet: then any of the ImageNet classes of a subfolder is right, and those
without one are left out. Of ImageNet-C, FOLDER is one severity, or a folder above: then every
corruption/severity below is a data set, and the table has all of them together. Methods choose
among the classes that a data set has: 200 of ImageNet-A and -R, 125 for ObjectNet's 113;
``--classes imagenet=imagenet-a`` does so on the images of those classes in another data set.

Of K orders, accuracy with k is the mean over the groups of k orders (the first k, the next k, ...)
and comes with their standard deviation. The diffusion classifier compares noise at steps spread
over the diffusion, and drops the worst classes on the way: ``--stages 50:500 ... 1000:1`` keeps 500
classes after 50 steps, and one after 1000. Operations are those of products of matrices, two for a
multiplication and an addition, without the encoding of an image, which each method does once.

``--write-tokens FOLDER`` keeps the tokens of each image (``NAME/class/image.npy``, one grid or one
for each order), and ``--tokens FOLDER`` takes them instead of the images, whose tokenizer is then
not needed: for another prior that reads the same tokens, or for tokens made elsewhere.

What was scored is kept in ``NAME/METHOD.jsonl`` in the output folder: the same command, given
again, goes on where it was stopped. In the end come ``imagenet.json``, ``imagenet.png`` and a
table.
"""

import argparse
import copy
import json
import sys
import time
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import sklearn
import torch
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[1]))  # the other benchmarks
sys.path.append(str(Path(__file__).parents[1] / "claims"))

import anyorder
import dit
from digits import HERE, machine
from folders import SUBSETS, find_data_sets, read_folder
from records import append, read_record
from report import plot, summary, table

import skaocls
from skaocls.devices import resolve_device
from skaocls.files import write_all
from skaocls.scoring.aggregation import AGGREGATIONS

AT_ONCE = 8  # images scored between two writes
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
        help=f"of the data set NAME only the classes of {', '.join(SUBSETS)}",
    )  # fmt: skip
    add("--methods", nargs="+", choices=METHODS, default=METHODS[:2])
    add("--limit", type=int, help="images of each class")
    add("--seed", type=int, default=0, help="of the orders, the noises and of --limit")
    add("--device", default="auto")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    add("--output", type=Path, default=HERE / "results")
    add("--prior", default="randar-l", help="what from_pretrained takes (default: %(default)s)")
    add("--filename", help="file of the prior within a repository or folder")
    add("--revision", help="branch, tag or commit of the prior's repository")
    add("--tokenizer", help="file of the tokenizer's weights (default: the published ones)")
    add("--n-orders", type=int, default=20)
    add("--order", choices=["random", "antithetic"], default="random", help="of any-order")
    add(
        "--aggregation", choices=AGGREGATIONS, default=AGGREGATIONS[0],
        help="in table and plot; imagenet.json has all (default: %(default)s)",
    )  # fmt: skip
    add("--crop", choices=["center", "random"], default="center")
    add("--latent-noise", type=float, default=0.0)
    add("--decoding", choices=["plain", "as_seen"], default="plain", help="of odd files")
    add("--write-tokens", type=Path, metavar="FOLDER", help="keep the tokens, a file an image")
    add("--tokens", type=Path, metavar="FOLDER", help="take tokens kept so, not the images")
    add("--dit", default="facebook/DiT-XL-2-256", help="hub repository or folder of a DiTPipeline")
    add("--dit-revision", help="branch, tag or commit of its repository")
    add(
        "--stages", nargs="+", type=stage, metavar="STEPS:KEPT",
        default=[[50, 500], [100, 50], [500, 10], [1000, 1]],
        help="of the diffusion classifier (default: 50:500 100:50 500:10 1000:1)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.tokens is not None and (args.write_tokens or args.tokenizer or args.latent_noise
                                    or args.crop != "center"):  # fmt: skip
        parser.error("--tokens are read as they are: no tokenizer, crop, noise or --write-tokens")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if len(dict(args.data)) < len(args.data):
        parser.error("--data: two data sets have the same name")
    if unknown := dict(args.classes).keys() - dict(args.data).keys():
        parser.error(f"--classes: {unknown.pop()!r} is the name of no data set")
    steps, kept = zip(*args.stages)
    if [0, *steps] != sorted({0, *steps}) or [*kept, 0] != sorted({*kept, 0}, reverse=True):
        parser.error("--stages: steps must grow, and the classes kept become fewer")
    if kept[-1] != 1:
        parser.error("--stages: the last must keep one class")
    return args


def named_folder(text):
    name, _, folder = text.partition("=")
    if not name or not Path(folder).is_dir() or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER with a folder that exists")
    return name, Path(folder)


def named_subset(text):
    name, _, subset = text.partition("=")
    if subset not in SUBSETS:
        known = ", ".join(SUBSETS)
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SUBSET with one of {known}")
    return name, subset


def stage(text):
    steps, _, kept = text.partition(":")
    if not steps.isdecimal() or not kept.isdecimal() or int(kept) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not STEPS:KEPT with two whole numbers")
    return [int(steps), int(kept)]


def evaluate(score, data, path, settings, title):
    """Score what is left of a data set, AT_ONCE images at a time.

    Parameters
    ----------
    score : callable
        Given files and which classes are right, which of its answers are right for each of them.
    data : DataSet
    path : Path
        The record.
    settings : dict
        What answers depend on.
    title : str
        Of the progress bar.

    Returns
    -------
    rows : list of dict
        One for each image.
    """
    about = {"images": len(data.files), "classes": len(data.classes)}
    about["files"] = joblib.hash([data.names, data.classes.tolist()])
    done = read_record(path, settings | about)
    left = [i for i, name in enumerate(data.names) if name not in done]
    with tqdm(total=len(data.files), initial=len(done), desc=title, unit="image") as bar:
        for at in range(0, len(left), AT_ONCE):
            part, start = left[at : at + AT_ONCE], time.perf_counter()
            right = score([data.files[i] for i in part], data.truth[part])
            seconds = (time.perf_counter() - start) / len(part)
            rows = [
                {"file": data.names[i], "seconds": seconds, "right": mine}
                for i, mine in zip(part, right)
            ]
            append(path, rows)
            done |= {row["file"]: row for row in rows}
            bar.update(len(part))
    return [done[name] for name in data.names]


def contestants(args):
    """Yield the name of each method, what its answers depend on, and what prepares a data set.

    That is given its name and the classes to choose among, and returns `score` and operations for
    one image.
    """
    clf = anyorder.make_classifier(args) if args.methods != ["diffusion"] else None
    for method in args.methods:
        if method == "diffusion":
            pipe = dit.load_dit(args)
            yield method, dit.settings_of(pipe, args), partial(dit.among, pipe, args)
        else:
            one = copy.copy(clf).set_params(order="raster" if method == "raster" else args.order)
            yield method, anyorder.settings_of(one, args), partial(anyorder.among, one, args)


def find(args):
    """Data sets, and what is known of them; of folders above several, of all of them together."""
    subsets, data, results = dict(args.classes), {}, {}
    for name, folder in args.data:
        found = find_data_sets(name, folder)
        if not found:
            raise SystemExit(f"{folder} has no subfolders named for ImageNet classes.")
        for each, where in found.items():
            d = data[each] = read_folder(where, args.limit, args.seed, subsets.get(name))
            about = {"folder": str(where), "images": len(d.files), "classes": len(d.classes)}
            results[each] = about | {"methods": {}}
        if len(found) > 1:
            images = sum(results[each]["images"] for each in found)
            about |= {"folder": str(folder), "images": images, "parts": list(found)}
            results[name] = about | {"methods": {}}
    return data, results


def main(argv=None):
    args = parse_args(argv)
    (data, results), settings = find(args), {}
    for method, own, among in contestants(args):
        settings[method] = own | {"limit": args.limit, "seed": args.seed}
        rows, flops = {}, {}
        for name, d in data.items():
            score, flops[name] = among(name, d.classes)
            path = args.output / name / f"{method}.jsonl"
            rows[name] = evaluate(score, d, path, settings[method], f"{name}, {method}")
        for name, result in results.items():
            parts = result.get("parts", [name])
            result["methods"][method] = summary([row for each in parts for row in rows[each]])
            mean = np.mean([flops[each] for each in parts], axis=0)
            result["methods"][method]["flops"] = mean.tolist()
    device = resolve_device(args.device)
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
    print(table(results, args.aggregation))
    write_all(args.output, {"imagenet.png": lambda p: plot(results, args.aggregation, p)})


if __name__ == "__main__":
    main()

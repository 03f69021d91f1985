"""Data sets as folders: which classes their subfolders stand for, and which images are read.

``folders.json`` has facts about data sets: the WordNet ids of the 200 classes of ImageNet-A and of
ImageNet-R, and for each of ObjectNet's folders those of the ImageNet classes that it overlaps.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skaocls.fitted.pretrained import imagenet_classes
from skaocls.images.decoding import read_item
from skaocls.images.folders import EXTENSIONS

FACTS = json.loads((Path(__file__).parent / "folders.json").read_text(encoding="utf-8"))
WORDNET_IDS = [row["wordnet_id"] for row in imagenet_classes()]
CLASSES = {w: i for i, w in enumerate(WORDNET_IDS)} | {str(i): i for i in range(len(WORDNET_IDS))}
OBJECTNET = {name: [CLASSES[w] for w in ids] for name, ids in FACTS["objectnet"].items()}
SUBSETS = {name: {CLASSES[w] for w in FACTS[name]} for name in ("imagenet-a", "imagenet-r")}
SUBSETS["objectnet"] = {c for classes in OBJECTNET.values() for c in classes}
BORDER = 2  # pixels cut off each side of ObjectNet's images, which have a red line around them


class DataSet(NamedTuple):
    files: list  # of paths
    names: list  # of the files, within the folder
    classes: np.ndarray  # indices of the ImageNet classes to choose among, in increasing order
    truth: np.ndarray  # bool (n_files, n_classes): the classes that are right


def subfolders(folder):
    with os.scandir(folder) as entries:
        return sorted(Path(e) for e in entries if e.is_dir() and not e.name.startswith("."))


def classes_of(folder):
    """ImageNet classes that a folder stands for, or None.

    Several or none if it is one of ObjectNet's. Severities are numbers too, but hold folders.
    """
    if folder.name in OBJECTNET:
        return OBJECTNET[folder.name]
    if folder.name not in CLASSES or (folder.name.isdecimal() and subfolders(folder)):
        return None
    return [CLASSES[folder.name]]


def find_data_sets(name, folder, depth=3):
    """The folder if its subfolders are classes, else the data sets below it: {name: folder}."""
    below = subfolders(folder)
    if any(classes_of(f) for f in below):
        return {name: folder}
    found = {}
    for f in below if depth else []:
        found |= find_data_sets(f"{name}/{f.name}", f, depth - 1)
    return found


def read_folder(folder, limit, seed, subset=None):
    """The images of a data set, at most `limit` of each class, among the classes of a subset.

    They come shuffled, a round of one per class at a time: any number of them is a fair sample.
    """
    chosen, classes = [], set() if subset is None else set(SUBSETS[subset])
    rng = np.random.RandomState(seed)
    for f in subfolders(folder):
        right = classes_of(f)
        if right is None:
            raise SystemExit(
                f"{f} is named for no class: a WordNet id, 0 ... 999 or a name of ObjectNet's."
            )
        if subset is None:
            classes |= set(right)
        elif not classes.issuperset(right):
            continue
        if right:
            mine = sorted(p for p in f.iterdir() if p.suffix.lower() in EXTENSIONS)
            lot = rng.rand(len(mine))
            turns = enumerate(np.argsort(lot)[:limit])
            chosen += [(turn, lot[i], mine[i], right) for turn, i in turns]
    if not chosen:
        raise SystemExit(f"{folder} has class subfolders, but no images in them.")
    chosen.sort(key=lambda image: image[:2])
    files, columns = [image[2] for image in chosen], np.array(sorted(classes))
    truth = np.array([np.isin(columns, image[3]) for image in chosen])
    return DataSet(files, [f.relative_to(folder).as_posix() for f in files], columns, truth)


def opened(file):
    """What the classifiers are given: the file, or one of ObjectNet's less its border."""
    if file.parent.name not in OBJECTNET:
        return file
    return read_item(
        file, 0, lambda x: x.crop((BORDER, BORDER, x.width - BORDER, x.height - BORDER))
    )

"""Data sets as folders: the classes of their subfolders, and the selection of images.

``folders.json`` contains the WordNet ids of the 200 classes of ImageNet-A and of ImageNet-R, and
those of the ImageNet classes that overlap with each of ObjectNet's folders.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skaocls.fitted.pretrained import imagenet_classes
from skaocls.images.decoding import read_item
from skaocls.images.folders import has_image_suffix

FACTS = json.loads((Path(__file__).parent / "folders.json").read_text(encoding="utf-8"))
WORDNET_IDS = [row["wordnet_id"] for row in imagenet_classes()]
CLASSES = {w: i for i, w in enumerate(WORDNET_IDS)} | {str(i): i for i in range(len(WORDNET_IDS))}
OBJECTNET = {name: [CLASSES[w] for w in ids] for name, ids in FACTS["objectnet"].items()}
SUBSETS = {name: {CLASSES[w] for w in FACTS[name]} for name in ("imagenet-a", "imagenet-r")}
SUBSETS["objectnet"] = {c for classes in OBJECTNET.values() for c in classes}
BORDER = 2  # pixels of the red border of ObjectNet's images, which is cropped


class DataSet(NamedTuple):
    files: list  # paths
    names: list  # paths relative to the folder
    classes: np.ndarray  # indices of the ImageNet classes to choose among, increasing
    truth: np.ndarray  # bool (n_files, n_classes), True for right classes


def subfolders(folder):
    with os.scandir(folder) as entries:
        return sorted(Path(e) for e in entries if e.is_dir() and not e.name.startswith("."))


def classes_of(folder):
    """Return the ImageNet classes of a folder, or None if it is not named after any.

    A folder of ObjectNet can have several classes or none. Names of severities are numbers, too,
    but these folders contain folders.
    """
    if folder.name in OBJECTNET:
        return OBJECTNET[folder.name]
    if folder.name not in CLASSES or (folder.name.isdecimal() and subfolders(folder)):
        return None
    return [CLASSES[folder.name]]


def find_data_sets(name, folder, depth=3):
    """Return {name: folder} for the folder if its subfolders are classes, or for those below it."""
    below = subfolders(folder)
    if any(classes_of(f) for f in below):
        return {name: folder}
    found = {}
    for f in below if depth else []:
        found |= find_data_sets(f"{name}/{f.name}", f, depth - 1)
    return found


def read_folder(folder, limit, seed, subset=None):
    """Select the images of a data set, at most `limit` of each class, in a subset of the classes.

    They are shuffled, one image of each class at a time, so that the first n are a fair sample.
    """
    chosen, classes = [], set() if subset is None else set(SUBSETS[subset])
    rng = np.random.RandomState(seed)
    for f in subfolders(folder):
        right = classes_of(f)
        if right is None:
            raise SystemExit(
                f"{f} is not named after a class: a WordNet id, 0 ... 999, or a name of ObjectNet."
            )
        if subset is None:
            classes |= set(right)
        elif not classes.issuperset(right):
            continue
        if right:
            images = sorted(p for p in f.iterdir() if has_image_suffix(p))
            random = rng.rand(len(images))
            rounds = enumerate(np.argsort(random)[:limit])
            chosen += [(n, random[i], images[i], right) for n, i in rounds]
    if not chosen:
        raise SystemExit(f"The class subfolders of {folder} contain no images.")
    chosen.sort(key=lambda image: image[:2])
    files, columns = [image[2] for image in chosen], np.array(sorted(classes))
    truth = np.array([np.isin(columns, image[3]) for image in chosen])
    return DataSet(files, [f.relative_to(folder).as_posix() for f in files], columns, truth)


def open_image(file):
    """Return the file for the classifiers, or the cropped image for files of ObjectNet."""
    if file.parent.name not in OBJECTNET:
        return file
    return read_item(
        file, 0, lambda x: x.crop((BORDER, BORDER, x.width - BORDER, x.height - BORDER))
    )

"""Folders of images, one subfolder for each class."""

import os
from pathlib import Path
from typing import NamedTuple

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class ImageFolder(NamedTuple):
    """What :func:`load_image_folder` finds.

    Attributes
    ----------
    paths : list of str
        Of the images, class by class, sorted.
    labels : list of str
        The class of each.
    class_names : list of str
        All classes, sorted.
    """

    paths: list[str]
    labels: list[str]
    class_names: list[str]


def load_image_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """Paths and labels of a folder with one subfolder of images for each class.

    Labels are the subfolders' names, so that a classifier answers with them. Images may lie deeper
    in a subfolder. Hidden files and folders (``._cat.png``, ``.ipynb_checkpoints``) and files that
    do not end as images do are passed over, as is what lies in `root` itself. Images are opened
    later, by whoever reads the paths.

    Parameters
    ----------
    root : str or path
        The folder that holds the subfolders.

    Returns
    -------
    paths, labels, class_names : lists of str
        Also as attributes of these names.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If `root` is no folder.
    ValueError
        If it has no subfolders, or one of them holds no images.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skaocls import load_image_folder
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     (root / name).mkdir()
    ...     (root / name / "1.png").touch()
    >>> paths, labels, class_names = load_image_folder(root)
    >>> labels
    ['cat', 'dog']
    """
    root = Path(root)
    layout = f"Expected one subfolder of images for each class, such as {root / 'cat' / '1.png'}."
    if not root.exists():
        raise FileNotFoundError(f"There is no folder {root}. {layout}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder. {layout}")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{root} has no subfolders. {layout}")
    paths: list[str] = []
    labels: list[str] = []
    for name in names:
        found = images_below(root / name)
        if not found:
            raise ValueError(
                f"{root / name} holds no images, files that end in {', '.join(sorted(EXTENSIONS))}."
                f" {layout} Remove it, or add images."
            )
        paths += found
        labels += [name] * len(found)
    return ImageFolder(paths, labels, names)


def images_below(folder: Path) -> list[str]:
    """Image files in a folder and its subfolders, sorted; links to folders are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(place, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return sorted(found)

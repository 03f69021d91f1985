"""Folders of images with one subfolder per class."""

import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image

HEADER_ONLY = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow cannot decode these formats


class ImageFolder(NamedTuple):
    """Image files sorted by class, the label of each file, and the sorted names of all classes."""

    paths: list[str]
    labels: list[str]
    class_names: list[str]


def load_image_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """List the images of a folder that has one subfolder per class.

    The names of the subfolders are the labels. Subfolders may contain further folders with images.
    The function lists files whose suffix belongs to an image format that Pillow can read, including
    formats that you have registered with Pillow. It ignores hidden files and folders
    (``._cat.png``, ``.ipynb_checkpoints``) and files directly in `root`. It does not open the
    images.

    Parameters
    ----------
    root : str or path
        Folder that contains the subfolders.

    Returns
    -------
    paths, labels, class_names : lists of str
        Absolute path of each image, label of each image, and names of all classes. The result is a
        named tuple with these three attributes.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If `root` is not a folder.
    ValueError
        If `root` has no subfolders, or a subfolder contains no images.

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
    root = Path(os.path.abspath(root))
    layout = f"Expected one subfolder of images for each class, such as {root / 'cat' / '1.png'}."
    if not root.exists():
        raise FileNotFoundError(f"Folder {root} does not exist. {layout}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder. {layout}")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{root} has no subfolders. {layout}")
    paths: list[str] = []
    labels: list[str] = []
    for name in names:
        files = find_images(root / name)
        if not files:
            raise ValueError(
                f"{root / name} has no images (files ending in .png, .jpg or another suffix that "
                f"Pillow knows). {layout} Remove this subfolder, or add images to it."
            )
        paths += files
        labels += [name] * len(files)
    return ImageFolder(paths, labels, names)


def find_images(folder: Path) -> list[str]:
    """Return the sorted image files in a folder and its subfolders; ignore links to folders."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(parent, name)
            for name in files
            if not name.startswith(".") and has_image_suffix(name)
        ]
    return sorted(found)


def has_image_suffix(path: str | os.PathLike[str]) -> bool:
    """Return whether the suffix of a path belongs to an image format that Pillow can read."""
    Image.preinit()  # Pillow tries the formats in the sequence in which they are loaded
    image_format = Image.registered_extensions().get(Path(path).suffix.lower())
    # Pillow reads MPO files as JPEG files
    return image_format in {*Image.OPEN, "MPO"} - HEADER_ONLY

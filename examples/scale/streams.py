"""Images from `datasets` and from WebDataset: a column read as it is needed, and a token cache.

    pip install skaocls datasets webdataset
    python examples/scale/streams.py

Digits are written as a table of the one and as tar files of the other, in a temporary folder, as
they would lie on a cluster's disk.
"""

import io
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
import webdataset as wds
from PIL import Image
from sklearn.datasets import load_digits

from skaocls import AnyOrderARClassifier, PatchTokenizer, load_tokens, tokenize_dataset

PER_TAR = 500
CLF = {"max_iter": 10, "n_orders": 4, "random_state": 0}


def write_table(folder, images, y):
    """A table with a column of encoded images, in Arrow files."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [Image.fromarray(image) for image in images], "label": y.tolist()}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)


def write_tars(folder, images, y):
    """Tar files of 00000.png, 00000.cls and so on."""
    folder.mkdir()
    for at in range(0, len(images), PER_TAR):
        with wds.TarWriter(str(folder / f"{at // PER_TAR:05d}.tar")) as tar:
            for i in range(at, min(at + PER_TAR, len(images))):
                png = io.BytesIO()
                Image.fromarray(images[i]).save(png, "PNG")
                tar.write({"__key__": f"{i:05d}", "png": png.getvalue(), "cls": str(y[i])})
    return sorted(map(str, folder.glob("*.tar")))


def pairs(tars):
    """(bytes of an image, label), in the same order each time; our threads decode the images."""
    stream = wds.WebDataset(tars, shardshuffle=False, empty_check=False)
    for sample in stream:
        yield sample["png"], int(sample["cls"])


def main():
    images, y = load_digits().images, load_digits().target
    images = np.rint(images * (255 / 16)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as place:
        # a table: its column of images is a sequence, of which nothing is read in advance
        folder = Path(place)
        write_table(folder / "table", images[:1500], y[:1500])
        table = datasets.load_from_disk(folder / "table")
        clf = AnyOrderARClassifier(**CLF).fit(table["image"], np.array(table["label"]))
        print(f"from the table: accuracy {clf.score(images[1500:], y[1500:]):.3f}")

        # tar files can only be gone through. A tokenizer is fitted to some of their images ...
        tars = write_tars(folder / "tars", images[:1500], y[:1500])
        some = list(pairs(tars[:1]))
        tokenizer = PatchTokenizer(random_state=0)
        tokenizer.fit([png for png, _ in some], [label for _, label in some])

        # ... and each process writes the tokens of its own. Here both run one after the other; on
        # a cluster, part=(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) or the like
        how = {"n_views": 8, "shard_size": 400}
        for rank in range(2):
            mine = pairs(tars[rank::2])
            tokenize_dataset(tokenizer, mine, folder / "tokens", part=(rank, 2), **how)

        tokens = load_tokens(folder / "tokens")
        size = sum(path.stat().st_size for path in tokens.folder.iterdir())
        print(f"{tokens}: {size / len(tokens):.0f} bytes an image")
        clf = AnyOrderARClassifier(tokenizer="precomputed", **CLF).fit(tokens, tokens.labels)
        test = tokenizer.transform(images[1500:])
        print(f"from the tar files: accuracy {clf.score(test, y[1500:]):.3f}")

        # a PyTorch loader, whose processes decode, is gone through in the same way
        data = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(y))
        loader = torch.utils.data.DataLoader(data, batch_size=256, num_workers=2)
        tokens = tokenize_dataset(tokenizer, loader, folder / "of a loader")
        print(f"from a loader: {tokens.shape}, labels {tokens.labels[:5]}")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
    main()

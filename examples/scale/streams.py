"""Images from `datasets` and from WebDataset: lazy reading of a column, and a token cache.

    pip install skaocls datasets webdataset
    python examples/scale/streams.py

The example writes digits to a temporary folder, as a table of `datasets` and as tar files of
WebDataset.
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
    """Write a table with a column of encoded images, as Arrow files."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [Image.fromarray(image) for image in images], "label": y.tolist()}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)


def write_tars(folder, images, y):
    """Write tar files that contain 00000.png, 00000.cls and so on."""
    folder.mkdir()
    for start in range(0, len(images), PER_TAR):
        with wds.TarWriter(str(folder / f"{start // PER_TAR:05d}.tar")) as tar:
            for i in range(start, min(start + PER_TAR, len(images))):
                png = io.BytesIO()
                Image.fromarray(images[i]).save(png, "PNG")
                tar.write({"__key__": f"{i:05d}", "png": png.getvalue(), "cls": str(y[i])})
    return sorted(map(str, folder.glob("*.tar")))


def pairs(tars):
    """Yield (encoded image, label) in a fixed order; skaocls decodes the images in threads."""
    stream = wds.WebDataset(tars, shardshuffle=False, empty_check=False)
    for sample in stream:
        yield sample["png"], int(sample["cls"])


def main():
    images, y = load_digits().images, load_digits().target
    images = np.rint(images * (255 / 16)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as temporary:
        # the column of images is a sequence, which is read as needed
        folder = Path(temporary)
        write_table(folder / "table", images[:1500], y[:1500])
        table = datasets.load_from_disk(folder / "table")
        clf = AnyOrderARClassifier(**CLF).fit(table["image"], np.array(table["label"]))
        print(f"from the table: accuracy {clf.score(images[1500:], y[1500:]):.3f}")

        # tar files can only be read from start to end: fit a tokenizer to some of the images ...
        tars = write_tars(folder / "tars", images[:1500], y[:1500])
        sample = list(pairs(tars[:1]))
        tokenizer = PatchTokenizer(random_state=0)
        tokenizer.fit([png for png, _ in sample], [label for _, label in sample])

        # ... and let each process write the tokens of its tar files. Here two parts are written
        # one after the other; on a cluster, each process has its own part:
        # part=(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        params = {"n_views": 8, "shard_size": 400}
        for rank in range(2):
            part = pairs(tars[rank::2])
            tokenize_dataset(tokenizer, part, folder / "tokens", part=(rank, 2), **params)

        tokens = load_tokens(folder / "tokens")
        size = sum(path.stat().st_size for path in tokens.folder.iterdir())
        print(f"{tokens}: {size / len(tokens):.0f} bytes per image")
        clf = AnyOrderARClassifier(tokenizer="precomputed", **CLF).fit(tokens, tokens.labels)
        test = tokenizer.transform(images[1500:])
        print(f"from the tar files: accuracy {clf.score(test, y[1500:]):.3f}")

        # a PyTorch loader works in the same way; its processes decode the images
        data = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(y))
        loader = torch.utils.data.DataLoader(data, batch_size=256, num_workers=2)
        tokens = tokenize_dataset(tokenizer, loader, folder / "loader tokens")
        print(f"from a loader: {tokens.shape}, labels {tokens.labels[:5]}")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no network access
    main()

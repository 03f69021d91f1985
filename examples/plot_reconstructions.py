"""What do tokens keep of an image?

`PatchTokenizer` cuts an image into patches and names each by its nearest codebook entry. The
picture shows digits, the codes of their patches, and the images that these decode to. All that
the classifier sees is the row in the middle.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import PatchTokenizer
from skaocls.displays import ReconstructionDisplay


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the picture")
    args = parser.parse_args(argv)

    X, y = load_digits().images, load_digits().target
    X, X_test, _, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
    tokenizer = PatchTokenizer(random_state=0).fit(X)
    images = np.stack([X_test[y_test == digit][0] for digit in range(10)])
    codes = tokenizer.transform(images)
    decoded = tokenizer.inverse_transform(codes)
    display = ReconstructionDisplay.from_predictions(images, codes, decoded)

    args.output.mkdir(parents=True, exist_ok=True)
    display.figure_.savefig(args.output / "reconstructions.png", dpi=150)


if __name__ == "__main__":
    main()

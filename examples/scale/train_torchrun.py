"""Train with one or several processes: ``torchrun --nproc-per-node 2 train_torchrun.py``.

Every process runs the whole script with the same data. Only the main process prints and saves.
"""

import argparse

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier, distributed, load_image_folder

parser = argparse.ArgumentParser()
parser.add_argument("--data", help="folder with one subfolder of images per class")
parser.add_argument("--output", default="classifier")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=64)
args = parser.parse_args()

if args.data:
    X, y, _ = load_image_folder(args.data)
    shape = (64, 64)
else:
    X, y = load_digits(return_X_y=True)
    shape = (8, 8)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)

clf = AnyOrderARClassifier(
    image_shape=shape,
    max_iter=args.epochs,
    batch_size=args.batch_size,  # total of all processes
    checkpoint_dir=f"{args.output}-checkpoints",  # a restarted script continues
    random_state=0,
    verbose=1,
)
clf.fit(X_train, y_train)
accuracy = clf.score(
    X_test, y_test
)  # called by all processes, each of which scores a part of the images

if distributed.is_main():
    clf.save_pretrained(args.output)
    print(f"accuracy {accuracy:.3f}, with {distributed.world_size()} processes")

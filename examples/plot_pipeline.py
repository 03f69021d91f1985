"""
Images and numbers in one pipeline
==================================

Each row of a table contains the path of an image and two numbers. `AnyOrderARClassifier` transforms
the image into log-likelihoods of the classes, and a logistic regression combines them with the
numbers. The images are digits with strong noise. The numbers are the amount of ink, and a note with
some mistakes whether the digit is even.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skaocls import AnyOrderARClassifier


def make_table(folder):
    """Write noisy digits as files, and return a table of their paths and two numbers."""
    rng = np.random.RandomState(0)
    X, y = load_digits(return_X_y=True)
    images = np.clip(X.reshape(-1, 8, 8) + rng.normal(0, 6, size=(len(X), 8, 8)), 0, 16)
    paths = [str(folder / f"{i:04d}.png") for i in range(len(X))]
    for path, image in zip(paths, images):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path)
    even = (y % 2 == 0) ^ (rng.random_sample(len(y)) < 0.05)
    return pd.DataFrame({"path": paths, "even": even.astype(float), "ink": X.sum(1)}), y


# %%
# The table contains paths, so the image files must exist until the end.
with tempfile.TemporaryDirectory() as folder:
    table, y = make_table(Path(folder))
    X, X_test, y, y_test = train_test_split(table, y, test_size=0.25, stratify=y)
    reader = AnyOrderARClassifier(n_orders=8, max_iter=20, augmentation=4, random_state=0)
    image = ColumnTransformer([("image", reader, ["path"])])
    numbers = ColumnTransformer([("numbers", StandardScaler(), ["even", "ink"])])

    def combine():
        return LogisticRegression(max_iter=2000)

    models = {
        "numbers alone": make_pipeline(numbers, combine()),
        "image alone": make_pipeline(image, StandardScaler(), combine()),
        # cross-validation, so that the log-likelihoods are of images not used for training
        "image and numbers": StackingClassifier(
            [
                ("image", make_pipeline(ColumnTransformer([("path", "passthrough", ["path"])]),
                                        reader)),
                ("numbers", make_pipeline(numbers, combine())),
            ],
            final_estimator=combine(),
            cv=3,
        ),
    }  # fmt: skip
    scores = {}
    for name, model in models.items():
        scores[name] = model.fit(X, y).score(X_test, y_test)
        print(f"{name:18s} test accuracy {scores[name]:.4f}")

    figure = plt.figure(figsize=(7, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.6])
    sheet = [np.asarray(Image.open(path)) for path in X_test["path"][:16]]
    rows = [np.hstack([np.pad(i, 1) for i in sheet[k : k + 4]]) for k in range(0, 16, 4)]
    left.imshow(np.vstack(rows), cmap="gray_r")
    left.set_title("noisy digits", fontsize=10)
    left.set_axis_off()
    bars = right.barh(list(scores), list(scores.values()), color="#0072B2")
    right.bar_label(bars, fmt="%.3f", padding=3)
    right.set(xlabel="test accuracy", xlim=(0, 1.12))
    right.invert_yaxis()
    right.spines[["top", "right"]].set_visible(False)
plt.show()

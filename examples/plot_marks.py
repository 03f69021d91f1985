"""
Marks that reveal the class: find them, and limit their evidence
================================================================

In this example, 95 % of the training images have a small mark in a corner that reveals the class.
Such marks occur in practice: a watermark, the tag of a scanner, a border. A classifier that relies
on them fails when the marks are missing or wrong. With ``verbose=1``, `fit` reports places that
decide a class. With ``aggregation="bounded"``, no single place can outweigh the rest of the image.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier

CORNERS = [np.s_[:2, :2], np.s_[:2, -2:], np.s_[-2:, :2], np.s_[-2:, -2:]]


def with_marks(images, classes):
    """Draw a square: its corner and its gray value stand for a class."""
    marked = images.copy()
    for image, label in zip(marked, classes):
        image[CORNERS[label % 4]] = 16 - 5 * (label // 4)
    return marked


# %%
# In 5 % of the training images, the mark stands for a random class.
rng = np.random.default_rng(0)
X, y = load_digits().images, load_digits().target
X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
marks = np.where(rng.random(len(y)) < 0.95, y, rng.integers(10, size=len(y)))
X = with_marks(X, marks)

# %%
# Train for fewer epochs than the default, to save time. `fit` reports the corners.
clf = AnyOrderARClassifier(max_iter=40, random_state=0, verbose=1).fit(X, y)

# %%
# ``place_evidence_`` contains the mean evidence of each place for each class.
figure, axes = plt.subplots(2, 5, figsize=(8, 3.6), layout="constrained")
for ax, label, evidence in zip(axes.flat, clf.classes_, clf.place_evidence_):
    image = ax.imshow(evidence, cmap="RdBu", vmin=-5, vmax=5)
    ax.set(title=f"class {label}", xticks=[], yticks=[])
figure.colorbar(image, ax=axes, label="nats for the class")

# %%
# Compare the accuracy without and with the bound. The last test images have marks of another class.
clf.set_params(verbose=0)
tests = {
    "marks as in training": with_marks(X_test, y_test),
    "no marks": X_test,
    "marks of another class": with_marks(X_test, (y_test + 1) % 10),
}
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for shift, aggregation in ((-0.2, "mean_log_likelihood"), (0.2, "bounded")):
    clf.set_params(aggregation=aggregation)
    accuracy = [100 * clf.score(images, y_test) for images in tests.values()]
    bars = ax.bar(np.arange(3) + shift, accuracy, 0.4, label=f'aggregation="{aggregation}"')
    ax.bar_label(bars, fmt="%.1f")
ax.set(ylabel="Accuracy in %", ylim=(0, 118), xticks=range(3), xticklabels=tests)
ax.legend(loc="lower left")
plt.show()

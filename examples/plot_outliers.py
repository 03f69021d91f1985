"""
Outlier detection by likelihood
===============================

`score_samples` is low for images that differ from the training images. This example compares it
with an isolation forest and with the highest probability of a multilayer perceptron. The measure is
the area under the ROC curve for separating test digits from noise, shuffled digits, inverted digits
and letters.
"""

import string

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skaocls import AnyOrderARClassifier

LETTERS = [c for c in string.ascii_letters if c not in "OoIlZzSsBbgq"]  # these look like digits
COLOURS = ["#0072B2", "#D55E00", "#009E73"]


def letters(n, rng):
    """Draw letters in Pillow's font, 8 x 8, with values 0 ... 16 as in the digits."""
    images = []
    for _ in range(n):
        canvas = Image.new("L", (64, 64))
        pen = ImageDraw.Draw(canvas)
        position = tuple(32 + rng.uniform(-4, 4, size=2))
        font = ImageFont.load_default(rng.randint(50, 62))
        pen.text(position, rng.choice(LETTERS), fill=255, font=font, anchor="mm", stroke_width=2)
        images.append(np.asarray(canvas.resize((8, 8), Image.Resampling.BOX)) / 255 * 16)
    return np.array(images).round()


# %%
# Train the three models on digits.
X, y = load_digits().images, load_digits().target
X, X_test, y, _ = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
flat = X.reshape(len(X), -1)
clf = AnyOrderARClassifier(n_orders=8, max_iter=30, random_state=0).fit(X, y)
forest = IsolationForest(random_state=0).fit(flat)
perceptron = MLPClassifier(max_iter=1000, random_state=0).fit(flat, y)
scores = {
    "AnyOrderARClassifier.score_samples": clf.score_samples,
    "IsolationForest": lambda images: forest.score_samples(images.reshape(len(images), -1)),
    "MLPClassifier, highest probability": lambda images: perceptron.predict_proba(
        images.reshape(len(images), -1)
    ).max(1),
}

# %%
# Make four kinds of outliers, and measure how well each score separates them from test digits.
rng = np.random.RandomState(0)
pixels = X_test.reshape(len(X_test), -1)
outliers = {
    "noise": rng.randint(0, 17, size=X_test.shape).astype(float),
    "shuffled pixels": np.array([rng.permutation(p) for p in pixels]).reshape(X_test.shape),
    "inverted": 16 - X_test,
    "letters": letters(len(X_test), rng),
}
found = {name: [] for name in scores}
digit_scores = {name: score(X_test) for name, score in scores.items()}
for kind, images in outliers.items():
    truth = np.r_[np.ones(len(X_test)), np.zeros(len(images))]
    for name, score in scores.items():
        found[name].append(roc_auc_score(truth, np.r_[digit_scores[name], score(images)]))
    print(f"{kind:16s} " + ", ".join(f"{name} {auc[-1]:.3f}" for name, auc in found.items()))

# %%
# Show four images of each kind, and the areas under the ROC curves.
figure = plt.figure(figsize=(9, 5), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1, 2.6])
kinds = {"digits": X_test, **outliers}
for i, (ax, (kind, images)) in enumerate(zip(top.subplots(1, len(kinds)), kinds.items())):
    strip = np.hstack([np.pad(image, 1) for image in images[:4]])
    ax.imshow(strip, cmap="gray_r", vmin=0, vmax=16)
    ax.set_title(kind, fontsize=10, fontweight="normal" if i else "bold")
    ax.set_axis_off()
ax = bottom.subplots()
for i, ((name, aucs), colour) in enumerate(zip(found.items(), COLOURS)):
    x = np.arange(len(aucs)) + 0.27 * (i - 1)
    bars = ax.bar(x, aucs, width=0.25, color=colour, label=name)
    ax.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
ax.set_xticks(range(len(outliers)), list(outliers))
ax.set(ylabel="AUROC against test digits", ylim=(0, 1.12))
ax.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
plt.show()

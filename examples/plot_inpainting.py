"""
Inpainting: missing parts of digits
===================================

An any-order model can read the known tokens first and sample the others. Each test digit loses a
half, and the classifier completes it several times without knowing its class.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from skaocls import AnyOrderARClassifier

N_TIMES = 5


def missing_halves(n):
    """Return masks that hide the left, right, upper or lower half of each image."""
    masks = np.zeros((n, 8, 8), bool)
    halves = [np.s_[:, :4], np.s_[:, 4:], np.s_[:4], np.s_[4:]]
    for i, mask in enumerate(masks):
        mask[halves[i % 4]] = True
    return masks


def comparison(X, masks, filled, chosen):
    """Draw a column for each chosen image: original, known part and completions."""
    n_rows = 2 + len(filled)
    size = (len(chosen) * 0.75 + 0.8, n_rows * 0.75)
    figure = plt.figure(figsize=size, dpi=200, layout="constrained")
    axes = figure.subplots(n_rows, len(chosen))
    for column, i in zip(axes.T, chosen, strict=True):
        known = np.ma.masked_where(masks[i], X[i])
        for ax, image in zip(column, [X[i], known, *(f[i] for f in filled)], strict=True):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=16)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        column[1].set_facecolor("lightsteelblue")
    for row, name in {0: "image", 1: "known", 2 + len(filled) // 2: "completed"}.items():
        axes[row, 0].set_ylabel(
            name, rotation=0, ha="right", va="center", fontsize=11, color="tab:blue"
        )
    return figure


# %%
# Train on most digits, and hide a half of the others.
data = load_digits()
X, X_test, y, y_test = train_test_split(
    data.images, data.target, test_size=100, stratify=data.target, random_state=0
)
clf = AnyOrderARClassifier(max_iter=30, random_state=0).fit(X, y)
masks = missing_halves(len(X_test))
filled = [clf.inpaint(X_test, masks, random_state=seed) for seed in range(N_TIMES)]

# %%
# Count the digits that a support vector machine recognises, with a blank and a completed half.
svc = SVC().fit(data.data, data.target)
blank = np.where(masks, 0, X_test)
for name, images in [("blank half", [blank]), ("completed", filled)]:
    share = np.mean([svc.score(a.reshape(len(a), -1), y_test) for a in images])
    print(f"recognised by a support vector machine, {name}: {share:.0%}")

# %%
# Show one digit of each class with five completions.
one_of_each = [np.flatnonzero(y_test == digit)[0] for digit in clf.classes_]
figure = comparison(X_test, masks, filled, one_of_each)
plt.show()

"""
Calibrated probabilities: a temperature from held-out digits
============================================================

The tokens of an image are correlated, so their summed log-likelihoods can be overconfident. A
temperature that is fitted on held-out images corrects this. The example shows the reliability of
the class probabilities before and after, for digits with strong noise.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier
from skaocls.scoring.calibration import expected_calibration_error

N_BINS = 10


def reliability(proba, y):
    """Return the mean confidence, the accuracy and the size of each non-empty bin."""
    confidence, correct = proba.max(1), proba.argmax(1) == y
    which = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    bins = [which == b for b in np.unique(which)]
    return np.array([(confidence[b].mean(), correct[b].mean(), b.sum()) for b in bins]).T


# %%
# Add strong noise to the digits. `temperature="auto"` holds out a fifth of the training data.
X, y = load_digits().images, load_digits().target
X = X + np.random.RandomState(0).normal(0, 4, size=X.shape)  # pixels range from 0 to 16
X, X_test, y, y_test = train_test_split(X, y, test_size=0.4, stratify=y, random_state=0)
clf = AnyOrderARClassifier(
    temperature="auto",
    validation_fraction=0.2,
    augmentation=4,
    max_iter=40,
    random_state=0,
).fit(X, y)

# %%
# Plot the reliability before and after. The size of a point shows the number of images in its bin.
found = clf.temperature_
figure = plt.figure(figsize=(9, 4.5), layout="constrained")
axes = figure.subplots(1, 2, sharey=True)
for ax, temperature in zip(axes, (1.0, found)):
    proba = clf.set_params(temperature=temperature).predict_proba(X_test)
    ece = 100 * expected_calibration_error(proba, y_test)
    nll, score = log_loss(y_test, proba), np.mean(proba.argmax(1) == y_test)
    print(
        f"temperature {temperature:.2f}: accuracy {score:.4f}, calibration error "
        f"{ece:.2f} %, log-loss {nll:.4f}"
    )
    confidence, accuracy, size = reliability(proba, y_test)
    ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    ax.scatter(confidence, accuracy, s=20 + 400 * size / len(y_test), color="#0072B2", zorder=3)
    ax.plot(confidence, accuracy, color="#0072B2")
    ax.set(xlabel="predicted probability", xlim=(0, 1.04), ylim=(0, 1.04))
    ax.set_title(
        f"temperature {temperature:.2f}: calibration error {ece:.1f} %, log-loss {nll:.2f}",
        fontsize=10,
    )
    ax.grid(alpha=0.3)
axes[0].set_ylabel("accuracy")
plt.show()

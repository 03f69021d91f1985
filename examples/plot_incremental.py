"""
Incremental learning: two classes at a time
===========================================

`partial_fit` trains a separate prior for new classes, so the scores of old classes do not change.
SGDClassifier and a multilayer perceptron forget old classes when they see the same images in the
same sequence.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skaocls import AnyOrderARClassifier

EPOCHS = 60
COLOURS = ["#0072B2", "#D55E00", "#009E73"]

# %% Train on two classes at a time. The `partial_fit` of the other models needs all classes in
# advance.
X, y = load_digits().images / 16, load_digits().target
X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
models = {
    "AnyOrderARClassifier": AnyOrderARClassifier(max_iter=25, random_state=0),
    "SGDClassifier": SGDClassifier(random_state=0),
    "MLPClassifier": MLPClassifier(random_state=0),
}
curves = {name: [] for name in models}
seen_so_far = range(2, 11, 2)
for n_seen in seen_so_far:
    now = np.isin(y, [n_seen - 2, n_seen - 1])
    test = y_test < n_seen
    for name, model in models.items():
        if name == "AnyOrderARClassifier":
            model.partial_fit(X[now], y[now])
            accuracy = model.score(X_test[test], y_test[test])
        else:
            flat = X[now].reshape(now.sum(), -1)
            for _ in range(EPOCHS):
                model.partial_fit(flat, y[now], classes=np.arange(10))
            accuracy = model.score(X_test[test].reshape(test.sum(), -1), y_test[test])
        curves[name].append(accuracy)
    print(f"{n_seen:2d} classes: " + ", ".join(f"{k} {v[-1]:.4f}" for k, v in curves.items()))

# %%
# Plot the accuracy on all classes seen so far.
figure = plt.figure(figsize=(7, 4.5), layout="constrained")
ax = figure.add_subplot()
for (name, curve), colour in zip(curves.items(), COLOURS):
    ax.plot(seen_so_far, curve, "o-", color=colour, label=name)
ax.set(xlabel="classes seen so far", ylabel="test accuracy on them", ylim=(0, 1.03))
ax.set_xticks(list(seen_so_far))
ax.set_title("Digits, two new classes at a time")
ax.grid(alpha=0.3)
ax.legend()
plt.show()

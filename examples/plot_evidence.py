"""
Explanations: which parts of a digit speak for which class
==========================================================

The classifier's log-likelihood is a sum over tokens, so each token says how much it speaks for a
class, in nats. The first picture shows that for three test digits and their most probable classes:
two of which the classifier is sure, and the one that confuses it most. Evidence is weighed against
no class at all there: blue is what is more likely if the class is known. The second picture weighs
the best class of four confusing digits against the second best: blue is what decides for it, red
what nearly decided for the other.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier
from skaocls.displays import EvidenceDisplay

# %%
# Train for fewer epochs than the default, so that this page is built in a minute.
X, y = load_digits().images, load_digits().target
X, X_test, y, _ = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
clf = AnyOrderARClassifier(max_iter=30, random_state=0).fit(X, y)

# %%
# Digits of which the classifier is sure, and those that confuse it most.
second, best = np.sort(clf.predict_proba(X_test), axis=1)[:, -2:].T
by_margin = np.argsort(best - second)
typical = X_test[by_margin[[-1, len(by_margin) // 2]]]
confusing = X_test[by_margin[:4]]

# %%
# Evidence for the most probable classes, against no class at all.
images = np.concatenate([typical, confusing[:1]])
display = EvidenceDisplay.from_estimator(clf, images)

# %%
# Evidence of the best class against the second best, for the confusing digits.
_, axes = plt.subplots(2, 4, figsize=(9, 4.8), layout="constrained")
display = EvidenceDisplay.from_estimator(
    clf,
    confusing,
    n_classes=1,
    rival="runner-up",
    ax=axes.T,  # images above their maps
)
plt.show()

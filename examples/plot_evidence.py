"""
Explanations: evidence of image parts for classes
==================================================

The log-likelihood is a sum over tokens, so each token contributes evidence for a class, in nats.
The first figure shows the evidence for the most probable classes of three test digits: two that are
classified with confidence, and the least certain one. It compares each class with the null class:
blue parts are more likely if the class is known. The second figure compares the best class of four
uncertain digits with the second best. Blue parts support the best class, red parts the other.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier
from skaocls.displays import EvidenceDisplay

# %%
# Train for fewer epochs than the default, to save time.
X, y = load_digits().images, load_digits().target
X, X_test, y, _ = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
clf = AnyOrderARClassifier(max_iter=30, random_state=0).fit(X, y)

# %%
# Select digits with a clear prediction, and the least certain ones.
second, best = np.sort(clf.predict_proba(X_test), axis=1)[:, -2:].T
by_margin = np.argsort(best - second)
typical = X_test[by_margin[[-1, len(by_margin) // 2]]]
uncertain = X_test[by_margin[:4]]

# %%
# Show the evidence for the most probable classes, compared with the null class.
images = np.concatenate([typical, uncertain[:1]])
display = EvidenceDisplay.from_estimator(clf, images)

# %%
# Show the evidence for the best class against the second best, for the uncertain digits.
_, axes = plt.subplots(2, 4, figsize=(9, 4.8), layout="constrained")
display = EvidenceDisplay.from_estimator(
    clf,
    uncertain,
    n_classes=1,
    rival="runner-up",
    ax=axes.T,  # images above their maps
)
plt.show()

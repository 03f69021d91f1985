"""
Sampling digits from a classifier
=================================

A generative classifier can sample images of each class. This example samples digits, one row for
each class, and counts those that a support vector machine recognises, which was trained on real
digits. `fit` augments the training images with small shifts, rotations and stretches, so the
samples contain them, too. The support vector machine recognises such views of real digits only
slightly better. Guidance and `top_p` make samples more typical of their class.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from skaocls import AnyOrderARClassifier
from skaocls.displays import ReconstructionDisplay

N_EACH = 12

# %%
# Train for fewer epochs than the default, to save time.
data = load_digits()
clf = AnyOrderARClassifier(max_iter=30, random_state=0).fit(data.images, data.target)

# %%
# Sample twelve digits of each class, without and with guidance.
y = np.repeat(clf.classes_, N_EACH)
svc = SVC().fit(data.data, data.target)
for params in ({}, {"guidance": 2.0, "top_p": 0.9}):
    images = clf.sample(len(y), y, **params, random_state=0)
    share = svc.score(images.reshape(len(y), -1), y)
    print(f"recognised with {params or 'defaults'}: {share:.0%} of {len(y)} digits")

# %%
# Show the digits sampled with guidance.
display = ReconstructionDisplay(images, labels=y).plot()
plt.show()

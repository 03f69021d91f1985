"""
Drawing digits from a classifier
================================

A generative classifier knows what each class looks like. Fitted to scikit-learn's digits, it draws
a sheet of them, one row for each class; a support vector machine that was trained on real digits
says how many it recognises. `fit` shows the model small shifts, turns and stretches of the digits
too, and so it draws them: the machine knows such views of real digits little better. Guidance and
`top_p` make draws more typical of their class.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from skaocls import AnyOrderARClassifier
from skaocls.displays import ReconstructionDisplay

N_EACH = 12

# %%
# Train for fewer epochs than the default, so that this page is built in a minute.
data = load_digits()
clf = AnyOrderARClassifier(max_iter=30, random_state=0).fit(data.images, data.target)

# %%
# Draw twelve of each class, plainly and then with guidance.
y = np.repeat(clf.classes_, N_EACH)
svc = SVC().fit(data.data, data.target)
for how in ({}, {"guidance": 2.0, "top_p": 0.9}):
    images = clf.sample(len(y), y, **how, random_state=0)
    share = svc.score(images.reshape(len(y), -1), y)
    print(f"recognised with {how or 'defaults'}: {share:.0%} of {len(y)} digits")

# %%
# The digits drawn with guidance.
display = ReconstructionDisplay(images, labels=y).plot()
plt.show()

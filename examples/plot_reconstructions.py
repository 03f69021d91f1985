"""
Tokens and reconstructions of images
====================================

`PatchTokenizer` cuts an image into patches and replaces each by the index of its nearest codebook
entry. The figure shows digits, the codes of their patches, and the images decoded from the codes.
The classifier only uses the codes.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import PatchTokenizer
from skaocls.displays import ReconstructionDisplay

# %%
# Learn a codebook, and encode one test digit of each class.
X, y = load_digits().images, load_digits().target
X, X_test, _, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
tokenizer = PatchTokenizer(random_state=0).fit(X)
images = np.stack([X_test[y_test == digit][0] for digit in range(10)])
codes = tokenizer.transform(images)
decoded = tokenizer.inverse_transform(codes)

# %%
# Show digits, their codes and the decoded images.
display = ReconstructionDisplay(images, codes, decoded).plot()
plt.show()

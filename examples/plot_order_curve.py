"""
How many orders are enough
==========================

Twenty orders are more accurate than one. The curve shows the test accuracy on scikit-learn's digits
against the number of orders, with the cost on the upper axis. The vertical line marks the smallest
number of orders whose validation accuracy is within one standard error of the best.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skaocls import AnyOrderARClassifier
from skaocls.displays import OrderCurveDisplay
from skaocls.order_selection import smallest_n_orders

# %%
# Split into training, validation and test images.
X, y = load_digits().images, load_digits().target
X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
X, X_val, y, y_val = train_test_split(X, y, test_size=0.2, stratify=y, random_state=0)

# %%
# Choose the number of orders on the validation images.
clf = AnyOrderARClassifier(max_iter=30, random_state=0).fit(X, y)
enough = smallest_n_orders(clf, X_val, y_val)

# %%
# Train other classifiers for comparison.
baselines = {
    "LogisticRegression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
    "MLPClassifier": make_pipeline(StandardScaler(), MLPClassifier(max_iter=1000, random_state=0)),
    "SVC": SVC(),
}
for model in baselines.values():
    model.fit(X.reshape(len(X), -1), y)

# %%
# Plot the test accuracy against the number of orders.
display = OrderCurveDisplay.from_estimator(clf, X_test, y_test, baselines=baselines)
display.ax_.axvline(enough, color="0.5", linewidth=1, zorder=1)
display.ax_.annotate(
    f"{enough} orders are enough",
    (enough, 0.5),
    xycoords=("data", "axes fraction"),
    xytext=(6, 0),
    textcoords="offset points",
    color="0.3",
)
print(f"{enough} of {clf.n_orders} orders are enough on validation data; test accuracy:")
for k in (1, enough, clf.n_orders):
    print(f"  orders: {k:2d}  {display.scores[k - 1]:.4f}")
plt.show()

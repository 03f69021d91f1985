"""
Grid search with one fit per fold
=================================

The parameters in this grid affect prediction, but not training. With `memory`, 24 settings and 3
folds take 3 fits and the final one on all data, and the log-likelihoods of an order are computed
once.
"""

import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split

from skaocls import AnyOrderARClassifier
from skaocls.scoring.aggregation import AGGREGATIONS

N_ORDERS = [1, 2, 3, 5, 8, 12, 16, 20]
COLOURS = ["#0072B2", "#D55E00", "#009E73"]

# %%
# Search 24 settings with 3 folds. This trains four times.
X, y = load_digits().images, load_digits().target
X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
with tempfile.TemporaryDirectory() as folder:
    clf = AnyOrderARClassifier(max_iter=12, memory=folder, random_state=0)
    grid = {"n_orders": N_ORDERS, "aggregation": list(AGGREGATIONS)}
    start = time.perf_counter()
    search = GridSearchCV(clf, grid, cv=3).fit(X, y)
    seconds = time.perf_counter() - start
print(f"{len(search.cv_results_['params'])} settings in {seconds:.0f} s")
print(f"best {search.best_params_}, test accuracy {search.score(X_test, y_test):.4f}")

# %%
# Plot the accuracy against the number of orders, for each aggregation.
results = search.cv_results_
aggregations = results["param_aggregation"]
figure = plt.figure(figsize=(7, 4.5), layout="constrained")
ax = figure.add_subplot()
for name, colour in zip(AGGREGATIONS, COLOURS):
    mean = results["mean_test_score"][aggregations == name]
    error = results["std_test_score"][aggregations == name] / np.sqrt(search.n_splits_)
    ax.plot(N_ORDERS, mean, "o-", color=colour, label=name)
    ax.fill_between(N_ORDERS, mean - error, mean + error, color=colour, alpha=0.15)
ax.set(xlabel="number of orders", ylabel="cross-validated accuracy", xticks=N_ORDERS)
ax.set_title(f"{len(aggregations)} settings, 3 folds, 4 fits: {seconds:.0f} s")
ax.grid(alpha=0.3)
ax.legend(loc="lower right")
plt.show()

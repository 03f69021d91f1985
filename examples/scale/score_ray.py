"""Predict with the workers of a Ray cluster, here two local ones."""

import joblib
import numpy as np
import ray
from ray.util.joblib import register_ray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier


def main():
    X, y = load_digits().images, load_digits().target
    X_train, X_test, y_train, _ = train_test_split(X, y, random_state=0)
    clf = AnyOrderARClassifier(max_iter=5, random_state=0).fit(X_train, y_train)
    alone = clf.predict_proba(X_test)

    ray.init(num_cpus=2)  # on a real cluster: ray.init("auto")
    register_ray()
    with joblib.parallel_config("ray", n_jobs=2):
        shared = clf.predict_proba(X_test)
    print("largest difference from one process:", np.abs(shared - alone).max())
    ray.shutdown()


if __name__ == "__main__":
    main()

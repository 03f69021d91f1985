"""Predict with two local processes."""

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier


def main():
    X, y = load_digits().images, load_digits().target
    X_train, X_test, y_train, _ = train_test_split(X, y, random_state=0)
    clf = AnyOrderARClassifier(max_iter=5, random_state=0).fit(X_train, y_train)
    alone = clf.predict_proba(X_test)

    # two processes; -1 uses all processors
    clf.set_params(n_jobs=2)
    shared = clf.predict_proba(X_test)
    print("largest difference from one process:", np.abs(shared - alone).max())

    # joblib can also set the backend and the number of threads for the matrix products of a process
    clf.set_params(n_jobs=None)
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=2):
        shared = clf.predict_proba(X_test)
    with joblib.parallel_config("threading", n_jobs=2):
        threads = clf.predict_proba(X_test)
    print("with more threads:", np.abs(shared - alone).max(), np.abs(threads - alone).max())


if __name__ == "__main__":  # new processes import this file
    main()

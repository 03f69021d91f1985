"""Predict with the workers of a Dask cluster, here two local ones."""

import joblib
import numpy as np
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier


def main():
    X, y = load_digits().images, load_digits().target
    X_train, X_test, y_train, _ = train_test_split(X, y, random_state=0)
    clf = AnyOrderARClassifier(max_iter=5, random_state=0).fit(X_train, y_train)
    alone = clf.predict_proba(X_test)

    # on a real cluster: Client("tcp://scheduler:8786"), with one thread per worker
    cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    with cluster, Client(cluster), joblib.parallel_config("dask"):
        shared = clf.predict_proba(X_test)
    print("largest difference from one process:", np.abs(shared - alone).max())


if __name__ == "__main__":
    main()

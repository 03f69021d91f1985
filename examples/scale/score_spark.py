"""Predict for a Spark data frame, here with two local workers."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark import SparkFiles
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skaocls import AnyOrderARClassifier


def predict(frames):
    """Predict the batches of rows of one partition, in a worker."""
    import torch

    torch.set_num_threads(1)
    clf = AnyOrderARClassifier.from_pretrained(SparkFiles.get("classifier"))
    for frame in frames:
        images = np.stack(frame["pixels"]).reshape(-1, 8, 8)
        proba = clf.predict_proba(images)
        label = clf.classes_[proba.argmax(1)]
        yield pd.DataFrame({"id": frame["id"], "label": label, "proba": list(proba)})


def main():
    X, y = load_digits().images, load_digits().target
    X_train, X_test, y_train, _ = train_test_split(X, y, random_state=0)
    clf = AnyOrderARClassifier(max_iter=5, random_state=0).fit(X_train, y_train)
    alone = clf.predict_proba(X_test)

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", 256)
        .getOrCreate()
    )
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "classifier"
        clf.save_pretrained(saved)
        spark.sparkContext.addFile(str(saved), recursive=True)  # once to each machine

        rows = pd.DataFrame({"id": range(len(X_test)), "pixels": list(X_test.reshape(-1, 64))})
        table = spark.createDataFrame(rows).repartition(2)
        schema = "id long, label long, proba array<double>"
        found = table.mapInPandas(predict, schema).toPandas().sort_values("id")
    spark.stop()
    shared = np.stack(found["proba"])
    print("largest difference from one process:", np.abs(shared - alone).max())


if __name__ == "__main__":
    main()

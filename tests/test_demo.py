"""``python -m skaocls`` and the example of the README on a small folder of images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from skaocls import AnyOrderARClassifier
from skaocls.__main__ import main


def write_digits(folder, n, size, extension):
    """Write digits of three classes to one subfolder per class."""
    digits = load_digits(n_class=3)
    for i, (image, label) in enumerate(zip(digits.images[:n], digits.target[:n], strict=True)):
        path = folder / f"digit-{label}" / f"{i}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).resize(size).save(path)


def test_demo_on_a_folder(tmp_path):
    write_digits(tmp_path / "data", 90, (16, 16), "png")
    run = subprocess.run(
        [sys.executable, "-m", "skaocls", "--data", str(tmp_path / "data"), "--size", "8"]
        + ["--output", str(tmp_path / "out"), "--max-iter", "3"],
        capture_output=True,
        text=True,
        check=True,
    )
    texts = ("67 training and 23 test images, 3 classes", " 1 order ", "20 orders", "row by row")
    for text in (*texts, "LogisticRegression", "MLPClassifier", "SVC"):
        assert text in run.stdout
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "67 training and 23 test images" in report and "Calibration" in report


def test_demo_refuses_an_output_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(AnyOrderARClassifier, "fit", pytest.fail)
    with pytest.raises(SystemExit, match=r"--output .*file cannot be written to"):
        main(["--output", str(tmp_path / "file")])


def test_readme_on_a_folder(tmp_path, monkeypatch):
    write_digits(tmp_path / "flowers", 60, (40, 36), "jpg")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    names = {}
    snippet = text.split("```python\n")[1].split("```")[0]
    exec(snippet.replace("verbose=1", "max_iter=20"), names)
    assert list(names["clf"].classes_) == names["class_names"] == [f"digit-{i}" for i in range(3)]
    assert set(names["clf"].predict(names["X_test"])) <= set(names["class_names"])

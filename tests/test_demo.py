"""``python -m skaocls`` on a small folder of images, as a user would call it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def test_demo_on_a_folder(tmp_path):
    digits = load_digits(n_class=3)
    for i, (image, label) in enumerate(zip(digits.images[:90], digits.target[:90], strict=True)):
        folder = tmp_path / "data" / f"digit-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).resize((16, 16)).save(folder / f"{i}.png")
    run = subprocess.run(
        [sys.executable, "-m", "skaocls", "--data", str(tmp_path / "data"), "--size", "8"]
        + ["--output", str(tmp_path / "out"), "--max-iter", "3"],
        capture_output=True,
        text=True,
        check=True,
    )
    for said in (
        "67 training and 23 test images, 3 classes",
        " 1 order ",
        "20 orders",
        "row by row",
    ):
        assert said in run.stdout
    for name in ("LogisticRegression", "MLPClassifier", "SVC"):
        assert name in run.stdout
    for picture in ("orders.png", "reconstructions.png"):
        with Image.open(tmp_path / "out" / picture) as image:
            assert np.asarray(image.convert("L")).std() > 5  # not blank
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "67 training and 23 test images" in report and "Calibration" in report


def test_readme_on_a_folder(tmp_path, monkeypatch):
    digits = load_digits(n_class=3)
    for i, (image, label) in enumerate(zip(digits.images[:60], digits.target[:60], strict=True)):
        folder = tmp_path / "flowers" / f"digit-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).resize((40, 36)).save(folder / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    names = {}
    snippet = text.split("```python\n")[1].split("```")[0]
    exec(snippet.replace("verbose=1", "max_iter=20"), names)
    assert list(names["clf"].classes_) == names["class_names"] == [f"digit-{i}" for i in range(3)]
    assert set(names["clf"].predict(names["X_test"])) <= set(names["class_names"])

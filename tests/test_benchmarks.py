"""A short run of each benchmark, and checks of the counts and intervals that they publish."""

import importlib
import json
from pathlib import Path

import matplotlib
import pytest

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
TINY = json.dumps({"max_iter": 1, "prior": {"dim": 32, "n_layer": 1, "n_head": 2}})
RUNS = {
    "claims": ["--short", "--jobs", "1", "--fonts", FONTS],
    "quality.codebooks": ["--tasks", "digits", "--seeds", "1"],
    "quality.digits": ["--seeds", "0", "--params", TINY],
    "quality.finetuning": ["--seeds", "0", "--steps", "2", "--shots", "5"],
    "quality.incremental": ["--epochs", "1", "--character-epochs", "0"],
    "quality.optimizers": ["--only", "digits"],
    "quality.orders": ["--seeds", "1", "--max-iter", "1"],
    "quality.posterior": ["--only", "iris", "--weights", "0", "1"],
    "quality.tables": ["--tables", "iris", "--splits", "2"],
    "quality.tasks": ["--only", "iris", "--seeds", "1", "--jobs", "1"],
    "reliability.same_predictions": ["--data", "wine", "--epochs", "1"],
    "scale.larger_than_memory": ["--sizes", "1000", "--kinds", "memmap"],
    "speed.classes": ["--counts", "1", "3"],
    "speed.grid_search": ["--images", "120", "--max-iter", "1", "--repeats", "1"],
    "speed.many_classes": ["--classes", "3", "--per-class", "4", "--epochs", "1", "--images", "3"],
    "speed.scoring": ["--shapes", "tiny", "--repeats", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_short_run(name, tmp_path, monkeypatch):
    """The run ends and writes its page, and a record if it has one."""
    module = importlib.import_module(f"benchmarks.{name}" + ".__main__" * (name in PACKAGES))
    options = [*RUNS[name], "--output", tmp_path]
    for option in ("--cache", "--docs"):
        if option in vars(module).get("__doc__", "") or option in Path(module.__file__).read_text():
            options += [option, tmp_path] if name != "claims" else []
    module.main([str(option) for option in options])
    written = {path.suffix for path in tmp_path.iterdir() if path.is_file()}
    assert ".md" in written

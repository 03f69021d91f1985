"""Processes that torchrun starts do what one process does: the same numbers, said and kept once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ranks
from skaocls.training import checkpoints

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def torchrun(what, folder):
    """Two processes of torchrun, on one core each."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + [str(ROOT / "tests" / "ranks.py"), what, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1.1 * ranks.SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(scope="module")
def done(folder):
    run = torchrun("work_together", folder)
    assert run.returncode == 0, run.stderr
    return run


def by_ranks(folder, name):
    """What the processes have, which is the same in all."""
    first, second = (dict(np.load(folder / f"{name}-{rank}.npz")) for rank in range(2))
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value, err_msg=key)
    return first


def assert_same(found, clf, atol=1e-5):
    expected = ranks.learned(clf)
    assert found.keys() == expected.keys() | {"alone"}
    for key, value in expected.items():
        rtol = atol if key == "T" else 0
        np.testing.assert_allclose(found[key], np.asarray(value), rtol, atol, err_msg=key)


@pytest.mark.parametrize("case", ranks.CASES)
def test_two_processes_learn_what_one_does(done, folder, case):
    found = by_ranks(folder, case)
    # products of another shape are rounded otherwise, to three digits in bfloat16
    assert_same(found, ranks.fit(case), 5e-3 if "mixed" in case else 1e-5)


@pytest.mark.parametrize("case", ranks.CASES)
def test_predictions_are_those_of_one_process(done, folder, case):
    found = by_ranks(folder, case)
    np.testing.assert_allclose(found["proba"], found["alone"], rtol=0, atol=1e-6)


def test_without_a_seed_all_learn_the_same_and_one_keeps_it(done, folder):
    found, kept = by_ranks(folder, "unseeded"), by_ranks(folder, "kept")
    for key, value in found.items():
        np.testing.assert_array_equal(kept[key], value, err_msg=key)


def said_by_ranks(folder):
    return [(folder / f"said-{rank}.txt").read_text().splitlines() for rank in range(2)]


def test_one_process_talks(done, folder):
    assert done.stderr.count("skaocls: fitting PatchTokenizer") == 1
    for epoch in ("epoch 5/5", "scoring: 100%"):
        assert epoch in done.stderr
    first, second = (said[2] for said in said_by_ranks(folder))
    assert first != "0 warnings" and second == "0 warnings"


def test_errors_are_raised_by_all(done, folder):
    first, second = said_by_ranks(folder)
    assert first[0] == second[0]
    assert "The processes have different y." in first[0]
    for said in (first, second):  # each reads other files, and the last of them is not there
        assert "3.png" in said[1]


@pytest.mark.parametrize("what", ["part", "part_as_called"])
def test_threads_end_before_the_interpreter_does(folder, what):
    run = torchrun(what, folder)
    assert run.returncode == 0, run.stderr
    assert [(folder / f"threads-{rank}.txt").read_text() for rank in range(2)] == ["", ""]


def test_a_process_that_dies_and_other_numbers_of_processes(folder, monkeypatch):
    whole = ranks.fit("ddp", ranks.make(verbose=0))
    run = torchrun("die", folder)
    assert run.returncode != 0
    assert "SIGKILL" in run.stderr
    shutil.copytree(folder / "two", folder / "copied")

    class Killed(Exception):
        pass

    def keep_and_end(self, state):
        keep(self, state)
        if state.history.n_iter == 1 and state.step == 4:
            raise Killed

    keep = checkpoints.Checkpoints.keep
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SHARE", 0)
        patch.setattr(checkpoints.Checkpoints, "keep", keep_and_end)
        with pytest.raises(Killed):
            ranks.fit("ddp", ranks.make(verbose=0, checkpoint_dir=folder / "one"))
    run = torchrun("go_on", folder)
    assert run.returncode == 0, run.stderr
    for name in ("one, then two", "two, then two"):
        assert_same(by_ranks(folder, name), whole)
    copied = ranks.make(verbose=0, checkpoint_dir=folder / "copied")
    two_then_one = ranks.fit("ddp", copied)
    assert_same({**ranks.learned(two_then_one), "alone": None}, whole)
    for name in ("one", "two", "copied"):  # their end was reached
        assert not list((folder / name).glob("checkpoint-*"))

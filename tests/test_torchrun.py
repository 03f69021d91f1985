"""Distributed training on two ranks gives the same results as a single process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

import ranks
from skaocls import distributed
from skaocls.training import checkpoints

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def torchrun(program, folder):
    """Run a program of ranks.py on two ranks with one thread each."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + [str(ROOT / "tests" / "ranks.py"), program, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1.1 * ranks.TIMEOUT,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(scope="module")
def run(folder):
    run = torchrun("fit_and_predict", folder)
    assert run.returncode == 0, run.stderr
    return run


def load_results(folder, name):
    """Load the results of both ranks, which must be equal."""
    first, second = (dict(np.load(folder / f"{name}-{rank}.npz")) for rank in range(2))
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value, err_msg=key)
    return first


def assert_close(arrays, clf, atol=1e-5):
    expected = ranks.results(clf)
    assert arrays.keys() - {"proba of one process"} == expected.keys()
    for key, value in expected.items():
        rtol = atol if key == "temperature" else 0
        np.testing.assert_allclose(arrays[key], np.asarray(value), rtol, atol, err_msg=key)


@pytest.mark.parametrize("case", ranks.CASES)
def test_weights_equal_those_of_one_process(run, folder, case):
    # matrix products of other shapes round differently, in bfloat16 to three digits
    atol = 5e-3 if case == "mixed precision" else 1e-5
    assert_close(load_results(folder, case), ranks.fit(case), atol)


@pytest.mark.parametrize("case", ranks.CASES)
def test_predictions_equal_those_of_one_process(run, folder, case):
    arrays = load_results(folder, case)
    expected = arrays["proba of one process"]
    np.testing.assert_allclose(arrays["proba"], expected, rtol=0, atol=1e-6)


def test_without_a_seed_all_ranks_learn_the_same_and_cache_it(run, folder):
    arrays, cached = load_results(folder, "unseeded"), load_results(folder, "cached")
    for key, value in arrays.items():
        np.testing.assert_array_equal(cached[key], value, err_msg=key)


def messages_of_ranks(folder):
    return [(folder / f"messages-{rank}.txt").read_text().splitlines() for rank in range(2)]


def test_only_the_main_rank_prints_and_warns(run, folder):
    assert run.stderr.count("skaocls: fitting PatchTokenizer") == 1
    for text in ("epoch 5/5", "scoring: 100%"):
        assert text in run.stderr
    first, second = (messages[2] for messages in messages_of_ranks(folder))
    assert first != "0 warnings" and second == "0 warnings"


def test_errors_are_raised_on_all_ranks(run, folder):
    first, second = messages_of_ranks(folder)
    assert first[0] == second[0]
    assert "The processes have different y." in first[0]
    for messages in (first, second):
        assert "3.png" in messages[1]


def test_a_program_that_a_rank_starts_computes_alone(run, folder):
    for messages in messages_of_ranks(folder):
        assert messages[3] == "world size of a program that the rank starts: 1"


STALE = {"WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_waiting_for_ranks_that_do_not_exist():
    """A process with stale variables says for whom it waits before it waits."""
    program = "from skaocls import distributed as d; d.JOIN_NOTICE_SECONDS = 0; d.world_size()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | STALE | {"RANK": "2", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        message = next(line for line in process.stderr if "waits" in line)
        process.kill()
    assert message.startswith("Rank 2 of 3 waits for the other ranks at 127.0.0.1:1. ")
    assert "remove WORLD_SIZE from its environment, or use skaocls.distributed.single" in message


def test_a_group_that_cannot_be_joined(monkeypatch):
    for name, value in (STALE | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)

    def time_out(backend):
        raise RuntimeError("timed out after 1800 seconds")

    monkeypatch.setattr(dist, "init_process_group", time_out)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = r"^Rank 0 of 3 waits for .*remove WORLD_SIZE.*Joining failed: timed out after 1800"
    with pytest.raises(distributed.PeerError, match=message):
        distributed.join_group()
    with distributed.single_process():
        assert distributed.world_size() == 1
    for name in STALE:  # one missing variable is enough
        with monkeypatch.context() as patch:
            patch.delenv(name)
            assert distributed.world_size() == 1


@pytest.mark.parametrize("program", ["leave", "leave_group_of_caller"])
def test_threads_end_before_the_interpreter_does(folder, program):
    run = torchrun(program, folder)
    assert run.returncode == 0, run.stderr
    assert [(folder / f"threads-{rank}.txt").read_text() for rank in range(2)] == ["", ""]


def test_a_lost_rank_and_resuming_with_another_number_of_ranks(folder, monkeypatch):
    uninterrupted = ranks.fit("weighted", ranks.make(verbose=0))
    run = torchrun("lose_one_rank", folder)
    assert run.returncode == 0, run.stderr
    error = (folder / "error.txt").read_text()
    assert error.startswith("fit failed. Rank 0 of 2 cannot reach another rank")
    assert "fit resumes from the last checkpoint" in error
    shutil.copytree(folder / "two", folder / "copied")

    class Killed(Exception):
        pass

    def save_and_raise(self, state):
        original(self, state)
        if state.history.n_iter == 1 and state.step == 4:
            raise Killed

    original = checkpoints.Checkpoints.save_if_due
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "INTERVAL_FACTOR", 0)
        patch.setattr(checkpoints.Checkpoints, "save_if_due", save_and_raise)
        with pytest.raises(Killed):
            ranks.fit("weighted", ranks.make(verbose=0, checkpoint_dir=folder / "one"))
    run = torchrun("resume", folder)
    assert run.returncode == 0, run.stderr
    for name in ("one, then two", "two, then two"):
        assert_close(load_results(folder, name), uninterrupted)
    resumed = ranks.fit("weighted", ranks.make(verbose=0, checkpoint_dir=folder / "copied"))
    assert_close(ranks.results(resumed), uninterrupted)
    for name in ("one", "two", "copied"):  # completed fits remove their checkpoints
        assert not list((folder / name).glob("checkpoint-*"))

"""Torch settings of the whole process, and the choice of CUDA devices."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from skaocls.devices import full_float32, precision_backends, worker_cuda_device


def settings():
    return [backend.fp32_precision for backend in precision_backends()]


@pytest.fixture
def restore_settings():
    before = settings()
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for backend, value in zip(precision_backends(), before):
        backend.fp32_precision = value


@pytest.mark.usefixtures("restore_settings")
@pytest.mark.parametrize("set_by", ["none", "overall", "backend"])
def test_full_float32_changes_and_restores_settings(set_by):
    if set_by == "overall":
        torch.set_float32_matmul_precision("medium")
    elif set_by == "backend":
        if not precision_backends():
            pytest.skip("this version of torch has one overall setting")
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = settings()
    with full_float32():
        assert not {"tf32", "bf16"} & set(settings())
        if set_by != "backend":
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        with full_float32():
            pass
        assert not {"tf32", "bf16"} & set(settings())
    assert settings() == before
    if set_by == "overall":
        assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("restore_settings")
def test_last_thread_restores_settings():
    torch.set_float32_matmul_precision("medium")
    entered, leave = threading.Event(), threading.Event()

    def work():
        with full_float32():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=work)
    with full_float32():
        thread.start()
        assert entered.wait(60)
    assert torch.get_float32_matmul_precision() == "highest"
    leave.set()
    thread.join()
    assert torch.get_float32_matmul_precision() == "medium"


def test_worker_processes_are_spread_over_devices(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda i: chosen.append(i) or nullcontext())
    for identity in ((1,), (2,), (3,), (1, 4), ()):
        process = SimpleNamespace(_identity=identity)
        monkeypatch.setattr("multiprocessing.current_process", lambda process=process: process)
        with worker_cuda_device():
            pass
    assert chosen == [1, 0, 1, 0, 0]


def test_forked_worker_does_not_touch_cuda(monkeypatch):
    """CUDA fails in a forked worker, which can still compute on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("CUDA was used"))
    with worker_cuda_device():
        pass

"""Torch's settings of the whole process, and which device a process has."""

import threading

import pytest
import torch

from skaocls import distributed
from skaocls.devices import by_backend, full_float32, own_cuda_device


def settings():
    return [each.fp32_precision for each in by_backend()]


@pytest.fixture
def users_settings():
    before = settings()
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for each, value in zip(by_backend(), before):
        each.fp32_precision = value


@pytest.mark.usefixtures("users_settings")
@pytest.mark.parametrize("by", ["none", "all", "backend"])
def test_products_of_float32_are_in_float32(by):
    if by == "all":
        torch.set_float32_matmul_precision("medium")
    elif by == "backend":
        if not by_backend():
            pytest.skip("this torch has one setting for all")
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = settings()
    with full_float32():
        assert not {"tf32", "bf16"} & set(settings())
        if by != "backend":
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        with full_float32():
            pass
        assert not {"tf32", "bf16"} & set(settings())
    assert settings() == before
    if by == "all":
        assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("users_settings")
def test_the_last_thread_puts_the_settings_back():
    torch.set_float32_matmul_precision("medium")
    inside, leave = threading.Event(), threading.Event()

    def work():
        with full_float32():
            inside.set()
            leave.wait(60)

    other = threading.Thread(target=work)
    with full_float32():
        other.start()
        assert inside.wait(60)
    assert torch.get_float32_matmul_precision() == "highest"
    leave.set()
    other.join()
    assert torch.get_float32_matmul_precision() == "medium"


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.own_device() == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RuntimeError, match=r"Process 2 .* torch finds 2. .*--nproc-per-node 2"):
        distributed.own_device()


def test_a_forked_worker_claims_no_device(monkeypatch):
    """CUDA fails there, also for a model on the CPU, which does not need it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("CUDA was asked for"))
    with own_cuda_device():
        pass

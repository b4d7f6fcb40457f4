# SPDX-License-Identifier: MIT
"""A run on another GPU than the current one launches there. One GPU at most is at hand: the choice is tested, with the
devices stood in for."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from ascedfast import device_guard
from ascedfast.device_guard import on_device_of


@pytest.mark.parametrize(("current", "index", "entered"), [(0, 0, []), (0, 1, [1]), (1, 0, [0])])
def test_the_tensors_device_becomes_the_current_one(current, index, entered, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def device(chosen):
        seen.append(chosen.index)
        yield

    monkeypatch.setattr(device_guard, "_several", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", device)
    with on_device_of(SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))):
        pass
    assert seen == entered


def test_nobody_is_asked_where_there_is_one_device(monkeypatch):
    monkeypatch.setattr(device_guard, "_several", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("asked"))
    with on_device_of(SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))):
        pass


def test_nothing_to_do_on_the_cpu():
    with on_device_of(torch.zeros(1)):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_ops_run_on_the_second_gpu():
    from ascedfast import ops

    x, m, previous = torch.randn(3, 2, 4, 16, 16, device="cuda:1")
    a = torch.ones(2, device="cuda:1")
    with torch.cuda.device(0):
        x0, d = ops.step_dynamics(x, m, a, -a, previous)
    expected = ops.step_dynamics(x, m, a, -a, previous, backend="reference")
    assert torch.equal(x0, expected[0])
    assert torch.equal(d, expected[1])

# SPDX-License-Identifier: MIT
"""Two runs that take turns: their order, what their time holds, and their failures."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed

from benchmarks.turns import Turns, in_turns

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def worker(turns, log, name, steps, seconds=0.0):
    def work():
        for step in range(steps):
            turns.give_way()
            time.sleep(seconds)
            log.append(f"{name}{step}")

    return work


def test_one_step_each_then_the_rest_of_the_longer_one(threads):
    turns, log = Turns(CPU), []
    turns.pair(threads, (worker(turns, log, "a", 2), worker(turns, log, "b", 4)))
    assert log == ["a0", "b0", "a1", "b1", "b2", "b3"]
    log.clear()
    turns.pair(threads, (worker(turns, log, "a", 3), worker(turns, log, "b", 0)))
    assert log == ["a0", "a1", "a2"]


def test_the_time_of_one_is_its_own(threads):
    turns = Turns(CPU)
    slow, fast = worker(turns, [], "slow", 3, 0.05), worker(turns, [], "fast", 3)
    slow_us, fast_us = turns.pair(threads, (slow, fast))
    assert slow_us >= 150e3
    assert fast_us < 50e3  # 150 ms of waiting are not in it
    fast_us, slow_us = turns.pair(threads, (fast, slow))
    assert slow_us >= 150e3
    assert fast_us < 50e3


def test_what_one_raises_is_raised_when_the_other_has_ended(threads):
    turns, log = Turns(CPU), []

    def fails():
        turns.give_way()
        raise OSError("no")

    for pair in ((fails, worker(turns, log, "b", 3)), (worker(turns, log, "b", 3), fails)):
        with pytest.raises(OSError, match="no"):
            turns.pair(threads, pair)
        assert log == ["b0", "b1", "b2"]
        log.clear()
    turns.pair(threads, (worker(turns, log, "a", 1), worker(turns, log, "b", 1)))  # as before
    assert log == ["a0", "b0"]


def test_a_module_gives_way_at_each_call_and_alone_it_does_not_wait():
    class Doubled(torch.nn.Module):
        def forward(self, x, scale=2):
            names.append(threading.current_thread().name)
            return scale * x

    names = []
    turns, module = Turns(CPU), Doubled()
    turns.at_each_call(module)
    assert module(3) == 6
    pairs = in_turns(turns, lambda: [module(i) for i in range(3)], lambda: module(1, scale=5), repeats=4, warm_up=1)
    assert len(pairs.ours) == len(pairs.baseline) == 4
    assert len(names) == 1 + 5 * 4
    assert len(set(names)) == 3  # this thread and two that serve all pairs

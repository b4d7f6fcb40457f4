# SPDX-License-Identifier: MIT
"""Which kernels a run launches, step by step, read from torch.profiler's trace (CUPTI's own timestamps)."""

import itertools
import json
import math
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.timing import synchronize

GAP_S = 2e-3
"""Idle time between steps, far above any error between the host's and the device's clocks."""
DEVICE_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
PREFIX = "step-"
Mark = Callable[[], AbstractContextManager[None]]


class Launch(NamedTuple):
    """One kernel, copy or fill on the device."""

    name: str
    us: float


def trace(run: Callable[[Mark], object], device: torch.device) -> list[list[Launch]]:
    """Run it under the profiler: the launches of each of its steps.

    Args: run: does each step inside ``with mark():``. What it does outside of them is not reported. On the CPU
        operators stand in for kernels.
    """
    count = 0

    @contextmanager
    def mark() -> Iterator[None]:
        nonlocal count
        synchronize(device)
        time.sleep(GAP_S)
        with record_function(f"{PREFIX}{count}"):
            yield
            synchronize(device)
        with record_function(f"{PREFIX}none"):
            time.sleep(GAP_S)
        count += 1

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        run(mark)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return _by_step(events, DEVICE_WORK if cuda else {"cpu_op"}, count)


def _by_step(events: list[dict], categories: set[str], count: int) -> list[list[Launch]]:
    marks = sorted(
        (float(event["ts"]), event["name"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX)
    )
    # A step begins and ends on an idle device: half the gap on either side allows for the clocks' difference.
    slack = GAP_S * 1e6 / 2
    spans = [
        (start - slack, end + slack, int(name.removeprefix(PREFIX)))
        for (start, name), (end, _) in itertools.pairwise(marks)
        if name != f"{PREFIX}none"
    ]
    steps: list[list[Launch]] = [[] for _ in range(count)]
    for event in events:
        if event.get("cat") not in categories:
            continue
        place = bisect_right(spans, (float(event["ts"]), math.inf, 0)) - 1
        if place >= 0 and float(event["ts"]) <= spans[place][1]:
            steps[spans[place][2]].append(Launch(event["name"], float(event.get("dur", 0))))
    return steps


def added_us(ours: list[Launch], stock: list[Launch]) -> float:
    """Device time of one step that stock does not spend: the plain difference, below 0 where a fused step saves."""
    return sum(launch.us for launch in ours) - sum(launch.us for launch in stock)


def attributed_us(ours: list[Launch], stock: list[Launch]) -> float:
    """Device time of one step in launches that stock does not make: no credit for those that a fused step saves.

    Launches are matched by name. Where ours has more of one name than stock, the surplus counts at its mean duration.
    """
    mine, theirs = _by_name(ours), _by_name(stock)
    total = 0.0
    for name, times in mine.items():
        surplus = max(0, len(times) - len(theirs.get(name, ())))
        total += surplus * sum(times) / len(times)
    return total


def _by_name(launches: list[Launch]) -> dict[str, list[float]]:
    named: dict[str, list[float]] = defaultdict(list)
    for launch in launches:
        named[launch.name].append(launch.us)
    return named

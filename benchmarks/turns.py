# SPDX-License-Identifier: MIT
"""Two runs timed side by side, a step of one and then a step of the other.

A GPU at its limit of power changes its clocks by some per cent from one second to the next. Two runs after one another
then differ by more than what is to be seen between them; two that take turns at each step meet the same clocks. Each
turn waits for the device, so that what the host does at a step counts in full and hides behind nothing.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from benchmarks.timing import Pairs, paired, synchronize

Work = Callable[[], object]


class Turns:
    """Two pieces of work, each in a thread, of which one runs at a time and gives way where it says ``give_way``.

    Args: device: waited for at the end of each turn.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = threading.local()
        self._gates: list[threading.Semaphore] = []
        self._ended: list[bool] = []
        self._us: list[float] = []

    def pair(self, threads: ThreadPoolExecutor, work: Sequence[Work]) -> tuple[float, float]:
        """Run two to their ends, the first one first; the microseconds of each, its waiting left out.

        Raises what one of them raises, once the other has ended too.
        """
        self._gates = [threading.Semaphore(1), threading.Semaphore(0)]
        self._ended, self._us = [False, False], [0.0, 0.0]
        running = [threads.submit(self._run, me, one) for me, one in enumerate(work)]
        for one in running:
            one.exception()  # waits
        for one in running:
            one.result()
        return self._us[0], self._us[1]

    def give_way(self) -> None:
        """End this turn and wait for the next one; nothing outside of ``pair`` or when the other has ended."""
        me = getattr(self._own, "me", None)
        if me is None:
            return
        self._stop(me)
        if not self._ended[1 - me]:
            self._gates[1 - me].release()
            self._gates[me].acquire()
        self._own.start = time.perf_counter()

    def at_each_call(self, module: nn.Module) -> None:
        """Make ``module.forward`` give way before each call, on this instance."""
        forward = module.forward

        def giving_way(*args: Any, **kwargs: Any) -> Any:
            self.give_way()
            return forward(*args, **kwargs)

        module.forward = giving_way

    def _run(self, me: int, work: Work) -> None:
        self._gates[me].acquire()
        self._own.me, self._own.start = me, time.perf_counter()
        try:
            work()
            self._stop(me)
        finally:
            self._own.me = None
            self._ended[me] = True
            self._gates[1 - me].release()

    def _stop(self, me: int) -> None:
        synchronize(self._device)
        self._us[me] += (time.perf_counter() - self._own.start) * 1e6


def in_turns(turns: Turns, ours: Work, baseline: Work, repeats: int, warm_up: int = 2) -> Pairs:
    """``timing.interleaved``, step by step: pairs of whole runs."""
    with ThreadPoolExecutor(2) as threads:

        def step_by_step(baseline_first: bool) -> tuple[float, float]:
            if baseline_first:
                theirs, mine = turns.pair(threads, (baseline, ours))
                return mine, theirs
            return turns.pair(threads, (ours, baseline))

        return paired(step_by_step, repeats, warm_up)

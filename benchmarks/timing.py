# SPDX-License-Identifier: MIT
"""Statistics of repeated measurements, and wall-clock timing of work that Python drives."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class Spread(NamedTuple):
    """Quantiles of repeated measurements, in their unit."""

    p20: float
    p50: float
    p80: float


def spread(samples: Sequence[float]) -> Spread:
    """p20, median and p80, interpolated between samples."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return Spread(at(0.2), at(0.5), at(0.8))


def upper_limit(samples: Sequence[float], confidence: float = 0.95) -> float:
    """One-sided upper confidence limit of the median, free of any distribution: the order statistic k for which
    P(Binomial(n, 1/2) < k) >= confidence (the 15th of 20). ValueError where n is too small to have one."""
    n, total = len(samples), 0.0
    for k in range(1, n + 1):
        total += math.comb(n, k - 1) / 2**n
        if total >= confidence:
            return sorted(samples)[k - 1]
    raise ValueError(f"{n} samples have no {confidence:.0%} limit")


def synchronize(device: torch.device) -> None:
    """Wait for the device's work; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_us(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of ``work``, in microseconds, from an idle device until the device is idle again."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return (time.perf_counter() - start) * 1e6


class Pairs(NamedTuple):
    """Interleaved timings of ours and a baseline, one pair a repeat, in microseconds."""

    ours: list[float]
    baseline: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours over the baseline, pair by pair."""
        return [ours / baseline for ours, baseline in zip(self.ours, self.baseline, strict=True)]

    @property
    def ours_us(self) -> float:
        return statistics.median(self.ours)

    @property
    def baseline_us(self) -> float:
        return statistics.median(self.baseline)


def interleaved(ours: Callable[[], float], baseline: Callable[[], float], repeats: int, warm_up: int = 2) -> Pairs:
    """Measure two things one after the other, again and again.

    Args: ours, baseline: each call measures once and returns microseconds. warm_up: pairs thrown away.
    """

    def one_after_the_other(baseline_first: bool) -> tuple[float, float]:
        if baseline_first:
            theirs = baseline()
            return ours(), theirs
        return ours(), baseline()

    return paired(one_after_the_other, repeats, warm_up)


def paired(measure: Callable[[bool], tuple[float, float]], repeats: int, warm_up: int = 2) -> Pairs:
    """Pairs whose order is swapped from one to the next, so that a drift of the clocks cancels. Python collects its
    garbage between them, not in one.

    Args: measure: called with whether the baseline comes first; returns ours and the baseline, microseconds.
    """
    pairs = Pairs([], [])
    collects = gc.isenabled()
    gc.disable()
    try:
        for repeat in range(-warm_up, repeats):
            gc.collect(0)
            mine, theirs = measure(repeat % 2 == 1)
            if repeat >= 0:
                pairs.ours.append(mine)
                pairs.baseline.append(theirs)
    finally:
        if collects:
            gc.enable()
    return pairs

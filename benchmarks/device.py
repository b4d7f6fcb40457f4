# SPDX-License-Identifier: MIT
"""What a device does with the work it is given: time by events and graph replays, copy bandwidth, launch floor, memory.

Every function takes a CPU device too, for the smoke test; there its answer is a wall time or 0.
"""

import functools
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.timing import Spread, spread, wall_us

MAX_SETS = 64
"""Most sets of buffers that are rotated; below it they exceed the cache fourfold."""
ENOUGH_CALLS, ENOUGH_US = 1000, 10_000.0
"""What one graph holds, at least one of them: then its start is .03 us of a call, or .3 % of it."""


def cache_bytes(device: torch.device) -> int:
    """Size of the L2 cache; 0 on the CPU, where nothing is rotated."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def rotation(device: torch.device, bytes_a_call: int) -> int:
    """How many sets of buffers a measurement must go through so that none of them is still in the cache."""
    return max(1, min(MAX_SETS, math.ceil(4 * cache_bytes(device) / max(1, bytes_a_call))))


def graph_us(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int = 20) -> tuple[Spread, str]:
    """Time of one call inside a CUDA graph that holds them all, in microseconds, and how it was taken.

    The graph goes through the calls again and again (``_rounds``), or its own start would be timed. Each call works on
    its own buffers; what it returns is kept to the end of a round, so that no two calls of one write to the same place.
    Work that cannot be captured is timed eagerly with events around each round ("events"); the CPU by wall clock.
    """
    if device.type != "cuda":
        times = [wall_us(lambda: [call() for call in calls], device) / len(calls) for _ in range(repeats)]
        return spread(times), "wall"
    for _ in range(2):
        kept = [call() for call in calls]
        del kept
    if not _waits_for_nothing(calls[0]):
        return spread(events_us(lambda: [call() for call in calls], repeats, len(calls))), "events"
    rounds, enough = 0, 1
    while enough > 1.2 * rounds:  # a short graph is mostly its own start, and seems to need fewer rounds
        graph = kept = None  # its memory, before the next takes as much
        rounds = enough
        graph, kept = _captured(calls, rounds, device)
        enough = _rounds(len(calls), min(events_us(graph.replay, 3)) / rounds)
    times = spread(events_us(graph.replay, repeats, rounds * len(calls)))
    del kept
    return times, f"a graph of {rounds * len(calls)} calls"


def _captured(
    calls: Sequence[Callable[[], object]], rounds: int, device: torch.device
) -> tuple[torch.cuda.CUDAGraph, list[object]]:
    """A graph of some rounds of the calls, replayed once, and what the last round returned."""
    torch.cuda.synchronize(device)
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            kept.clear()  # each round writes where the first did
            kept += [call() for call in calls]
    graph.replay()
    return graph, kept


def _rounds(calls: int, round_us: float) -> int:
    """How often a graph goes through its calls: until it holds ``ENOUGH_CALLS`` or takes ``ENOUGH_US``. A round
    takes ``round_us``, the graph's start included: some 25 us on an H100, ten times a small kernel."""
    return max(1, min(math.ceil(ENOUGH_CALLS / calls), math.ceil(ENOUGH_US / round_us)))


def _waits_for_nothing(call: Callable[[], object]) -> bool:
    """Whether a call never waits for the device. One that does cannot be captured, and trying breaks the allocator."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def events_us(work: Callable[[], object], repeats: int, count: int = 1) -> list[float]:
    """Device time between two events around ``work``, divided by ``count``, for each repeat; CUDA only."""
    times = []
    for _ in range(repeats):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        work()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / count)
    return times


@functools.cache
def copy_gbps(device: torch.device) -> float:
    """Bandwidth of a large device-to-device copy, bytes read plus bytes written, in GB/s; once a process."""
    size = 1 << 28 if device.type == "cuda" else 1 << 20  # floats
    source = torch.rand(size, device=device)  # random: copies of zeros can be faster than real ones
    target = torch.empty_like(source)
    if device.type == "cuda":
        events_us(lambda: target.copy_(source), 3)
        us = spread(events_us(lambda: target.copy_(source), 20)).p50
    else:
        us = spread([wall_us(lambda: target.copy_(source), device) for _ in range(5)]).p50
    return 2 * source.numel() * source.element_size() / us / 1e3


@functools.cache
def launch_us(device: torch.device) -> float:
    """What one kernel costs that has nothing to do, inside a graph of dependent ones; once a process."""
    one = torch.zeros(1, device=device)
    return graph_us([lambda: one.add_(1)] * 100, device)[0].p50


def floor_us(device: torch.device, size: int, launches: int = 1) -> float:
    """The least time for ``launches`` kernels that move ``size`` bytes: the launches or the copy, whichever is more."""
    return max(launches * launch_us(device), size / copy_gbps(device) / 1e3)


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of the tensors' elements, each counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def allocated(device: torch.device) -> int:
    """Bytes that live tensors hold."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def total_memory(device: torch.device) -> int:
    """Bytes the device has; on the CPU, where only small sizes run, as good as unlimited."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 1 << 62


def peak_of(work: Callable[[], object], device: torch.device) -> int:
    """Bytes by which ``work`` raised the allocator's peak above what was held before."""
    if device.type != "cuda":
        work()
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    before = allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


@contextmanager
def own_memory(device: torch.device) -> Iterator[None]:
    """Give back what a measurement's dead tensors hold, so that the next one starts as if it were alone."""
    try:
        yield
    finally:
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

# SPDX-License-Identifier: MIT
"""P7: how the fused step's time grows with rows and planes, against its floor: one launch, or its bytes at .85 of the
copy bandwidth of the same run."""

from functools import partial

import torch

from benchmarks.device import copy_gbps, graph_us, launch_us, total_memory
from benchmarks.measurement import Bench, Cases, Measurement, sizes_of
from benchmarks.p3_bandwidth import step_calls
from benchmarks.targets import GROWTH

DTYPE = torch.bfloat16
SHARE = 0.85
COMPARED = 1 << 26
"""Bytes up to which a copy is timed beside the step: there the time of one pass through memory counts, not its rate."""


def cases(bench: Bench) -> Cases:
    """One for each point of ``targets.GROWTH``."""
    return {f"P7/{name}": partial(_over_floor, bench, name) for name in GROWTH}


def _over_floor(bench: Bench, name: str) -> Measurement:
    shape = sizes_of(name)
    if bench.quick:
        shape = (min(shape[0], 4), shape[1], shape[2] // 32, shape[3] // 32)
    needed = 24 * torch.Size(shape).numel()  # x, m, x_next, both x0_hat and some scratch, bytes an element
    if needed > 0.8 * total_memory(bench.device):
        return Measurement(shape=shape, dtype=DTYPE, note=f"needs {needed >> 30} GiB, more than this device can spare")
    steps = step_calls(bench, shape, DTYPE)
    times, how = graph_us([step.call for step in steps], bench.device, bench.repeats(10))
    bytes_a_call, notes = steps[0].bytes, [f"timed by {how}", steps[0].note]
    if bytes_a_call <= COMPARED:
        notes.append(f"a copy that moves as many bytes takes {_copy_us(bench, bytes_a_call, len(steps)):.3g} us")
    copy = copy_gbps(bench.device)
    floor = max(launch_us(bench.device), bytes_a_call / (SHARE * copy) / 1e3)
    return Measurement(
        value=times.p50 / floor,
        shape=shape,
        dtype=DTYPE,
        baseline="one launch in a graph, or the bytes at .85 of the copy bandwidth",
        ours_us=times.p50,
        baseline_us=floor,
        gbps=bytes_a_call / times.p50 / 1e3,
        share_of_copy=bytes_a_call / times.p50 / 1e3 / copy,
        p20=times.p20 / floor,
        p80=times.p80 / floor,
        note="; ".join(filter(None, notes)),
    )


def _copy_us(bench: Bench, size: int, sets: int) -> float:
    """A plain copy that reads and writes ``size`` bytes in all, as many sets of buffers in turn as the steps had."""
    pairs = [torch.empty(2, max(1, size // 8), device=bench.device) for _ in range(sets)]
    return graph_us([partial(pair[0].copy_, pair[1]) for pair in pairs], bench.device, bench.repeats(10))[0].p50

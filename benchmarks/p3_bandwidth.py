# SPDX-License-Identifier: MIT
"""P3: the fused step on states beyond the cache, as a share of the copy bandwidth measured in the same run."""

from functools import partial

import torch

from benchmarks.device import copy_gbps, graph_us, rotation
from benchmarks.fused_step import StepCall, step_call
from benchmarks.measurement import Bench, Cases, Measurement, sizes_of
from benchmarks.targets import STREAMED

DTYPE = torch.bfloat16
"""Of x and m, as pipelines have them; x0_hat and d are float32."""


def cases(bench: Bench) -> Cases:
    """One for each state of ``targets.STREAMED``."""
    return {f"P3/{name}": partial(_share, bench, name) for name in STREAMED}


def step_calls(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype, layout: str = "") -> list[StepCall]:
    """As many calls as it takes to leave the cache between two uses of one."""
    first = step_call(shape, dtype, bench.device, 0, layout)
    sets = rotation(bench.device, first.bytes)
    return [first, *(step_call(shape, dtype, bench.device, 3 * i, layout) for i in range(1, sets))]


def _share(bench: Bench, name: str) -> Measurement:
    shape, layout = sizes_of(name), name.partition(" ")[2]
    if bench.quick:
        shape = (2, 16, 4) if layout == "packed" else (2, shape[1], 16, 16)
    steps = step_calls(bench, shape, DTYPE, layout)
    times, how = graph_us([step.call for step in steps], bench.device, bench.repeats(20))
    bytes_a_call, note = steps[0].bytes, steps[0].note
    copy = copy_gbps(bench.device)
    rate = [bytes_a_call / us / 1e3 for us in times]
    return Measurement(
        value=rate[1] / copy,
        shape=shape,
        dtype=DTYPE,
        baseline=f"device-to-device copy, {copy:.0f} GB/s",
        ours_us=times.p50,
        baseline_us=bytes_a_call / copy / 1e3,
        gbps=rate[1],
        share_of_copy=rate[1] / copy,
        p20=rate[2] / copy,
        p80=rate[0] / copy,
        note="; ".join(filter(None, [f"timed by {how}", note])),
    )

# SPDX-License-Identifier: MIT
"""P5: host syncs that ASCED adds to a run, and launches a step of the window and at T_c.

A warm-up run pays for compilation and the self-check, which happen once a process.
"""

import statistics
import warnings
from functools import partial

import torch
from diffusers import SchedulerMixin

from ascedfast import AscedConfig
from benchmarks.loops import Loop, step_guided, traces
from benchmarks.measurement import Bench, Cases, Measurement
from benchmarks.targets import PARITY, PLANES

SIDE = 128
DTYPE = torch.bfloat16


def cases(bench: Bench) -> Cases:
    """Syncs and launches a step for each scheduler with a fused step; launches at T_c for each size of plane."""
    found: Cases = {}
    for name in PARITY:
        found[f"P5/syncs/{name}"] = partial(_syncs, bench, name)
        found[f"P5/launches a step/{name}"] = partial(_launches_a_step, bench, name)
    for side in PLANES:
        found[f"P5/launches at T_c/{side}x{side}"] = partial(_launches_at_t_c, bench, side)
        found[f"P5/launches at T_c/{side}x{side}/calibrated"] = partial(_launches_at_t_c, bench, side, calibrated=True)
    found["P5/syncs/DDIM/calibrated"] = partial(_syncs, bench, "DDIM", calibrated=True)
    found["P5/launches a step/DDIM/calibrated"] = partial(_launches_a_step, bench, "DDIM", calibrated=True)
    return found


def _config(loop: Loop, calibrated: bool) -> AscedConfig:
    return loop.calibrated if calibrated else AscedConfig()


def _loop(bench: Bench, name: str, side: int = SIDE) -> Loop:
    side = bench.side(side)
    return Loop(name, (1, 4, side, side), DTYPE, bench.device)


def count_syncs(loop: Loop, scheduler: SchedulerMixin) -> int:
    """Host syncs in the ``step`` calls of one run, as torch's sync debug mode warns of them; 0 on the CPU."""
    cuda = loop.device.type == "cuda"

    class Watched:
        def __enter__(self) -> None:
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")

        def __exit__(self, *error: object) -> None:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step_guided(loop, scheduler, Watched)
    return sum("synchronizing" in str(entry.message) for entry in caught)


def _syncs(bench: Bench, name: str, calibrated: bool = False) -> Measurement:
    loop = _loop(bench, name)
    stock, (enabled, _) = loop.make()[0], loop.make(_config(loop, calibrated))
    for scheduler in (stock, enabled):
        step_guided(loop, scheduler)
    theirs, ours = count_syncs(loop, stock), count_syncs(loop, enabled)
    return Measurement(
        ours - theirs,
        loop.shape,
        DTYPE,
        "stock scheduler.step",
        note=f"{ours} with ASCED on, {theirs} in the stock run",
    )


def _launches_a_step(bench: Bench, name: str, calibrated: bool = False) -> Measurement:
    loop = _loop(bench, name)
    found = traces(loop, 1, _config(loop, calibrated))
    ours, stock = ([len(run[0][step]) for step in found.window] for run in (found.ours, found.stock))
    return Measurement(
        max(ours), loop.shape, DTYPE, f"stock: {statistics.median(stock):g} launches a step", launches=max(ours)
    )


def _launches_at_t_c(bench: Bench, side: int, calibrated: bool = False) -> Measurement:
    loop = _loop(bench, "DDIM", side)
    found = traces(loop, 1, _config(loop, calibrated))
    counts = [len(step) for step in found.ours[0]]
    usual = round(statistics.median(counts[step] for step in found.window))
    added = counts[found.correcting] - usual
    return Measurement(added, loop.shape, DTYPE, launches=added, note=f"beside the {usual} of the step itself")

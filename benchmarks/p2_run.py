# SPDX-License-Identifier: MIT
"""P2: all GPU time that ASCED takes in a 25-step run, its window and T_c, and the released detector beside it.

The bar is held by the time in launches that stock does not make (``trace.attributed_us``): a fused step counts in full,
the stock kernels that it replaces earn no credit. The plain difference of both runs stands beside it.
"""

import statistics
from collections.abc import Callable
from functools import lru_cache, partial

import torch

from ascedfast import AscedConfig
from benchmarks import released
from benchmarks.loops import Loop, Traces, frames, traces
from benchmarks.measurement import Bench, Cases, Measurement
from benchmarks.timing import spread, wall_us
from benchmarks.trace import Launch, added_us, attributed_us

SETTINGS = {
    "256x256x3": ("DDIM pixels", (1, 3, 256, 256), torch.float32),
    "4x128x128": ("DDIM", (1, 4, 128, 128), torch.float16),
}
REPEATS = 5
FRAMES = 12
Count = Callable[[list[Launch], list[Launch]], float]


def cases(bench: Bench) -> Cases:
    """For each kind of run: attributed time, plain difference, T_c alone, share of the released detector; attributed
    time and T_c of mode "calibrated"."""
    found: Cases = {}
    for name in SETTINGS:
        found[f"P2/{name}"] = partial(_run, bench, name, attributed_us)
        found[f"P2/{name}/difference"] = partial(_run, bench, name, added_us)
        found[f"P2/{name}/T_c"] = partial(_t_c, bench, name)
        found[f"P2/{name}/released"] = partial(_against_released, bench, name)
        found[f"P2/{name}/calibrated"] = partial(_run, bench, name, attributed_us, calibrated=True)
        found[f"P2/{name}/calibrated/T_c"] = partial(_t_c, bench, name, calibrated=True)
    return found


def _traces(bench: Bench, name: str, calibrated: bool = False) -> tuple[Loop, Traces]:
    scheduler, shape, dtype = SETTINGS[name]
    side = bench.side(shape[-1], 64)
    loop = Loop(scheduler, (*shape[:2], side, side), dtype, bench.device)
    return loop, traces(loop, bench.repeats(REPEATS), loop.calibrated if calibrated else AscedConfig())


def _sums(found: Traces, count: Count) -> list[float]:
    """Of each repeat: the steps of the window, and the step after T_c, in which a solver's history is repaired."""
    steps = range(found.plan.start, found.plan.t_c + 1)
    return [
        sum(count(ours[step], stock[step]) for step in steps)
        for ours, stock in zip(found.ours, found.stock, strict=True)
    ]


def _run(bench: Bench, name: str, count: Count, calibrated: bool = False) -> Measurement:
    loop, found = _traces(bench, name, calibrated)
    times = spread(_sums(found, count))
    released_us = _released_us(bench, loop.shape)
    return Measurement(
        value=times.p50,
        shape=loop.shape,
        dtype=loop.dtype,
        baseline="released detector from scipy, one CPU core",
        ours_us=times.p50,
        baseline_us=released_us,
        p20=times.p20,
        p80=times.p80,
        launches=sum(len(found.ours[0][step]) for step in range(found.plan.start, found.plan.t_c + 1)),
        note=f"window from step {found.plan.start}, corrected after step {found.plan.t_c}, of 25",
    )


def t_c_us(found: Traces) -> list[float]:
    """Of each repeat: the correcting step less a usual step of the window."""
    times = []
    for ours, stock in zip(found.ours, found.stock, strict=True):
        attributed = [attributed_us(mine, theirs) for mine, theirs in zip(ours, stock, strict=True)]
        usual = statistics.median(attributed[step] for step in found.window)
        times.append(attributed[found.correcting] - usual)
    return times


def _t_c(bench: Bench, name: str, calibrated: bool = False) -> Measurement:
    loop, found = _traces(bench, name, calibrated)
    times = spread(t_c_us(found))
    return Measurement(
        times.p50, loop.shape, loop.dtype, ours_us=times.p50, p20=times.p20, p80=times.p80, note="detection, correction"
    )


def _against_released(bench: Bench, name: str) -> Measurement:
    loop, found = _traces(bench, name)
    ours, theirs = spread(_sums(found, attributed_us)).p50, _released_us(bench, loop.shape)
    return Measurement(
        value=ours / theirs,
        shape=loop.shape,
        dtype=loop.dtype,
        baseline="released detector from scipy, one CPU core, 12 frames",
        ours_us=ours,
        baseline_us=theirs,
    )


@lru_cache(maxsize=4)
def _released_us(bench: Bench, shape: tuple[int, ...]) -> float:
    """Wall time of the released detector on frames of this shape; four channels become three, which it demands."""
    seen = frames(shape, FRAMES, bench.device)[:, 0, :3].cpu().numpy()
    cpu = torch.device("cpu")
    return spread([wall_us(lambda: released.detect(seen), cpu) for _ in range(bench.repeats(5))]).p50

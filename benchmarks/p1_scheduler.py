# SPDX-License-Identifier: MIT
"""P1: the scheduler's part of a 25-step loop with ASCED on, over the stock scheduler's ``step`` with nothing added.

Wall time of the whole loop, T_c included, with one synchronize at its end; model outputs are made before. Stock and
enabled runs take turns; the value is the median of their ratios.
"""

from functools import partial

import torch

from ascedfast import AscedConfig
from benchmarks.loops import Loop, step_all
from benchmarks.measurement import DTYPES, Bench, Cases, Measurement
from benchmarks.targets import DTYPES as ORDER
from benchmarks.targets import OBSERVED, PARITY
from benchmarks.timing import interleaved, spread, wall_us

SHAPE = (1, 4, 128, 128)
REPEATS = 30


def cases(bench: Bench) -> Cases:
    """One case for each scheduler and dtype, by default and, where there is one, in the linear form."""
    found: Cases = {}
    for dtype in ORDER:
        tail = "" if dtype == ORDER[0] else f"/{dtype}"
        for name in (*PARITY, *OBSERVED):
            found[f"P1/{name}{tail}"] = partial(_over_stock, bench, name, DTYPES[dtype], linear=False)
        for name in OBSERVED:
            found[f"P1/{name}/linear{tail}"] = partial(_over_stock, bench, name, DTYPES[dtype], linear=True)
    return found


def _over_stock(bench: Bench, name: str, dtype: torch.dtype, *, linear: bool) -> Measurement:
    side = bench.side(SHAPE[-1])
    loop = Loop(name, (*SHAPE[:2], side, side), dtype, bench.device)
    stock, (enabled, _) = loop.make()[0], loop.make(AscedConfig(form="linear" if linear else "parity"))
    x, outputs = loop.start(), loop.outputs(len(loop.begin(stock)))

    def run(scheduler: object) -> float:
        timesteps = loop.begin(scheduler)
        return wall_us(lambda: step_all(scheduler, timesteps, outputs, x), bench.device) / len(timesteps)

    pairs = interleaved(lambda: run(enabled), lambda: run(stock), bench.repeats(REPEATS))
    ratio = spread(pairs.ratios)
    return Measurement(
        value=ratio.p50,
        shape=loop.shape,
        dtype=dtype,
        baseline="stock scheduler.step, wall time a step",
        ours_us=pairs.ours_us,
        baseline_us=pairs.baseline_us,
        p20=ratio.p20,
        p80=ratio.p80,
    )

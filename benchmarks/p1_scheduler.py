# SPDX-License-Identifier: MIT
"""P1: the scheduler's part of a 25-step loop with ASCED on, over the stock scheduler's ``step`` with nothing added.

Wall time of the whole loop, T_c included, with one synchronize at its end; model outputs are made before. Stock and
enabled runs take turns; the value is the median of their ratios.
"""

from collections.abc import Callable
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
    """One case for each scheduler and dtype, by default and, where there is one, in the linear form; and, for what is
    fused by default, in mode "calibrated"."""
    found: Cases = {}
    for dtype in ORDER:
        tail = "" if dtype == ORDER[0] else f"/{dtype}"
        for name in (*PARITY, *OBSERVED):
            found[f"P1/{name}{tail}"] = partial(_over_stock, bench, name, DTYPES[dtype], lambda _: AscedConfig())
        for name in OBSERVED:
            linear = partial(_over_stock, bench, name, DTYPES[dtype], lambda _: AscedConfig(form="linear"))
            found[f"P1/{name}/linear{tail}"] = linear
    for name in PARITY:
        calibrated = partial(_over_stock, bench, name, DTYPES[ORDER[0]], lambda loop: loop.calibrated)
        found[f"P1/{name}/calibrated"] = calibrated
    return found


def _over_stock(bench: Bench, name: str, dtype: torch.dtype, config_of: Callable[[Loop], AscedConfig]) -> Measurement:
    side = bench.side(SHAPE[-1])
    loop = Loop(name, (*SHAPE[:2], side, side), dtype, bench.device)
    stock, (enabled, _) = loop.make()[0], loop.make(config_of(loop))
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

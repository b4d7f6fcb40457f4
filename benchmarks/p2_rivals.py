# SPDX-License-Identifier: MIT
"""P2, op by op: each op beside the same in plain torch on the same device, and beside torch.compile of that.

Both are timed in graphs of many calls on the same inputs (``graph_us``), whose results take the place of those before:
everything stays in the cache, for both. Ops that write in place write the same values each time.
"""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks import plain
from benchmarks.device import graph_us
from benchmarks.fused_step import DELTA, A, B
from benchmarks.loops import randn
from benchmarks.measurement import Bench, Cases, Measurement, sizes_of
from benchmarks.p2_ops import changes, op_call
from benchmarks.targets import DETECTED, RIVALED, RIVALS

CHANNELS = 4
GROWTH = 5


def cases(bench: Bench) -> Cases:
    """Every op that plain torch can do, on three planes, against both."""
    return {
        f"P2/{op}/{plane}/{rival}": partial(_against_torch, bench, op, rival, sizes_of(plane)[0])
        for op in RIVALED
        for plane in DETECTED
        for rival in RIVALS
    }


def _against_torch(bench: Bench, op: str, rival: str, side: int) -> Measurement:
    side = bench.side(side)
    shape = (1, CHANNELS, side, side)
    ours, _ = op_call(op, shape, bench)
    function, arguments = _in_torch(op, shape, bench)
    theirs = function if rival == "plain" else plain.compiled(function, bench.quick)
    repeats = bench.repeats(20)
    ours_us, how = graph_us([ours], bench.device, repeats)
    theirs_us, their_how = graph_us([partial(theirs, *arguments)], bench.device, repeats)
    return Measurement(
        value=ours_us.p50 / theirs_us.p50,
        shape=shape,
        baseline=f"{rival} torch on the same device (by {their_how})",
        ours_us=ours_us.p50,
        baseline_us=theirs_us.p50,
        note=f"timed by {how}, in cache",
    )


def _in_torch(op: str, shape: tuple[int, ...], bench: Bench) -> tuple[Callable[..., object], tuple]:
    """A function of ``plain`` and its arguments: what ``op_call`` measures on the same shape."""
    device, side = bench.device, shape[-1]
    mask = torch.zeros(1, side, side, dtype=torch.bool, device=device)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = True
    if op == "robust_threshold":
        return plain.flags, (changes(bench, side)[:, 0, 0],)
    if op == "dilate_mask":
        return plain.dilate, (mask, GROWTH)
    x, m = (randn(shape, seed, device).to(torch.bfloat16) for seed in range(2))
    if op == "step_dynamics":
        return plain.step, (x, m, x.float(), A, B, DELTA)
    if op == "renoise_":
        level = torch.rand(1, device=device)
        return plain.renoise, (x, mask, m.float(), level, level)
    return plain.fill, (x, mask, m)

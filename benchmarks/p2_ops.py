# SPDX-License-Identifier: MIT
"""P2, op by op: each op's time over its ceiling.

A ceiling is one launch, or the op's bytes at the copy bandwidth, whichever takes longer.
"""

from collections.abc import Callable
from functools import partial

import torch

from ascedfast import ops
from ascedfast.reference_scores import Gumbel
from benchmarks.device import floor_us, graph_us, nbytes
from benchmarks.fused_step import step_call
from benchmarks.loops import frames, randn
from benchmarks.measurement import Bench, Cases, Measurement, sizes_of
from benchmarks.targets import OPS

WINDOW = 12
STATISTICS = {"mad_scale": 3.0, "mad_floor": 0.5 / 127.5, "blur_sigma": 2.0}
OpCall = tuple[Callable[[], object], int]


def cases(bench: Bench) -> Cases:
    """Each op on a latent and on a pixel plane."""
    found: Cases = {}
    for plane in ("128x128", "256x256"):
        side = bench.side(sizes_of(plane)[0])
        shape = (1, 4 if plane == "128x128" else 3, side, side)
        found |= {f"P2/op/{op}/{plane}": partial(_over_ceiling, bench, op, shape) for op in OPS}
    return found


def changes(bench: Bench, side: int, count: int = WINDOW) -> torch.Tensor:
    """Changes between slow fields in which a square jumps: [count, 1, 1, side, side]."""
    seen = frames((1, 3, side, side), count + 1, bench.device)
    return (seen[1:] - seen[:-1]).abs().mean(2, keepdim=True)


def op_call(op: str, shape: tuple[int, ...], bench: Bench) -> OpCall:
    """The op on inputs as a run has them, and the bytes that its contract makes it read and write."""
    device = bench.device
    if op == "step_dynamics":
        step = step_call(shape, torch.bfloat16, device)
        return step.call, step.bytes
    rows, _, height, width = shape
    mask = torch.zeros(rows, height, width, dtype=torch.bool, device=device)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = True
    if op == "robust_threshold":
        maps = changes(bench, height)
        return partial(ops.robust_threshold, maps, **STATISTICS, z_floor=0.5 / 127.5), nbytes(maps) + 5 * mask.numel()
    if op == "temporal_scores":
        maps = changes(bench, height)[:, :, 0]
        return partial(ops.temporal_scores, maps, [1.0] * WINDOW), nbytes(maps) + 8 * mask.numel()
    if op == "temporal_severity":
        maps = changes(bench, height)[:, :, 0]
        among = {"still": Gumbel(1.0, 0.2), "jump": Gumbel(0.5, 0.3), "low": 0.0, "high": 2.0}
        return partial(ops.temporal_severity, maps, [1.0] * WINDOW, **among), nbytes(maps) + 5 * mask.numel()
    if op == "label_regions":
        rules = {"connectivity": 4, "min_area": 25, "max_area": 2500, "core_width": 3}
        return partial(ops.label_regions, mask, **rules), 6 * mask.numel()
    if op == "dilate_mask":
        return partial(ops.dilate_mask, mask, 5), 2 * mask.numel()
    if op == "renoise_":
        x, x0 = randn(shape, 0, device).to(torch.bfloat16), randn(shape, 1, device)
        level, count = torch.rand(rows, device=device), torch.arange(rows, device=device)
        call = partial(ops.renoise_, x, mask, x0, level, level, seeds=count, steps=count, draws=count)
        return call, nbytes(mask) + nbytes(x, x0) // 16  # a sixteenth of the locations lie in the mask
    return _history_fill_call(shape, bench, mask)


def _history_fill_call(shape: tuple[int, ...], bench: Bench, mask: torch.Tensor) -> OpCall:
    """history_fill_ of one carried tensor."""
    carried, current = (randn(shape, seed, bench.device).to(torch.bfloat16) for seed in range(2))
    return partial(ops.history_fill_, [carried], mask, current), nbytes(mask) + nbytes(carried, current) // 16


def _over_ceiling(bench: Bench, op: str, shape: tuple[int, ...]) -> Measurement:
    call, size = op_call(op, shape, bench)
    times, how = graph_us([call], bench.device, bench.repeats(20))
    ceiling = floor_us(bench.device, size)
    return Measurement(
        value=times.p50 / ceiling,
        shape=shape,
        baseline="one launch in a graph, or the bytes at the copy bandwidth",
        ours_us=times.p50,
        baseline_us=ceiling,
        gbps=size / times.p50 / 1e3,
        p20=times.p20 / ceiling,
        p80=times.p80 / ceiling,
        note=f"timed by {how}, in cache",
    )

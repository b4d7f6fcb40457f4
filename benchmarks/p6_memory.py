# SPDX-License-Identifier: MIT
"""P6: memory that ASCED adds, at rest between steps and as scratch at T_c, over what it may take.

Allowed at rest: one float32 x0_hat, one float32 one-channel map a step of the window, the mask. Allowed at T_c: two
more float32 maps a row. The allocator rounds each tensor up to 512 bytes and coefficient tables are not counted: TABLES
is taken off what was measured.
"""

from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch

from ascedfast import AscedConfig
from benchmarks.device import allocated, own_memory
from benchmarks.loops import Loop, frames, step_guided
from benchmarks.measurement import Bench, Cases, Measurement, sizes_of
from benchmarks.targets import AT_REST

DTYPE = torch.bfloat16
TABLES = 64 << 10


def cases(bench: Bench) -> Cases:
    """At rest and at T_c, for each state of ``targets.AT_REST``."""
    found: Cases = {}
    for name in AT_REST:
        found[f"P6/at rest/{name}"] = partial(_at_rest, bench, name)
        found[f"P6/scratch/{name}"] = partial(_scratch, bench, name)
    return found


@dataclass
class Watermarks:
    """Bytes held after each step, and by how much each step's peak exceeded what was held before it."""

    device: torch.device
    held: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._before = allocated(self.device)

    def __exit__(self, *error: object) -> None:
        cuda = self.device.type == "cuda"
        self.peaks.append(torch.cuda.max_memory_allocated(self.device) - self._before if cuda else 0)

    def after(self, step: int) -> None:
        self.held.append(allocated(self.device))


@lru_cache(maxsize=4)
def _watermarks(loop: Loop) -> tuple[Watermarks, Watermarks, int, int]:
    """Of the stock and of the enabled run, each from its own start; the window's length and the step before T_c."""
    frames(loop.shape, 25, loop.device)  # cached: not a part of either run
    found = []
    for config in (None, AscedConfig()):
        with own_memory(loop.device):
            step_guided(loop, loop.make(config)[0])  # compilation and the self-check
        start = allocated(loop.device)
        scheduler, handle = loop.make(config)
        step_guided(loop, scheduler)  # later runs put T_c together otherwise than the first of their kind
        seen = Watermarks(loop.device)
        step_guided(loop, scheduler, lambda seen=seen: seen, seen.after)
        seen.held = [held - start for held in seen.held]
        found.append(seen)
        if handle is not None:
            plan = handle.report.rows[0].plan
    return *found, plan.t_c - plan.start, plan.t_c - 1


def _loop(bench: Bench, name: str) -> Loop:
    shape = sizes_of(name)
    side = bench.side(shape[-1])
    return Loop("DDIM", (*shape[:2], side, side), DTYPE, bench.device)


def _over(used: int, allowed: int, loop: Loop, note: str) -> Measurement:
    if loop.device.type != "cuda":
        return Measurement(shape=loop.shape, dtype=DTYPE, note="the CPU's allocator is not watched")
    return Measurement(
        max(0, used - TABLES) / allowed,
        loop.shape,
        DTYPE,
        f"{allowed} bytes allowed",
        peak_bytes=used,
        note=f"{note}; {TABLES >> 10} KiB of tables and rounding taken off",
    )


def _at_rest(bench: Bench, name: str) -> Measurement:
    loop = _loop(bench, name)
    stock, ours, window, _ = _watermarks(loop)
    rows, channels, height, width = loop.shape
    locations = rows * height * width
    allowed = 4 * channels * locations + 4 * window * locations + locations
    used = max(mine - theirs for mine, theirs in zip(ours.held, stock.held, strict=True))
    return _over(used, allowed, loop, f"the most held after any step, less stock's; {window} steps in the window")


def _scratch(bench: Bench, name: str) -> Measurement:
    loop = _loop(bench, name)
    stock, ours, _, step = _watermarks(loop)
    rows, _, height, width = loop.shape
    return _over(ours.peaks[step] - stock.peaks[step], 8 * rows * height * width, loop, "peak of the step before T_c")

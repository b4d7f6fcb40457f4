# SPDX-License-Identifier: MIT
"""temporal_severity: how rare a window's changes are among sound runs (``reference.temporal_severity``).

The two launches of ``temporal_scores``, of which the second goes on from the scores to the severity and its levels
before it stores anything. All that belongs to the sound runs lies in one table on the device, made once.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from ascedfast.kernels.prepared import KEPT, Place, PreparedLaunch
from ascedfast.kernels.temporal_scores import Window, calm_and_leap, scale_of, sums_of
from torch import Tensor

from ascedfast.reference_scores import LEAST_SCORE, Gumbel
from ascedfast.upload import upload


@triton.jit
def _rarity(score, extreme, LEAST: tl.constexpr):
    """How far the logarithm of a score lies beyond a location, in scales; fp32."""
    wide = score.to(tl.float64)
    wide = tl.where(wide < LEAST, LEAST, wide)
    return ((tl.log(wide) - tl.load(extreme)) / tl.load(extreme + 1)).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "locations"])
def _severity(
    d,  # [K, R, n] fp32, bf16 or fp16
    sums,  # [K*R, STRETCHES] fp64
    table,  # [2K + 6] fp64: the profile, 1/k, location and scale of still and of jump, low, high
    severity,  # [R, n] fp32, written
    levels,  # [R, n] uint8, written
    rows,
    locations,
    K: tl.constexpr,
    FIRST: tl.constexpr,
    A_SHARE: tl.constexpr,
    STILL_FLOOR: tl.constexpr,
    JUMP_FLOOR: tl.constexpr,
    SCALE_FLOOR: tl.constexpr,
    STRETCHES: tl.constexpr,
    PARTS: tl.constexpr,
    KS: tl.constexpr,
    BLOCK: tl.constexpr,
    LEAST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = i < locations
    scale = scale_of(sums, table, row, rows, locations, K, SCALE_FLOOR, STRETCHES, PARTS, KS)
    plane_size = rows.to(tl.int64) * locations
    calm, leap = calm_and_leap(
        d + row * locations, table, scale, plane_size, i, ok, K, FIRST, A_SHARE, STILL_FLOOR, JUMP_FLOOR
    )
    found = _rarity(calm, table + 2 * K, LEAST)
    if K > 2:
        other = _rarity(leap, table + 2 * K + 2, LEAST)
        found = tl.where(other > found, other, found)
    # A scale is as finite as all the changes of its row.
    found = tl.where(scale < float("inf"), found, float("nan"))
    low = tl.load(table + 2 * K + 4).to(tl.float32)
    high = tl.load(table + 2 * K + 5).to(tl.float32)
    tl.store(severity + row * locations + i, found, ok)
    tl.store(levels + row * locations + i, (found > low).to(tl.uint8) + (found > high).to(tl.uint8), ok)


class Severity:
    """``temporal_severity`` of windows of one shape and dtype against one kind of sound runs: all but the outputs made
    once.

    Args: shape, device: of the changes, [K, R, *grid] contiguous, not empty. Others: as for the op.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        device: torch.device,
        profile: tuple[float, ...],
        still: Gumbel,
        jump: Gumbel | None,
        low: float,
        high: float,
    ) -> None:
        window = Window(shape)
        extremes = [number for one in (still, jump or still) for number in (one.location, one.scale)]
        ahead = [1 / k if k else 0.0 for k in range(window.count)]
        table = torch.tensor([*profile, *ahead, *extremes, low, high], dtype=torch.float64)
        self.table = upload(table, device)
        self.sums_shape, self._shape = window.sums_shape, tuple(shape[1:])
        self._sums = PreparedLaunch(sums_of, window.sums_shape, *window.sums_fixed)
        self._severity = PreparedLaunch(_severity, window.grid, *window.fixed, LEAST_SCORE, enable_fp_fusion=False)

    def __call__(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """severity fp32, levels uint8, [R, *grid] each."""
        sums = torch.empty(self.sums_shape, dtype=torch.float64, device=d.device)
        severity = torch.empty(self._shape, dtype=torch.float32, device=d.device)
        levels = torch.empty(self._shape, dtype=torch.uint8, device=d.device)
        self._sums(d, sums)
        self._severity(d, sums, self.table, severity, levels)
        return severity, levels

    def add_sums_to(self, sequence: Any, d: Place, sums: Place) -> None:
        """See ``PreparedLaunch.add_to``. sums: fp64 of ``sums_shape``, written."""
        self._sums.add_to(sequence, d, sums)

    def add_severity_to(
        self, sequence: Any, d: Place, sums: Place, table: Place, *, severity: Place, levels: Place
    ) -> None:
        """See ``PreparedLaunch.add_to``. table: ``table``."""
        self._severity.add_to(sequence, d, sums, table, severity, levels)


@functools.lru_cache(maxsize=KEPT)
def _kept(dtype: torch.dtype, *kind: Any) -> Severity:
    """One for each dtype of the changes: a compiled kernel reads one."""
    return Severity(*kind)


def temporal_severity(
    d: Tensor, profile: Sequence[float], still: Gumbel, jump: Gumbel | None, *, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Launch on checked arguments, see ``ops.temporal_severity``."""
    if d.numel() == 0:
        shape = d.shape[1:]
        return (
            torch.empty(shape, dtype=torch.float32, device=d.device),
            torch.empty(shape, dtype=torch.uint8, device=d.device),
        )
    kind = (d.shape, d.device, tuple(map(float, profile)), still, jump, low, high)
    return _kept(d.dtype, *kind)(d.contiguous())

# SPDX-License-Identifier: MIT
"""``detect.detect_calibrated`` for rows in lockstep: as ``PreparedDetection`` does for mode "fast"."""

import math

import torch
from torch import Tensor

from ascedfast import _backend
from ascedfast.calibration.regions import RULES, thresholds
from ascedfast.calibration.table import Null
from ascedfast.calibration.windows import sigma_of
from ascedfast.config import AscedConfig
from ascedfast.detect import Detection, connectivity_of
from ascedfast.prepared_detection import Signal
from ascedfast.prepared_memory import Parts
from ascedfast.prepared_regions import PreparedRegions


class PreparedCalibration:
    """Detection in mode "calibrated", on banks of one shape, by what sound runs at the rows' levels score.

    Args: shape, device: of the banks, float32 [K, R, *grid] contiguous, from the first change of the run on. null: of K
        changes on that grid.
    """

    flag_type = torch.uint8

    def __init__(self, shape: tuple[int, ...], device: torch.device, config: AscedConfig, null: Null) -> None:
        from ascedfast.kernels import blur, temporal_severity

        grid = tuple(shape[2:])
        frames = math.prod((*shape[:2], *grid[:-2]))  # each of a volume is smoothed alone
        self._maps = (1, frames, 1, *grid[-2:])
        strides = torch.empty(self._maps, device="meta").stride()
        self._device, self._count, self._planes = device, math.prod(grid), shape[0] * shape[1]
        self._shape, self._weights = tuple(shape), blur.weights_on(sigma_of(grid), device)
        self._blur = blur.Blur(self._maps, strides, len(self._weights) // 2)
        low, high = thresholds(null, config.rate)
        self._severity = temporal_severity.Severity(self._shape, device, null.profile, null.still, null.jump, low, high)
        rules = {"connectivity": connectivity_of(config, grid), **RULES, "core_width": 0}  # below ops: seeds are cores
        self.regions = PreparedRegions(tuple(shape[1:]), device, config.backend, rules, config.sizes(grid).grow)

    def __call__(self, bank: Tensor) -> Detection:
        """As ``detect.detect_calibrated``; launched as ``PreparedDetection`` does."""
        smooth = self._blur(bank.view(self._maps), self._weights)
        severity, levels = self._severity(smooth.view(self._shape))
        labels, mask, overflow, grown = self.regions(levels)
        return Detection(mask, grown, severity, labels, overflow)

    def signal(self) -> Signal:
        """Raises: kernels.prepared.NoSequence."""
        native, size = _backend.native(), 4 * self._planes * self._count
        own = Parts(self._device, 1, *[size] * self._blur.spare)
        left = Parts(self._device, 2, size, 8 * math.prod(self._severity.sums_shape))
        first, second = native.LaunchSequence(4), native.LaunchSequence(4)
        values, sums = left.places
        self._blur.add_to(first, (0, 0), values, own.places, (3, 0))
        self._severity.add_sums_to(first, values, sums)
        values, sums = ((0, start) for _, start in left.places)
        self._severity.add_severity_to(second, values, sums, (3, 0), severity=(1, 0), levels=(2, 0))
        return Signal(first, second, own, left, self._weights, self._severity.table)

# SPDX-License-Identifier: MIT
"""``detect.detect`` for rows in lockstep: its checks, sizes and launches made once for all runs of a kind.

At T_c the kernels of the detection take some 60 us on a GPU; asked for op by op, the host takes longer than that.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ascedfast import _backend, _native_cuda, reference
from ascedfast.config import HALF_GREY_LEVEL, AscedConfig
from ascedfast.detect import Detection, connectivity_of
from ascedfast.prepared_memory import Parts
from ascedfast.prepared_regions import PreparedRegions


class Signal(NamedTuple):
    """Two ``LaunchSequence``s from a bank to its flags, between which the first one's own memory is given back.

    first: (bank, ``own``, ``left``, ``for_first``). second: (``left``, z, flags, ``for_second``). The last of each are
    constants, which stay where they are.
    """

    first: Any
    second: Any
    own: Parts
    left: Parts
    for_first: Tensor
    for_second: Tensor


class PreparedDetection:
    """Detection in mode "fast", on banks of one shape, where Triton serves ``robust_threshold`` and ``dilate_mask``.

    Args: shape, device: of the banks, float32 [K, R, *grid] contiguous.
    """

    flag_type = torch.bool

    def __init__(self, shape: tuple[int, ...], device: torch.device, config: AscedConfig) -> None:
        from ascedfast.kernels import robust_threshold

        grid = tuple(shape[2:])
        maps = torch.empty(shape, device="meta")[:, :, None]
        frames = 1
        if config.statistics == "frame" and len(grid) == 3:
            maps, frames = reference.frames_as_rows(maps), grid[0]
        sizes = config.sizes(grid)
        self._device, self._shape = device, tuple(shape[1:])
        self._count, self._planes = math.prod(grid) // frames, shape[0] * shape[1] * frames
        self._threshold = robust_threshold.Thresholding(
            maps.shape,
            maps.stride(),
            device,
            mad_scale=config.mad_scale,
            mad_floor=config.mad_floor,
            blur_sigma=sizes.blur_sigma,
            z_floor=max(config.mad_floor, HALF_GREY_LEVEL),
            count=False,
            faster=_native_cuda.medians if config.backend == "auto" and _backend.has_cuda() else None,
            frames=frames,
        )
        rules = {
            "connectivity": connectivity_of(config, grid),
            "min_area": sizes.min_area,
            "max_area": sizes.max_area,
            "core_width": sizes.core_width,
        }
        self.regions = PreparedRegions(tuple(shape[1:]), device, config.backend, rules, sizes.grow)

    def __call__(self, bank: Tensor) -> Detection:
        """As ``detect.detect``; launched on the current stream of bank's device, which is the current one."""
        flags, z = (part.view(self._shape) for part in self._threshold(bank))
        labels, mask, overflow, grown = self.regions(flags)
        return Detection(mask, grown, z, labels, overflow)

    def signal(self) -> Signal:
        """Raises: kernels.prepared.NoSequence."""
        native, planes, count = _backend.native(), self._planes, self._count
        blur, weights = self._threshold.smoothing
        room = native.medians_scratch_bytes(planes) if self._threshold.by_medians(count) else 0
        own = Parts(self._device, 1, *[4 * planes * count] * blur.spare, room)
        left = Parts(self._device, 2, 4 * planes * count, 8 * planes)
        (*spare, scratch), (values, statistics) = own.places, left.places
        first, second = native.LaunchSequence(4), native.LaunchSequence(4)
        blur.add_to(first, (0, 0), values, spare, (3, 0))
        self._threshold.add_statistics_to(first, values, planes, count, statistics, scratch, room)
        values, statistics = ((0, start) for _, start in left.places)
        self._threshold.add_flags_to(second, values, statistics, flags=(2, 0), z=(1, 0))
        return Signal(first, second, own, left, weights, weights)

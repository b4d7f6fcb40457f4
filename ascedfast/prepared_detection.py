# SPDX-License-Identifier: MIT
"""``detect.detect`` for rows in lockstep: its checks, sizes and launches made once for all runs of a kind.

At T_c the kernels of the detection take some 60 us on a GPU; asked for op by op, the host takes longer than that.
"""

import torch
from torch import Tensor

from ascedfast import _backend, _native_cuda
from ascedfast.config import HALF_GREY_LEVEL, AscedConfig
from ascedfast.detect import Detection, connectivity_of


class PreparedDetection:
    """Detection in mode "fast", on banks of one shape, where Triton serves ``robust_threshold`` and ``dilate_mask``.

    Args: shape, device: of the banks, float32 [K, R, *grid] contiguous.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, config: AscedConfig) -> None:
        from ascedfast.kernels import dilate_mask, label_regions, robust_threshold

        bank, grid = torch.empty(shape, device="meta"), tuple(shape[2:])
        maps, flags = bank[:, :, None], bank[0]
        sizes = config.sizes(grid)
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
        )
        self._rules = {
            "connectivity": connectivity_of(config, grid),
            "min_area": sizes.min_area,
            "max_area": sizes.max_area,
            "core_width": sizes.core_width,
        }
        native = _backend.pick("label_regions", device, config.backend) == "native"
        self._planes = (shape[1], *(1,) * (3 - len(grid)), *grid) if native else None
        self._label = _native_cuda.label_regions if native else label_regions.label_regions
        self._grow = dilate_mask.Dilation(flags.shape, flags.stride(), sizes.grow)

    def __call__(self, bank: Tensor) -> Detection:
        """As ``detect.detect``; launched on the current stream of bank's device, which is the current one."""
        flags, z = self._threshold(bank)
        if self._planes is None:
            labels, mask, overflow = self._label(flags, **self._rules)
        else:
            labels, mask, overflow = self._label(flags.view(self._planes), **self._rules)
            labels, mask = labels.view(flags.shape), mask.view(flags.shape)
        return Detection(mask, self._grow(mask), z, labels, overflow)

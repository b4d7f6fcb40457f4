# SPDX-License-Identifier: MIT
"""``detect.detect`` for rows in lockstep: its checks, sizes and launches made once for all runs of a kind.

At T_c the kernels of the detection take some 60 us on a GPU; asked for op by op, the host takes longer than that.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ascedfast import _backend, _native_cuda
from ascedfast.config import HALF_GREY_LEVEL, AscedConfig
from ascedfast.detect import Detection, connectivity_of

if TYPE_CHECKING:  # importing ascedfast needs no Triton
    from ascedfast.kernels.prepared import Place


class PreparedDetection:
    """Detection in mode "fast", on banks of one shape, where Triton serves ``robust_threshold`` and ``dilate_mask``.

    Args: shape, device: of the banks, float32 [K, R, *grid] contiguous.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, config: AscedConfig) -> None:
        from ascedfast.kernels import dilate_mask, label_regions, robust_threshold

        bank, grid = torch.empty(shape, device="meta"), tuple(shape[2:])
        maps, flags = bank[:, :, None], bank[0]
        sizes = config.sizes(grid)
        self.threshold = robust_threshold.Thresholding(
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
        self.grow = dilate_mask.Dilation(flags.shape, flags.stride(), sizes.grow)

    def __call__(self, bank: Tensor) -> Detection:
        """As ``detect.detect``; launched on the current stream of bank's device, which is the current one."""
        flags, z = self.threshold(bank)
        if self._planes is None:
            labels, mask, overflow = self._label(flags, **self._rules)
        else:
            labels, mask, overflow = self._label(flags.view(self._planes), **self._rules)
            labels, mask = labels.view(flags.shape), mask.view(flags.shape)
        return Detection(mask, self.grow(mask), z, labels, overflow)

    @property
    def by_csrc(self) -> bool:
        """Whether csrc labels the regions, so that it may do all of a detection (``PreparedCorrection``)."""
        return self._planes is not None

    @property
    def labelling_bytes(self) -> int:
        """Scratch of csrc's labelling."""
        return _backend.native().label_regions_scratch_bytes(self._planes)

    def add_labels_to(
        self, sequence: Any, flags: "Place", labels: "Place", mask: "Place", overflow: "Place", scratch: "Place"
    ) -> None:
        """Append csrc's labelling to its ``LaunchSequence``: of flags bool [R, *grid] contiguous, scratch of
        ``labelling_bytes``; written: labels int32 and mask bool of that shape, overflow bool [R]."""
        strides = [math.prod(self._planes[axis + 1 :]) for axis in range(len(self._planes))]
        outputs = (labels, mask, overflow)
        sequence.label_regions(
            flags, strides, self._planes, *outputs, **self._rules, scratch=scratch, scratch_bytes=self.labelling_bytes
        )

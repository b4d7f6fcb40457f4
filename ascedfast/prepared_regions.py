# SPDX-License-Identifier: MIT
"""From flags to the mask that is corrected, for rows in lockstep: labelling and growth, made once for all runs."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ascedfast import _backend, _native_cuda

if TYPE_CHECKING:  # importing ascedfast needs no Triton
    from ascedfast.kernels.prepared import Place


class PreparedRegions:
    """``ops.label_regions`` and ``ops.dilate_mask`` of flags of one shape, where Triton serves the latter.

    Args: shape: [R, *grid] of the flags, contiguous. rules: of ``label_regions``. grow: as ``dilate_mask`` takes it.
    """

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, backend: str, rules: dict[str, Any], grow: int
    ) -> None:
        from ascedfast.kernels import dilate_mask, label_regions

        self._rules = rules
        native = _backend.pick("label_regions", device, backend) == "native"
        self._planes = (shape[0], *(1,) * (4 - len(shape)), *shape[1:]) if native else None
        self._label = _native_cuda.label_regions if native else label_regions.label_regions
        strides = torch.empty(shape, device="meta").stride()
        self.grow = dilate_mask.Dilation(shape, strides, grow)

    def __call__(self, flags: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """labels, mask, overflow and the grown mask."""
        if self._planes is None:
            labels, mask, overflow = self._label(flags, **self._rules)
        else:
            labels, mask, overflow = self._label(flags.view(self._planes), **self._rules)
            labels, mask = labels.view(flags.shape), mask.view(flags.shape)
        return labels, mask, overflow, self.grow(mask)

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
        """Append csrc's labelling to its ``LaunchSequence``: of flags [R, *grid] contiguous, scratch of
        ``labelling_bytes``; written: labels int32 and mask bool of that shape, overflow bool [R]."""
        strides = [math.prod(self._planes[axis + 1 :]) for axis in range(len(self._planes))]
        outputs = (labels, mask, overflow)
        sequence.label_regions(
            flags, strides, self._planes, *outputs, **self._rules, scratch=scratch, scratch_bytes=self.labelling_bytes
        )

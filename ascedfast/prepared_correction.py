# SPDX-License-Identifier: MIT
"""T_c of rows in lockstep in three calls of csrc: detection and re-noising, launched with addresses alone.

Op by op the host takes 250 us for six launches, most of it to look anew at what never changes between runs of a kind.
So once a kind's launches have been made, they are put into three ``LaunchSequence``s: smoothing and statistics; flags;
regions, growth and noise. Between them the memory that has served is given back, as the ops do.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ascedfast import _backend
from ascedfast.detect import Detection
from ascedfast.prepared_calibration import PreparedCalibration
from ascedfast.prepared_detection import PreparedDetection
from ascedfast.prepared_memory import ALIGNED, Parts, part_of, shell
from ascedfast.prepared_regions import PreparedRegions


class Found(NamedTuple):
    """What a correction leaves. grown: bool [R, 1, *grid], the corrected locations. z: float32 [R, *grid]. kept: uint8,
    the other parts of the ``Detection``, which is made when somebody asks for it. starts: the bytes of it at which
    labels, mask and overflow begin."""

    grown: Tensor
    z: Tensor
    kept: Tensor
    starts: tuple[int, ...]

    def read(self) -> Detection:
        """In the memory of what was left."""
        at_labels, at_mask, at_overflow = self.starts
        shape = self.z.shape
        labels = part_of(self.kept, at_labels, torch.int32, shape)
        mask = part_of(self.kept, at_mask, torch.bool, shape)
        overflow = part_of(self.kept, at_overflow, torch.bool, shape[:1])
        return Detection(mask, self.grown[:, 0], self.z, labels, overflow)


class PreparedCorrection:
    """The launches of the corrections of one kind.

    Args:
        detect: has run once on banks like ``bank``, float32 [K, R, *grid] contiguous.
        levels: float32 [3, R]: alpha, sigma, the noise of x0 (used where ``perturb``); stays where it is.
        keys: int64 [3, R]: seeds, steps, draws. x, x0: [R, C, *grid], re-noised once.
            All of these, levels aside, are examples of those to come.
    Raises: kernels.prepared.NoSequence where csrc does not do all of the launches, or they were not made yet.
    """

    def __init__(
        self,
        detect: PreparedDetection | PreparedCalibration,
        bank: Tensor,
        levels: Tensor,
        keys: Tensor,
        x: Tensor,
        x0: Tensor,
        perturb: bool,
    ) -> None:
        from ascedfast.kernels.prepared import NoSequence, stream_getter

        if not detect.regions.by_csrc or not hasattr(_backend.native(), "LaunchSequence"):
            raise NoSequence
        _, self._rows, *grid = bank.shape
        self._grid, self._device, self._levels = tuple(grid), bank.device, levels
        self._stream_of = stream_getter()
        self._z = shell(torch.empty((self._rows, *grid), device=bank.device))
        self._flags = shell(torch.empty((self._rows, *grid), dtype=detect.flag_type, device=bank.device))
        self._grown = shell(torch.empty((self._rows, 1, *grid), dtype=torch.bool, device=bank.device))
        self._signal = detect.signal()
        self._decide = self._decision(detect.regions, levels, keys, x, x0, perturb)

    def __call__(self, bank: Tensor, x: Tensor, x0: Tensor, keys: Tensor) -> Found | None:
        """Detect, and re-noise x in place; on the current stream of bank's device, which is the current one. None, and
        nothing done, where x is not aligned."""
        at = x.data_ptr()
        if at % ALIGNED:
            return None
        index, like = self._device.index, torch.empty_like
        stream = self._stream_of(index)
        signal = self._signal
        own, left = like(signal.own.bytes), like(signal.left.bytes)
        addresses = (own.data_ptr(), left.data_ptr(), signal.for_first.data_ptr())
        signal.first(index, stream, bank.data_ptr(), *addresses)
        del own  # what follows may lie there
        z, flags = like(self._z), like(self._flags)
        addresses = (left.data_ptr(), z.data_ptr(), flags.data_ptr(), signal.for_second.data_ptr())
        signal.second(index, stream, *addresses)
        del left
        kept, scratch, grown = like(self._kept.bytes), like(self._scratch.bytes), like(self._grown)
        addresses = (flags.data_ptr(), kept.data_ptr(), scratch.data_ptr(), grown.data_ptr(), at, x0.data_ptr())
        self._decide(index, stream, *addresses, self._levels.data_ptr(), keys.data_ptr())
        return Found(grown, z, kept, self._starts)

    def _decision(
        self, regions: PreparedRegions, levels: Tensor, keys: Tensor, x: Tensor, x0: Tensor, perturb: bool
    ) -> Any:
        """Addresses of a call: flags, what is kept, scratch, the grown mask, x, x0, levels, keys."""
        from ascedfast.kernels import renoise

        sequence = _backend.native().LaunchSequence(8)
        count = self._rows * math.prod(self._grid)
        self._kept = Parts(self._device, 1, 4 * count, count, self._rows)
        self._scratch = Parts(self._device, 2, count, regions.labelling_bytes)
        labels, mask, overflow = self._kept.places
        self._starts = tuple(start for _, start in self._kept.places)
        across, labelling = self._scratch.places
        regions.add_labels_to(sequence, (0, 0), labels, mask, overflow, labelling)
        regions.grow.add_to(sequence, mask, across, (3, 0))
        grown = torch.empty((self._rows, *self._grid), dtype=torch.bool, device="meta")
        used = (0, 1, 2 if perturb else 0)  # rows of levels
        places = [(6, row * levels.stride(0) * levels.itemsize) for row in used]
        places += [(7, row * keys.stride(0) * keys.itemsize) for row in range(3)]
        examples = (x, grown, x0, *(levels[row] for row in used), *keys)
        renoise.add_to(sequence, examples, ((4, 0), (3, 0), (5, 0), *places), perturb)
        return sequence

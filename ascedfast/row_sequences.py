# SPDX-License-Identifier: MIT
"""The correction of due rows in four calls of csrc, with addresses alone: as ``prepared_correction``, in scratch that
is there already."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from ascedfast import _backend
from ascedfast.prepared_calibration import PreparedCalibration
from ascedfast.prepared_detection import PreparedDetection
from ascedfast.prepared_memory import Parts

if TYPE_CHECKING:  # importing ascedfast needs no Triton
    from ascedfast.kernels.prepared import PreparedLaunch
    from ascedfast.row_correction import RowCorrections


class RowSequences:
    """For lists of one length and states of one kind.

    Args: detect, gather, apply: have run once on such, with aligned addresses. shape: [K, rows, *grid] of the windows.
    Raises: kernels.prepared.NoSequence where csrc does not do all of the launches.
    """

    def __init__(
        self,
        detect: PreparedDetection | PreparedCalibration,
        gather: "PreparedLaunch",
        apply: "PreparedLaunch",
        shape: tuple[int, ...],
        batch: "RowCorrections",
    ) -> None:
        from ascedfast.kernels.prepared import NoSequence, stream_getter

        native, regions = _backend.native(), detect.regions
        if not regions.by_csrc or not hasattr(native, "LaunchSequence"):
            raise NoSequence
        self._batch, self._signal, self._stream_of = batch, detect.signal(), stream_getter()
        rows, count = shape[1], math.prod(shape[1:])
        sizes = {
            "windows": 4 * math.prod(shape),
            "own": self._signal.own.bytes.numel(),
            "left": self._signal.left.bytes.numel(),
            "z": 4 * count,
            "flags": count,
            "labels": 4 * count,
            "mask": count,
            "overflow": rows,
            "across": count,
            "grown": count,
            "labelling": regions.labelling_bytes,
        }
        space = Parts(batch.device, 0, *sizes.values())
        self._size = space.bytes.numel()
        at = dict(zip(sizes, space.places, strict=True))
        self._starts = {name: start for name, (_, start) in at.items()}
        self._gather = native.LaunchSequence(4)
        gather.add_to(self._gather, (1, 0), (2, 0), (3, 0), at["windows"])
        self._decide = native.LaunchSequence(6)
        outputs = (at["labels"], at["mask"], at["overflow"])
        regions.add_labels_to(self._decide, at["flags"], *outputs, at["labelling"])
        regions.grow.add_to(self._decide, at["mask"], at["across"], at["grown"])
        found = (at["grown"], at["mask"], at["labels"], at["z"], at["overflow"])
        apply.add_to(self._decide, (1, 0), (2, 0), *found, *((base, 0) for base in range(3, 6)))

    def __call__(self, due: Tensor, x: Tensor) -> None:
        """Detect, and re-noise x in place; on the current stream of x's device, which is the current one."""
        batch, signal, starts = self._batch, self._signal, self._starts
        slots, index = batch.slots, batch.device.index
        stream, space, listed = self._stream_of(index), batch.space.of(self._size).data_ptr(), due.data_ptr()
        script = slots.script.data_ptr()
        self._gather(index, stream, space, slots.bank.data_ptr(), script, listed)
        left = space + starts["left"]
        addresses = (space + starts["windows"], space + starts["own"], left, signal.for_first.data_ptr())
        signal.first(index, stream, *addresses)
        addresses = (left, space + starts["z"], space + starts["flags"], signal.for_second.data_ptr())
        signal.second(index, stream, *addresses)
        addresses = (space, x.data_ptr(), listed, script, slots.x0.data_ptr(), batch.found.records.data_ptr())
        self._decide(index, stream, *addresses)

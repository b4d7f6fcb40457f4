# SPDX-License-Identifier: MIT
"""What a measurement is, how it is asked for, and what it is measured on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Bench:
    """Where it is measured. quick: tiny sizes and few repeats, to see that the harness works; not for figures."""

    device: torch.device
    quick: bool = False

    def repeats(self, wanted: int) -> int:
        """How often to repeat."""
        return min(wanted, 2) if self.quick else wanted

    def side(self, wanted: int, tiny: int = 32) -> int:
        """Side of a plane."""
        return min(wanted, tiny) if self.quick else wanted


@dataclass(frozen=True)
class Measurement:
    """A value for one id of ``targets.TARGETS``, in that target's unit; None where it could not be had, then ``note``
    says why.

    shape: of the state, or of what is measured. baseline: what ``baseline_us`` is the time of. p20, p80: of value.
    """

    value: float | None = None
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    baseline: str | None = None
    ours_us: float | None = None
    baseline_us: float | None = None
    gbps: float | None = None
    share_of_copy: float | None = None
    p20: float | None = None
    p80: float | None = None
    launches: int | None = None
    peak_bytes: int | None = None
    note: str | None = None


Cases = dict[str, Callable[[], Measurement]]
"""What to call for each id. A case that raises is recorded without a value, with the error as its note."""


def sizes_of(text: str) -> tuple[int, ...]:
    """The shape that an id names: "64x4x128x128 channels-last" gives (64, 4, 128, 128)."""
    return tuple(int(size) for size in text.split()[0].split("x"))

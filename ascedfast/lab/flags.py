# SPDX-License-Identifier: MIT
"""One bit an image, as results hold them: "0110"."""

from collections.abc import Iterable

import numpy as np


def bits(flags: Iterable[bool]) -> str:
    """Flags, numpy's or torch's too, as text."""
    return "".join("01"[int(one)] for one in flags)


def flags_of(text: str) -> np.ndarray:
    """bool [n], the inverse of ``bits``."""
    return np.frombuffer(text.encode(), np.uint8) == ord("1")

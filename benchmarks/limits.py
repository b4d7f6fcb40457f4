# SPDX-License-Identifier: MIT
"""Why a bar is missed: what stands in the way, for the ids that it stands in the way of."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

_HOST = """the host: in float32 the stock's step has no casts (two of FlowMatchEuler's four launches). Ours is a launch
and some 14 us of Python and driver, and once a run its beginning (260 to 400 us, cold code) and T_c (90 to 140 us). The
device works 3 us a step"""
LIMITS: Mapping[str, str] = {
    "P1/FlowMatchEuler/fp32": _HOST,
    "P1/Euler/fp32": _HOST,
    "P1/PNDM*": """the host, once a run: the beginning, three watched steps, T_c and the repair of four remembered
tensors, some 900 us in all beside a stock run of 5 to 7 ms; 19 other steps pay 10 us each to see that none watches""",
    "P2/history_fill_*": """two waits for memory, the mask and then what it lets through; compiled torch reads all at
once. So do small tensors since: not measured yet""",
    "P4/*": """not measured since the network runs in a CUDA graph; the host's noise was larger than what is
measured""",
    "P7/*": """one pass through memory: a plain copy of as many bytes takes 90 to 97 % of the step's time (see
notes). The bar's floor, a launch that touches one number, does not wait for memory""",
}
"""Pattern of ids: the limit. The first that matches counts."""


def limit_of(id: str) -> str | None:
    """What is known of the limit behind a miss of this target."""
    found = (limit for pattern, limit in LIMITS.items() if fnmatchcase(id, pattern))
    return " ".join(limit.split()) if (limit := next(found, None)) else None

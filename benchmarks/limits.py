# SPDX-License-Identifier: MIT
"""Why a bar is missed: what stands in the way, for the ids that it stands in the way of."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

_HOST = """launches and Python: in float32 the stock's step has no casts and takes 34 us (FlowMatchEuler) and 70 us
(Euler). Ours is one launch of 12 to 15 us of Python and driver, and once a run its beginning (170 us, cold code) and
T_c (75 us, six launches). The device works 3 us a step"""
LIMITS: Mapping[str, str] = {
    "P1/FlowMatchEuler/fp32": f"{_HOST}. The bar is 431 us a run, ours takes 589",
    "P1/Euler/fp32": f"{_HOST}. The bar is 620 us a run, ours takes 672",
    "P1/PNDM*": """launches and Python, once a run: the beginning, three watched steps, T_c and the repair of four
remembered tensors, 560 us beside 26 stock steps of 170 us; 21 other steps pay 6 us each to see that none watches.
Missed by 21 to 53 us a run""",
    "P4/*": """by the medians 1.4 ms (SD1.5), 7.2 (SDXL), 3.9 (FLUX) and 7.4 (Wan) in a run of 6 steps that waits for
the device at each step, so that no host time hides behind the network; -.4, .3, -.6 and 2.1 ms on another H100 before
each call looked for caches. That search took 2.5 ms of SDXL on a faster host; the code since takes .3, and was not
measured on a GPU. What else there is is not known""",
    "P2/history_fill_/*": """one launch each, of 1.6 us, and no more can be told apart: the same op in the same run took
1.55 us where it was timed beside its ceiling""",
    "P7/*": """one pass through memory: a plain copy of as many bytes takes 90 % of the step's time or more (the
record's note has it). The bar's floor, a launch that touches one number, does not wait for memory""",
}
"""Pattern of ids: the limit. The first that matches counts."""


def limit_of(id: str) -> str | None:
    """What is known of the limit behind a miss of this target."""
    found = (limit for pattern, limit in LIMITS.items() if fnmatchcase(id, pattern))
    return " ".join(limit.split()) if (limit := next(found, None)) else None

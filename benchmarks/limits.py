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
    "P1/FlowMatchEuler": """the host: its beginning (320 us) and T_c (115 us) are a third of such a run. Both were
shortened since; on another machine of this kind the value was .48""",
    "P2/history_fill_*": """divisions of int64 and the arguments of a launch: mended since, beside each other in one
process 1.22, 1.39 and 1.46 us against 1.10, 1.33 and 1.53 of compiled torch; not measured by this command yet""",
    "P4/*": """the clocks of a GPU at its limit of power: SDXL's runs take 278 or 293 ms, whichever comes; medians .9995
to 1.0011. Both runs take turns at each step since: not measured yet""",
    "P7/*": """one pass through memory: a plain copy of as many bytes takes 90 to 97 % of the step's time (see
notes). The bar's floor, a launch that touches one number, does not wait for memory""",
}
"""Pattern of ids: the limit. The first that matches counts."""


def limit_of(id: str) -> str | None:
    """What is known of the limit behind a miss of this target."""
    found = (limit for pattern, limit in LIMITS.items() if fnmatchcase(id, pattern))
    return " ".join(limit.split()) if (limit := next(found, None)) else None

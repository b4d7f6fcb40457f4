# SPDX-License-Identifier: MIT
"""Why a bar is missed: what stands in the way, for the ids that it stands in the way of."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

LIMITS: Mapping[str, str] = {}
"""Pattern of ids: the limit. The first that matches counts."""


def limit_of(id: str) -> str | None:
    """What is known of the limit behind a miss of this target."""
    return next((limit for pattern, limit in LIMITS.items() if fnmatchcase(id, pattern)), None)

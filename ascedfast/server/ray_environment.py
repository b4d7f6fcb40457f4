# SPDX-License-Identifier: MIT
"""Environment variables of Ray, which reads some of them when it is imported: this module comes first."""

import os
import secrets

VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_task_events_report_interval_ms": "0",  # else a list of all calls grows in memory
    "RAY_enable_metrics_collection": "false",  # /metrics has the server's own
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_JEMALLOC_PROFILE": "raylet",  # whose threads' caches fill for minutes, idle too: 3 % of its memory in three
    "RAY_JEMALLOC_CONF": "narenas:1,tcache:false",
    "RAY_AUTH_MODE": "token",  # Ray's own ports are open on all interfaces
}


def set_ray_environment() -> None:
    """Before ray is imported: telemetry off, and a token made for this start, without which nobody talks to this Ray.
    What the operator has set stays."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

# SPDX-License-Identifier: MIT
"""Runs the cases of the chosen groups, one after another, and turns what they give into records."""

import importlib
import logging
from collections.abc import Callable, Collection

from benchmarks.device import own_memory
from benchmarks.measurement import Bench, Cases, Measurement
from benchmarks.results import Record, record
from benchmarks.targets import TARGETS

FILES = {
    "P1": ("p1_scheduler",),
    "P2": ("p2_run", "p2_ops", "p2_rivals"),
    "P3": ("p3_bandwidth",),
    "P4": ("p4_pipelines",),
    "P5": ("p5_launches",),
    "P6": ("p6_memory",),
    "P7": ("p7_growth",),
}
logger = logging.getLogger("benchmarks")


def all_cases(bench: Bench, groups: Collection[str]) -> Cases:
    """The cases of some groups, in the order of ``targets.TARGETS``."""
    found: Cases = {}
    for group in groups:
        for name in FILES[group]:
            found |= importlib.import_module(f"benchmarks.{name}").cases(bench)
    return {id: found[id] for id in TARGETS if id in found}


def run(cases: Cases, bench: Bench, command: str, done: Callable[[Record], None]) -> list[Record]:
    """Measure every case. One that cannot be measured here is recorded without a value, its error as the note: a run
    on a rented GPU must not be lost to one case.

    Args: done: called with each record as soon as it is there.
    """
    records = []
    for id, measure in cases.items():
        with own_memory(bench.device):
            try:
                measured = measure()
            except Exception as error:
                logger.debug("%s", id, exc_info=True)
                measured = Measurement(note=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")
        records.append(record(id, measured, bench, command))
        done(records[-1])
    return records

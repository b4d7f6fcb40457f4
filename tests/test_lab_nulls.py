# SPDX-License-Identifier: MIT
"""Tables of a subject's sound runs, and mode "calibrated" among the laboratory's detectors."""

import math

import pytest

from ascedfast import AscedConfig
from ascedfast.lab import detectors
from ascedfast.lab.corrections import watch
from ascedfast.lab.nulls import null_of, table_of
from ascedfast.lab.planted import plant_rows
from ascedfast.lab.seeds import ReportingSeeds, TuningSeeds
from ascedfast.lab.subject import Toy

TOY = Toy()
SEEDS = TuningSeeds.of(0, 300)


@pytest.fixture(scope="module")
def table():
    return table_of(TOY, SEEDS, chunk=150)


def found_in(prefix, table, rate):
    config = AscedConfig.calibrated(table, rate=rate)
    return detectors.by_mode(TOY.schedule, prefix, config)


def test_new_sound_runs_are_flagged_at_the_rate(table):
    """300 new ones; three standard errors, of theirs and of the table's."""
    prefix = watch(TOY, range(50_000, 50_300))
    for rate in (0.1, 0.3):
        flagged = float(found_in(prefix, table, rate).mask.flatten(1).any(1).double().mean())
        assert abs(flagged - rate) < 3 * math.sqrt(rate * (1 - rate) * 2 / 300)


def test_planted_traps_are_found_more_often_than_the_published_statistic_finds_them(table):
    planted = plant_rows(TOY, list(range(60_000, 60_080)), "trap", side="middle")
    ours = found_in(planted.prefix, table, 0.02).mask.flatten(1).any(1)
    assert float(ours[planted.contrast >= 20].double().mean()) > 0.5


def test_chunks_do_not_matter(table):
    other = null_of(TOY, SEEDS, chunk=70)
    assert other.levels == pytest.approx(table.nulls[0].levels, abs=0.05)
    assert other.grid == (16, 16)


def test_several_step_counts():
    class Steps(Toy):
        def with_steps(self, steps):
            return Toy(steps=steps)

    made = table_of(Steps(), TuningSeeds.of(0, 120), steps=(20, 12))
    assert [len(null.profile) for null in made.nulls] == sorted(len(null.profile) for null in made.nulls)
    assert "120 runs each" in made.note


def test_reporting_seeds_are_not_for_tables():
    with pytest.raises(TypeError, match="tuning seeds"):
        null_of(TOY, ReportingSeeds.of(1_000_000, 200))

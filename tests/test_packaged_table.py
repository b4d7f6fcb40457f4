# SPDX-License-Identifier: MIT
"""The table that comes with the package: there, of any grid, and of the windows that samplers have."""

import pytest
from row_loop import eps_schedule, flow_schedule

from ascedfast import AscedConfig
from ascedfast.calibration.packaged import packaged_table
from ascedfast.schedule import plan_run


def test_it_is_of_many_runs_and_of_any_grid():
    table = packaged_table()
    assert (table.grid, table.pipeline, table.prompts) == ((), "", "")
    assert {null.runs for null in table.nulls} == {4000}
    assert [len(null.profile) for null in table.nulls] == [2, 3, 4, 5, 11, 23, 47]
    assert "F1 and F3" in table.note


@pytest.mark.parametrize("schedule", [flow_schedule(8), flow_schedule(28), eps_schedule(30), flow_schedule(50)])
def test_ordinary_runs_are_watched_by_it(schedule):
    config = AscedConfig.calibrated(packaged_table(), rate=0.01)
    assert plan_run(schedule, config).reason is None


@pytest.mark.parametrize("changes", [2, 3])
def test_short_windows_have_their_own_entry(changes):
    null = packaged_table().at([-9.0, -5.0, -4.0, -3.0][-changes - 1 :])
    assert (len(null.profile), null.jump is None) == (changes, changes == 2)

# SPDX-License-Identifier: MIT
"""Steps of which a cache reuses a part count as skipped, since their changes say little of the network's."""

import re
from pathlib import Path

import pytest
import reuse_table
import torch

PAGE = (Path(__file__).parent.parent / "docs" / "company.md").read_text()


def test_the_page_has_a_row_for_each_cache():
    rows = re.findall(r"^\| (.*?) \| \d+ \| -?\d\.\d\d \|", PAGE, re.M)
    assert rows == list(reuse_table.CACHES)


@pytest.mark.parametrize("name", ["PyramidAttentionBroadcast, 1 of 2", "FasterCache, 1 of 2"])
def test_a_change_that_is_reused_in_part_is_not_the_networks(name):
    """On one image; the page tells of eight."""
    found = reuse_table.reused(reuse_table.CACHES[name], range(1))
    (row,) = re.findall(rf"^\| {name} \| (\d+) \| (.*?) \|$", PAGE, re.M)
    told = [float(value) for value in row[1].split(" | ")]
    assert len(found) == int(row[0])
    share, at_large, _, error = reuse_table.row_of(found)
    assert [share, at_large, error] == pytest.approx([told[0], told[1], told[3]], abs=0.15)
    assert at_large < 0.25 if name.startswith("Pyramid") else error > 0.5


@torch.no_grad()
def test_without_a_cache_there_is_nothing_to_tell():
    assert reuse_table.reused(lambda model, timestep: None, range(1)) == []

# SPDX-License-Identifier: MIT
"""Presets by layout: what they are, what they refuse, and that their page says the same."""

import re
from pathlib import Path

import pytest
from null_tables import calibrated

from ascedfast import AscedConfig, Schedule, process
from ascedfast.presets import PRESETS, preset

PAGE = Path(__file__).parent.parent / "docs" / "presets.md"


def rows() -> list[str]:
    lines = ["| layout | setting | value | reason |", "|---|---|---|---|"]
    for layout, one in PRESETS.items():
        for name, value in one.changes.items():
            lines.append(f"| {layout} | `{name}` | {value:.4g} | {one.reasons[name]} |")
    return lines


def test_every_number_has_its_reason_on_the_page():
    found = re.search(r"<!-- presets: begin -->\n(.*)<!-- presets: end -->", PAGE.read_text("utf-8"), re.S)
    assert found.group(1) == "\n".join(rows()) + "\n"


def test_pixels_are_the_default():
    assert preset("pixel") == AscedConfig.fast()


@pytest.mark.parametrize(("layout", "side", "grow"), [
    ("pixel", 256, 5), ("latent", 16, 1), ("latent", 64, 2), ("packed", 64, 2), ("video", 64, 2),
])  # fmt: skip
def test_masks_grow_by_the_decoders_spread(layout, side, grow):
    assert preset(layout).sizes((side, side)).grow == grow


def test_changes_take_precedence_and_modes_pass():
    assert preset("latent", grow=0, record="run").grow == 0
    table = calibrated(Schedule.from_levels([process.flow(1 - k / 8) for k in range(8)]), 4, (8, 8)).table
    config = preset("video", "calibrated", table=table)
    assert (config.mode, config.grow, config.x0_noise) == ("calibrated", 8, None)


def test_refusals():
    with pytest.raises(ValueError, match="unknown layout 'audio': choose one of pixel, latent, packed, video"):
        preset("audio")
    with pytest.raises(ValueError, match="published settings"):
        preset("pixel", "official")
    with pytest.raises(TypeError, match="did you mean 'grow'"):
        preset("pixel", grown=3)

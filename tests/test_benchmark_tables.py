# SPDX-License-Identifier: MIT
"""What is shown of saved benchmarks: the chart, the tables of the READMEs, lines of a log."""

import math
import sys
from pathlib import Path

import pytest
from test_benchmarks import fake

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed

from benchmarks import chart, limits, results, table
from benchmarks.targets import TARGETS


def test_chart_and_table(tmp_path):
    entries = [fake(id) for id in TARGETS]
    path = chart.draw(entries, tmp_path / "docs" / "chart.png")
    assert chart.plt.imread(path).shape == (520, 900, 4)
    with pytest.raises(ValueError, match="nothing to draw"):
        chart.draw([fake(id, value=None) for id in TARGETS], tmp_path / "none.png")
    readme = tmp_path / "README.md"
    begin, end = table.BEGIN.format("benchmarks"), table.END.format("benchmarks")
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert not table.write_between_marks(readme, "misses", "")
    assert table.write_between_marks(readme, "benchmarks", table.markdown(entries))
    text = readme.read_text()
    assert "old\n" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_misses_say_by_how_much_and_what_stands_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LIMITS", {"P3/*packed": "half a line at a time", "P3/*": "none of it"})
    values = {"P1/DDIM": 0.66, "P3/64x4096x64 packed": 0.8, "P4/FLUX": None}
    entries = [fake(id, value=values.get(id, TARGETS[id].bar)) for id in TARGETS]
    for entry in entries:
        entry["met"] = TARGETS[entry["id"]].met(entry["value"])
    path = results.save(entries, tmp_path)
    explained = {entry["id"]: entry for entry in results.explain(path)}
    assert explained == {entry["id"]: entry for entry in results.load(path)}
    assert [id for id, entry in explained.items() if entry["limit"]] == ["P3/64x4096x64 packed"]
    rows = table.misses(list(explained.values())).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| P1/DDIM", "| P3/64x4096x64 packed"]  # a bar of .33 by 100 %
    assert rows[0].endswith("| 100.0% | not known |")
    assert rows[1].endswith("| half a line at a time |")


def test_ceilings_have_a_row_an_op_and_plane():
    rows = table.ceilings([fake(id, value=2.0) for id in TARGETS]).splitlines()[2:]
    assert len(rows) == sum(id.startswith("P2/op/") for id in TARGETS)
    assert rows[0].startswith("| step_dynamics | 128x128 | ")


def test_the_chart_has_each_target_in_one_row_and_names_the_worst():
    values = {"P3/64x16x128x128": 0.6, "P3/64x4x256x256": 0.8, "P4/Wan": None, "P4/FLUX": math.nan, "P4/SDXL": 1.1}
    entries = [fake(id, value=values.get(id, TARGETS[id].bar)) for id in TARGETS]
    for entry in entries:
        entry["met"] = TARGETS[entry["id"]].met(entry["value"])
    rows = {row.name: row for row in chart.rows(entries)}
    assert list(rows) == list(chart.ROWS)
    drawn = [entry["id"] for row in rows.values() for entry in row.records]
    assert sorted(drawn) == sorted(id for id in TARGETS if TARGETS[id].bar is not None)
    sizes = {
        "P1 fused by default": 15,
        "P1 beside the stock step": 15,
        "P1 linear form": 15,
        "P1 mode calibrated": 5,
        "P2 ops against torch": 30,
    }
    assert {name: len(rows[name].records) for name in sizes} == sizes
    assert rows["P3 copy bandwidth"].worst["id"] == "P3/64x16x128x128"
    assert rows["P3 copy bandwidth"].score == "4 of 6 met"
    assert rows["P4 whole pipelines"].worst["id"] == "P4/FLUX"
    assert rows["P4 whole pipelines"].score == "1 of 4 met, 1 not measured"
    assert rows["P7 rows and planes"].worst is None
    assert "older code" not in chart._title(entries)
    assert chart._title([fake("P4/SDXL", source_sha256="0123456789")]).endswith("source 01234567 (older code)")


def test_a_log_has_a_line_for_each_record():
    missed = fake("P1/DDIM", value=0.5, bar=0.33, met=False, ours_us=10.0, baseline_us=20.0, note=None)
    missed["unit"] = "x"
    assert table.line(missed) == "P1/DDIM: 0.5 x, bar 0.33: missed; 10 us against 20"
    unknown = fake("P1/UniPC", value=None, bar=1.15, met=False, ours_us=None, baseline_us=None, note="refused")
    assert table.line(unknown) == "P1/UniPC: not measured, bar 1.15: missed (refused)"

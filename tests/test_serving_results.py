# SPDX-License-Identifier: MIT
"""The saved figures of the server: their form, and the page that shows them."""

import pytest

from benchmarks.results import FOLDER, saved
from benchmarks.s6_rows import METRICS, RIVALS, ROWS
from benchmarks.serving.outcome import FILE, PAGE, Outcome, load, markdown, save, write_page

IDS = {"S1", "S2", "S3-leaving", "S3-tenants", "S4", "S5-exact", "S5-batched-pixels", "S5-batched-masks", "S6-nccl"}
IDS |= {f"S5-{clients}-clients/{part}" for clients in (1, 8, 32) for part in ("throughput", "p50", "p99")}
IDS |= {f"S6/{rows}/{off}/{metric}" for rows in ROWS for off in RIVALS for metric in METRICS}
FIELDS = {"id", "value", "bar", "met", "n", "command", "source_sha256"}


def test_every_figure_is_saved_with_its_command():
    records = {one["id"]: one for one in load()}
    assert records.keys() >= IDS
    for one in records.values():
        assert one.keys() >= FIELDS
        assert one["command"].startswith("python -m benchmarks.")
        assert one["met"] is (None if one["bar"] is None else one["value"] <= one["bar"])


def test_the_page_shows_what_is_saved():
    assert markdown(load()) in PAGE.read_text()


def test_they_are_no_targets_of_a_gpu():
    assert FILE not in saved(FOLDER)


@pytest.mark.parametrize(("value", "bar", "met"), [(0, 0, True), (1, 0, False), (1.02, 1.02, True), (3, None, None)])
def test_met(value, bar, met):
    assert Outcome("S1", value, bar, 1, "").met is met


def test_saving_keeps_the_figures_of_others(tmp_path):
    path, page = tmp_path / "serving.json", tmp_path / "page.md"
    path.write_text('[{"id": "S6-rows", "value": 1.0, "bar": 1.01, "met": true, "n": 10}]')
    save([Outcome("S2", 1.5, 1.0, 200, "requests", "two"), Outcome("S1", 0, 0, 1000, "requests")], "python -m x", path)
    save([Outcome("S2", 0.5, 1.0, 200, "requests", "two")], "python -m x", path)
    assert [(one["id"], one["value"]) for one in load(path)] == [("S1", 0.0), ("S2", 0.5), ("S6-rows", 1.0)]
    page.write_text("head\n<!-- figures: begin -->\nold\n<!-- figures: end -->\ntail\n")
    write_page(page, path)
    shown = page.read_text()
    assert "| S2 | 0.5 | 1 | met | 200 | requests; two |" in shown
    assert "S6" not in shown
    assert shown.startswith("head")
    assert shown.endswith("tail\n")

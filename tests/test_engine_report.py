# SPDX-License-Identifier: MIT
"""The report: its numbers add up, its dynamics are what was seen, and its JSON can be read back."""

import json
import math

import pytest
import torch
from row_loop import CHANNELS, GRID, Request, flow_schedule, serve
from test_engine import Run

from ascedfast import AscedConfig, Report, begin
from ascedfast.noise import NOISE_VERSION


@pytest.fixture(scope="module")
def run():
    return Run(AscedConfig(record="run", mad_scale=2.5, mad_floor=0.0, min_area=1000)).finish()


def test_regions_add_up(run):
    dropped = 0
    for row in run.engine.report:
        labels, mask = row.labels, row.mask
        assert sum(region.area for region in row.regions) == int((labels > 0).sum())
        kept = [region for region in row.regions if region.kept]
        dropped += len(row.regions) - len(kept)
        assert sum(region.area for region in kept) == int(mask.sum())
        assert sum(region.severity for region in kept) == pytest.approx(row.severity, rel=1e-9)
        assert row.area == pytest.approx(int(mask.sum()) / mask.numel())
        assert row.severity == pytest.approx(float(row.z[mask].double().sum()) / mask.numel())
        assert [r.severity for r in row.regions] == sorted((r.severity for r in row.regions), reverse=True)
        for region in row.regions:
            top, left, bottom, right = region.box
            inside = labels == region.label
            assert int(inside.sum()) == region.area
            assert int(inside[top:bottom, left:right].sum()) == region.area
            assert inside[top].any()
            assert inside[bottom - 1].any()
            assert inside[:, left].any()
            assert inside[:, right - 1].any()
            assert region.peak_z == float(row.z[inside].max())
            assert bool(mask[inside].all()) == region.kept
    assert dropped > 0  # the area rule was at work


def test_dynamics_are_the_changes_of_x0(run):
    for i, row in enumerate(run.engine.report):
        assert [step for step, _ in row.dynamics] == list(range(1, len(run.schedule)))
        for step, d in row.dynamics:
            expected = (run.x0[step][i] - run.x0[step - 1][i]).abs().double().mean(0)
            torch.testing.assert_close(d.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_window_is_recorded_by_default():
    row = Run().finish().engine.report[0]
    assert [step for step, _ in row.dynamics] == list(range(row.plan.start + 1, row.plan.t_c))
    assert all(d.shape == GRID for _, d in row.dynamics)


def test_channels_max():
    run = Run(AscedConfig(channels="max")).finish()
    step, d = run.engine.report[0].dynamics[0]
    assert torch.equal(d, (run.x0[step][0] - run.x0[step - 1][0]).abs().amax(0))


def test_curves(run):
    for row in run.engine.report:
        curves = row.curves
        assert curves["step"] == list(range(1, len(run.schedule)))
        assert curves["logsnr"] == [run.schedule.before[k].logsnr for k in curves["step"]]
        window = slice(row.plan.start, row.plan.t_c - 1)
        assert all(i > 2 * o for i, o in zip(curves["inside"][window], curves["outside"][window], strict=True))
        share = row.area
        for all_, i, o in zip(curves["all"], curves["inside"], curves["outside"], strict=True):
            assert all_ == pytest.approx(share * i + (1 - share) * o, rel=1e-4)


def test_curves_without_a_mask_have_no_inside():
    row = Run(unsteady=False).finish().engine.report[0]
    assert all(math.isnan(value) for value in row.curves["inside"])
    assert all(value >= 0 for value in row.curves["outside"])


def test_masks_at_image_resolution(run):
    report = Report(run.engine.report.rows, (GRID[0] * 8, GRID[1] * 4))
    masks = report.masks
    assert masks.shape == (3, 1, *GRID)
    assert masks.dtype == torch.bool

    def blocks(t, height, width):
        return t.repeat_interleave(height, 2).repeat_interleave(width, 3)

    assert torch.equal(report.masks_image(), blocks(masks, 8, 4))
    assert torch.equal(report.masks_image(grown=True), blocks(report.masks_grown, 8, 4))
    assert torch.equal(report.masks_image((GRID[0] * 2, GRID[1] * 2)), blocks(masks, 2, 2))
    assert torch.equal(run.engine.report.masks_image(), masks)


def test_rows_left_alone_have_empty_masks_in_the_stack():
    rows = [result.report for result in serve([Request(seed=1), Request(seed=2, enabled=False)])]
    masks = Report(rows).masks
    assert masks[0].any()
    assert not masks[1].any()
    assert Report(rows[1:]).masks is None
    assert Report(rows[1:]).masks_image((8, 8)) is None


def test_statuses_and_reasons():
    engine = begin(flow_schedule(20), seeds=[1])
    row = engine.report[0]
    assert (row.status, row.executed, row.severity) == ("pending", 0, "unavailable")
    assert "0 of the" in row.reason
    assert row.mask is row.labels is row.z is None
    assert (row.area, row.regions) == (0.0, ())
    few = begin(flow_schedule(4), seeds=[1]).report[0]
    assert few.status == "unavailable"
    assert "3 are needed" in few.reason
    off = serve([Request(enabled=False)])[0].report
    assert (off.status, off.reason, off.finite) == ("off", "switched off", None)
    done = serve([Request(seed=1)])[0].report
    assert (done.status, done.reason) == ("corrected", None)


def test_a_report_does_not_change_afterwards():
    run = Run()
    run.step()
    early = run.engine.report
    run.finish()
    assert early[0].executed == 1
    assert early[0].status == "pending"
    assert run.engine.report[0].status == "corrected"


def test_json(run, tmp_path):
    path = tmp_path / "report.json"
    run.engine.report.save_json(path)
    data = json.loads(path.read_text())
    row, source = data["rows"][2], run.engine.report[2]
    assert AscedConfig.from_dict(row["config"]) == source.config
    assert (row["seed"], row["draw"], row["noise_version"]) == (2**63 + 5, 0, NOISE_VERSION)
    assert (row["status"], row["severity"], row["mode"]) == ("corrected", source.severity, "fast")
    assert (row["window"], row["t_c"]) == ([source.plan.start, source.plan.t_c], source.plan.t_c)
    assert len(row["regions"]) == len(source.regions)
    everything = serve(
        [
            Request(seed=1, config=AscedConfig.paper()),
            Request(enabled=False),
            Request(spoil=(8, math.inf)),
            Request(schedule=flow_schedule(3)),
        ]
    )
    text = json.dumps(Report([result.report for result in everything]).to_dict(), allow_nan=False)
    assert [row["status"] for row in json.loads(text)["rows"]] == ["corrected", "off", "not finite", "unavailable"]


def test_sequence_and_words(run):
    report = run.engine.report
    assert len(report) == len(list(report)) == 3
    assert report[-1].seed == report.seeds[-1]
    assert report.mode == "fast"
    assert repr(report).count("corrected") == 3
    mixed = Report([result.report for result in serve([Request(), Request(config=AscedConfig.paper())])])
    assert mixed.mode is None


def test_z_is_finite_where_the_map_is_flat():
    """A MAD of 0 would divide by zero: "official" has no floor for its threshold, but z has one."""
    engine = begin(flow_schedule(20), AscedConfig.official(min_area=3, blur_sigma=0.0, core_width=1), seeds=[1])
    x = torch.zeros(1, CHANNELS, *GRID)
    spot = torch.zeros_like(x)
    spot[..., 5:10, 5:10] = 0.5
    for k in range(engine.report[0].plan.t_c):
        engine.observe(x, x0=spot * (k % 2))
    engine.correct_(x)
    row = engine.report[0]
    assert row.mask.sum() == 25
    assert row.z.isfinite().all()
    assert math.isfinite(row.severity)
    assert row.severity > 0

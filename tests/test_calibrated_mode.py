# SPDX-License-Identifier: MIT
"""Mode "calibrated" in the engine and under diffusers: finds what sound runs never show, and only that."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from layouts import DEVICES

import ascedfast
from ascedfast import AscedConfig, ops, process
from ascedfast.calibration.fit import fit
from ascedfast.calibration.table import NullTable
from ascedfast.calibration.windows import smoothed

STEPS, T_C, SIDE = 20, 10, 16
LEVELS = [process.flow(1 - k / STEPS) for k in range(STEPS)]
SCHEDULE = ascedfast.Schedule.from_levels(LEVELS)
LOGSNR = [level.logsnr for level in LEVELS[:T_C]]


def predictions(seed, rows=1):
    """x0_hat of every step: a walk whose stride shrinks, smooth in space. [STEPS, rows, 3, SIDE, SIDE]"""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(STEPS, rows, 3, SIDE, SIDE, generator=g)
    noise = ascedfast.reference.gaussian_blur(noise, 1.5, (-2, -1))
    return (noise * torch.linspace(1, 0.3, STEPS).view(-1, 1, 1, 1, 1)).cumsum(0)


def changes(x0):
    return (x0[1:] - x0[:-1]).abs().mean(2)


@pytest.fixture(scope="module")
def table():
    d = smoothed(changes(torch.cat([predictions(seed, 50) for seed in range(1000, 1010)], 1)[:T_C]))
    profile = d.double().mean((1, 2, 3)).tolist()
    scores = ops.temporal_scores(d, profile)
    still, jump = (one.flatten(1).amax(1).double().numpy() for one in scores)
    return NullTable((fit(LOGSNR, (SIDE, SIDE), profile, still, jump),), "", "of a test")


def held(x0, rows=(0,)):
    """A quarter of these rows stands still from step 5 on."""
    x0 = x0.clone()
    for row in rows:
        x0[5:, row, :, 4:12, 4:12] = x0[5, row, :, 4:12, 4:12]
    return x0


def run(x0, config, rows=None, first=0):
    """Steps of a flow whose model predicts these x0: (engine's rows, the last state)."""
    count = x0.shape[1]
    engine = ascedfast.begin(SCHEDULE, config, seeds=list(range(count)))
    x = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(9)).to(x0.device)
    for k, level in enumerate(LEVELS):
        m = (x - x0[k]) / level.sigma  # the velocity that predicts it
        engine.observe(x, m)
        x = x + (SCHEDULE.after[k][1] - level.sigma) * m
        engine.correct_(x)
    return engine.report, x


def config_of(table, **changes):
    return AscedConfig.calibrated(table, t_c=T_C, **changes)


def test_a_still_region_is_found_and_redrawn(table):
    x0 = held(predictions(1, 2))
    report, x = run(x0, config_of(table, rate=0.01))
    _, stock = run(x0, config_of(table, correct=False))
    assert [row.status for row in report] == ["corrected", "clean"]
    box = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    box[4:12, 4:12] = True
    mask = report[0].mask
    assert (mask & box).sum() / (mask | box).sum() > 0.7
    assert report[0].p_value == 1 / 501 < 0.01 < report[1].p_value
    assert torch.equal(x[1], stock[1])


@pytest.mark.parametrize("device", [pytest.param(one, marks=[pytest.mark.gpu] * (one == "cuda")) for one in DEVICES])
def test_kernels_find_the_same(table, device):
    x0 = held(predictions(1, 2)).to(device)
    ours, x = run(x0, config_of(table, rate=0.01, backend="triton"))
    theirs, y = run(x0, config_of(table, rate=0.01, backend="reference"))
    assert torch.equal(ours[0].mask, theirs[0].mask)
    assert torch.equal(x, y)


def test_the_rate_is_kept_on_sound_runs(table):
    """400 new ones; three standard errors, of theirs and of the table's 500."""
    report, _ = run(predictions(5, 400), config_of(table, rate=0.2, correct=False))
    flagged = np.mean([row.status == "observed" for row in report])
    assert abs(flagged - 0.2) < 3 * math.sqrt(0.2 * 0.8 * (1 / 400 + 1 / 500))
    values = np.array([row.p_value for row in report])
    assert np.mean(values < 0.2) == flagged


def test_a_run_with_nothing_found_keeps_its_bits(table):
    x0 = predictions(3, 4)
    report, x = run(x0, config_of(table, rate=0.002))
    assert {row.status for row in report} == {"clean"}
    assert torch.equal(x, run(x0, config_of(table, correct=False))[1])


def test_a_row_alone_equals_its_row_in_a_batch(table):
    x0 = held(predictions(7, 5), (1, 3))
    config = config_of(table, rate=0.3)
    whole, _ = run(x0, config)
    for row in range(5):
        alone, _ = run(x0[:, row : row + 1], config)
        # the states differ (noise of a batch), the predictions do not but for rounding: m is computed from x
        assert torch.equal(alone[0].mask, whole[row].mask)


def test_nan_in_one_row(table):
    x0 = held(predictions(1, 3))
    x0[4, 1, 0, 0, 0] = math.nan
    report, _ = run(x0, config_of(table))
    assert report[1].status == "not finite"
    assert report[1].p_value is None
    assert report[0].status == "corrected"


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"t_c": 14}, "calibrate this number of steps"), ({"t_c": 6}, "calibrate this number of steps")],
)
def test_runs_that_the_table_does_not_know_are_left_alone(table, changes, why):
    x0 = held(predictions(1))
    report, x = run(x0, dataclasses.replace(config_of(table), **changes))
    assert report[0].status == "unavailable"
    assert why in report[0].reason
    assert report[0].p_value is None
    assert torch.equal(x, run(x0, config_of(table, correct=False))[1])


def test_runs_of_another_size_are_left_alone(table):
    other = dataclasses.replace(table, nulls=tuple(dataclasses.replace(null, grid=(8, 8)) for null in table.nulls))
    report, _ = run(held(predictions(1)), config_of(other))
    assert report[0].status == "unavailable"
    assert "calibrate at its size" in report[0].reason


def test_settings(table):
    config = config_of(table, rate=0.02)
    again = AscedConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert AscedConfig.from_dict(AscedConfig.fast().to_dict()) == AscedConfig.fast()
    with pytest.raises(ValueError, match="ascedfast calibrate"):
        AscedConfig.calibrated()
    with pytest.raises(ValueError, match="ascedfast calibrate"):
        AscedConfig.calibrated("table.json")
    for rate in (0, 0.6, math.nan, True, "x"):
        with pytest.raises(ValueError, match="rate"):
            config_of(table, rate=rate)
    with pytest.raises(ValueError, match="500 sound runs"):
        config_of(table, rate=0.001)
    with pytest.raises(ValueError, match="window_start"):
        config_of(table, window_start=3)
    with pytest.raises(ValueError, match="channels"):
        dataclasses.replace(AscedConfig.official(), channels="mean")
    with pytest.raises(ValueError, match="channels"):
        config_of(table, channels="max")


def test_the_report_tells_the_p_value(table, tmp_path):
    report, _ = run(held(predictions(1, 2)), config_of(table))
    report.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert saved[0]["p_value"] == report[0].p_value
    assert saved[0]["mode"] == "calibrated"
    fast, _ = run(predictions(1), AscedConfig.fast(t_c=T_C))
    assert fast[0].p_value is None


def test_frames_alone_are_not_enough(table):
    with pytest.raises(ValueError, match="noise levels"):
        ascedfast.artifact_mask(torch.zeros(4, 1, 3, 8, 8), config_of(table))

# SPDX-License-Identifier: MIT
"""The harness of S6: loops that are the stock's, records that can be saved, and a file that keeps what others wrote."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed

from ascedfast.adapters.schedules import schedule_of
from ascedfast.demo import load_model
from ascedfast.linear_update import deterministic_updates, euler_updates
from benchmarks import s6_loops, s6_rows
from benchmarks.results import FOLDER, SERVING, saved

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    model, scheduler = load_model("dit")
    model.transformer_blocks = model.transformer_blocks[:1]
    return s6_loops.Network(model.requires_grad_(False), 2, CPU), scheduler


def test_the_page_shows_what_is_saved():
    assert s6_rows.markdown(json.loads((FOLDER / SERVING).read_text())) in s6_rows.PAGE.read_text()


def test_all_loops_without_a_correction_have_the_stock_bits(network):
    stock, observing, vectorised = (
        kind(*network, 2, 8, CPU) for kind in (s6_loops.Stock, s6_loops.Observing, s6_loops.Vectorised)
    )
    for _ in range(9):
        for loop in (stock, observing, vectorised):
            loop.turn()
        assert torch.equal(stock.x, observing.x)
        torch.testing.assert_close(vectorised.x, stock.x, rtol=1e-5, atol=1e-6)  # a fused multiply-add
    assert [loop.asked for loop in (stock, observing, vectorised)] == [4, 4, 4]
    assert stock.at == [1, 5]


def test_loops_that_differ_are_not_measured(network, monkeypatch):
    monkeypatch.setattr(s6_loops.Observing, "advance", lambda self: None)
    with pytest.raises(RuntimeError, match="nothing was measured"):
        s6_rows.check_bits(*network, 2, 8, CPU)


def test_records(tmp_path):
    with torch.inference_mode():
        found, told = s6_rows.measure(1, CPU, 8, 5, 1, blocks=1)
    assert "1 rows: 5 pairs of 1 steps" in told
    records = [s6_rows.finished(one, "a test", CPU, 1.01) for one in found]
    assert [one["id"] for one in records] == [
        f"S6/1/{rival}/{metric}" for rival in ("stock", "vectorised") for metric in s6_rows.METRICS
    ]
    for one in records:
        assert {"id", "value", "bar", "met", "n", "command", "source_sha256", "device"} <= set(one)
        assert one["met"] == (one["value"] <= 1.01)
        assert one["on_us"] > 0 < one["off_us"]
    path = tmp_path / "serving.json"
    path.write_text(json.dumps([{"id": "S1", "value": 0}, {"id": records[0]["id"], "value": 9}]))
    s6_rows.save(records, path)
    kept = json.loads(path.read_text())
    assert [one["id"] for one in kept] == sorted(["S1", *(one["id"] for one in records)])
    assert saved(tmp_path) == {}  # no targets of ours


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.99, 10), (0.01, 1)])
def test_quantiles(share, expected):
    assert s6_rows.quantile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


def test_eulers_update_is_the_deterministic_step():
    _, scheduler = load_model("dit")
    scheduler.set_timesteps(25)
    euler = euler_updates(scheduler.sigmas.tolist())
    assert len(euler) == 25
    derived = deterministic_updates(schedule_of(scheduler))
    assert torch.equal(torch.tensor(euler), torch.tensor(derived))

# SPDX-License-Identifier: MIT
"""The benchmark harness: every target is measured, records keep their form, stale or red results are refused."""

import json
import math
import sys
from pathlib import Path

import frame_sequences
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from layouts import DEVICES
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from ascedfast import AscedConfig, artifact_mask, ops
from ascedfast.config import HALF_GREY_LEVEL

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed

from benchmarks import compare, device, graphed, models, plain, released, results, table, timing, trace
from benchmarks.measurement import Bench, Measurement
from benchmarks.runner import all_cases, run
from benchmarks.targets import GROUPS, PIPELINES, TARGETS

ISSUE_FIELDS = {"id", "shape", "dtype", "value", "bar", "met", "unit", "baseline", "ours_us", "baseline_us", "gbps"}
ISSUE_FIELDS |= {"share_of_copy", "source_sha256", "torch", "triton", "gpu", "command"}
BENCH = Bench(torch.device(DEVICES[0]), quick=True)


@pytest.fixture(scope="module")
def records():
    return {entry["id"]: entry for entry in run(all_cases(BENCH, GROUPS), BENCH, "a test", lambda entry: None)}


def test_every_target_has_a_case_and_every_case_a_target():
    assert list(all_cases(BENCH, GROUPS)) == list(TARGETS)
    assert {target.group for target in TARGETS.values()} == set(GROUPS)


def test_a_quick_run_measures_what_is_supported(records):
    assert list(records) == list(TARGETS)
    for entry in records.values():
        assert set(entry) >= ISSUE_FIELDS
        assert entry["value"] is not None or entry["note"], entry
        assert entry["bar"] is entry["met"] is None  # tiny sizes are held against no bar
    always = ["P1/DDIM", "P1/FlowMatchEuler/fp32", "P2/256x256x3", "P2/4x128x128/T_c", "P2/op/renoise_/128x128"]
    always += ["P3/64x4x128x128", "P3/64x4096x64 packed", "P4/SD1.5", "P4/FLUX", "P5/syncs/Euler"]
    always += ["P5/launches at T_c/128x128", "P7/1x4x64x64", "P2/robust_threshold/64x64/compiled"]
    unmeasured = {id: records[id]["note"] for id in always if records[id]["value"] is None}
    assert not unmeasured
    assert all(records[id]["ours_us"] > 0 for id in always if not id.startswith("P5"))
    assert json.loads(json.dumps(list(records.values()))) == list(records.values())


@pytest.mark.parametrize("name", frame_sequences.KINDS)
def test_the_released_baseline_is_the_published_detector(name):
    frames = frame_sequences.KINDS[name].make(np.random.default_rng(0), 4, 3, 48, 64)
    ours = artifact_mask(torch.from_numpy(frames)[:, None], AscedConfig.official())[0, 0]
    assert (released.detect(frames) == ours.numpy()).all()


def test_the_plain_baseline_computes_the_same_flags():
    maps = torch.rand(5, 1, 1, 63, 47, generator=torch.Generator().manual_seed(0)) ** 4  # odd count: one median
    maps[2, ..., 20:40, 10:30] += 2
    ours, _ = ops.robust_threshold(
        maps, mad_scale=3.0, mad_floor=HALF_GREY_LEVEL, blur_sigma=2.0, z_floor=HALF_GREY_LEVEL
    )
    theirs = plain.flags(maps[:, 0, 0])
    assert ours.any()
    assert (theirs != ours[0]).float().mean() < 2e-3  # float32 sums of the smoothing, near the threshold


def test_upper_limit_is_the_order_statistic():
    samples = list(range(1, 21))
    assert timing.upper_limit(samples[::-1]) == 15
    assert timing.upper_limit([1.0] * 4 + [2.0]) == 2.0
    with pytest.raises(ValueError, match="4 samples"):
        timing.upper_limit([1.0] * 4)


def test_pairs_swap_their_order():
    seen = []
    pairs = timing.interleaved(lambda: seen.append("a") or 4.0, lambda: seen.append("b") or 2.0, 4, warm_up=0)
    assert "".join(seen) == "abbaabba"
    assert pairs.ratios == [2.0] * 4
    assert timing.spread([1, 2, 3, 4, 5, 6]) == (2, 3.5, 5)


def test_launches_are_attributed_to_their_steps():
    marks = [(0, "step-0"), (90, "step-none"), (9000, "step-1"), (9800, "step-none")]
    events = [{"cat": "user_annotation", "name": name, "ts": ts} for ts, name in marks]
    at = {"k0": 80, "after the mark's clock": 300, "before the mark's clock": 8700, "k1": 9100, "between": 4000}
    events += [{"cat": "kernel", "name": name, "ts": ts, "dur": 2.5} for name, ts in at.items()]
    steps = trace._by_step(events, trace.DEVICE_WORK, 2)
    assert [[launch.name for launch in step] for step in steps] == [
        ["k0", "after the mark's clock"],
        ["before the mark's clock", "k1"],
    ]


def test_a_fused_step_earns_no_credit_for_stock_kernels():
    stock = [trace.Launch("add", 2.0), trace.Launch("mul", 3.0), trace.Launch("copy", 1.0)]
    ours = [trace.Launch("fused", 4.0), trace.Launch("copy", 1.0), trace.Launch("copy", 3.0)]
    assert trace.attributed_us(ours, stock) == 4.0 + 2.0
    assert trace.added_us(ours, stock) == 8.0 - 6.0


@pytest.mark.parametrize(
    ("id", "value", "met"),
    [
        ("P1/DDIM", 0.33, True),
        ("P1/DDIM", 0.34, False),
        ("P3/64x4x128x128", 0.85, True),
        ("P3/64x4x128x128", 0.84, False),
        ("P4/SDXL", None, False),
        ("P4/SDXL", math.nan, False),
        ("P2/256x256x3/T_c", 1.0, None),
    ],
)
def test_met(id, value, met):
    assert TARGETS[id].met(value) is met


def fake(id, **changes):
    entry = results.record(id, Measurement(1.0, (1, 2), torch.bfloat16), Bench(BENCH.device), "a test")
    return {**entry, "gpu": "a-gpu", **changes}


def test_check_names_older_code_and_missing_ids(tmp_path):
    assert results.problems(results.saved(tmp_path / "nothing"))
    path = results.save([fake(id) for id in TARGETS], tmp_path)
    assert path.name == "a-gpu.json"
    assert not results.problems(results.saved(tmp_path))
    results.save([fake("P4/SDXL", source_sha256="0")], tmp_path)
    (problem,) = results.problems(results.saved(tmp_path))
    assert "older code: P4/SDXL" in problem
    assert "older code" in table.markdown(results.load(path))
    path.write_text(json.dumps([entry for entry in results.load(path) if entry["id"] != "P4/SDXL"]))
    (problem,) = results.problems(results.saved(tmp_path))
    assert "missing: P4/SDXL" in problem


def test_source_hash_follows_bytes_and_paths(tmp_path):
    from benchmarks.source import engine_files, source_sha256

    names = {path.relative_to(compare.ROOT).as_posix() for path in engine_files()}
    assert {"ascedfast/engine.py", "ascedfast/adapters/run.py", "ascedfast/_backend.py", "csrc/ops.h"} <= names
    assert {"kernels/fused/step_dynamics.py", "ascedfast/reference.py"} <= names
    assert not {"ascedfast/cli.py", "ascedfast/plots.py", "ascedfast/report.py"} & names
    (tmp_path / "csrc").mkdir()
    source = tmp_path / "csrc" / "a.cpp"
    source.write_text("1")
    first = source_sha256(tmp_path)
    source.write_text("2")
    second = source_sha256(tmp_path)
    source.rename(tmp_path / "csrc" / "b.cpp")
    assert len({first, second, source_sha256(tmp_path)}) == 3


def test_red_tests_refuse_to_save(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "PASSED", tmp_path / "state" / "passed.json")
    red, green = ("-c", "raise SystemExit(1)"), ("-c", "pass")
    monkeypatch.setattr(results, "GATE", red)
    with pytest.raises(results.RefusedToSave, match="red"):
        results.run_gate(BENCH.device)
    monkeypatch.setattr(results, "GATE", green)
    results.run_gate(BENCH.device)
    monkeypatch.setattr(results, "GATE", red)
    results.run_gate(BENCH.device)  # passed before
    monkeypatch.setattr(results, "source_sha256", lambda: "other code")
    with pytest.raises(results.RefusedToSave, match="red"):
        results.run_gate(BENCH.device)


def invoke(*arguments):
    import typer

    from benchmarks.__main__ import main

    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(arguments))


def test_command_line_refusals(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert invoke("--check").exit_code == 1
    assert invoke("--only", "P9", "--quick").exit_code == 2
    assert invoke("--save", "--quick").exit_code == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert invoke().exit_code == 2
    results.save([fake(id) for id in TARGETS], tmp_path)
    assert invoke("--check").exit_code == 0


def test_a_graph_holds_calls_enough_to_hide_its_start():
    assert device._rounds(50, 125.0) == 20  # 1000 small calls
    assert device._rounds(4, 100.0) == 100  # 10 ms
    assert device._rounds(3, 60_000.0) == 1


def call_again(work):
    """In place of a CUDA graph: the same buffers, read and written by calling once more."""
    output = work()

    def replay():
        for held, new in zip(tree_leaves(output), tree_leaves(work()), strict=True):
            held.copy_(new)

    return replay, output


def counting(captures):
    def capture(work):
        captures.append(work)
        return call_again(work)

    return capture


@pytest.mark.parametrize("name", PIPELINES)
def test_a_replayed_network_gives_what_the_network_gives(name):
    pipe, call = models.build(name, torch.device("cpu"), tiny=True)
    before, config = models.network(pipe).forward, models.network(pipe).config

    def run():
        return pipe(**call, num_inference_steps=3, generator=torch.Generator().manual_seed(0))[0]

    expected, captures = run(), []
    graphed.replay_forward(models.network(pipe), counting(captures))
    assert torch.equal(run(), expected)
    assert torch.equal(run(), expected)
    assert len(captures) == 1  # all steps, with and without the prompt
    assert models.network(pipe).forward is not before
    assert models.network(pipe).config is config


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, sample, timestep, residuals=(), conditions=None, scale=1):
        for _ in range(len(residuals)):
            sample = sample + residuals.pop()
        sample = self.weight * sample + timestep + conditions["text"]["mean"]
        return {"sample": sample * scale}


def test_a_replayed_call_copies_its_tensors_and_keeps_the_rest():
    captures, ours, stock = [], Network(), Network()
    graphed.replay_forward(ours, counting(captures))
    kept = []
    for i, timestep in enumerate([7, 3, torch.tensor(2), torch.tensor(1), 4]):  # int64, all of them
        inputs = torch.full((2, 3), float(i)), timestep
        nested = {"conditions": {"text": {"mean": torch.tensor(float(i * i))}}}
        kept.append(ours(*inputs, residuals=[inputs[0], inputs[0]], **nested)["sample"])
        expected = stock(*inputs, residuals=[inputs[0], inputs[0]], **nested)["sample"]
        assert torch.equal(kept[-1], expected)
        assert not kept[-1].requires_grad
    assert len(captures) == 1
    assert len({output.data_ptr() for output in kept}) == len(kept)
    conditions = {"text": {"mean": torch.zeros(())}}
    for i, scale in enumerate((2, 2, 2.0, True)):  # equal values of other types are other arguments
        x = torch.ones(1, 3)
        output = ours(x, timestep=i, conditions=conditions, scale=scale)["sample"]
        assert torch.equal(output, stock(x, i, conditions=conditions, scale=scale)["sample"])
    assert len(captures) == 4
    with pytest.raises(RuntimeError, match="more than 4 kinds of calls"):
        ours(torch.ones(9, 3), 0, conditions=conditions)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_in_a_graph_gives_what_the_network_gives():
    pipe, _ = models.build("SDXL", torch.device("cuda"), tiny=True)
    g = torch.Generator("cuda").manual_seed(0)
    calls = []
    for timestep in (torch.tensor(801, device="cuda"), torch.tensor(401, device="cpu"), 1):
        sample, text, pooled = (
            torch.randn(shape, generator=g, device="cuda") for shape in ((2, 4, 8, 8), (2, 77, 16), (2, 8))
        )
        added = {"text_embeds": pooled, "time_ids": torch.full((2, 6), 64.0, device="cuda")}
        kwargs = {"encoder_hidden_states": text, "added_cond_kwargs": added, "return_dict": False}
        calls.append(((sample, timestep), kwargs))
    with torch.no_grad():
        eager = [pipe.unet(*args, **kwargs)[0] for args, kwargs in calls]
    captures = []

    def capture(work):
        captures.append(work)
        return graphed.capture_graph(work)

    graphed.replay_forward(pipe.unet, capture)
    replayed = [pipe.unet(*args, **kwargs)[0] for args, kwargs in calls]  # each kept while the next one runs
    assert len(captures) == 1
    for ours, stock in zip(replayed, eager, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-3)
    assert not torch.equal(replayed[0], replayed[1])


def test_compare_fails_only_above_thirty_percent():
    base = [{"a": 1.0, "b": 1.0, "gone": 1.0}] * 5
    ours = [{"a": 1.29, "b": 1.31, "new": 9.0}] * 3 + [{"a": 9.0, "b": 1.31, "new": 9.0}] * 2
    lines, slower = compare.verdict(ours, base)
    assert slower == ["b"]
    assert len(lines) == 2


def test_compare_fails_only_what_a_second_series_confirms(capsys):
    asked = []

    def ours(rows):
        asked.append(rows)
        return {"a": 2.0, "busy machine": 2.0 if rows is None else 1.0}

    assert compare.slower_rows(ours, lambda rows: {"a": 1.0, "busy machine": 1.0}) == ["a"]
    assert asked == [None] * 5 + [["a", "busy machine"]] * 5
    assert compare.slower_rows(lambda rows: {"a": 1.0}, lambda rows: {"a": 1.0}) == []


def test_compare_without_a_base_is_one_line(capsys):
    compare.main("no-such-commit")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_schedulers_of_pipelines_are_made_on_the_host():
    with torch.device("meta"):
        made = models._scheduler(DPMSolverMultistepScheduler)
    assert made.alphas_cumprod.device.type == "cpu"
    assert made.alphas_cumprod.dtype == torch.float32


def test_the_cpu_rows_of_a_commit_are_timed(monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark measures nothing in a worker
    rows = compare.rows_of(compare.ROOT, ["benchmarks/test_dilate_mask.py", "-k", "reference"])
    assert rows
    assert min(rows.values()) > 0

# SPDX-License-Identifier: MIT
"""``ascedfast calibrate`` from runs to the table beside the pipeline, and what the table says of later runs."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from scipy import ndimage
from typer.testing import CliRunner

import ascedfast
from ascedfast.calibration import FIRST_SEED, command, runs
from ascedfast.calibration.folder import NAME, fingerprint, load_table
from ascedfast.calibration.judge import judge
from ascedfast.calibration.regions import seeded
from ascedfast.calibration.windows import window_of
from ascedfast.cli import app

RUNS, STEPS = 120, (12, 20)


def tiny_unet():
    torch.manual_seed(0)
    layers = {"block_out_channels": (8, 8), "norm_num_groups": 2, "layers_per_block": 1, "add_attention": False}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size=8, in_channels=3, out_channels=3, **layers, **blocks)


def save_pipeline(folder):
    DDIMPipeline(tiny_unet(), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A folder of a pipeline with its table."""
    folder = save_pipeline(tmp_path_factory.mktemp("calibrated") / "pipe")
    command.calibrate(folder, steps=STEPS, count=RUNS, batch=40)
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def reports(folder, seeds, steps):
    pipe = command.load_pipeline(folder)
    config = ascedfast.AscedConfig(correct=False, record="run")
    with ascedfast.asced(pipe, config, seeds=list(seeds)) as handle:
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        pipe(batch_size=len(seeds), generator=generator, num_inference_steps=steps, output_type="np")
    return list(handle.report)


def test_the_table_and_nothing_else_is_left(calibrated):
    table = load_table(calibrated)
    assert [len(null.profile) for null in table.nulls] == [5, 9]  # T_c after 6 and 10 predictions
    assert table.grid == (8, 8)
    assert all(null.runs == RUNS for null in table.nulls)
    assert not [path.name for path in calibrated.iterdir() if "part" in path.name or path.name.startswith(".")]
    assert f"120 runs of 12, 20 steps, seeds from {FIRST_SEED}" in table.note


@pytest.mark.parametrize("steps", [12, 20, 16])
def test_new_sound_runs_are_flagged_as_often_as_promised(calibrated, steps):
    """60 runs of other seeds; 16 steps are between those that were calibrated. Bounds: three standard errors."""
    table = load_table(calibrated)
    values = [judge(row, table).p_value for row in reports(calibrated, range(5000, 5060), steps)]
    for rate in (0.2, 0.5):
        assert abs(np.mean(np.array(values) < rate) - rate) < 3 * math.sqrt(rate * (1 - rate) * (1 / 60 + 1 / RUNS))


def test_runs_are_those_of_the_whole_pipeline(calibrated):
    """Stopped after T_c, they have seen the same changes as a run to the end."""
    pipe = command.load_pipeline(calibrated)
    draw = command._drawer(pipe, 12, (), 0)
    (short, end), whole = runs.watch(pipe, draw, [3, 4]), reports(calibrated, [3, 4], 12)
    for one, other in zip(short, whole, strict=True):
        assert torch.equal(window_of(one), window_of(other))
        assert one.executed < other.executed == 12
    assert end.x.shape == end.x0.shape == (2, 3, 8, 8)
    assert not ascedfast.adapters.diffusers.is_asced_enabled(pipe)


def test_batches_do_not_matter(calibrated, tmp_path):
    """But for the last bits of the network, which differ between sizes of batches."""
    other, _ = command.calibrate(calibrated, steps=[12], count=RUNS, batch=7, out=tmp_path / "other.json")
    null, again = load_table(calibrated).nulls[0], other.nulls[0]
    np.testing.assert_allclose(again.levels, null.levels, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(again.profile, null.profile, rtol=1e-4)


def test_it_goes_on_where_it_was_stopped(tmp_path, calibrated):
    """The same figures, and no run is made twice once the profile is there."""
    folder = save_pipeline(tmp_path / "pipe")
    calls = []

    def stop_after(title):
        def count(done, total):
            calls.append((title, done))
            if done == RUNS and title == "20 steps":
                raise KeyboardInterrupt

        return count

    with pytest.raises(KeyboardInterrupt):
        command.calibrate(folder, steps=STEPS, count=RUNS, batch=40, progress=stop_after)
    assert len(list(folder.glob(f".{NAME}.*.part.json"))) == 1
    assert not (folder / NAME).exists()
    drawn = []
    watch = runs.watch

    def counted(pipe, draw, seeds):
        drawn.append(len(seeds))
        return watch(pipe, draw, seeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "watch", counted)
        table, _ = command.calibrate(folder, steps=STEPS, count=RUNS, batch=40)
    assert calls == [(f"{steps} steps", done) for steps in STEPS for done in (40, 80, RUNS)]
    assert drawn == []  # both step counts were complete when it stopped
    assert table.nulls == load_table(calibrated).nulls


def test_a_damaged_state_or_one_of_other_weights_begins_anew(tmp_path):
    folder = save_pipeline(tmp_path / "pipe")
    state = folder / f".{NAME}.part.json"
    key = {"pipeline": fingerprint(folder)}
    good = {"steps": 12, "logsnr": [-9.0, -5.0, -3.0], "grid": [8, 8], "profile": [1.0, 2.0]}
    good |= {"still": [1.0], "jump": [2.0], "x0_noise": 0.1}
    bad = ({"jump": []}, {"x0_noise": math.nan}, {"still": None}, {"still": [math.nan]}, {"profile": []}, {"grid": []})
    bad += ({"surprise": 1},)
    broken = [{"key": key, "runs": [good | change]} for change in bad]
    for text in ("{", "[]", *map(json.dumps, [{"key": {"pipeline": "another"}, "runs": [good]}, *broken])):
        state.write_text(text)
        assert runs.load_runs(state, key) == {}
    state.write_text(json.dumps({"key": key, "runs": [good]}))
    assert list(runs.load_runs(state, key)) == [12]


def test_a_changed_pipeline_is_refused(tmp_path):
    folder = save_pipeline(tmp_path / "pipe")
    command.calibrate(folder, steps=[8], count=100, batch=100)
    assert load_table(folder)
    known = fingerprint(folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.02", "0.03"))
    assert fingerprint(folder) != known
    with pytest.raises(ValueError, match="other weights or settings"):
        load_table(folder)
    done = invoke("generate", "--pipeline", folder, "--steps", "8", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    assert "not compared with sound runs" in done.stderr
    assert "p_values" not in json.loads(done.stdout)


def test_weights_are_part_of_the_fingerprint(tmp_path):
    folder = save_pipeline(tmp_path / "pipe")
    known = fingerprint(folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert fingerprint(folder) != known


def test_large_files_are_known_by_parts(tmp_path, monkeypatch):
    folder = save_pipeline(tmp_path / "pipe")
    monkeypatch.setattr("ascedfast.calibration.folder.WHOLE", 1000)
    monkeypatch.setattr("ascedfast.calibration.folder.SAMPLE", 10)
    path = folder / "unet" / "more.bin"
    path.write_bytes(bytes(5000))
    known = fingerprint(folder)
    for at in (0, 4999):
        data = bytearray(5000)
        data[at] = 1
        path.write_bytes(data)
        assert fingerprint(folder) != known
    path.write_bytes(bytes(5001))
    assert fingerprint(folder) != known


def test_what_counts_of_a_folder(tmp_path):
    """Every file of a component, behind links too; nothing else."""
    folder = save_pipeline(tmp_path / "pipe")
    known = fingerprint(folder)
    for name in ("report.json", "mine.safetensors", NAME, ".hidden", "unet/.DS_Store"):
        (folder / name).write_text("{}")
    assert fingerprint(folder) == known
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    assert fingerprint(folder) == known
    (folder / "unet" / "vocab.txt").write_text("a")
    assert fingerprint(folder) != known


def test_step_counts_are_added_to_a_table(tmp_path):
    folder = save_pipeline(tmp_path / "pipe")
    command.calibrate(folder, steps=[12], count=100, batch=100)
    first = load_table(folder).nulls[0]
    table, _ = command.calibrate(folder, steps=[20], count=100, batch=100)
    assert table.nulls[0] == first
    assert [len(null.profile) for null in table.nulls] == [5, 9]
    assert "other entries from earlier" in table.note
    with pytest.raises(ValueError, match="20 and 21 steps have the same number of changes"):
        command.calibrate(folder, steps=[20, 21], count=100, batch=100)
    assert load_table(folder) == table


def test_other_arguments_leave_what_was_gathered(tmp_path):
    folder = save_pipeline(tmp_path / "pipe")

    def stop(title):
        def count(done, total):
            raise KeyboardInterrupt

        return count

    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            command.calibrate(folder, steps=[12], count=300, batch=200, seed=seed, progress=stop)
    assert len(list(folder.glob(f".{NAME}.*.part.json"))) == 2


def test_a_table_elsewhere(tmp_path):
    folder, path = save_pipeline(tmp_path / "pipe"), tmp_path / "made" / "for" / "t.json"
    arguments = ["--pipeline", folder, "--runs", "100", "--steps", "12", "--batch", "100", "--out", path]
    assert invoke("calibrate", *arguments).exit_code == 0
    assert not (folder / NAME).exists()
    assert load_table(folder, path).grid == (8, 8)
    drawn = ["generate", "--pipeline", folder, "--steps", "12", "--out", tmp_path / "out", "--json"]
    assert "p_values" not in json.loads(invoke(*drawn).stdout)
    assert len(json.loads(invoke(*drawn, "--table", path).stdout)["p_values"]) == 1
    done = invoke(*drawn, "--table", tmp_path / "none.json")
    assert done.exit_code == 2
    assert "there is no" in done.stderr


def test_modes_that_record_other_changes_are_not_compared(tmp_path, calibrated):
    arguments = ["--steps", "12", "--mode", "official", "--out", tmp_path / "o", "--json"]
    done = invoke("generate", "--pipeline", calibrated, *arguments)
    assert json.loads(done.stdout)["p_values"] == [None]
    assert "largest change of the channels" in " ".join(done.stderr.split())


def test_command_line(tmp_path):
    folder = save_pipeline(tmp_path / "pipe")
    done = invoke("calibrate", "--pipeline", folder, "--runs", "100", "--steps", "8,12", "--batch", "50")
    assert done.exit_code == 0, done.output
    assert "sound runs" in done.stdout
    assert str(folder / NAME) in done.stdout.replace("\n", "")
    done = invoke("generate", "--pipeline", folder, "--n", "2", "--steps", "12", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert len(printed["p_values"]) == 2
    assert all(0 < value <= 1 for value in printed["p_values"])
    done = invoke("generate", "--pipeline", folder, "--n", "2", "--steps", "12", "--out", tmp_path / "c", "--json",
                  "--mode", "calibrated", "--rate", "0.5")  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["p_value"] for row in rows] == pytest.approx(json.loads(done.stdout)["p_values"])
    assert all((row["p_value"] < 0.5) == (row["status"] == "corrected") for row in rows)
    assert "Share of sound runs as severe" in json.loads((tmp_path / "out" / "report.json").read_text())["notes"][-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runs", "99"], "at least 100"),
        (["--steps", "2"], "predictions precede"),
        (["--steps", "8,x"], "numbers with commas"),
        (["--out", "/tmp"], "is a folder"),
        (["--steps", "0"], "positive"),
        (["--prompts", "/nonexistent"], "No such file"),
        (["--device", "warp"], "cannot be used here"),
    ],
)
def test_bad_arguments(tmp_path, arguments, said):
    folder = save_pipeline(tmp_path / "pipe")
    done = invoke("calibrate", "--pipeline", folder, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not (folder / NAME).exists()


def test_the_mode_without_a_table(tmp_path):
    folder = save_pipeline(tmp_path / "pipe")
    for command_ in (["generate", "--pipeline", folder], ["demo"]):
        done = invoke(*command_, "--mode", "calibrated", "--out", tmp_path / "out")
        assert done.exit_code == 2
        assert "ascedfast calibrate" in done.stderr.replace("\n", " ")


def test_prompts_for_a_pipeline_without_any(tmp_path):
    folder = save_pipeline(tmp_path / "pipe")
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    done = invoke("calibrate", "--pipeline", folder, "--runs", "100", "--prompts", tmp_path / "prompts.txt")
    assert done.exit_code == 2
    assert "takes no prompt" in done.stderr


@pytest.mark.parametrize("name", ["sd15", "flux", "wan"])
def test_latents_of_every_layout(name):
    """Planes, packed latents and volumes: the changes have the grid's axes."""
    pipe, call = getattr(tiny, name)() if hasattr(tiny, name) else tiny.PIPELINES[name]()

    def draw(seeds):
        tiny.run(pipe, call, num_inference_steps=16)

    rows, end = runs.watch(pipe, draw, [1])
    assert end.x.shape == end.x0.shape
    maps = window_of(rows[0])
    assert len(maps) == rows[0].plan.t_c - 1
    assert maps.dim() == (4 if name == "wan" else 3)
    assert maps.isfinite().all()


def test_runs_with_nan_are_refused(calibrated):
    pipe = command.load_pipeline(calibrated)
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(math.nan)
    so_far = runs.StepRuns(12)
    with pytest.raises(ValueError, match="50 of 50 runs hold NaN or Inf"):
        list(runs.gather(pipe, command._drawer(pipe, 12, (), 0), so_far, 100, 50, 0))
    assert so_far.still == []


def test_a_few_runs_with_nan_are_left_out(calibrated, monkeypatch):
    pipe = command.load_pipeline(calibrated)
    watch = runs.watch

    def broken(pipe, draw, seeds):
        rows, end = watch(pipe, draw, seeds)
        return [dataclasses.replace(row, finite=torch.tensor(row.seed != 7)) for row in rows], end

    monkeypatch.setattr(runs, "watch", broken)
    so_far = runs.StepRuns(12)
    assert list(runs.gather(pipe, command._drawer(pipe, 12, (), 0), so_far, 100, 50, 0))[-1] == 100
    assert (len(so_far.still), so_far.skipped) == (100, 1)
    assert so_far.null(100).runs == 100


def test_rows_that_cannot_be_judged(calibrated):
    table = load_table(calibrated)
    row = reports(calibrated, [1], 12)[0]
    with pytest.raises(ValueError, match="first step on"):
        judge(dataclasses.replace(row, dynamics=row.dynamics[2:]), table)
    with pytest.raises(ValueError, match="cannot be watched"):
        judge(reports(calibrated, [1], 4)[0], table)


def test_a_planted_region_is_found_and_masked(calibrated):
    """A quarter of the image stands still from the fourth change on."""
    table = load_table(calibrated)
    row = reports(calibrated, [1], 12)[0]
    held = []
    for step, d in row.dynamics:
        changed = d.clone()
        if step >= 4:
            changed[:4, :4] = 0
        held.append((step, changed))
    found, sound = judge(dataclasses.replace(row, dynamics=tuple(held)), table), judge(row, table)
    assert found.p_value < 0.02 < sound.p_value
    mask = found.mask(0.02)
    box = torch.zeros(8, 8, dtype=torch.bool)
    box[:4, :4] = True
    assert mask.any()
    assert not (mask & ~box).any()
    assert not sound.mask(sound.p_value * 0.9).any()
    assert sound.mask(min(0.9, sound.p_value * 1.1)).any()


@pytest.mark.parametrize("shape", [(3, 17, 23), (2, 5, 9, 8)])
def test_regions_against_scipy(shape):
    severity = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    severity = ascedfast.reference.gaussian_blur(severity, 1.0, (-2, -1)) * 3
    low, high = 0.3, 1.2
    found, _, _ = seeded(severity, low, high, 4 if len(shape) == 3 else 6)
    for row, mask in zip(severity.numpy(), found.numpy(), strict=True):
        labels, count = ndimage.label(row > low)
        kept = [k for k in range(1, count + 1) if (row[labels == k] > high).any()]
        assert 0 < len(kept) < count
        assert np.array_equal(mask, np.isin(labels, kept))


def test_regions_of_rows_with_nan_and_of_nothing():
    severity = torch.full((2, 4, 4), 2.0)
    severity[0, 0, 0] = math.nan
    found, _, _ = seeded(severity, 0.0, 1.0, 4)
    assert not found[0].any()
    assert found[1].all()
    assert not seeded(torch.zeros(1, 4, 4), 0.5, 1.0, 4)[0].any()
    assert seeded(torch.zeros(0, 4, 4), 0.5, 1.0, 4)[0].shape == (0, 4, 4)

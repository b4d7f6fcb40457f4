# SPDX-License-Identifier: MIT
"""The command line: what it writes, what it says on bad input, and its exit codes."""

import json
import os
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import ascedfast
from ascedfast import AscedConfig
from ascedfast.cli import app
from ascedfast.demo import denoise, load_model, paired_run

UNET = Path(str(resources.files("ascedfast") / "assets" / "emoji64-unet"))
SHORT = ["--samples", "1", "--steps", "8", "--seed", "3"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_demo_writes_a_report(tmp_path):
    done = invoke("demo", "--out", tmp_path / "out", "--mode", "official", "--json", *SHORT)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert {Path(path).name for path in printed["files"]} >= {"report.html", "before.png", "after.png", "dynamics.png"}
    assert all(Path(path).stat().st_size > 100 for path in printed["files"])
    assert printed["rows"][0]["mode"] == "official"
    assert printed["seconds"] > 0
    assert 0 < printed["asced_share"] < 0.5


def test_demo_prints_a_table(tmp_path):
    done = invoke("demo", "--out", tmp_path, *SHORT)
    assert done.exit_code == 0, done.output
    assert "area masked" in done.stdout
    assert "in ASCED" in done.stdout
    again = invoke("inspect", tmp_path)
    assert again.exit_code == 0
    assert "area masked" in again.stdout
    saved = json.loads(invoke("inspect", tmp_path, "--json").stdout)
    assert saved == json.loads((tmp_path / "report.json").read_text())


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_paired_run_is_the_stock_run_and_the_corrected_one(name):
    """Before: the run without ASCED. After: another image."""
    model, scheduler = load_model(name)
    config = AscedConfig.fast(mad_scale=1.5, min_area=20)
    result = paired_run(model, scheduler, config, seed=1, samples=1, steps=8)
    assert result.report[0].status == "corrected"
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(8)
    t_c = result.report[0].plan.t_c
    with torch.inference_mode():
        for k, t in enumerate(scheduler.timesteps):
            batch = torch.cat([x, x]) if k >= t_c else x  # the network's bits depend on its batch size
            m = denoise(model, batch, t)
            x = scheduler.step(m[:1], t, x, return_dict=False)[0]
    assert torch.allclose(result.before, (x / 2 + 0.5).clamp(0, 1), atol=2e-3)
    assert (result.after - result.before).abs().max() > 0.02


def test_doctor():
    done = invoke("doctor", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert {row["op"] for row in found["ops"]} >= {"label_regions", "renoise_"}
    assert all(row["others"] for row in found["ops"] if row["backend"] == "reference")
    assert found["packages"]["torch"] == torch.__version__
    printed = " ".join(invoke("doctor").stdout.split())  # lines wrap
    assert "why not the others" in printed
    assert ("C++ and CUDA ops" if found["extension_has_cuda"] else "no CUDA ops") in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--mode", "fasst"], "unknown mode 'fasst'"),
        (["demo", "--model", "vae"], "unknown model 'vae'"),
        (["demo", "--device", "cuda:99"], "cannot be used here"),
        (["demo", "--device", "nonsense"], "cannot be used here"),
        (["demo", "--device", "meta"], "cannot be used here"),
        (["demo", "--mode", "[/]"], "unknown mode '[/]'"),
        (["demo", "--steps", "1001"], "--steps 1001"),
        (["generate", "--pipeline", "/tmp/[/x]"], "not a folder"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--samples", "0"], "samples"),
        (["generate", "--pipeline", "/nonexistent"], "not a folder"),
        (["inspect", "/nonexistent"], "does not exist"),
    ],
    ids=lambda value: "-".join(value[:3]) if isinstance(value, list) else None,
)
def test_bad_arguments(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("command", [["demo"], ["generate", "--pipeline", UNET]], ids=["demo", "generate"])
def test_output_folder_that_cannot_be_written(command, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("kept")
    done = invoke(*command, "--out", blocked / "below")
    assert done.exit_code == 2
    assert "cannot write" in " ".join(done.output.split())
    assert blocked.read_text() == "kept"


def test_generate_compares(tmp_path):
    done = invoke("generate", "--pipeline", UNET, "--n", "2", "--steps", "8", "--compare", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert [row["seed"] for row in printed["rows"]] == [0, 1]
    assert (tmp_path / "before.png").exists()
    assert len(printed["rows"][0]["abnormal"]) == 7  # every step but the first


@pytest.fixture
def folder(tmp_path):
    """A copy of the packaged pipeline to damage."""
    return Path(shutil.copytree(UNET, tmp_path / "pipe", copy_function=os.link))


def rewrite(path, text):
    path.unlink()
    path.write_text(text)


def damage_index(folder):
    rewrite(folder / "model_index.json", "{")


def drop_index(folder):
    (folder / "model_index.json").unlink()


def other_class(folder):
    rewrite(folder / "model_index.json", json.dumps({"_class_name": "os.system"}))


def foreign_code(folder):
    index = json.loads((folder / "model_index.json").read_text())
    rewrite(folder / "model_index.json", json.dumps({**index, "unet": ["evil", "Net"]}))


def listed_class(folder):
    rewrite(folder / "model_index.json", json.dumps({"_class_name": ["evil", "DDIMPipeline"]}))


def short_entry(folder):
    index = json.loads((folder / "model_index.json").read_text())
    rewrite(folder / "model_index.json", json.dumps({**index, "unet": []}))


def bring_code(folder):
    (folder / "unet" / "diffusers.py").write_text("raise SystemExit('ran')")


def pickle_weights(folder):
    weights = next(folder.glob("unet/*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))


def cut_weights(folder):
    weights = next(folder.glob("unet/*.safetensors"))
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[: len(content) // 2])


def lose_weights(folder):
    next(folder.glob("unet/*.safetensors")).unlink()


def change_weights(folder, change):
    weights = next(folder.glob("unet/*.safetensors"))
    tensors = change(load_file(weights))
    weights.unlink()
    save_file(tensors, weights)


def lose_a_tensor(folder):
    change_weights(folder, lambda tensors: {name: t for name, t in tensors.items() if name != "conv_out.weight"})


def foreign_tensors(folder):
    change_weights(folder, lambda tensors: {"another": torch.zeros(1)})


def pickled_shard(folder):
    """An index that names a pickle, beside a file of safetensors that is not asked for."""
    lose_weights(folder)
    torch.save({}, folder / "unet" / "weights.bin")
    save_file({"a": torch.zeros(1)}, folder / "unet" / "anything.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_out.weight": "weights.bin"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def pickles_behind_a_link(folder):
    pickle_weights(folder)
    (folder / "unet").rename(folder.parent / "elsewhere")
    (folder / "unet").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere" / "loop").symlink_to(folder)


def change_config(folder, component, **changes):
    path = next((folder / component).glob("*config.json"))
    rewrite(path, json.dumps({**json.loads(path.read_text()), **changes}))


def zero_groups(folder):
    change_config(folder, "unet", norm_num_groups=0)


def odd_size(folder):
    change_config(folder, "unet", sample_size=15)


def unknown_prediction(folder):
    change_config(folder, "scheduler", prediction_type="foo")


def deep_index(folder):
    rewrite(folder / "model_index.json", "[" * 100_000)


def absent_library(folder):
    """As if the library that diffusers needs for this class were not installed: it exports a stand-in."""
    rewrite(folder / "model_index.json", json.dumps({"_class_name": "OnnxStableDiffusionPipeline"}))


def other_scheduler(folder):
    index = json.loads((folder / "model_index.json").read_text())
    changed = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "ScoreSdeVeScheduler"]}
    rewrite(folder / "model_index.json", json.dumps({**index, **changed}))
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    rewrite(folder / "scheduler/scheduler_config.json", json.dumps({**config, "_class_name": "ScoreSdeVeScheduler"}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (damage_index, "damaged"),
        (drop_index, "no model_index.json"),
        (other_class, "not a pipeline of diffusers"),
        (foreign_code, "wants code from 'evil'"),
        (listed_class, "not a pipeline of diffusers"),
        (short_entry, "wants code from []"),
        (bring_code, "is code"),
        (pickle_weights, "pickled weights"),
        (cut_weights, "damaged"),
        (lose_weights, "cannot be loaded"),
        (lose_a_tensor, "tensors are missing: conv_out.weight"),
        (foreign_tensors, "tensors are missing"),
        (pickled_shard, "names weights.bin: weights are loaded from safetensors only"),
        (pickles_behind_a_link, "pickled weights"),
        (zero_groups, "cannot be loaded as DDIMPipeline: ZeroDivisionError"),
        (odd_size, "cannot be run: RuntimeError"),
        (unknown_prediction, "foo"),
        (deep_index, "damaged"),
        (absent_library, "needs onnx"),
        (other_scheduler, "ScoreSdeVeScheduler is not supported: its loop"),
    ],
)
def test_bad_pipeline_folders(harm, says, folder, tmp_path):
    harm(folder)
    done = invoke("generate", "--pipeline", folder, "--out", tmp_path / "out", "--steps", "2")
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.output.split())


def test_prompt_where_none_is_taken(tmp_path):
    done = invoke("generate", "--pipeline", UNET, "--prompt", "a cat", "--out", tmp_path)
    assert done.exit_code == 2
    assert "takes no prompt" in " ".join(done.output.split())


@pytest.mark.parametrize(
    "content",
    [
        '{"rows',
        "[]",
        '{"rows": 5, "notes": []}',
        '{"rows": [{}], "notes": []}',
        '{"rows": [], "notes": null}',
        "[" * 9999,
    ],
)
def test_inspect_damaged_report(content, tmp_path):
    (tmp_path / "report.json").write_text(content)
    done = invoke("inspect", tmp_path)
    assert done.exit_code == 2
    assert "report.json" in "".join(done.output.split())


def test_markup_in_a_note_is_text(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"rows": [], "notes": ["[/bold] [red]x"]}))
    done = invoke("inspect", tmp_path)
    assert done.exit_code == 0
    assert "[/bold] [red]x" in done.output


def test_version():
    assert invoke("--version").output.strip() == ascedfast.__version__


def test_inspect_shows_the_file_it_is_given(tmp_path):
    assert invoke("demo", "--out", tmp_path, "--json", *SHORT).exit_code == 0
    saved = json.loads((tmp_path / "report.json").read_text())
    saved["notes"] = ["another \x1b[2J run"]
    saved["rows"][0] |= {"seed": "[/bold]", "finite_after": False}
    (tmp_path / "run-b.json").write_text(json.dumps(saved))
    done = invoke("inspect", tmp_path / "run-b.json")
    assert done.exit_code == 0, done.output
    assert "another ?[2J run" in done.output
    assert "[/bold]" in done.output
    assert "NaN or Inf" in " ".join(done.output.split())
    assert invoke("inspect", tmp_path / "after.png").exit_code == 2
    (tmp_path / "run-b.json").write_text('{"notes": [], "rows": [], "extra": NaN}')
    assert invoke("inspect", tmp_path / "run-b.json", "--json").exit_code == 2


def test_a_refused_command_leaves_no_folder(tmp_path):
    assert invoke("generate", "--pipeline", "/nonexistent", "--out", tmp_path / "left" / "behind").exit_code == 2
    assert not (tmp_path / "left").exists()

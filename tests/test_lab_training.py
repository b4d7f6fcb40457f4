# SPDX-License-Identifier: MIT
"""The training command end to end at its tiny size on the CPU: learning, resuming, ending, and what it writes."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline
from lab_weights import needs_fashion, needs_font, write_untrained
from PIL import Image
from typer.testing import CliRunner

from ascedfast.lab import data, families, jobs, training
from ascedfast.lab.jobs import JOBS
from ascedfast.lab.loop import Loop, average_decay

SMALL = ("--small", "--device", "cpu", "--plain")
SECONDS = 4


@pytest.fixture(autouse=True)
def settings_and_signal_are_put_back():
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)


def train(out, *arguments, status=0):
    """Runs the command in this process; returns what it printed."""
    app = training.typer.Typer()
    app.command()(training.main)
    places = [
        "--out",
        str(out),
        *([] if "--checkpoints" in arguments else ["--checkpoints", str(out) + "-checkpoints"]),
    ]
    done = CliRunner().invoke(app, [*places, *SMALL, *map(str, arguments)])
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def figures_of(folder):
    return json.loads((folder / "training.json").read_text())


@pytest.fixture(scope="module", params=["F1", "F5"])
def trained(request, tmp_path_factory):
    """(out, folder name, name of the family) of a finished tiny training."""
    name = request.param
    if name == "F1" and not data.FASHION_FOLDER.is_dir():
        pytest.skip(f"install the Debian package {data.FASHION_PACKAGE}")
    out = tmp_path_factory.mktemp("trained") / "weights"
    train(out, "--family", name, "--minutes", SECONDS / 60)
    return out, JOBS[name][0].name, name


def test_loss_falls(trained):
    out, folder, _ = trained
    losses = [loss for *_, loss in figures_of(out / folder)["curve"]]
    assert len(losses) >= 10
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_folder_is_what_the_laboratory_and_diffusers_load(trained):
    out, folder, name = trained
    model = families.load(name, root=out)
    pipeline = DDIMPipeline.from_pretrained(out / folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    drawn = pipeline(2, num_inference_steps=3, generator=generators, output_type="np").images
    assert drawn.shape == (2, 32, 32, 1)
    x = model.start([0, 1])
    same = pipeline.unet(x, 500).sample
    torch.testing.assert_close(model.net(x, 500).sample, same)
    stored = next((out / folder).rglob("*.safetensors"))
    assert stored.stat().st_size < 2.5 * figures_of(out / folder)["parameters"] + 30_000


def test_folder_holds_card_and_pictures(trained):
    out, folder, name = trained
    card = (out / folder / "README.md").read_text()
    figures = figures_of(out / folder)
    wanted = ["MIT", "parameters", f"{figures['iterations']:,}", "the CPU", "## Limits", f"--family {name}"]
    for word in wanted + (["Xiao, Rasul, Vollgraf"] if name == "F1" else ["no glyph twice"]):
        assert word in card
    assert "{" not in card
    assert Image.open(out / folder / "samples.png").size == (8 * 32, 4 * 32)
    assert Image.open(out / folder / "loss.png").size[0] > 100
    assert not list(out.rglob("*.pt"))  # checkpoints are not shipped


def test_early_checkpoint_is_of_the_same_net_and_weaker(trained):
    out, _, name = trained
    if name != "F1":
        assert not (out / "f1-early").exists()
        return
    early, full = (families.load(name, root=out) for name in ("F1-early", "F1"))
    assert early.net.config.block_out_channels == full.net.config.block_out_channels
    assert figures_of(out / "f1-early")["iterations"] < 0.5 * figures_of(out / "f1-unet")["iterations"]
    assert early.fingerprint != full.fingerprint
    assert "early checkpoint" in (out / "f1-early" / "README.md").read_text()


def test_resuming_goes_on_and_a_spent_budget_changes_nothing(trained, tmp_path):
    out, folder, name = trained
    before = figures_of(out / folder)
    checkpoints = out.parent / "weights-checkpoints"
    printed = train(
        tmp_path, "--family", name, "--minutes", 1.5 * SECONDS / 60, "--resume", "--checkpoints", checkpoints
    )
    after = figures_of(tmp_path / folder)
    assert f"going on at iteration {before['iterations']}" in printed
    assert after["iterations"] > before["iterations"]
    if name == "F1":  # the early checkpoint is of the first run, wherever the later one writes
        early = [figures_of(folder / "f1-early")["iterations"] for folder in (out, tmp_path)]
        assert early[0] == early[1] < before["iterations"]
    steps = [step for step, *_ in after["curve"]]
    assert steps[: len(before["curve"])] == [step for step, *_ in before["curve"]]
    train(tmp_path, "--family", name, "--minutes", 0.001, "--resume", "--checkpoints", checkpoints)
    assert figures_of(tmp_path / folder)["iterations"] == after["iterations"]


def test_a_run_told_to_end_leaves_a_checkpoint(tmp_path):
    command = [sys.executable, "-m", "ascedfast.lab.training", "--family", "F5", "--minutes", "5"]
    out = tmp_path / "weights"
    command += ["--out", str(out), "--checkpoints", f"{out}-checkpoints", *SMALL]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert "iteration" in process.stdout.readline()  # it trains
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == training.TERMINATED
    assert "go on with --resume" in rest
    state = torch.load(tmp_path / "weights-checkpoints" / "f5-unet.pt", weights_only=True)
    assert state["iteration"] >= 1
    assert not (out / "f5-unet").exists()


def test_checkpoints_are_written_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("ascedfast.lab.loop.CHECKPOINT_EVERY", 0.0)
    loop = JOBS["F5"][0].make(torch.device("cpu"), 0, True, tmp_path)
    steps = loop.run(1.0, tmp_path / "f5.pt")
    next(steps)
    assert torch.load(tmp_path / "f5.pt", weights_only=True)["iteration"] == loop.iteration


@needs_font
def test_latents_need_the_vae_first(tmp_path):
    printed = train(tmp_path, "--family", "F4", "--minutes", 0.01, status=2)
    assert "--family F4-vae" in printed


@needs_font
def test_vae_and_transformer_train_on_what_came_before(tmp_path):
    train(tmp_path, "--family", "F4-vae", "--minutes", 2 / 60)
    assert "grey levels" in (tmp_path / "f4-vae" / "README.md").read_text()
    train(tmp_path, "--family", "F4", "--minutes", 1 / 60)
    model = families.load("F4", root=tmp_path)
    assert len(model.vae.config.latents_std) == 4
    assert Image.open(tmp_path / "f4-dit" / "samples.png").size == (8 * 64, 4 * 64)


@needs_font
@needs_fashion
def test_extractors_train_and_the_judges_are_frozen(tmp_path):
    printed = train(tmp_path, "--family", "extractors", "--minutes", 4 / 60)
    assert printed.count("unfit") + printed.count("; fit") == 2
    for source in data.NAMES:
        assert 0 <= figures_of(tmp_path / f"features-{source}")["checks"]["accuracy on held-out images"] <= 1
    for source in ("fashion32", "emoji64"):
        assert (tmp_path / f"judge-{source}.json").is_file()


def test_conditional_model_sees_classes_and_sometimes_none(tmp_path):
    if not data.FASHION_FOLDER.is_dir():
        pytest.skip(f"install the Debian package {data.FASHION_PACKAGE}")
    loop = JOBS["F1c"][0].make(torch.device("cpu"), 0, True, tmp_path)
    seen = torch.cat([(loop.refill(), loop.y.clone())[1] for _ in range(150)])
    assert set(seen.tolist()) == set(range(11))
    assert 0.05 < float((seen == 10).float().mean()) < 0.15


def test_unknown_family_is_refused(tmp_path):
    assert "choose one of F1" in train(tmp_path, "--family", "F7", status=2)


def test_budgets_sum_to_about_twenty_minutes():
    minutes = [job.minutes for group in JOBS.values() for job in group]
    assert 18 <= sum(minutes) <= 23
    assert sum(job.minutes for job in JOBS["extractors"]) <= 2


def test_average_warms_up():
    assert average_decay(0, 0.999) == 0.1
    assert average_decay(45, 0.999) == pytest.approx(50 / 95)
    assert average_decay(10**6, 0.999) == 0.999


class Quadratic(Loop):
    """Pulls four weights to 3 with a loss known in closed form."""

    def refill(self):
        pass

    def loss(self):
        return (self.network.weight - 3).square().sum()


def test_loop_follows_a_cosine_and_averages_as_it_says(tmp_path, monkeypatch):
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    loop = Quadratic(model, torch.device("cpu"), 0, learning_rate=0.1, average_limit=0.999, weight_decay=0.0)
    rates, average = [], torch.zeros(1, 4)
    advance, clock = loop.advance, iter(np.arange(10_000) * 0.05)

    def spy(rate):
        rates.append(rate)
        advance(rate)
        average.add_((model.weight.detach() - average) * (1 - min(0.999, (4 + loop.iteration) / (49 + loop.iteration))))

    monkeypatch.setattr(loop, "advance", spy)
    monkeypatch.setattr("ascedfast.lab.loop.time.monotonic", lambda: next(clock))
    list(loop.run(0.5, tmp_path / "q.pt"))
    assert len(rates) > 100
    assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert rates[-1] < 1e-3
    torch.testing.assert_close(loop.average[0], average)
    torch.testing.assert_close(model.weight, torch.full((1, 4), 3.0), atol=0.05, rtol=0)
    loop.use_average()
    torch.testing.assert_close(model.weight.detach(), average)


def test_jobs_write_every_folder_the_families_read(tmp_path):
    write_untrained(tmp_path)
    names = {job.name for group in JOBS.values() for job in group} | {"f1-early"}
    assert {path.name for path in tmp_path.iterdir()} <= names
    assert {family.job for family in families.FAMILIES.values() if not family.packaged} <= set(JOBS)
    assert jobs.JOBS["F4"][0].command == "F4"

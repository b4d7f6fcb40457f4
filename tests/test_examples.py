# SPDX-License-Identifier: MIT
"""Every example runs and says what it promises."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ascedfast import AscedConfig

EXAMPLES = Path(__file__).parent.parent / "examples"
EXPECTED = {
    "ddim_loop.py": "row 1: ",
    "guided_diffusion_loop.py": "row 1: corrected",
    "two_lines.py": "row 0: ",
    "x0_callback.py": "step  9  t   0",
    "redraw_by_severity.py": "keep seed",
    "second_pass.py": "30 evaluations, 5 of them again",
    "per_row_seeds.py": "seeds: [11, 12]",
}


def test_every_example_is_listed():
    elsewhere = {"sample_emoji.py", "train_emoji.py", "continuous_batching.py"}  # tests/test_train_emoji.py, and below
    assert {path.name for path in EXAMPLES.glob("*.py")} - elsewhere == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert EXPECTED[name] in done.stdout
    assert "unavailable" not in done.stdout


def test_continuous_batching_answers_every_request(tmp_path):
    script = EXAMPLES / "continuous_batching.py"
    assert len(script.read_text().splitlines()) < 120
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, script, "--requests", "4"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = dict(line.split(": ") for line in done.stdout.splitlines())
    assert sorted(answers) == [f"request {i}" for i in range(4)]
    kinds = [(answer.split()[0], answer.rpartition(" ")[2]) for _, answer in sorted(answers.items())]
    assert kinds == [("8", "corrected"), ("10", "corrected"), ("12", "observed"), ("8", "off")]
    with Image.open(tmp_path / "continuous_batching.png") as sheet:
        assert sheet.size == (2 * 192 + 4, 2 * 192 + 4)


@pytest.mark.parametrize("share", [-1.0, 0.0, 0.5, 1.0])
def test_the_guided_diffusion_loop_is_ddpm_with_learned_variance(share):
    spec = importlib.util.spec_from_file_location("guided_diffusion_loop", EXAMPLES / "guided_diffusion_loop.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=True)
    scheduler.set_timesteps(25)

    def model(x, t):
        return torch.cat([0.9 * x + 0.01 * x.sin(), share * torch.ones_like(x)], dim=1)

    start = x = tiny.randn(2, 3, 8, 8)
    generator = tiny.generator(1)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x, generator=generator).prev_sample
    abar, timesteps = scheduler.alphas_cumprod.double().tolist(), scheduler.timesteps.tolist()
    observing = AscedConfig(correct=False)
    ours, report = example.p_sample_loop(model, start, abar, timesteps, [0, 1], tiny.generator(1), observing)
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
    assert [row.status for row in report] == ["observed", "observed"]
    assert len((EXAMPLES / "guided_diffusion_loop.py").read_text().splitlines()) < 60

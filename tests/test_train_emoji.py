# SPDX-License-Identifier: MIT
"""The training script end to end at a tiny size on the CPU, and the rules that file and weigh the emoji."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("fontTools")
pytest.importorskip("typer")

from diffusers import DDIMPipeline
from PIL import Image

from ascedfast.pipelines import PixelFlowPipeline

EXAMPLES = Path(__file__).parents[1] / "examples"
PIPELINES = {"unet": DDIMPipeline, "dit": PixelFlowPipeline}
MINUTES, MORE_MINUTES = 0.3, 0.36
RUNNER, MAN, WOMAN, TONE, ZWJ, FEMALE = 0x1F3C3, 0x1F468, 0x1F469, 0x1F3FD, 0x200D, 0x2640


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / "emoji" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


emoji_data = load_example("data")
RECIPES = load_example("nets").RECIPES
needs_font = pytest.mark.skipif(
    emoji_data.find_font() is None,
    reason=f"no Noto Color Emoji font: install the Debian package {emoji_data.DEBIAN_PACKAGE}",
)


def train(out, *arguments):
    """Runs the script at its tiny size; returns what it printed."""
    command = [sys.executable, EXAMPLES / "train_emoji.py", "--small", "--device", "cpu", "--out", out]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*map(str, command), *arguments], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures_of(folder):
    return json.loads((folder / "training.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both models, made by one command: their parent folder, with the checkpoints in `checkpoints`."""
    out = tmp_path_factory.mktemp("trained")
    train(out, "--model", "both", "--minutes", str(MINUTES), "--checkpoints", str(out / "checkpoints"))
    return out


@needs_font
@pytest.mark.parametrize("model", PIPELINES)
def test_loss_falls(trained, model):
    losses = [loss for *_, loss in figures_of(trained / f"emoji64-{model}")["curve"]]
    tenth = max(1, len(losses) // 10)
    assert len(losses) >= 20
    assert np.mean(losses[-tenth:]) < 0.75 * np.mean(losses[:tenth])


@needs_font
@pytest.mark.parametrize("model", PIPELINES)
def test_folder_loads_and_samples_the_same_image_for_a_seed(trained, model):
    pipeline = PIPELINES[model].from_pretrained(trained / f"emoji64-{model}")
    pipeline.set_progress_bar_config(disable=True)

    def draw(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(len(seeds), num_inference_steps=4, generator=generators, output_type="np").images

    images = draw(0, 1)
    assert images.shape == (2, 32, 32, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0.01
    np.testing.assert_array_equal(images, draw(0, 1))
    np.testing.assert_allclose(images[1:], draw(1), atol=1e-4)


@needs_font
@pytest.mark.parametrize("model", PIPELINES)
def test_folder_holds_card_and_pictures(trained, model):
    folder = trained / f"emoji64-{model}"
    card = (folder / "README.md").read_text()
    for word in ("Apache License 2.0", "SIL", "parameters", f"{figures_of(folder)['iterations']:,}", "production"):
        assert word in card
    assert "{" not in card
    assert Image.open(folder / "samples.png").size == (8 * 32, 8 * 32)
    assert Image.open(folder / "loss.png").size[0] > 100


def sample(*arguments):
    command = [sys.executable, EXAMPLES / "sample_emoji.py", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=200)


@needs_font
@pytest.mark.parametrize("model", PIPELINES)
def test_samples_are_drawn_again(trained, model, tmp_path):
    folder = tmp_path / f"emoji64-{model}"
    shutil.copytree(trained / folder.name, folder)
    (folder / "samples.png").unlink()
    before = figures_of(folder)
    for _ in range(2):
        done = sample(folder, "--steps", "3")
        assert done.returncode == 0, done.stderr
        grid = np.asarray(Image.open(folder / "samples.png"))
        assert grid.shape == (8 * 32, 8 * 32, 3)
        assert len({grid[y : y + 32, x : x + 32].tobytes() for y in range(0, 256, 32) for x in range(0, 256, 32)}) == 64
    assert "3 steps with fresh noise" in (folder / "README.md").read_text()
    assert figures_of(folder) == before | {"steps": 3}


@needs_font
def test_samples_take_the_models_own_steps(trained, tmp_path):
    folder = tmp_path / "emoji64-unet"
    shutil.copytree(trained / folder.name, folder)
    assert figures_of(folder)["steps"] != RECIPES["unet"].sample_steps
    done = sample(folder)
    assert done.returncode == 0, done.stderr
    assert figures_of(folder)["steps"] == RECIPES["unet"].sample_steps


def test_samples_of_no_model_are_refused(tmp_path):
    done = sample(tmp_path)
    assert done.returncode == 1
    assert "training.json" in done.stderr.replace("\n", " ")


@needs_font
def test_resuming_goes_on_at_the_saved_iteration(trained, tmp_path):
    before = figures_of(trained / "emoji64-unet")
    checkpoint = trained / "checkpoints" / "emoji64-unet.pt"
    arguments = ("--model", "unet", "--minutes", str(MORE_MINUTES), "--checkpoints", str(tmp_path / "checkpoints"))
    printed = train(tmp_path, *arguments, "--resume", str(checkpoint))
    after = figures_of(tmp_path / "emoji64-unet")
    assert f"going on at iteration {before['iterations']}" in printed
    assert after["iterations"] > before["iterations"]
    assert [step for step, *_ in after["curve"]][: len(before["curve"])] == [step for step, *_ in before["curve"]]


@needs_font
def test_resuming_starts_from_the_saved_weights(trained, tmp_path):
    # A budget that is spent already: what is written must be what was loaded.
    spent = ("--model", "dit", "--minutes", "0.01", "--checkpoints", str(tmp_path / "checkpoints"))
    train(tmp_path, *spent, "--resume", str(trained / "checkpoints"))
    weights = [
        PixelFlowPipeline.from_pretrained(folder / "emoji64-dit").transformer.state_dict()
        for folder in (trained, tmp_path)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_missing_font_names_the_debian_package():
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        emoji_data.load_emoji(Path("no-such-font.ttf"))


def test_variants_share_a_base():
    assert emoji_data.base_of((RUNNER, TONE)) == emoji_data.base_of((FEMALE, ZWJ, RUNNER)) == (RUNNER,)
    assert emoji_data.base_of((MAN,)) == emoji_data.base_of((WOMAN, TONE))
    assert emoji_data.base_of((0x1F1E9, 0x1F1EA)) != emoji_data.base_of((0x1F1EB, 0x1F1F7))


def test_weights_give_each_category_its_share():
    runners = [(RUNNER,), (RUNNER, TONE), (FEMALE, ZWJ, RUNNER)]
    flags = [(0x1F1E9, 0x1F1EA), (0x1F1EB, 0x1F1F7)]
    weights = emoji_data.sampling_weights([*runners, *flags, (0x1F600,)])
    shares = emoji_data.CATEGORY_SHARES
    assert sum(shares.values()) == pytest.approx(1)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights[:3], weights[0])
    assert weights[:3].sum() / weights[3:5].sum() == pytest.approx(shares["people"] / shares["flags"])


@needs_font
def test_cached_set_stands_in_for_the_font(tmp_path):
    emoji = emoji_data.load_emoji(size=16, limit=20)
    assert emoji.images.shape == (20, 16, 16, 3)
    assert emoji.images[:, 0].mean() > 200  # white around the drawings
    emoji.save(tmp_path / "emoji.npz")
    again = emoji_data.load_emoji(tmp_path / "emoji.npz", size=16)
    np.testing.assert_array_equal(again.images, emoji.images)
    np.testing.assert_allclose(again.weights, emoji.weights)
    with pytest.raises(ValueError, match="expected"):
        emoji_data.load_emoji(tmp_path / "emoji.npz", size=64)


@pytest.mark.parametrize(("model", "pipeline"), PIPELINES.items())
def test_bundled_models_are_small_and_whole(model, pipeline):
    folder = EXAMPLES.parent / "ascedfast" / "assets" / f"emoji64-{model}"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert {"README.md", "loss.png", "samples.png", "model_index.json"} <= {path.name for path in files}
    assert f"{RECIPES[model].sample_steps} steps with fresh noise" in (folder / "README.md").read_text()
    loaded = pipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    image = loaded(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all()

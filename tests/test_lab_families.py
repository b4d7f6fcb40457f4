# SPDX-License-Identifier: MIT
"""The families' data, sizes and loading, and that each is a Subject whose rows do not depend on each other."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from lab_weights import full_size_networks, needs_fashion, needs_font, write_untrained

from ascedfast.lab import data, emoji, families, glyphs, nets
from ascedfast.lab.sampling import sample
from ascedfast.lab.subject import Subject

OURS = [name for name, family in families.FAMILIES.items() if not family.packaged]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def sizes():
    return full_size_networks()


def test_nets_of_32_pixels_have_at_most_a_million_parameters(sizes):
    small = [f.folder for f in families.FAMILIES.values() if f.shape == (1, 32, 32)]
    assert len(small) == 5
    assert max(sizes[folder] for folder in small) <= 1_000_000


def test_all_weights_fit_in_16_mb_and_the_table_says_so(sizes):
    table = dict(re.findall(r"^\| ([\w-]+) \| ([\d,]+) \| [\d,]+ \|$", families.__doc__, re.M))
    stated = {name: int(count.replace(",", "")) for name, count in table.items()}
    total = stated.pop("all")
    assert stated == sizes
    assert total == sum(sizes.values())
    for name, count, size in re.findall(r"^\| ([\w-]+) \| ([\d,]+) \| ([\d,]+) \|$", families.__doc__, re.M):
        assert int(size.replace(",", "")) == 2 * int(count.replace(",", "")), name
    assert 2 * total <= 16e6


def test_stored_weights_fit_in_16_mb():
    stored = list(families.WEIGHTS.rglob("*.safetensors")) + list(families.WEIGHTS.rglob("*.json"))
    assert sum(path.stat().st_size for path in stored) <= 16e6


@pytest.mark.parametrize("name", OURS)
def test_family_is_a_subject_that_samples(root, name):
    model = families.load(name, root=root).with_steps(4)
    assert isinstance(model, Subject)
    assert len(model.schedule) == 4
    images = model.decode(sample(model.denoise, model.schedule, model.start([3, 4])))
    assert images.shape == (2, *model.family.image_shape)
    assert bool(images.isfinite().all())
    alone = model.decode(sample(model.denoise, model.schedule, model.start([4])))
    torch.testing.assert_close(images[1:], alone, atol=2e-4, rtol=1e-4)
    assert model.latent == (model.family.image_shape != model.shape)
    assert (model.last_conv is None) == (model.family.prediction == "flow")


@pytest.mark.parametrize(
    ("name", "cls", "folder"),
    [("F3", DDIMScheduler, "emoji64-unet"), ("F4-px", FlowMatchEulerDiscreteScheduler, "emoji64-dit")],
)
def test_packaged_models_load_with_their_own_schedule(name, cls, folder):
    model = families.load(name)
    stored = cls.from_pretrained(families.ASSETS / folder / "scheduler")
    stored.set_timesteps(model.steps)
    torch.testing.assert_close(model.scheduler.timesteps, stored.timesteps, rtol=0, atol=0)
    ours, theirs = model.scheduler.config, stored.config
    assert {k: ours[k] for k in theirs if not k.startswith("_")} == {
        k: theirs[k] for k in theirs if not k.startswith("_")
    }
    x = model.start([0])
    assert model.denoise(x, 0).shape == x.shape


def test_shifts_and_schedules_differ_where_the_family_says_so(root):
    f4, f4s1 = (families.load(name, root=root) for name in ("F4", "F4-s1"))
    for model, shift in ((f4, 3), (f4s1, 1)):
        sigmas = np.array([level.sigma for level in model.schedule.before])
        unshifted = sigmas / (shift - (shift - 1) * sigmas)  # the inverse of shift*s/(1 + (shift - 1)*s)
        np.testing.assert_allclose(np.diff(unshifted), np.diff(unshifted)[0], rtol=1e-3)
        assert sigmas[0] == 1
    assert f4.fingerprint == f4s1.fingerprint
    alphas = [families.load(name, root=root).scheduler.alphas_cumprod for name in ("F1", "F2")]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(alphas[0].double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-9)
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000  # Nichol and Dhariwal, arXiv 2102.09672, Eq. 17
    cosine = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    torch.testing.assert_close(alphas[1][:900].double(), cosine[:900], rtol=1e-3, atol=1e-6)


def test_twin_is_weaker_and_named(root):
    full, weak = families.load("F1", root=root), families.load("F1-W4", root=root)
    assert full.fingerprint != weak.fingerprint
    assert weak.fingerprint == families.load("F1-W4", root=root).fingerprint
    x = full.start([0, 1])
    assert not torch.allclose(full.denoise(x, 12), weak.denoise(x, 12), atol=1e-4)


def test_class_matters_to_the_conditional_model_alone(root):
    model = families.load("F1c", root=root)
    denoise, labels = model.conditional([0, 11, 25])
    assert labels.tolist() == [0, 1, 5]
    x = model.start([0]).expand(3, -1, -1, -1)
    made = denoise(x, 5)
    assert not torch.allclose(made[0], made[1], atol=1e-5)
    assert not torch.allclose(made[0], model.denoise(x, 5)[0], atol=1e-5)
    with pytest.raises(ValueError, match="not conditional"):
        families.load("F1", root=root).conditional([0])


def test_missing_weights_and_unknown_names_say_what_to_do(tmp_path):
    with pytest.raises(families.MissingWeightsError, match=r"training --family F2 --out .*" + tmp_path.name):
        families.load("F2", root=tmp_path)
    for name in ("F9", "F1-W5", "W4"):
        with pytest.raises(ValueError, match="choose one of"):
            families.load(name)


def test_latents_are_scaled_by_channel_and_come_back(root):
    vae = families.load("F4", root=root).vae
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    raw = vae.encode(images).latent_dist.mean
    latents = nets.to_latents(vae, images)
    for channel, (mean, deviation) in enumerate([(0.1, 1.0), (0.2, 2.0), (0.3, 0.5), (0.4, 1.5)]):
        torch.testing.assert_close(latents[:, channel], (raw[:, channel] - mean) / deviation)
    torch.testing.assert_close(nets.from_latents(vae, latents), vae.decode(raw).sample, atol=1e-4, rtol=1e-4)
    nets.measure_latents(vae, images)
    scaled = nets.to_latents(vae, images)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    vae.register_to_config(latents_mean=None)
    with pytest.raises(ValueError, match="not finished"):
        nets.to_latents(vae, images)


def test_features_and_glyph_judge_answer_through_the_model(root, few_grids):
    model = families.load("F5", root=root)
    grids = glyphs.draw_grids([1, 2], "repeat")
    score, where = model.defects(torch.cat([grids.images, model.real(2)]))
    assert (score > 0).tolist() == [True, True, False, False]
    assert where.shape == (4, 32, 32)
    assert int(where[0].sum()) == 2 * 8 * 8
    assert model.features(grids.images).shape == (2, 128)


def test_what_emoji_are_compared_with_is_drawn_as_in_training(root, monkeypatch):
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 64, 64) / 10
    train = data.ImageSet(images, torch.zeros(4).long(), torch.tensor([0.7, 0.3, 0.0, 0.0], dtype=torch.float64))
    monkeypatch.setattr(data, "load", lambda name: data.Split(train, train))
    drawn = families.load("F4", root=root).reference(1000, 5)
    share = float((drawn[:, 0, 0, 0] == 0).double().mean())
    assert 0.65 < share < 0.75
    assert float(drawn.max()) < 0.15
    model = families.load("F4", root=root)
    assert torch.equal(drawn, model.reference(1000, 5))
    assert not torch.equal(drawn, model.reference(1000, 6))


def test_where_enough_is_held_out_real_images_are_compared_with(root, few_grids):
    model = families.load("F5", root=root)
    assert torch.equal(model.reference(3, 1), model.real(3, 1))


@needs_fashion
def test_fashion_is_padded_and_its_held_out_part_is_its_test_part():
    split = data.load("fashion32", 400)
    assert split.train.images.shape == (400, 1, 32, 32)
    assert split.held_out.images.shape == (100, 1, 32, 32)
    assert split.train.images.dtype == torch.float32
    assert (float(split.train.images.min()), float(split.train.images.max())) == (-1.0, 1.0)
    assert bool((split.train.images[:, :, :2] == -1).all())
    assert split.train.labels.unique().tolist() == list(range(10))
    raw = gzip.decompress((data.FASHION_FOLDER / "t10k-images-idx3-ubyte.gz").read_bytes())
    test_part = {raw[16 + 784 * i : 16 + 784 * (i + 1)] for i in range(10_000)}
    inner = ((split.held_out.images[:, 0, 2:-2, 2:-2] + 1) * 127.5).round().byte()
    assert all(image.numpy().tobytes() in test_part for image in inner)
    again = data.fashion(400)
    torch.testing.assert_close(again.train.images, split.train.images, rtol=0, atol=0)


def test_missing_or_damaged_fashion_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        data.fashion(folder=Path("no-such-folder"))
    for prefix in ("train", "t10k"):
        for kind, content in (("images-idx3", b"\0\0\x08\x03" + b"\0\0\0\x01" * 3), ("labels-idx1", b"")):
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="0 values"):
        data.fashion(folder=tmp_path)


@needs_font
def test_emoji_parts_do_not_overlap_and_weights_sum_to_one():
    split = data.load("emoji64", 64)
    assert split.train.images.shape == (64, 3, 64, 64)
    assert split.held_out.images.shape == (16, 3, 64, 64)
    assert float(split.train.weights.sum()) == pytest.approx(1)
    assert int(split.train.labels.max()) < len(emoji.CATEGORY_SHARES)
    seen = {image.numpy().tobytes() for image in split.train.images}
    assert sum(image.numpy().tobytes() in seen for image in split.held_out.images) <= 1  # the font repeats some


def test_grids_keep_the_rule_and_their_labels():
    split = data.load("glyphs32", 40)
    for part in split:
        verdict = glyphs.judge(part.images)
        assert not bool(verdict.defective.any())
        assert torch.equal(verdict.glyphs.flatten(1), part.labels)
    assert not set(data.GLYPH_TRAIN) & set(data.GLYPH_HELD_OUT)


def test_unknown_data_is_refused():
    with pytest.raises(ValueError, match="choose one of"):
        data.load("cifar")
    with pytest.raises(ValueError, match="limit"):
        data.load("glyphs32", 2)

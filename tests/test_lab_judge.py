# SPDX-License-Identifier: MIT
"""The judge of natural defects on tiny real data: distances by brute force, its level, its AUROC, when it refuses."""

import itertools
import json

import numpy as np
import pytest
import torch
from lab_weights import write_untrained

from ascedfast.lab import damage as damages
from ascedfast.lab import data, families, glyphs, judge
from ascedfast.lab.extractors import RANDOM, PatchNet, cut_and_paste, patch_loss


@pytest.fixture(scope="module")
def grids():
    """Stand-ins for Fashion-MNIST that every machine has: grey, 32x32."""
    return glyphs.draw_grids(range(200_000, 200_240)).images


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return PatchNet(1, 32, width=4, features=6).eval()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory, grids, net):
    """A folder with patch features of the glyph grids as "glyphs32", frozen."""
    root = tmp_path_factory.mktemp("judge")
    net.save_pretrained(root / "patches-glyphs32" / "net")
    return root, judge.freeze("glyphs32", root, limit=160)


def whitened_by_hand(net, references, images):
    """numpy: features, Cholesky-whitened over all displaced references; ([64, m, d], [n, 64, d])."""
    wide = torch.nn.functional.pad(references, [2] * 4, mode="replicate")
    with torch.no_grad():
        moved = [net.embed(wide[:, :, y : y + 32, x : x + 32]) for y, x in itertools.product((0, 2, 4), repeat=2)]
        queries = net.embed(images).flatten(2).transpose(1, 2).double().numpy()
    bank = torch.cat(moved).flatten(2).transpose(1, 2).double().numpy()
    flat = bank.reshape(-1, bank.shape[-1])
    covariance = np.cov(flat.T)
    covariance += 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    return (bank - flat.mean(0)) @ inverse.T, (queries - flat.mean(0)) @ inverse.T


def test_distances_equal_brute_force(net, grids, monkeypatch):
    monkeypatch.setattr(judge, "IMAGE_CHUNK", 3)
    monkeypatch.setattr(judge, "BANK_CHUNK", 50)
    references, images = grids[:20], grids[20:27]
    bank, queries = whitened_by_hand(net, references, images)
    found = judge.PatchJudge(net, references).distances(images)
    expected = np.array(
        [[min(np.linalg.norm(queries[i, p] - other) for other in bank[:, p]) for p in range(64)] for i in range(7)]
    )
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_real_patches_displaced_by_two_pixels_are_at_distance_0(net, grids):
    made = judge.PatchJudge(net, grids[:10])
    moved = torch.nn.functional.pad(grids[3:4], [2] * 4, mode="replicate")[:, :, :32, 4:]
    assert float(made.distances(moved).max()) < 1e-3
    assert float(made.distances(grids[50:51]).max()) > 0.1


def test_one_percent_of_held_out_images_exceed_the_level(net, grids):
    made = judge.PatchJudge(net, grids[:40])
    made.calibrate(grids[40:240])
    score, cells = made.defects(grids[40:240])
    assert int((score > 0).sum()) == 2  # 1 % of 200
    assert cells.shape == (200, 8, 8)
    assert torch.equal(cells.flatten(1).any(1), score > 0)


def test_a_judgement_does_not_depend_on_the_batch_nor_on_values_beyond_the_range(net, grids):
    made = judge.PatchJudge(net, grids[:10])
    together, alone = made.distances(grids[10:14]), made.distances(grids[12:13])
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=1e-4)
    wild = torch.where(grids[12:13] > 0.5, 3.0, grids[12:13])
    torch.testing.assert_close(made.distances(wild), made.distances(wild.clamp(-1, 1)))


def test_damage_at_one_place_leaves_distant_patches_alone(net, grids):
    made = judge.PatchJudge(net, grids[:10])
    hurt = grids[12:13].clone()
    hurt[:, :, :4, :4] = 0.3
    changed = made.distances(hurt) != made.distances(grids[12:13])
    assert bool(changed[0, 0, 0])
    assert not bool(changed[0, 5:, :].any())
    assert not bool(changed[0, :, 5:].any())


def test_bad_images_are_refused(net, grids):
    made = judge.PatchJudge(net, grids[:5])
    with pytest.raises(ValueError, match="32, 32"):
        made.distances(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match="NaN"):
        made.distances(torch.full((1, 1, 32, 32), float("nan")))


def test_record_states_what_the_judge_is_worth(frozen):
    root, record = frozen
    assert set(record["kinds"]) == set(damages.KINDS)
    means = [k["auroc"] for k in record["kinds"].values()]
    assert record["auroc"] == pytest.approx(sum(means) / len(means))
    assert all(0 <= k[name] <= 1 for k in record["kinds"].values() for name in ("auroc", "image_auroc", "found"))
    assert json.loads((root / "judge-glyphs32.json").read_text()) == record
    assert f"{record['auroc']:.3f}" in judge.summary(record)


def test_a_perfect_judge_scores_1_and_a_blind_one_half(grids):
    class Fake:
        size, level = 32, 0.0

        def __init__(self, rate):
            self.rate = rate

        def distances(self, images):
            nearest = torch.cdist(images.flatten(1), known.flatten(1)).argmin(1)
            change = (images - known[nearest]).square()
            sharp = torch.nn.functional.avg_pool2d(change, 4)[:, 0]
            blind = torch.rand(len(images), 8, 8, generator=torch.Generator().manual_seed(len(images)))
            return self.rate * sharp + (1 - self.rate) * blind

    known = grids[:60]
    sharp, blind = (judge.measure(Fake(rate), known, grids[100:]) for rate in (1.0, 0.0))
    assert sharp["auroc"] > 0.95
    assert sharp["image_auroc"] == 1
    # The blind one draws the same numbers for damaged and whole images, which is not what chance is; hence the margin.
    assert abs(blind["auroc"] - 0.5) < 0.05


def test_a_judge_below_the_needed_auroc_is_refused_with_its_figure(frozen, tmp_path):
    root, record = frozen
    path = root / "judge-glyphs32.json"
    try:
        for value, fit in ((0.899, False), (0.9, True), (float("nan"), False)):
            path.write_text(json.dumps(record | {"auroc": value}))
            if fit:
                loaded = judge.PatchJudge.load("glyphs32", root)
                assert loaded.level == record["level"]
            else:
                with pytest.raises(judge.UnfitJudgeError, match=f"{value:.3f}"):
                    judge.PatchJudge.load("glyphs32", root)
    finally:
        path.write_text(json.dumps(record))


@pytest.mark.parametrize("what", ["code", "weights", "images"])
def test_a_judge_that_was_changed_is_refused(frozen, what):
    root, record = frozen
    path = root / "judge-glyphs32.json"
    try:
        path.write_text(json.dumps(record | {"auroc": 1.0, what: "0" * 64}))
        with pytest.raises(judge.UnfitJudgeError, match=f"the {what} is not what was frozen"):
            judge.PatchJudge.load("glyphs32", root)
    finally:
        path.write_text(json.dumps(record))


def test_a_judge_that_was_never_frozen_says_what_to_do(tmp_path, net):
    with pytest.raises(families.MissingWeightsError, match="--family extractors"):
        judge.PatchJudge.load("glyphs32", tmp_path)
    net.save_pretrained(tmp_path / "patches-glyphs32" / "net")
    with pytest.raises(families.MissingWeightsError, match="--family extractors"):
        judge.PatchJudge.load("glyphs32", tmp_path)


@pytest.mark.parametrize("kind", damages.KINDS)
def test_damage_is_visible_inside_its_box_and_nowhere_else(grids, kind):
    images = grids[:30]
    hurt = damages.damage(images, kind, grids[100:], range(30))
    again = damages.damage(images, kind, grids[100:], range(30))
    assert torch.equal(hurt.images, again.images)
    assert torch.equal(hurt.images[5:6], damages.damage(images[5:6], kind, grids[100:], [5]).images)
    changed = (hurt.images != images).any(1)
    assert not bool((changed & ~hurt.boxes).any())
    assert float(hurt.images.abs().max()) <= 1 + 1e-6
    sides = hurt.boxes.any(2).sum(1)
    assert torch.equal(sides, hurt.boxes.any(1).sum(1))
    assert 8 <= int(sides.min()) <= int(sides.max()) <= 16
    for before, after, box, strength in zip(images, hurt.images, hurt.boxes, hurt.strength, strict=True):
        rms = float((before - after)[:, box].square().mean().sqrt()) * 127.5
        assert rms == pytest.approx(strength, rel=1e-4)
        assert strength >= damages.VISIBLE


def test_unknown_damage_is_refused(grids):
    with pytest.raises(ValueError, match="choose one of"):
        damages.damage(grids[:1], "scratch", grids, [0])


def test_pasting_changes_a_rectangle_of_half_of_the_images(grids):
    random = torch.rand(200, RANDOM, generator=torch.Generator().manual_seed(1))
    strewn = torch.rand(200, 32, 32, 2, generator=torch.Generator().manual_seed(2))
    made, change = cut_and_paste(grids[:200], grids[:200].flip(0), random, strewn)
    untouched = random[:, 4] >= 0.5
    assert torch.equal(made[untouched], grids[:200][untouched])
    assert 0.02 < float((change > 0).float().mean()) < 0.1
    torch.testing.assert_close(change, (made - grids[:200]).square().mean(1).sqrt())
    for axis in (1, 2):
        lines = (change > 0).any(axis).float()
        # From the first to the last changed line at most half of the side.
        span = [int(line.nonzero().max() - line.nonzero().min()) + 1 for line in lines if line.any()]
        assert len(span) > 60
        assert max(span) <= 17


def test_patch_loss_rewards_the_right_answer():
    change = torch.zeros(2, 32, 32)
    change[0, 8:16, 8:16] = 0.5
    truth = torch.nn.functional.avg_pool2d(change.square()[:, None], 8, 4, 2)[:, 0] > 0

    def answer(right):
        return lambda images: torch.where(truth, 8.0, -8.0) * (1 if right else -1)

    images = torch.zeros(2, 1, 32, 32)
    assert float(patch_loss(answer(True), images, change)) < 0.01
    assert float(patch_loss(answer(False), images, change)) > 7


def test_second_judge_is_for_weak_twins_of_its_own_model_only(tmp_path, few_grids):
    root = write_untrained(tmp_path)
    full, weak, other = (families.load(name, root=root) for name in ("F5", "F5-W4", "F1-W4"))
    real = full.real(100)
    second = judge.DenoisingJudge.calibrated(full, real)
    score, cells = second.defects(weak, real)
    assert int((score > 0).sum()) == 1
    assert cells.shape == (100, 8, 8)
    for wrong in (full, other):
        with pytest.raises(ValueError, match="no weak twin of F5"):
            second.defects(wrong, real)
    with pytest.raises(ValueError, match="needs the full-quality net"):
        judge.DenoisingJudge.calibrated(weak, real)


def test_denoising_error_by_hand(tmp_path):
    """Of a net that always answers 0: the mean square of the noise itself, cell by cell."""
    model = families.load("F5", root=write_untrained(tmp_path))
    for parameter in model.net.conv_out.parameters():
        parameter.data.zero_()
    found = judge.denoising_error(model, data.load("glyphs32", 16).train.images[:3])
    noise = [torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    cells = [n.square().reshape(8, 4, 8, 4).mean((1, 3)) for n in noise]
    torch.testing.assert_close(found, ((cells[0] + cells[1]) / 2).expand(3, 8, 8), rtol=1e-3, atol=1e-4)

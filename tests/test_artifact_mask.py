# SPDX-License-Identifier: MIT
"""`artifact_mask` against numpy and scipy, the official mode pixel for pixel (stages: test_artifact_mask_stages.py)."""

import math
from collections import Counter
from functools import cache
from itertools import cycle

import numpy as np
import official_oracle as oracle
import pytest
import torch
from frame_sequences import KINDS

from ascedfast import AscedConfig, artifact_mask

SEQUENCES_A_KIND = 80  # 13 kinds: 1040 sequences
BATCH_SIZES = (1, 1, 3, 3)  # a sample must not see its neighbours
MODES = {"official": AscedConfig.official, "paper": AscedConfig.paper, "fast": AscedConfig.fast}


def make_batch(name, seed, k, c, h, w, size=1):
    """[K, B, C, H, W], every sample another sequence of the kind."""
    rng = np.random.default_rng([list(KINDS).index(name), seed])
    return torch.from_numpy(np.stack([KINDS[name].make(rng, k, c, h, w) for _ in range(size)], axis=1))


def random_parameters(rng):
    return {
        "mad_scale": float(rng.uniform(1, 5)),
        "min_area": int(rng.integers(0, 101)),
        "max_area": int(10 ** rng.uniform(np.log10(300), 4)),
        "core_width": int(rng.integers(2, 8)),
    }


def random_shape(rng, name, group):
    """Non-square, 28..96 px; the first three groups of a kind have a side of 200..256, oversize ones need more."""
    k, c = int(rng.integers(2, 14)), int(rng.choice(KINDS[name].channels))
    h, w = (int(side) for side in rng.integers(28, 97, 2))
    if name == "oversize" and group < 12:
        h, w = (int(side) for side in rng.integers(180, 257, 2))
    elif group < 3:
        h, w = rng.permutation([int(rng.integers(200, 257)), int(rng.integers(28, 257))]).tolist()
    return k, c, h, w


def touches_border(mask):
    return mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()


@cache
def compare_official(name):
    """Runs all sequences of one kind; returns what was met and which samples differ."""
    census, differences = Counter(), []
    sizes = cycle(BATCH_SIZES)
    group = 0
    while census["sequences"] < SEQUENCES_A_KIND:
        rng = np.random.default_rng([list(KINDS).index(name), group, 7])
        k, c, h, w = random_shape(rng, name, group)
        parameters = random_parameters(rng) if group % 2 else {}
        frames = make_batch(name, group, k, c, h, w, size=next(sizes))
        masks = artifact_mask(frames, AscedConfig.official(**parameters))
        assert masks.shape == (frames.shape[1], 1, h, w)
        assert masks.dtype == torch.bool
        in_torch = artifact_mask(frames, AscedConfig.official(**parameters, backend="reference"))
        assert torch.equal(masks, in_torch), f"back ends differ in group {group}"
        for sample in range(frames.shape[1]):
            expected = oracle.official(frames[:, sample].numpy(), **parameters)
            wrong = int((masks[sample, 0].numpy() != expected.mask).sum())
            if wrong:
                differences.append(f"{wrong} px: group {group}, sample {sample}, {[k, c, h, w]}, {parameters}")
            max_area = parameters.get("max_area", 10000)
            mads, medians = np.array(expected.mads), np.array(expected.medians)
            census += Counter(
                sequences=1,
                pixels=h * w,
                different=wrong,
                flagged=int(expected.mask.sum()),
                non_empty=int(expected.mask.any()),
                random_parameters=int(bool(parameters)),
                in_batches=int(frames.shape[1] > 1),
                one_channel=int(c == 1),
                large_side=int(max(h, w) >= 200),
                odd_count=h * w * c % 2,
                ties=int(expected.ties > 0),
                mad_zero=int((mads == 0).any()),
                mad_zero_median_not=int(((mads == 0) & (medians > 0)).any()),
                oversize_dropped=int((expected.areas >= max_area).any()),
                oversize_dropped_others_kept=int((expected.areas >= max_area).any() and expected.mask.any()),
                border_kept=int(touches_border(expected.mask)),
                core_dropped=int(expected.mask.sum() < expected.within.sum()),
            )
        group += 1
    return census, differences


@pytest.mark.parametrize("name", KINDS)
def test_official_mask_equals_oracle(name):
    census, differences = compare_official(name)
    assert not differences, f"{KINDS[name].why}; differing samples:\n" + "\n".join(differences)
    assert census["sequences"] >= SEQUENCES_A_KIND


# At least this many sequences of the kind must have met what the kind is for; otherwise the comparison proves nothing.
MET = {
    "smooth_noise": {"non_empty": 30},
    "flashing_boxes": {"mad_zero": 50, "non_empty": 40},
    "shifting_ground": {"mad_zero_median_not": 50, "ties": 50, "non_empty": 40},
    "saturated": {"mad_zero": 10, "non_empty": 30},
    "sprite_on_white": {"mad_zero": 20, "oversize_dropped": 10, "non_empty": 30},
    "patches_appearing": {"non_empty": 50},
    "white_noise": {"non_empty": 10, "core_dropped": 8},
    "grey_level_edges": {"non_empty": 20},
    "identical_frames": {"mad_zero": 80, "ties": 80},
    "grey_in_three_channels": {"non_empty": 50},
    "thin_lines": {"non_empty": 30, "core_dropped": 10},
    "touching_the_border": {"border_kept": 50},
    "oversize": {"oversize_dropped": 25, "oversize_dropped_others_kept": 10},
}


@pytest.mark.parametrize("name", KINDS)
def test_kind_meets_what_it_is_for(name):
    census, _ = compare_official(name)
    for what, least in MET[name].items():
        assert census[what] >= least, f"{name}: {what}"


def test_census_of_all_kinds():
    total = sum((compare_official(name)[0] for name in KINDS), Counter())
    print(dict(total))
    assert total["different"] == 0
    assert total["sequences"] >= 1000
    assert total["random_parameters"] >= 0.4 * total["sequences"]
    assert total["in_batches"] >= 0.4 * total["sequences"]
    assert total["large_side"] >= 40
    assert total["non_empty"] >= 0.4 * total["sequences"]
    assert total["odd_count"] >= 100
    assert total["one_channel"] >= 200
    assert total["ties"] >= 200
    assert total["mad_zero"] >= 200
    assert total["oversize_dropped"] >= 50
    assert total["border_kept"] >= 100


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_official_mask_of_tiny_frames(channels):
    # The blur's radius is 8: it folds several times over. Sides below the core keep nothing.
    rng = np.random.default_rng(channels)
    flagged = 0
    for seed in range(60):
        h, w = (int(side) for side in rng.integers(1, 28, 2))
        frames = make_batch("white_noise", seed, int(rng.integers(2, 8)), channels, h, w)
        frames[-1, ..., h // 3 :, : w // 2] += 1
        parameters = {"mad_scale": 2.0, "min_area": int(rng.integers(0, 10)), "core_width": int(rng.integers(1, 6))}
        expected = oracle.official(frames[:, 0].numpy(), **parameters).mask
        mask = artifact_mask(frames, AscedConfig.official(**parameters))
        np.testing.assert_array_equal(mask[0, 0].numpy(), expected, err_msg=f"{frames.shape}, {parameters}")
        flagged += expected.any()
    assert flagged >= 20


@pytest.mark.parametrize("blur_sigma", [0.5, 1.0, 1.3, 3.0])
def test_official_mask_with_another_sigma(blur_sigma):
    frames = make_batch("patches_appearing", 3, 5, 3, 71, 90, size=4)
    masks = artifact_mask(frames, AscedConfig.official(blur_sigma=blur_sigma))
    for sample in range(4):
        expected = oracle.official(frames[:, sample].numpy(), blur_sigma=blur_sigma).mask
        np.testing.assert_array_equal(masks[sample, 0].numpy(), expected)


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("bound", ["min_area", "max_area"])
def test_area_bounds_are_strict(bound, offset):
    # The bound is put on, just below and just above the area of a region that is there.
    frames = make_batch("patches_appearing", 11, 6, 3, 80, 91)
    free = {"min_area": 0, "max_area": 10**6, "core_width": 1}
    areas = np.sort(oracle.official(frames[:, 0].numpy(), **free).areas)
    assert len(areas) >= 3
    parameters = {**free, bound: int(areas[-2]) + offset}
    expected = oracle.official(frames[:, 0].numpy(), **parameters).mask
    mask = artifact_mask(frames, AscedConfig.official(**parameters))
    np.testing.assert_array_equal(mask[0, 0].numpy(), expected)
    inside = (areas > parameters["min_area"]) & (areas < parameters["max_area"])
    assert mask.sum() == areas[inside].sum()


@pytest.mark.parametrize("core_width", [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 40])
def test_core_of_any_width(core_width):
    frames = make_batch("thin_lines", 5, 6, 1, 66, 75, size=3)
    masks = artifact_mask(frames, AscedConfig.official(core_width=core_width, min_area=5))
    for sample in range(3):
        expected = oracle.official(frames[:, sample].numpy(), core_width=core_width, min_area=5).mask
        np.testing.assert_array_equal(masks[sample, 0].numpy(), expected)
    assert masks.any() or core_width > 8


@pytest.mark.parametrize("name", KINDS)
def test_paper_mask_equals_oracle(name):
    # Scores are unbounded: the frames are scaled well beyond [-1, 1]. MAD 0 and ties come with the kinds.
    flagged = 0
    for seed in range(8):
        rng = np.random.default_rng([seed, 5])
        k, c, h, w = random_shape(rng, name, group=99)
        mad_scale = 3.0 if seed % 2 else float(rng.uniform(1, 5))
        frames = make_batch(name, seed, k, c, h, w, size=2) * 10 ** float(rng.uniform(-2, 3))
        masks = artifact_mask(frames, AscedConfig.paper(mad_scale=mad_scale))
        for sample in range(2):
            expected = oracle.paper(frames[:, sample].numpy(), mad_scale=mad_scale).mask
            np.testing.assert_array_equal(masks[sample, 0].numpy(), expected, err_msg=f"seed {seed}")
            flagged += expected.any()
    assert flagged > 0 or name == "identical_frames"


def test_threshold_has_numpys_rounding():
    # Three locations stand on the threshold, a float32 step below and a step above it: only the last is flagged. The
    # products in another order, or a threshold kept in float64, move a tenth of the thresholds by a step.
    rng = np.random.default_rng(13)
    for _ in range(300):
        h, w, mad_scale = *rng.integers(8, 30, 2).tolist(), float(rng.uniform(1.5, 5))
        change = rng.random((h, w), dtype=np.float32)
        change[0, :3] = 1e6  # outliers: their values do not touch the statistics
        level = oracle.threshold(*oracle.median_and_mad(change), mad_scale)
        change[0, :3] = level, np.nextafter(level, np.float32(0)), np.nextafter(level, np.float32(9))
        assert oracle.threshold(*oracle.median_and_mad(change), mad_scale) == level
        frames = torch.from_numpy(np.stack([np.zeros_like(change), change]))[:, None, None]
        mask = artifact_mask(frames, AscedConfig.paper(mad_scale=mad_scale))[0, 0]
        assert mask[0, :3].tolist() == [False, False, True]
        np.testing.assert_array_equal(mask.numpy(), change > level)


@pytest.mark.parametrize("name", KINDS)
def test_fast_mask_agrees_with_oracle(name):
    # The order of the float32 sums is free here, so a flag may turn where a map lies within 1e-6 * (1 + threshold) of
    # its threshold (oracle.band); one such pixel may join or part regions. So the flags are compared without region
    # rules and outside the band, and the region rules must then follow exactly from the flags that were found.
    no_rules = AscedConfig.fast(min_area=0, max_area=math.inf, core_width=1)
    pixels = band = flagged = dropped = 0
    for seed in range(12):
        rng = np.random.default_rng([seed, 6])
        k, c, h, w = random_shape(rng, name, group=seed)
        frames = make_batch(name, seed, k, c, h, w, size=2)
        flags = artifact_mask(frames, no_rules)[:, 0].numpy()
        masks = artifact_mask(frames, AscedConfig.fast())[:, 0].numpy()
        for sample in range(2):
            expected = oracle.fast(frames[:, sample].numpy())
            wrong = flags[sample] != expected.flags
            assert not (wrong & ~expected.band).any(), f"seed {seed}: {wrong.sum()} flags, {(k, c, h, w)}"
            np.testing.assert_array_equal(masks[sample], oracle.fast_regions(flags[sample]), err_msg=f"seed {seed}")
            pixels += h * w
            band += int(expected.band.sum())
            flagged += int(masks[sample].sum())
            dropped += int(flags[sample].sum() - masks[sample].sum())
    assert band <= 1e-3 * pixels
    assert flagged > 0 or name == "identical_frames"
    assert dropped > 0 or name in ("identical_frames", "flashing_boxes", "shifting_ground")


def mixed_batch(k=5, c=3, h=60, w=53):
    names = ["patches_appearing", "shifting_ground", "sprite_on_white", "white_noise", "identical_frames"]
    return torch.cat([make_batch(name, 21, k, c, h, w) for name in names], dim=1)


@pytest.mark.parametrize("mode", MODES)
def test_sample_is_alone_in_its_batch(mode):
    config, frames = MODES[mode](), mixed_batch()
    alone = torch.cat([artifact_mask(frames[:, i : i + 1], config) for i in range(frames.shape[1])])
    assert alone.any()
    for shift in range(frames.shape[1]):
        order = torch.arange(frames.shape[1]).roll(shift)
        assert torch.equal(artifact_mask(frames[:, order], config), alone[order])
    assert torch.equal(artifact_mask(frames[:, [0, 0, 0, 1]], config), alone[[0, 0, 0, 1]])


@pytest.mark.parametrize("mode", MODES)
def test_frames_are_left_alone_and_may_be_strided(mode):
    config, frames = MODES[mode](), mixed_batch()
    wanted = artifact_mask(frames, config)
    before = frames.clone()
    artifact_mask(frames, config)
    assert torch.equal(frames, before)
    channels_last = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(artifact_mask(channels_last, config), wanted)
    window = torch.stack([frames, frames + 1], dim=1).flatten(0, 1)[::2]  # every second frame of a longer store
    assert torch.equal(artifact_mask(window, config), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_converted_to_float32_first(mode, dtype):
    config = MODES[mode]()
    frames = (mixed_batch().double() + 1e-9).to(dtype)
    wanted = artifact_mask(frames.float(), config)
    assert wanted.any()
    assert torch.equal(artifact_mask(frames, config), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("frame", [0, 2, -1])
def test_one_bad_value_empties_its_own_mask_only(mode, value, frame):
    config, frames = MODES[mode](), mixed_batch()
    wanted = artifact_mask(frames, config)
    assert wanted[0].any()
    frames[frame, 0, 1, 17, 40] = value
    masks = artifact_mask(frames, config)
    assert not masks[0].any()
    assert torch.equal(masks[1:], wanted[1:])


def test_default_config_is_fast():
    frames = mixed_batch()
    assert torch.equal(artifact_mask(frames), artifact_mask(frames, AscedConfig.fast()))


@pytest.mark.parametrize("mode", MODES)
def test_empty_batch(mode):
    mask = artifact_mask(torch.zeros(4, 0, 3, 20, 30), MODES[mode]())
    assert mask.shape == (0, 1, 20, 30)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        pytest.param(torch.zeros(4, 3, 20, 20), "K, B, C, H, W", id="rank-4"),
        pytest.param(torch.zeros(4, 1, 1, 3, 20, 20), "K, B, C, H, W", id="rank-6"),
        pytest.param(torch.zeros(1, 2, 3, 20, 20), "(?i)two|2 frames|K >= 2|at least 2", id="one-frame"),
        pytest.param(torch.zeros(0, 2, 3, 20, 20), "(?i)two|2 frames|K >= 2|at least 2", id="no-frame"),
        pytest.param(torch.zeros(4, 2, 3, 0, 20), "(?i)empty|zero|H", id="no-rows"),
        pytest.param(torch.zeros(4, 2, 3, 20, 0), "(?i)empty|zero|W", id="no-columns"),
        pytest.param(torch.zeros(4, 2, 3, 20, 20, dtype=torch.uint8), "(?i)float.*uint8", id="uint8"),
        pytest.param(torch.zeros(4, 2, 3, 20, 20, dtype=torch.int64), "(?i)float.*int64", id="int64"),
        pytest.param(torch.zeros(4, 2, 3, 20, 20, dtype=torch.bool), "(?i)float.*bool", id="bool"),
        pytest.param(np.zeros((4, 2, 3, 20, 20), np.float32), "(?i)tensor", id="numpy"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_unusable_frames_are_refused(mode, frames, message):
    with pytest.raises((TypeError, ValueError), match=message):
        artifact_mask(frames, MODES[mode]())


@pytest.mark.parametrize("config", [{"mad_scale": 3.0}, "official", AscedConfig], ids=["dict", "str", "class"])
def test_config_of_another_type_is_refused(config):
    with pytest.raises((TypeError, ValueError), match="AscedConfig"):
        artifact_mask(torch.zeros(4, 2, 3, 20, 20), config)

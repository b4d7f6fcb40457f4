# SPDX-License-Identifier: MIT
"""Statistics of video by frame: numpy and scipy frame by frame, the kernels' bits, what it finds that those by sample
miss, and that frames and rows know nothing of each other."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from layouts import DEVICES, same_bits
from null_tables import calibrated
from row_loop import CHANNELS, flow_schedule
from scipy import ndimage

import ascedfast
from ascedfast import AscedConfig, ops
from ascedfast.engine import Engine

pytestmark = [pytest.mark.usefixtures("poisoned_empty"), *([pytest.mark.gpu] if DEVICES == ["cuda"] else [])]
DEVICE = DEVICES[0]
BACKENDS = ["reference", "triton"]
SETTINGS = {"mad_scale": 2.0, "mad_floor": 0.01, "z_floor": 0.02}
SHAPES = {
    "one channel": (3, 2, 1, 4, 9, 8),
    "channels": (2, 3, 3, 2, 7, 6),
    "one frame": (2, 2, 1, 1, 8, 8),
    "a row": (3, 1, 2, 3, 6, 7),
}


def maps_of(shape, seed=0):
    """Squares of normals; each frame of each row moves by another amount."""
    amounts = 1 + 7 * torch.rand(shape[1], 1, shape[3], 1, 1, generator=tiny.generator(seed + 1))
    return (tiny.randn(*shape, seed=seed).square() * amounts).to(DEVICE)


def threshold(maps, backend, **changes):
    return ops.robust_threshold(maps, **(SETTINGS | {"blur_sigma": 0.7, "by_frame": True} | changes), backend=backend)


def of_one_frame(maps, factor, mad_floor, z_floor, sigma):
    """Maps [K, C, H, W] of one frame of one row, factor: mad_scale*1.4826, fp32: counts and z by numpy and scipy."""
    counts, z = 0, -np.inf
    for one in maps:
        one = np.moveaxis(one, 0, -1)
        if sigma > 0:
            one = ndimage.gaussian_filter(one, [sigma, sigma, sigma if one.shape[-1] > 1 else 0])
        center = np.median(one)
        mad = np.median(np.abs(one - center))
        peak = one.max(-1)
        counts = counts + (peak > center + factor * np.float32(max(mad, np.float32(mad_floor))))
        z = np.maximum(z, (peak.astype(np.float64) - center) / (1.4826 * max(mad, z_floor)))
    return counts, z


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sigma", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["float", "row", "plane"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_frame_is_numpys(shape, kind, sigma, backend):
    maps = maps_of(shape)
    _, rows, _, frames, *plane = shape
    column = torch.linspace(1.0, 3.0, rows)
    scales = torch.rand(rows, frames, *plane, generator=tiny.generator(9)) * 3
    scale = {"float": 1.7, "row": column.to(DEVICE), "plane": scales.to(DEVICE)}[kind]
    settings = {"mad_scale": scale, "blur_sigma": sigma}
    counts, z = threshold(maps, backend, count=True, **settings)
    flags, same_z = threshold(maps, backend, **settings)
    assert torch.equal(flags, counts > 0)
    assert same_bits(z, same_z)
    assert counts.shape == z.shape == (rows, frames, *plane)
    wide = maps.cpu().numpy()
    for row in range(rows):
        for frame in range(frames):
            factor = {"row": column[row], "plane": scales[row, frame]}.get(kind)
            factor = np.float32(1.7 * 1.4826) if factor is None else factor.numpy() * np.float32(1.4826)
            expected, expected_z = of_one_frame(wide[:, row, :, frame], factor, 0.01, 0.02, sigma)
            assert np.array_equal(counts[row, frame].cpu().numpy(), expected)
            np.testing.assert_allclose(z[row, frame].cpu().numpy(), expected_z, rtol=2e-5, atol=2e-5)


BY_SAMPLE = {"in registers": (1, 1, 1, 2, 64, 48), "larger": (1, 1, 1, 2, 130, 127), "many maps": (17, 1, 1, 5, 1, 9)}


@pytest.mark.parametrize("shape", [*SHAPES.values(), *BY_SAMPLE.values()], ids=[*SHAPES, *BY_SAMPLE])
def test_bits_of_the_kernel(shape):
    sigma = 0.7 if torch.Size(shape).numel() < 5000 else 0.0
    expected, got = (threshold(maps_of(shape), backend, blur_sigma=sigma, count=True) for backend in BACKENDS)
    assert torch.equal(got[0], expected[0])
    assert same_bits(got[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bank_in_any_strides(backend):
    bank = maps_of((3, 3, 2, 4, 7, 6))
    for view in (bank[1:, ::2, :1, 1:3, :5], bank.transpose(1, 3)[:2, :2], bank.transpose(-1, -2)[:2, :1]):
        for one, other in zip(threshold(view, backend), threshold(view.contiguous(), "reference"), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frame_has_the_bits_of_its_own_and_a_row_those_of_itself_alone(backend):
    maps = maps_of((2, 2, 2, 3, 7, 6))
    flags, z = threshold(maps, backend)
    for row in range(2):
        one = slice(row, row + 1)
        for alone, all_ in zip(threshold(maps[:, one], backend), (flags, z), strict=True):
            assert torch.equal(alone[0], all_[row])
        for frame in range(3):
            for alone, all_ in zip(threshold(maps[:, one, :, frame], backend), (flags, z), strict=True):
                assert torch.equal(alone[0], all_[row, frame])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_that_is_not_finite_leaves_its_row_without_flags_and_touches_no_other(value, backend):
    maps = maps_of((2, 3, 1, 3, 7, 6))
    counts, z = threshold(maps, backend, count=True)
    maps[1, 1, 0, 2, 3, 3] = value
    marked, marked_z = threshold(maps, backend, count=True)
    assert counts[1, :2].any()
    assert not marked[1].any()
    assert marked_z[1].isnan().all()
    for row in (0, 2):
        assert torch.equal(marked[row], counts[row])
        assert same_bits(marked_z[row], z[row])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend):
    flags, z = threshold(torch.zeros(3, 0, 1, 2, 8, 8, device=DEVICE), backend)
    assert flags.shape == z.shape == (0, 2, 8, 8)


def test_compiled_and_in_float64():
    maps = maps_of(SHAPES["channels"])
    torch._dynamo.reset()
    compiled = torch.compile(lambda maps: threshold(maps, "auto"), fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(maps), threshold(maps, "auto"), strict=True):
        assert torch.equal(one, other)
    wide_flags, wide = threshold(maps.double(), "reference")
    assert torch.equal(wide_flags, threshold(maps, "reference")[0])
    assert wide.dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grid", [(9, 8), (1, 40)], ids=["image", "line"])
def test_images_and_lines_have_the_bits_of_statistics_by_sample(grid, backend):
    maps = tiny.randn(3, 2, 2, *grid).abs().to(DEVICE)
    for one, other in zip(threshold(maps, backend), threshold(maps, backend, by_frame=False), strict=True):
        assert torch.equal(one, other)


STEPS, T_C, FRAMES = 10, 5, 3
GRID = (FRAMES, 14, 12)
SCHEDULE = flow_schedule(STEPS)
SPOT = (slice(5, 10), slice(4, 9))
CALM, BUSY = (0.05, 1.0, 1.0), (*[0.02] * 5, 1.0)
"""By how much frames move: one less than the others, one more."""
MODES = ["fast", "official", "paper"]
RUNS = [("fast", "triton"), *((mode, "reference") for mode in MODES)]


def config_of(mode, **changes):
    sizes = {"min_area": 3, "core_width": 2, "grow": 1, "reference_size": None, "x0_noise": 0.0}
    sizes |= {"t_c": T_C, "window_start": 1}
    # Above the scale every normal is calm: what is found is the spot, or a frame as a whole.
    return AscedConfig.for_mode(mode, mad_scale=8, blur_sigma=0.7, max_area=1e6, mad_floor=0.0, **sizes, **changes)


def watched(config, moves, grid=GRID, spot=True, rows=2):
    """The engine and the state after T_c of a run in which frame f moves by moves[f]; an artifact in its frame 0 leaps
    by ten times as much as that frame moves."""
    engine = ascedfast.begin(SCHEDULE, config, seeds=list(range(5, 5 + rows)))

    def drawn(seed):
        return torch.cat([tiny.randn(1, CHANNELS, *grid, seed=100 * seed + row) for row in range(rows)])

    mean = 0.3 * drawn(99)
    amounts = 0.1 * torch.tensor(moves).view(-1, 1, 1) if len(grid) == 3 else 0.1 * moves[0]
    for k in range(T_C):
        level = SCHEDULE.before[k]
        x0 = mean + amounts * drawn(k)
        if spot and len(grid) == 3:
            x0[:, :, 0, *SPOT] += moves[0] * (1 if k % 2 else -1)
        elif spot:
            x0[:, :, *SPOT] += moves[0] * (1 if k % 2 else -1)
        x = (level.alpha * mean).to(DEVICE)
        m = (x0.to(DEVICE) - x * level.a) * (1 / level.b)
        engine.observe(x, m)
    engine.correct_(x)
    return SimpleNamespace(x=x, engine=engine, mask=engine.report.masks[:, 0], report=engine.report)


@pytest.mark.parametrize(("mode", "backend"), RUNS)
def test_an_artifact_in_a_calm_frame_is_found_by_frame_only(mode, backend):
    by_sample, by_frame = (
        watched(config_of(mode, statistics=statistics, backend=backend), CALM) for statistics in ("sample", "frame")
    )
    assert not by_sample.mask[:, 0].any()
    found = by_frame.mask[:, 0]
    assert found[:, 6:9, 5:8].all()  # the spot, whose border the smoothing takes
    assert found.sum() < 2 * 2 * 5 * 5
    assert not by_frame.mask[:, 1:].any()
    assert min(by_frame.report.severity) > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_frame_that_moves_more_than_the_others_is_flagged_by_sample_only(mode):
    by_sample, by_frame = (
        watched(config_of(mode, statistics=statistics), BUSY, (6, *GRID[1:]), spot=False)
        for statistics in ("sample", "frame")
    )
    assert by_sample.mask[:, -1].float().mean() > 0.5
    assert not by_frame.mask.any()


def same_runs(one, other):
    assert same_bits(one.x, other.x)
    for a, b in zip(one.report, other.report, strict=True):
        assert torch.equal(a.mask_grown, b.mask_grown)
        assert torch.equal(a.labels, b.labels)
        assert same_bits(a.z, b.z)
        assert a.severity == b.severity


@pytest.mark.parametrize("mode", MODES)
def test_rows_by_triton_have_the_bits_of_the_reference(mode):
    got, expected = (watched(config_of(mode, statistics="frame", backend=b), CALM) for b in BACKENDS)
    assert (expected.engine._lockstep is not None) == (mode == "fast")
    assert got.engine._lockstep is None
    assert got.mask.any()
    same_runs(got, expected)


@pytest.mark.parametrize(("mode", "backend"), RUNS)
@pytest.mark.parametrize("grid", [GRID[1:], (1, *GRID[1:])], ids=["image", "one frame"])
def test_images_run_alike_by_frame_and_by_sample(mode, grid, backend):
    """A single frame does but for the bits of its smoothing, which by sample rounds once more."""
    one, other = (
        watched(config_of(mode, statistics=statistics, backend=backend), (0.05,), grid)
        for statistics in ("frame", "sample")
    )
    assert one.mask.any()
    if len(grid) == 2:
        same_runs(one, other)
    else:
        assert torch.equal(one.mask, other.mask)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_alone_equals_its_row_in_a_batch(backend):
    config = config_of("fast", statistics="frame", backend=backend)
    batch = watched(config, CALM, rows=3)
    alone = watched(config, CALM, rows=1)
    assert alone.report[0].status == "corrected"
    assert same_bits(batch.x[:1], alone.x)
    assert same_bits(batch.report[0].z, alone.report[0].z)


def test_rows_that_differ_in_it_are_judged_one_by_one():
    kinds = [config_of("fast", statistics=statistics) for statistics in ("frame", "sample", "frame")]
    engine = Engine()
    for seed, config in enumerate(kinds):
        engine.add(SCHEDULE, config, seed=5 + seed)
    x = tiny.randn(3, CHANNELS, *GRID).to(DEVICE)
    amounts = 0.1 * torch.tensor(CALM).view(-1, 1, 1)
    for k in range(T_C):
        x0 = amounts * tiny.randn(3, CHANNELS, *GRID, seed=k)
        x0[:, :, 0, *SPOT] += 0.05 * (1 if k % 2 else -1)
        engine.observe(x, x0=x0.to(DEVICE))
    engine.correct_(x)
    assert [bool(row.mask[0].any()) for row in engine.report] == [True, False, True]


def test_the_report_judges_single_steps_so_too():
    config = config_of("fast", statistics="frame")
    row = watched(config, CALM).report[0]
    _, d = row.dynamics[-1]
    floor = 0.5 / 127.5
    for frame in range(FRAMES):
        _, z = of_one_frame(d[None, None, frame].cpu().numpy(), 1.0, floor, floor, 0.7)
        np.testing.assert_allclose(row.step_z(d)[frame].cpu().numpy(), z, rtol=2e-5, atol=2e-5)


def test_mode_calibrated_refuses_it():
    with pytest.raises(ValueError, match="statistics must be 'sample' in mode 'calibrated': its table"):
        calibrated(SCHEDULE, T_C, GRID, statistics="frame")

# SPDX-License-Identifier: MIT
"""robust_threshold: the reference's counts, threshold planes and rows with NaN against numpy and scipy (single
thresholds: tests/test_ops.py), the kernels against the reference, bit for bit, and their medians against numpy."""

import numpy as np
import pytest
import torch
from ascedfast.kernels import robust_threshold as kernel
from ascedfast.kernels import sampled_median
from layouts import DEVICES, same_bits
from scipy import ndimage

from ascedfast import ops
from ascedfast._backend import BackendError

pytestmark = [pytest.mark.usefixtures("poisoned_empty"), *([pytest.mark.gpu] if DEVICES == ["cuda"] else [])]
ON_GPU = DEVICES == ["cuda"]
SETTINGS = {"mad_scale": 2.0, "mad_floor": 0.01, "z_floor": 0.02}


def maps_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).square()


def both(maps, device, **settings):
    """(flags, z) of the kernel and of the reference; the input keeps its bits."""
    maps = maps.to(device)
    before = maps.clone()
    settings = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in (SETTINGS | settings).items()}
    expected = ops.robust_threshold(maps, **settings, backend="reference")
    got = ops.robust_threshold(maps, **settings, backend="triton")
    assert same_bits(maps, before)
    assert got[0].dtype == expected[0].dtype
    assert torch.equal(got[0], expected[0])
    assert same_bits(got[1], expected[1])
    return got


def scipy_counts(maps, scale, mad_floor, sigma):
    """Maps [K, C, *grid] of one row, scale: fp32, one or a plane: in how many maps a location is above."""
    total = 0
    for one in maps:
        one = np.moveaxis(one, 0, -1)
        if sigma > 0:
            one = ndimage.gaussian_filter(one, [sigma] * (one.ndim - 1) + [sigma if one.shape[-1] > 1 else 0])
        center = np.median(one)
        mad = np.float32(max(np.median(np.abs(one - center)), np.float32(mad_floor)))
        total = total + (one.max(-1) > center + scale * mad)
    return total


@pytest.mark.parametrize("sigma", [0.0, 1.5])
@pytest.mark.parametrize("shape", [(5, 2, 1, 24, 19), (3, 2, 3, 9, 8), (4, 2, 1, 3, 9, 8)], ids=str)
@pytest.mark.parametrize("kind", ["float", "row", "plane"])
def test_counts_and_scales_of_the_reference(kind, shape, sigma):
    maps = maps_of(shape)
    rows, grid = shape[1], shape[3:]
    column = torch.linspace(1.0, 3.0, rows)
    plane = torch.rand(rows, *grid, generator=torch.Generator().manual_seed(1)) * 3
    scale = {"float": 1.7, "row": column, "plane": plane}[kind]
    settings = {"mad_scale": scale, "mad_floor": 0.01, "z_floor": 0.1, "blur_sigma": sigma}
    counts, z = ops.robust_threshold(maps, **settings, count=True, backend="reference")
    flags, same_z = ops.robust_threshold(maps, **settings, backend="reference")
    assert counts.dtype == torch.int32
    assert flags.dtype == torch.bool
    assert torch.equal(flags, counts > 0)
    assert same_bits(z, same_z)
    for row in range(rows):
        factor = np.float32(1.7 * 1.4826) if kind == "float" else scale[row].numpy() * np.float32(1.4826)
        expected = scipy_counts(maps[:, row].numpy(), factor, 0.01, sigma)
        assert np.array_equal(counts[row].numpy(), expected)
        assert 0 < expected.mean() < shape[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_has_no_flag_and_touches_no_other(value, sigma, backend, device):
    maps = maps_of((3, 3, 1, 16, 12)).to(device)
    settings = SETTINGS | {"blur_sigma": sigma, "count": True, "backend": backend}
    counts, z = ops.robust_threshold(maps, **settings)
    maps[1, 1, 0, 3, 3] = value
    marked, marked_z = ops.robust_threshold(maps, **settings)
    assert counts[1].any()
    assert not marked[1].any()
    assert marked_z[1].isnan().all()
    for row in (0, 2):
        assert torch.equal(marked[row], counts[row])
        assert same_bits(marked_z[row], z[row])


# Sigma 2 where the interpreter can afford it: a radius of 8, more than the shortest sides.
KERNEL_SHAPES = {
    "8x8": (5, 2, 1, 8, 8),
    "odd": (3, 2, 1, 17, 23),
    "channels": (2, 1, 3, 9, 12),
    "volume": (2, 2, 1, 3, 9, 7),
    "volume-channels": (1, 1, 2, 2, 5, 4),
    "64x64": (2, 1, 1, 64, 64),
    "128x128": (1, 1, 1, 128, 128),
    "257x129": (1, 1, 1, 257, 129),  # too large for the registers of a program
    "256x256": (1, 1, 1, 256, 256),
    "one-element": (1, 1, 1, 1, 1),
    "line": (17, 1, 1, 1, 40),  # more maps than are written out
}
LARGE = {"512x512": (3, 2, 1, 512, 512), "1024x1024": (2, 1, 1, 1024, 1024), "official": (2, 1, 3, 256, 256)}


def affordable(shape):
    locations = torch.Size(shape[3:]).numel()
    return 2.0 if ON_GPU or locations < 1000 else 0.25 if locations < 20000 else 0.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", (KERNEL_SHAPES | (LARGE if ON_GPU else {})).values(), ids=str)
def test_bits_of_the_kernel(shape, device):
    both(maps_of(shape), device, blur_sigma=affordable(shape), count=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.7, 3.5])
def test_union_of_maps_in_any_smoothing(sigma, device):
    # 0.1: one tap; 3.5: radius 14, its loop is not written out and the sides are folded twice.
    flags, _ = both(maps_of((4, 2, 1, 9, 6)), device, blur_sigma=sigma, mad_scale=1.0)
    assert flags.any()
    assert not flags.all()


@pytest.mark.parametrize("device", DEVICES)
def test_strides_of_a_bank_and_of_a_threshold_plane(device):
    bank = torch.rand(6, 4, 3, 20, 30, generator=torch.Generator().manual_seed(3))
    plane = torch.rand(13, 2, 17, generator=torch.Generator().manual_seed(4)).permute(1, 2, 0)
    views = [
        bank[1:4, ::2, 1:2, :17, 2:15],
        bank.transpose(-1, -2)[:3, 1:3, :1, 4:21, :13],
        bank[:1, :1, :1, :17, :13].expand(2, 2, 2, 17, 13),
    ]
    for view in views:
        for scale in (plane, plane[:, 0, 0]):
            both(view, device, blur_sigma=0.0, mad_scale=scale, count=True)
        both(view[:2], device, blur_sigma=0.3)


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch(device):
    both(torch.zeros(3, 0, 1, 8, 8), device, blur_sigma=1.0, count=True)


def hard_planes(count):
    """Planes [*, count] in which ranks tie, values jump, or a sample misleads."""
    g = torch.Generator().manual_seed(5)
    noise = torch.rand(count, generator=g)
    index = torch.arange(count)
    return torch.stack(
        [
            noise,
            torch.zeros(count),
            torch.full((count,), 3.25),
            torch.where(noise < 0.6, 0.0, noise),  # the median is a tie, the MAD 0
            torch.where(noise < 0.4, 0.0, noise),
            torch.where(index < count // 2, 0.0, 1.0),  # an even count: the middle of two far values
            torch.where(index < count // 2, 1.0 + noise, 1e20 * (1 + noise)),
            (noise * 8).floor(),  # eight values
            noise.exp2().mul(40).exp(),  # 60 octaves and Inf
            noise * 1e-40,  # subnormal
            torch.where(noise < 0.5, 3.4e38, 3.3e38),  # the sum of the middle ranks overflows
            torch.where(noise < 0.97, -0.0, 255.0),
            index.float() % 16,
            torch.where(index == 3, float("nan"), noise),
            torch.sort(noise).values,
        ]
    ).abs()


def numpy_statistics(planes):
    with np.errstate(over="ignore", invalid="ignore"):
        center = np.median(planes, 1)
        mad = np.median(np.abs(planes - center[:, None]), 1)
    center[~np.isfinite(planes).all(1)] = np.nan
    return center, mad


def check_statistics(planes, device):
    got = kernel.statistics_of(planes.to(device)).cpu().numpy()
    center, mad = numpy_statistics(planes.numpy())
    np.testing.assert_array_equal(got[:, 0], center)
    tame = ~np.isnan(center)
    np.testing.assert_array_equal(got[tame, 1], mad[tame])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 2, 3, 64, 391, 4096])
def test_medians_are_numpys(count, device):
    check_statistics(hard_planes(count), device)


BY_SAMPLE = {"odd": (128, 16385), "even": (128, 20000), "sample-too-narrow": (1, 20000)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("margin", "count"), BY_SAMPLE.values(), ids=BY_SAMPLE)
def test_medians_by_sample_are_numpys(margin, count, device, monkeypatch):
    monkeypatch.setattr(sampled_median, "MARGIN", margin)
    check_statistics(hard_planes(count), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0], ids=str)
def test_ties_at_the_threshold_and_saturated_grounds(share, device):
    # MAD 0 with a median above 0: everything equals the threshold, and the comparison is strict.
    maps = torch.full((2, 2, 1, 16, 16), 0.37)
    maps[0].flatten()[: int(share * 512)] = 1.0
    for floor, sigma in ((0.0, 0.0), (0.2, 0.0), (0.0, 0.5)):
        both(maps, device, blur_sigma=sigma, mad_floor=floor, count=True)


@pytest.mark.parametrize("device", DEVICES)
def test_signs_are_dropped(device):
    maps = maps_of((2, 1, 1, 8, 8))
    maps[0, 0, 0, :5] = 0.0
    flags, z = both(maps, device, blur_sigma=0.5)
    signed, signed_z = both(torch.where(maps == 0, -0.0, maps), device, blur_sigma=0.5)
    assert torch.equal(signed, flags)
    assert same_bits(signed_z, z)


def test_float64_is_the_references():
    maps = maps_of((2, 1, 1, 8, 8)).double().to(DEVICES[0])
    settings = SETTINGS | {"blur_sigma": 1.0}
    assert ops.robust_threshold(maps, **settings)[1].dtype == torch.float64
    with pytest.raises(BackendError, match="float64"):
        ops.robust_threshold(maps, **settings, backend="triton")


@pytest.mark.parametrize(
    ("scale", "error", "words"),
    [
        (torch.ones(2, dtype=torch.float64), TypeError, "float32"),
        (torch.ones(3), ValueError, "mad_scale must be"),
        (torch.ones(2, 1, 6, 5), ValueError, "mad_scale must be"),
        (torch.ones(2, device="meta"), ValueError, "meta"),
        (-1.0, ValueError, "mad_scale"),
    ],
    ids=["dtype", "rows", "channels", "device", "negative"],
)
def test_scales_are_checked(scale, error, words):
    with pytest.raises(error, match=words):
        ops.robust_threshold(torch.zeros(3, 2, 1, 6, 5), **(SETTINGS | {"mad_scale": scale}), blur_sigma=1.0)

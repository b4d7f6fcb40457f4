# SPDX-License-Identifier: MIT
"""The stages of the detector against numpy and scipy, bit for bit: blur, median, threshold."""

import platform

import numpy as np
import official_oracle as oracle
import pytest
import torch
from scipy import ndimage

from ascedfast import ops, reference

# Elsewhere scipy itself may be built with fused multiply-add.
x86_only = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="scipy rounds otherwise here")


def bits(array):
    return np.ascontiguousarray(array).view(np.int32)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7, 2.0, 3.0])
@pytest.mark.parametrize("shape", [(64, 81, 3), (33, 28, 1), (7, 40, 3), (5, 3, 4), (1, 1, 1), (2, 19, 2)], ids=str)
def test_blur_has_scipys_bits(shape, sigma):
    # Sides shorter than the radius (8 at sigma 2) fold more than once; the channel axis always does.
    rng = np.random.default_rng([*shape, int(sigma * 10)])
    for values in (rng.integers(0, 256, shape), rng.random(shape), rng.standard_normal(shape) * 1e3):
        values = values.astype(np.float32)
        blurred = reference.gaussian_blur(torch.from_numpy(values), sigma, (0, 1, 2)).numpy()
        assert blurred.dtype == np.float32
        np.testing.assert_array_equal(bits(blurred), bits(ndimage.gaussian_filter(values, sigma=sigma)))


@pytest.mark.parametrize("dims", [(2, 3, 1), (3, 2), (1,), (-2, -1, -3)], ids=str)
def test_blur_takes_dims_in_their_order(dims):
    # The result is rounded to float32 after each pass, so the order shows in the last bit.
    values = np.random.default_rng(9).random((3, 4, 37, 30), dtype=np.float32)
    expected = values
    for dim in dims:
        expected = ndimage.gaussian_filter1d(expected, 2.0, axis=dim)
    before = values.copy()
    blurred = reference.gaussian_blur(torch.from_numpy(values), 2.0, dims).numpy()
    np.testing.assert_array_equal(bits(blurred), bits(expected))
    np.testing.assert_array_equal(values, before)


def test_blur_of_a_strided_view():
    values = np.random.default_rng(10).random((40, 3, 50), dtype=np.float32)
    view = torch.from_numpy(values)[::2].permute(0, 2, 1)
    expected = ndimage.gaussian_filter(np.ascontiguousarray(view.numpy()), 2.0)
    np.testing.assert_array_equal(bits(reference.gaussian_blur(view, 2.0, (0, 1, 2)).numpy()), bits(expected))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100, 101, 4096, 9409, 196608])
def test_median_has_numpys_bits(count):
    rng = np.random.default_rng(count)
    for rows in (
        rng.standard_normal((3, count)),  # generic
        rng.integers(0, 4, (3, count)),  # ties around the middle, and halves of whole numbers
        rng.random((3, count)) * 1e-40,  # subnormal
        np.exp(rng.uniform(-60, 60, (3, count))),  # the middle two may differ by orders of magnitude
        np.where(rng.random((3, count)) < 0.7, 0, rng.random((3, count))),  # mostly zero
    ):
        rows = rows.astype(np.float32)
        found = reference.median(torch.from_numpy(rows), dim=-1).numpy()
        assert found.shape == (3,)
        np.testing.assert_array_equal(bits(found), bits(np.median(rows, axis=-1)))


@x86_only
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.0])
def test_blur_adds_in_scipys_order(sigma):
    # With ordinary values another order of the float64 sum shows in 1 of 10^8 results. Here each row is built so that
    # the sum at its centre cancels to the rounding errors themselves, and any other order gives another number.
    radius = int(4 * sigma + 0.5)
    taps = ndimage.gaussian_filter1d(np.eye(4 * radius + 1)[2 * radius], sigma)[radius : 3 * radius + 1]
    values = np.random.default_rng(11).uniform(-1e6, 1e6, (500, 2 * radius + 1)).astype(np.float32)
    values[:, [radius, 0, -1]] = 0
    for solved in (radius, 0, -1):  # what is left falls by 2^-24 each time
        values[:, solved] = -(values.astype(np.float64) @ taps) / taps[solved]
    expected = ndimage.gaussian_filter1d(values, sigma, axis=1)
    another_order = (values.astype(np.float64) * taps).sum(axis=1).astype(np.float32)
    assert (another_order != expected[:, radius]).mean() > 0.8
    blurred = reference.gaussian_blur(torch.from_numpy(values), sigma, (1,)).numpy()
    np.testing.assert_array_equal(bits(blurred), bits(expected))


@x86_only
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(48, 61), (33, 27), (5, 9)], ids=str)
def test_threshold_op_has_numpys_bits(shape, channels):
    # z carries the blurred values, median and MAD of the official mode down to the last bit (axes: H, W, channel).
    maps = np.random.default_rng([*shape, channels]).integers(0, 256, (4, 2, channels, *shape)).astype(np.float32)
    settings = {"mad_scale": 2.0, "mad_floor": 0.0, "blur_sigma": 2.0, "z_floor": 0.5}
    flags, z = ops.robust_threshold(torch.from_numpy(maps), **settings, backend="reference")
    for row in range(2):
        wanted_flags, wanted_z = np.zeros(shape, bool), np.full(shape, -np.inf, np.float32)
        for change in maps[:, row].transpose(0, 2, 3, 1):
            change = ndimage.gaussian_filter(change, 2.0)
            centre, spread = oracle.median_and_mad(change)
            peak = change.max(axis=2)
            wanted_flags |= peak > oracle.threshold(centre, spread, 2.0)
            spread = np.maximum(spread, np.float32(0.5))
            wanted_z = np.maximum(wanted_z, (peak - centre) / (oracle.MAD_TO_SIGMA * spread))
        np.testing.assert_array_equal(flags[row].numpy(), wanted_flags)
        np.testing.assert_array_equal(bits(z[row].numpy()), bits(wanted_z))

# SPDX-License-Identifier: MIT
"""Each op against numpy and scipy: the step's prediction and dynamics, the threshold, growth, and re-noising."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from row_loop import bits
from scipy import ndimage

from ascedfast import ops
from ascedfast._backend import BackendError
from ascedfast.noise import Purpose, normal

SHAPES = {"plane": (2, 3, 13, 17), "one channel": (3, 1, 8, 8), "volume": (2, 4, 3, 7, 5), "line": (1, 5, 1, 40)}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EPS32 = np.finfo(np.float32).eps


def column(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def randn(shape, seed, dtype=torch.float32):
    return tiny.randn(*shape, seed=seed).to(dtype)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_step_dynamics(shape, dtype, reduce):
    x, m, old = randn(shape, 1, dtype), randn(shape, 2, dtype), randn(shape, 3)
    a, b = torch.linspace(0.5, 20.0, shape[0]), torch.linspace(-19.0, 0.25, shape[0])
    x0, d = ops.step_dynamics(x, m, a, b, old, clip=2.5, reduce=reduce)
    wide = [part.double().numpy() for part in (x, m, old)]
    rows = (-1, *([1] * (len(shape) - 1)))
    products = a.double().numpy().reshape(rows) * wide[0], b.double().numpy().reshape(rows) * wide[1]
    exact = np.clip(sum(products), -2.5, 2.5)
    bound = 4 * EPS32 * sum(abs(part) for part in products)
    assert (abs(x0.double().numpy() - exact) <= bound).all()
    assert x0.dtype == d.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    change = abs(x0.double().numpy() - wide[2])
    expected = change.mean(1) if reduce == "mean" else change.max(1)
    np.testing.assert_allclose(d.double().numpy(), expected, rtol=4 * EPS32, atol=1e-6)
    assert d.shape == (shape[0], *shape[2:])


def test_step_dynamics_of_the_first_step():
    x, m = randn((2, 3, 4, 4), 1), randn((2, 3, 4, 4), 2)
    x0, d = ops.step_dynamics(x, m, torch.tensor(2.0), torch.tensor(-0.5))
    assert d is None
    assert torch.equal(x0, 2.0 * x + -0.5 * m)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_dynamics_marks_what_is_not_finite(value):
    x, m, old = (randn((2, 3, 4, 4), seed) for seed in range(3))
    m[0, 1, 2, 2] = value
    x0, d = ops.step_dynamics(x, m, torch.ones(2), torch.ones(2), old, clip=1.0)
    assert x0[0, 1, 2, 2].isnan()
    assert d[0, 2, 2].isnan()
    assert x0.isfinite().sum() >= x0.numel() - 1
    assert d[1].isfinite().all()
    free, _ = ops.step_dynamics(x, m, torch.ones(2), torch.ones(2))
    assert not free[0, 1, 2, 2].isfinite()


def scipy_threshold(maps, mad_scale, mad_floor, sigma, z_floor):
    """The released code's steps in numpy and scipy for one row: maps [K, C, *grid]."""
    flags, z = False, -np.inf
    for one in maps:
        if sigma > 0:
            grid_last = np.moveaxis(one, 0, -1)  # H, W, C: scipy blurs the axes in this order
            sigmas = [sigma] * (one.ndim - 1) + [sigma if one.shape[0] > 1 else 0]
            one = np.moveaxis(ndimage.gaussian_filter(grid_last, sigmas), -1, 0)
        center = np.median(one)
        mad = np.median(np.abs(one - center))
        threshold = center + np.float32(mad_scale * 1.4826) * np.float32(max(mad, mad_floor))
        peak = one.max(0)
        flags = flags | (peak > threshold)
        z = np.maximum(z, (peak.astype(np.float64) - center) / (1.4826 * max(mad, z_floor)))
    return flags, z


@pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0, 2.0, 6.5])
@pytest.mark.parametrize("shape", [(3, 2, 1, 24, 19), (1, 1, 3, 16, 16), (2, 2, 4, 3, 9, 8), (2, 1, 1, 5, 4)], ids=str)
def test_robust_threshold(shape, sigma):
    maps = randn(shape, 7).abs() ** 2
    settings = {"mad_scale": 2.0, "mad_floor": 0.05, "z_floor": 0.02}
    flags, z = ops.robust_threshold(maps, blur_sigma=sigma, **settings)
    assert flags.shape == z.shape == (shape[1], *shape[3:])
    for row in range(shape[1]):
        expected, wide = scipy_threshold(maps[:, row].numpy(), sigma=sigma, **settings)
        assert np.array_equal(flags[row].numpy(), expected)
        np.testing.assert_allclose(z[row].numpy(), wide, rtol=2e-5, atol=2e-5)


def test_the_floor_of_the_mad_holds_on_flat_maps():
    maps = torch.zeros(1, 1, 1, 8, 8)
    maps[..., 2, 2] = 0.5
    flags, z = ops.robust_threshold(maps, mad_scale=3.0, mad_floor=0.2, blur_sigma=0.0, z_floor=0.2)
    assert not flags.any()
    assert z[0, 2, 2] == pytest.approx(0.5 / (1.4826 * 0.2))
    flags, _ = ops.robust_threshold(maps, mad_scale=3.0, mad_floor=0.1, blur_sigma=0.0, z_floor=0.2)
    assert flags.sum() == 1


def test_robust_threshold_is_strict():
    maps = torch.ones(2, 1, 1, 4, 4)
    flags, z = ops.robust_threshold(maps, mad_scale=3.0, mad_floor=0.0, blur_sigma=0.0, z_floor=1.0)
    assert not flags.any()
    assert not z.any()


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_robust_threshold_with_nan_in_a_row(sigma):
    maps = randn((3, 2, 1, 16, 16), 3).abs()
    settings = {"mad_scale": 2.0, "mad_floor": 0.0, "blur_sigma": sigma, "z_floor": 0.1}
    alone = ops.robust_threshold(maps[:, 1:], **settings)
    maps[1, 0, 0, 3, 3] = float("nan")
    flags, z = ops.robust_threshold(maps, **settings)
    assert torch.equal(flags[1:], alone[0])
    assert torch.equal(z[1:], alone[1])
    assert not flags[0].any()
    assert z[0].isnan().all()


@given(
    st.integers(0, 6),
    st.sampled_from([(1, 9, 9), (2, 5, 12), (1, 3, 6, 7), (2, 1, 1), (1, 1, 17)]),
    st.integers(0, 2**31),
)
def test_dilate_mask(radius, shape, seed):
    mask = torch.rand(shape, generator=tiny.generator(seed)) > 0.93
    got = ops.dilate_mask(mask, radius)
    for row in range(shape[0]):
        planes = mask[row].reshape(-1, *shape[-2:])
        square = np.ones((2 * radius + 1,) * 2, bool)
        expected = np.stack([ndimage.binary_dilation(plane.numpy(), square) for plane in planes])
        assert np.array_equal(got[row].reshape(planes.shape).numpy(), expected)
    assert got.data_ptr() != mask.data_ptr()


@pytest.mark.parametrize("gamma", [None, (0.0, 0.5)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (2, 5, 3, 4, 6)], ids=["plane", "volume"])
def test_renoise(shape, dtype, gamma):
    x = randn(shape, 1, dtype)
    x0 = randn(shape, 2).to(torch.float64 if dtype == torch.float64 else torch.float32)
    mask = torch.rand(shape[0], *shape[2:], generator=tiny.generator(3)) > 0.6
    alpha, sigma = column(0.6, 0.9), column(0.8, 14.0)
    seeds, steps, draws = (column(*pair, dtype=torch.int64) for pair in ((5, -9), (12, 3), (0, 7)))
    kept = [part.clone() for part in (x, mask, x0, alpha, sigma, seeds, steps, draws)]
    noise = None if gamma is None else column(*gamma)
    out = ops.renoise_(x, mask, x0, alpha, sigma, seeds=seeds, steps=steps, draws=draws, x0_noise=noise)
    assert out is x
    grid = shape[2:]
    options = {"step": steps, "draw": draws}
    e = normal(seeds, shape[1], grid, purpose=Purpose.RENOISE, **options).double().numpy()
    xi = normal(seeds, shape[1], grid, purpose=Purpose.PERTURB_X0, **options).double().numpy()
    rows = (-1, *([1] * (len(shape) - 1)))
    scale = np.zeros(2) if gamma is None else np.array(gamma)
    wide = [part.double().numpy().reshape(rows) for part in (alpha, sigma)]
    expected = wide[0] * (x0.double().numpy() + scale.reshape(rows) * xi) + wide[1] * e
    inside = mask[:, None].expand_as(x).numpy()
    rounding = torch.finfo(dtype).eps if dtype.itemsize < 4 else 8 * EPS32
    np.testing.assert_allclose(x.double().numpy()[inside], expected[inside], rtol=rounding, atol=1e-5)
    assert np.array_equal(bits(x).numpy()[~inside], bits(kept[0]).numpy()[~inside])
    for part, copy in zip((mask, x0, alpha, sigma, seeds, steps, draws), kept[1:], strict=True):
        assert torch.equal(part, copy)


def test_renoise_writes_through_strides():
    base = torch.zeros(2, 20, 6)
    x = base[..., ::2].unflatten(1, (4, 5)).permute(0, 3, 1, 2)
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[0, 1, 2] = True
    one = column(1.0, 1.0)
    zeros = torch.zeros(2, dtype=torch.int64)
    ops.renoise_(x, mask, torch.ones_like(x), one, one, seeds=zeros, steps=zeros, draws=zeros)
    assert (base != 0).nonzero().tolist() == [[0, 7, 0], [0, 7, 2], [0, 7, 4]]


X = torch.zeros(2, 3, 6, 5)
MASK = torch.zeros(2, 6, 5, dtype=torch.bool)
ONE = torch.ones(2)
ZERO = torch.zeros(2, dtype=torch.int64)
MAPS = torch.zeros(3, 2, 1, 6, 5)
THRESHOLD = {"mad_scale": 3.0, "mad_floor": 0.0, "blur_sigma": 1.0, "z_floor": 0.1}


def threshold(maps=MAPS, **changes):
    return ops.robust_threshold(maps, **(THRESHOLD | changes))


def renoise(x=X, mask=MASK, x0=X, **changes):
    values = {"alpha": ONE, "sigma": ONE, "seeds": ZERO, "steps": ZERO, "draws": ZERO} | changes
    return ops.renoise_(x, mask, x0, **values)


def fill(entry, current=X):
    return ops.history_fill_([X.clone(), entry], MASK, current)


LEAF = torch.zeros(2, 3, 6, 5, requires_grad=True)
EXPANDED = torch.zeros(1, 3, 6, 5).expand(2, 3, 6, 5)


REFUSED = [
    (lambda: ops.step_dynamics(X[0], X[0], ONE, ONE), ValueError, "x must be"),
    (lambda: ops.step_dynamics(X.int(), X, ONE, ONE), TypeError, "float"),
    (lambda: ops.step_dynamics(X, X[:1], ONE, ONE), ValueError, "m must have"),
    (lambda: ops.step_dynamics(X, X.bool(), ONE, ONE), TypeError, "m must be"),
    (lambda: ops.step_dynamics(X, X, ONE, ONE, X[:, :1]), ValueError, "x0_prev"),
    (lambda: ops.step_dynamics(X, X.to("meta"), ONE, ONE), ValueError, "meta"),
    (lambda: ops.step_dynamics(X, X, ONE, ONE, reduce="sum"), ValueError, "reduce"),
    (lambda: ops.step_dynamics(X, X, ONE, ONE, clip=-1.0), ValueError, "clip"),
    (lambda: ops.step_dynamics(X, X, ONE, ONE, clip=float("nan")), ValueError, "clip"),
    (lambda: ops.step_dynamics(X, X, ONE[:1], ONE), ValueError, "a must be"),
    (lambda: ops.step_dynamics(X, X, ONE, ONE[:, None]), ValueError, "b must be"),
    (lambda: ops.step_dynamics(X, X, ONE, ONE.double()), TypeError, "b must be"),
    (lambda: ops.step_dynamics(X, X, ONE.to("meta"), ONE), ValueError, "a is on meta"),
    (lambda: ops.step_dynamics(X[:, :0], X[:, :0], ONE, ONE, X[:, :0]), ValueError, "no channels"),
    (lambda: ops.step_dynamics(X, X, ONE, ONE, backend="cuda"), ValueError, "unknown backend"),
    (lambda: ops.step_dynamics(X, X, ONE, ONE, backend="native"), BackendError, "step_dynamics"),
    (lambda: threshold(MAPS.half()), TypeError, "float32"),
    (lambda: threshold(MAPS[0]), ValueError, "maps must be"),
    (lambda: threshold(MAPS[:0]), ValueError, "no map"),
    (lambda: threshold(MAPS[..., :0]), ValueError, "empty axis"),
    (lambda: threshold(z_floor=0.0), ValueError, "z_floor"),
    (lambda: threshold(mad_scale=-1.0), ValueError, "mad_scale"),
    (lambda: threshold(mad_floor=-1.0), ValueError, "mad_floor"),
    (lambda: threshold(blur_sigma=-1.0), ValueError, "blur_sigma"),
    (lambda: threshold(blur_sigma=float("nan")), ValueError, "blur_sigma"),
    (lambda: threshold(blur_sigma=float("inf")), ValueError, "blur_sigma"),
    (lambda: threshold(mad_floor=float("nan")), ValueError, "mad_floor"),
    (lambda: ops.label_regions(MASK, connectivity=4, core_width=2.0), ValueError, "core_width"),
    (lambda: ops.label_regions(MASK, connectivity=4, core_width=True), ValueError, "core_width"),
    (lambda: ops.dilate_mask(MASK.float(), 1), TypeError, "bool"),
    (lambda: ops.dilate_mask(MASK[0], 1), ValueError, "mask must be"),
    (lambda: ops.dilate_mask(MASK, -1), ValueError, "radius"),
    (lambda: ops.dilate_mask(MASK, 1.5), ValueError, "radius"),
    (lambda: renoise(mask=MASK[:1]), ValueError, "mask must be"),
    (lambda: renoise(mask=MASK.int()), TypeError, "bool"),
    (lambda: renoise(x0=X[:, :2]), ValueError, "x0 must have"),
    (lambda: renoise(x0=X.to("meta")), ValueError, "meta"),
    (lambda: renoise(x=X.int()), TypeError, "float"),
    (lambda: renoise(x0=X.half()), TypeError, "x0 must be float32"),
    (lambda: renoise(mask=MASK.to("meta")), ValueError, "mask is on meta"),
    (lambda: renoise(alpha=ONE[0]), ValueError, "alpha must be"),
    (lambda: renoise(sigma=ONE.double()), TypeError, "sigma must be"),
    (lambda: renoise(x0_noise=ONE[:1]), ValueError, "x0_noise must be"),
    (lambda: renoise(seeds=ZERO.int()), TypeError, "seeds must be"),
    (lambda: renoise(steps=ZERO[:1]), ValueError, "steps must be"),
    (lambda: renoise(draws=ZERO.to("meta")), ValueError, "draws is on meta"),
    (lambda: renoise(x=LEAF), ValueError, "requires gradients"),
    (lambda: renoise(x=EXPANDED), ValueError, "expanded"),
    (lambda: fill(LEAF), ValueError, r"entries\[1\] is a leaf"),
    (lambda: fill(EXPANDED), ValueError, r"entries\[1\] is expanded"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED, ids=[f"{i}-{case[2]}" for i, case in enumerate(REFUSED)])
def test_ops_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_refused_call_has_written_nothing():
    first = torch.zeros(2, 3, 6, 5)
    for second in (EXPANDED, LEAF):
        with pytest.raises(ValueError, match=r"entries\[1\]"):
            ops.history_fill_([first, second], ~MASK, X + 1)
        assert not first.any()


def test_a_leaf_may_be_written_to_without_gradients():
    leaf = torch.zeros(2, 3, 6, 5, requires_grad=True)
    with torch.no_grad():
        ops.history_fill_([leaf], ~MASK, X + 1)
    assert bool((leaf == 1).all())


def test_changes_from_a_float64_prediction_are_float32():
    assert ops.step_dynamics(X, X, ONE, ONE, X.double())[1].dtype == torch.float32


def test_a_mask_in_any_order_grows_to_a_dense_one():
    turned = torch.zeros(2, 5, 6, dtype=torch.bool).transpose(1, 2)
    for radius in (0, 1):
        assert ops.dilate_mask(turned, radius, backend="reference").is_contiguous()
    assert bool(ops.dilate_mask(~MASK, 1 << 40).all())


def test_no_rows():
    assert ops.step_dynamics(X[:0], X[:0], ONE[:0], ONE[:0], X[:0])[1].shape == (0, 6, 5)
    assert threshold(MAPS[:, :0])[0].shape == (0, 6, 5)
    assert ops.dilate_mask(MASK[:0], 2).shape == (0, 6, 5)

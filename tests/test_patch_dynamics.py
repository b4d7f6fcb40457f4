# SPDX-License-Identifier: MIT
"""step_dynamics by patch: the reference against a loop over patches in float64, the kernel against the reference."""

import numpy as np
import pytest
import torch
from ascedfast.kernels import patch_dynamics as kernel
from layouts import DEVICES, LAYOUTS, SHAPES, channels_last, same_bits, sliced

from ascedfast import custom_ops, ops
from ascedfast.reference import patch_grid

pytestmark = [pytest.mark.usefixtures("poisoned_empty"), *([pytest.mark.gpu] if DEVICES == ["cuda"] else [])]
DEVICE = DEVICES[0]
PATCHES = [2, 4, 8, 16]
# Sides that patches divide, that they do not, and that are smaller than a patch; more channels than one tree adds.
GRIDS = {
    "divided": (2, 3, 32, 16),
    "odd": (2, 5, 19, 37),
    "narrow": (1, 4, 33, 1),
    "volume": (2, 4, 3, 7, 9),
    "many-channels": (1, 17, 9, 6),
    "wide": (1, 2, 3, 1025),  # more patches than a program does
    "one-element": (1, 1, 1, 1),
}
EVERY = GRIDS | {name: SHAPES[name] for name in ("latents", "no-rows")}
EPS32 = np.finfo(np.float32).eps


def inputs(shape, layout=sliced, dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    x, m = layout(shape, g, dtype).to(DEVICE), channels_last(shape, g, dtype).to(DEVICE)
    a, b = torch.rand(shape[0], 2, generator=g).to(DEVICE).unbind(1)
    return x, m, a, b - 1, sliced(shape, g, torch.float32).to(DEVICE)


def by_loop(d, patch):
    """Mean of each patch of [R, *grid], one at a time, in float64."""
    *outer, height, width = d.shape
    means = np.empty((*outer, -(-height // patch), -(-width // patch)))
    for i in range(means.shape[-2]):
        for j in range(means.shape[-1]):
            piece = d[..., i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            means[..., i, j] = piece.astype(np.float64).mean((-2, -1))
    return means


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("shape", GRIDS.values(), ids=GRIDS)
def test_means_of_patches(shape, patch, reduce):
    x, m, a, b, previous = inputs(shape)
    x0, d = ops.step_dynamics(x, m, a, b, previous, reduce=reduce, patch=patch, backend="reference")
    change = abs(x0.cpu().numpy().astype(np.float64) - previous.cpu().numpy())
    expected = by_loop(change.mean(1) if reduce == "mean" else change.max(1), patch)
    assert d.dtype == torch.float32
    np.testing.assert_allclose(d.cpu().numpy(), expected, rtol=16 * EPS32, atol=1e-7)  # some ten roundings deep
    assert same_bits(x0, ops.step_dynamics(x, m, a, b, previous, reduce=reduce, backend="reference")[0])


@pytest.mark.parametrize("patch", PATCHES)
def test_means_of_patches_in_float64(patch):
    x, m, a, b, previous = inputs(GRIDS["odd"], dtype=torch.float64)
    x0, d = ops.step_dynamics(x, m, a, b, previous.double(), patch=patch)
    expected = by_loop(abs(x0.cpu().numpy() - previous.double().cpu().numpy()).mean(1), patch)
    assert d.dtype == torch.float64
    np.testing.assert_allclose(d.cpu().numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("shape", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize(("clip", "reduce"), [(None, "mean"), (0.5, "max")])
def test_bits_in_every_layout(shape, patch, layout, clip, reduce):
    x, m, a, b, previous = inputs(shape, layout)
    before = [t.clone() for t in (x, m, previous)]
    expected = ops.step_dynamics(x, m, a, b, previous, clip=clip, reduce=reduce, patch=patch, backend="reference")
    got = ops.step_dynamics(x, m, a, b, previous, clip=clip, reduce=reduce, patch=patch, backend="triton")
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])
    assert all(torch.equal(t, old) for t, old in zip((x, m, previous), before, strict=True))


# Triton's interpreter truncates bf16, so bf16 is compared on a GPU only.
LOW = [torch.float16] if DEVICES == ["cpu"] else [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("patch", PATCHES)
def test_bits_in_low_precision(dtype, patch):
    x, m, a, b, previous = inputs(GRIDS["odd"], dtype=dtype)
    expected = ops.step_dynamics(x, m, a[0], b[0], previous, patch=patch, backend="reference")
    got = ops.step_dynamics(x, m, a[0], b[0], previous, patch=patch, backend="triton")
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_previous_prediction_in_low_precision(dtype):
    x, m, a, b, previous = inputs(GRIDS["odd"])
    previous = previous.to(dtype)
    expected = ops.step_dynamics(x, m, a, b, previous, patch=4, backend="reference")
    got = ops.step_dynamics(x, m, a, b, previous, patch=4, backend="triton")
    assert same_bits(got[1], expected[1])


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_nan_of_a_location_is_its_patchs(backend, reduce):
    x, m, a, b, previous = inputs(GRIDS["odd"])
    m[1, 2, 18, 35] = float("inf")
    x[0, 0, 4, 3] = float("nan")
    for patch in PATCHES:
        _, d = ops.step_dynamics(x, m, a, b, previous, clip=1.0, reduce=reduce, patch=patch, backend=backend)
        assert d.isnan().nonzero().tolist() == [[0, 4 // patch, 3 // patch], [1, 18 // patch, 35 // patch]]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_row_does_not_know_its_batch(backend):
    x, m, a, b, previous = inputs((3, 5, 19, 37))
    x0, d = ops.step_dynamics(x, m, a, b, previous, patch=8, backend=backend)
    one = slice(1, 2)
    alone = ops.step_dynamics(
        x[one].contiguous(), m[one].contiguous(), a[one], b[one], previous[one].clone(), patch=8, backend=backend
    )
    assert same_bits(x0[one], alone[0])
    assert same_bits(d[one], alone[1])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_steady_location_counts(backend):
    """One moving location of a patch of nine, three of which the border has: the mean is over what is there."""
    x = torch.zeros(1, 1, 5, 3, device=DEVICE)
    x[0, 0, 4, 1] = 6.0
    one = torch.ones(1, device=DEVICE)
    _, d = ops.step_dynamics(x, torch.zeros_like(x), one, one, torch.zeros_like(x), patch=4, backend=backend)
    assert d.tolist() == [[[0.0], [2.0]]]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_without_a_previous_prediction(backend):
    x, m, a, b, _ = inputs(GRIDS["odd"])
    x0, d = ops.step_dynamics(x, m, a, b, patch=4, backend=backend)
    assert d is None
    assert same_bits(x0, ops.step_dynamics(x, m, a, b, backend="reference")[0])


@pytest.mark.parametrize("patch", [0, -1, 3, 32])
def test_other_sides_are_refused(patch):
    x, m, a, b, previous = inputs(GRIDS["one-element"])
    with pytest.raises(ValueError, match=f"1, 2, 4, 8 or 16, got {patch}"):
        ops.step_dynamics(x, m, a, b, previous, patch=patch)


def test_one_launch(monkeypatch):
    launched = []
    original = kernel._patch_dynamics

    class Counted:
        def __getitem__(self, grid):
            launched.append(grid)
            return original[grid]

    monkeypatch.setattr(kernel, "_patch_dynamics", Counted())
    x, m, a, b, previous = inputs(GRIDS["volume"])
    ops.step_dynamics(x, m, a, b, previous, patch=4, backend="triton")
    assert len(launched) == 1


def test_the_grid_of_patches():
    assert patch_grid((5, 8), 4) == (2, 2)
    assert patch_grid((3, 1, 17), 16) == (3, 1, 2)
    assert patch_grid((0, 4), 2) == (0, 2)


def test_results_stay_on_the_device():
    x, row = torch.zeros(2, 3, 5, 7, device="meta"), torch.zeros(2, device="meta")
    d = ops.step_dynamics(x, x, row, row, x, patch=4)[1]
    assert d.device.type == "meta"
    assert d.shape == (2, 2, 2)


@pytest.mark.parametrize("shape", [GRIDS["odd"], GRIDS["volume"]], ids=["plane", "volume"])
def test_custom_op(shape):
    auto = "auto" if DEVICE == "cuda" else "reference"
    x, m, a, b, previous = inputs(shape)
    arguments = (x, m, a, b, previous, None, "mean", auto, 4)
    torch.library.opcheck(custom_ops.step_dynamics, arguments, test_utils=("test_schema", "test_faketensor"))

    def step(x, m, previous):
        return ops.step_dynamics(x, m, a, b, previous, patch=4, backend=auto)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(compiled(x, m, previous), step(x, m, previous), strict=True):
        assert same_bits(ours, eager)

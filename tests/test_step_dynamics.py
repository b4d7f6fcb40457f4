# SPDX-License-Identifier: MIT
"""The fused step_dynamics gives the reference's bits, in any layout; tests/test_ops.py holds the reference itself."""

import pytest
import torch
from ascedfast.kernels import step_dynamics as kernel
from ascedfast.kernels.step_launch import StepLauncher
from layouts import DEVICES, LAYOUTS, SHAPES, channels_last, same_bits, sliced

from ascedfast import ops
from ascedfast._backend import BackendError
from ascedfast.solver import SCALARS, Update, solver_update

pytestmark = [pytest.mark.usefixtures("poisoned_empty"), *([pytest.mark.gpu] if DEVICES == ["cuda"] else [])]


def inputs(shape, layout, dtype, device):
    g = torch.Generator().manual_seed(3)
    x, m = layout(shape, g, dtype).to(device), channels_last(shape, g, dtype).to(device)
    a, b = torch.rand(shape[0], 2, generator=g).to(device).unbind(1)
    previous = sliced(shape, g, torch.float32).to(device)
    return x, m, a, b - 1, previous


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("clip", "reduce"), [(None, "mean"), (0.5, "max")])
def test_bits_in_every_layout(shape, layout, clip, reduce, device):
    x, m, a, b, previous = inputs(shape, layout, torch.float32, device)
    before = [t.clone() for t in (x, m, previous)]
    expected = ops.step_dynamics(x, m, a, b, previous, clip=clip, reduce=reduce, backend="reference")
    got = ops.step_dynamics(x, m, a, b, previous, clip=clip, reduce=reduce, backend="triton")
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])
    assert all(torch.equal(t, old) for t, old in zip((x, m, previous), before, strict=True))


# Triton's interpreter truncates bf16, so bf16 is compared on a GPU only.
LOW = [torch.float16] if DEVICES == ["cpu"] else [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_bits_in_low_precision(dtype, device):
    x, m, a, b, previous = inputs(SHAPES["latents"], sliced, dtype, device)
    expected = ops.step_dynamics(x, m, a[0], b[0], previous, backend="reference")
    got = ops.step_dynamics(x, m, a[0], b[0], previous, backend="triton")
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("clip", "reduce"), [(1.0, "mean"), (1.0, "max"), (None, "max")])
def test_special_values_stay(clip, reduce, device):
    values = torch.tensor([0.0, -0.0, 1e-40, 3e38, float("inf"), -float("inf"), float("nan"), 1.0])
    x, m = (t.reshape(1, 1, 8, 8).to(device) for t in torch.meshgrid(values, values, indexing="ij"))
    a = torch.ones(1, device=device)
    expected = ops.step_dynamics(x, m, a, -a, m, clip=clip, reduce=reduce, backend="reference")
    got = ops.step_dynamics(x, m, a, -a, m, clip=clip, reduce=reduce, backend="triton")
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])


@pytest.mark.parametrize("device", DEVICES)
def test_first_step_has_no_dynamics(device):
    x, m, a, b, _ = inputs(SHAPES["image"], sliced, torch.float32, device)
    x0, d = ops.step_dynamics(x, m, a, b, backend="triton")
    assert d is None
    assert same_bits(x0, ops.step_dynamics(x, m, a, b, backend="reference")[0])


def test_float64_is_refused_by_name():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, device=DEVICES[0])
    with pytest.raises(BackendError, match="float64"):
        ops.step_dynamics(x, x, x[0, 0, 0, :1].float(), x[0, 0, 0, :1].float(), backend="triton")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("solver", ["ddim", "dpm2"])
def test_a_solvers_update_in_every_layout(shape, layout, solver, device):
    update = Update(solver, "v", clip=0.5 if solver == "ddim" else None)
    x, m, a, b, previous = inputs(shape, layout, torch.float32, device)
    g = torch.Generator().manual_seed(7)
    scalars = torch.randn(shape[0], SCALARS, generator=g).to(device)
    own_prev = layout(shape, g, torch.float32).to(device)
    following, own = solver_update(update, x, m, scalars, own_prev)
    x0, d = ops.step_dynamics(x, m, a, b, previous, backend="reference")
    got = kernel.step_dynamics(x, m, a, b, previous, None, "mean", update, scalars, own_prev)
    for ours, expected in zip(got, (x0, d, following, own), strict=True):
        assert same_bits(ours, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("channels", [3, 16, 20, 32, 48, 64, 130])
def test_channels_side_by_side(channels, reduce, device):
    """Packed tokens: all tensors of a step lie with a location's channels side by side, and a tile takes up to 64."""
    g = torch.Generator().manual_seed(4)
    x, m, previous = (torch.randn(2, 7, 5, channels, generator=g).movedim(-1, 1).to(device) for _ in range(3))
    table = torch.tensor([[1.0, -0.6, -0.04, 0, 0, 0, 0, 0]], device=device)
    settings = {"table": table, "updates": [Update("flow", "flow")], "clip": None, "reduce": reduce}
    launch = StepLauncher(x, m, lambda t: t, **settings)
    x0, bank = launch.new_x0(x).copy_(previous), torch.full((1, 2, 7, 5), float("nan"), device=device)
    following, _ = launch(x, m, x0, bank, 0, 0, 2, 0, None)
    a, b = torch.full((2, 2), 1.0, device=device).mul_(table[0, :2]).unbind(1)
    expected_x0, expected = ops.step_dynamics(x, m, a, b, previous, reduce=reduce, backend="reference")
    assert same_bits(x0, expected_x0)
    assert same_bits(bank[0], expected)
    assert same_bits(following, x + table[0, 2] * m)

# SPDX-License-Identifier: MIT
"""The fused temporal_scores against the reference, which test_calibration_scores holds to loops over locations."""

import math

import pytest
import torch
from layouts import DEVICES

from ascedfast import ops
from ascedfast._backend import BackendError
from ascedfast.calibration.windows import smoothed

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
DEVICE = DEVICES[0]
SHAPES = {
    "two changes": (2, 2, 9, 7),
    "three changes": (3, 2, 9, 7),
    "one location": (5, 2, 1, 1),
    "odd": (11, 3, 17, 61),
    "several blocks": (7, 2, 40, 90),
    "several stretches": (4, 1, 200, 400),
    "volume": (6, 2, 3, 20, 31),
    "many changes": (49, 2, 8, 8),
}
CASES = [(name, torch.float32) for name in SHAPES] + [("odd", torch.bfloat16), ("odd", torch.float16)]


def changes(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    d = torch.randn(shape, generator=g).abs() * torch.linspace(3, 1, shape[0]).view(-1, *[1] * (len(shape) - 1))
    d[-1, :, shape[2] // 2 :] *= torch.rand(d[-1, :, shape[2] // 2 :].shape, generator=g) < 0.5
    return d.to(DEVICE)


def profile(count):
    return [3.0 - 2 * k / count for k in range(count)]


def both(d):
    shares = profile(len(d))
    return ops.temporal_scores(d, shares, backend="triton"), ops.temporal_scores(d.cpu(), shares, backend="reference")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel does not write shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(-7.0))


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_against_the_reference(name, dtype):
    """Relative error: a unit that differs in the last bit of a float64 moves r by one bit of a float32 at most, and a
    score is two roundings of a quotient of such sums: 2^-22. Such scores are rare."""
    for found, expected in zip(*both(changes(SHAPES[name]).to(dtype)), strict=True):
        assert found.dtype == expected.dtype == torch.float32
        assert found.shape == expected.shape
        torch.testing.assert_close(found.cpu(), expected, rtol=2**-22, atol=0)
        assert int((found.cpu() != expected).sum()) <= max(1, expected.numel() // 200)


@pytest.mark.parametrize("shape", [(3, 2, 40, 61), (2, 1, 3, 33, 64), (1, 1, 5, 7), (2, 0, 8, 8)], ids=str)
def test_smoothing_has_the_bits_of_the_reference(shape):
    d = changes(shape) if shape[1] else torch.zeros(shape, device=DEVICE)
    found = smoothed(d.transpose(-1, -2), backend="triton")
    assert torch.equal(found.cpu(), smoothed(d.cpu().transpose(-1, -2), backend="reference"))


def test_a_row_alone_has_the_bits_that_it_has_in_a_batch():
    d, shares = changes(SHAPES["several blocks"]), profile(7)
    whole = ops.temporal_scores(d, shares, backend="triton")
    for row in range(d.shape[1]):
        alone = ops.temporal_scores(d[:, row : row + 1], shares, backend="triton")
        assert torch.equal(alone.still[0], whole.still[row])
        assert torch.equal(alone.jump[0], whole.jump[row])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row(value):
    d = changes(SHAPES["odd"])
    sound, _ = both(d)
    d[3, 1, 5, 6] = value
    found, expected = both(d)
    for one, other, before in zip(found, expected, sound, strict=True):
        assert torch.equal(one.isnan().cpu(), other.isnan())
        assert torch.equal(one[[0, 2]], before[[0, 2]])
    if math.isnan(value):
        assert found.still[1].isnan().all()


def test_a_sample_that_never_changes():
    found, expected = both(torch.zeros(5, 2, 6, 6, device=DEVICE))
    assert torch.equal(found.still.cpu(), expected.still)
    assert torch.equal(found.jump.cpu(), expected.jump)


def test_layouts_and_nothing_at_all():
    d = changes((6, 2, 12, 20))
    turned = d.transpose(2, 3).contiguous().transpose(2, 3)
    part = torch.cat([d, d], 1)[:, 1:3]
    for view, expected in ((turned, both(d)[0]), (part, both(d.flip(1))[0])):
        found = ops.temporal_scores(view, profile(6), backend="triton")
        assert torch.equal(found.still, expected.still)
        assert torch.equal(found.jump, expected.jump)
    for shape in ((4, 0, 5, 5), (4, 2, 0, 5)):
        for one in (score for found in both(torch.zeros(shape, device=DEVICE)) for score in found):
            assert one.shape == shape[1:]
            assert one.dtype == torch.float32


def test_float64_is_left_to_the_reference():
    d, shares = changes(SHAPES["odd"]).double(), profile(11)
    with pytest.raises(BackendError, match="float64"):
        ops.temporal_scores(d, shares, backend="triton")
    found, expected = (ops.temporal_scores(d, shares, backend=backend) for backend in ("auto", "reference"))
    assert torch.equal(found.still, expected.still)
    assert torch.equal(found.jump, expected.jump)

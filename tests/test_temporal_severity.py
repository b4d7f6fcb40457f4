# SPDX-License-Identifier: MIT
"""temporal_severity: the reference against numpy by hand, the kernel against the reference."""

import math

import numpy as np
import pytest
import torch
from layouts import DEVICES
from test_temporal_scores import CASES, SHAPES, changes, profile

from ascedfast import ops
from ascedfast.reference_scores import Gumbel

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
DEVICE = DEVICES[0]
STILL, JUMP = Gumbel(1.9, 0.21), Gumbel(0.8, 0.3)
LOW, HIGH = -3.0, -1.5


def severity(d, backend, **changed):
    jump = JUMP if len(d) > 2 else None
    given = {"low": LOW, "high": HIGH, **changed}
    return ops.temporal_severity(d, profile(len(d)), STILL, jump, **given, backend=backend)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel does not write shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(7))


@pytest.mark.parametrize("name", ["two changes", "odd", "volume"])
def test_the_reference_against_numpy(name):
    d = changes(SHAPES[name]).cpu()
    still, jump = (part.numpy().astype(np.float64) for part in ops.temporal_scores(d, profile(len(d))))
    expected = (np.log(np.maximum(still, 1e-3)) - 1.9) / 0.21
    if len(d) > 2:
        expected = np.maximum(expected, (np.log(np.maximum(jump, 1e-3)) - 0.8) / 0.3)
    found, levels = severity(d, "reference")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    clear = (np.abs(expected - LOW) > 1e-5) & (np.abs(expected - HIGH) > 1e-5)
    assert np.array_equal(levels.numpy()[clear], ((expected > LOW) + (expected > HIGH).astype(int))[clear])
    assert set(np.unique(levels)) == {0, 1, 2}


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_the_kernel_against_the_reference(name, dtype):
    """A score differs by 2^-22 of itself (see test_temporal_scores), its logarithm by as much and by its own rounding:
    in scales that is below 2^-20 * (1 + |location| + |severity|*scale) / scale. Levels differ only that near to their
    thresholds."""
    d = changes(SHAPES[name]).to(dtype)
    found, levels = severity(d, "triton")
    expected, right = severity(d.cpu(), "reference")
    assert found.dtype == torch.float32
    assert levels.dtype == torch.uint8
    assert found.shape == levels.shape == expected.shape
    bound = 2**-20 * (1 + STILL.location + expected.abs() * JUMP.scale) / STILL.scale
    assert bool(((found.cpu() - expected).abs() <= bound).all())
    near = ((expected - LOW).abs() <= bound) | ((expected - HIGH).abs() <= bound)
    assert torch.equal(levels.cpu()[~near], right[~near])
    assert bool(near.float().mean() < 0.01) or near.numel() < 200


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_has_no_severity(backend, value):
    d = changes(SHAPES["odd"]) if backend == "triton" else changes(SHAPES["odd"]).cpu()
    sound = severity(d, backend)
    d[3, 1, 2, 5] = value
    found, levels = severity(d, backend)
    assert bool(found[1].isnan().all())
    assert not levels[1].any()
    for row in (0, 2):
        assert torch.equal(found[row], sound[0][row])
        assert torch.equal(levels[row], sound[1][row])


def test_a_row_alone_has_the_bits_that_it_has_in_a_batch():
    d = changes(SHAPES["several blocks"])
    whole = severity(d, "triton")
    for row in range(d.shape[1]):
        alone = severity(d[:, row : row + 1], "triton")
        assert all(torch.equal(one[0], part[row]) for one, part in zip(alone, whole, strict=True))


def test_thresholds_are_taken_anew_and_strides_are_any():
    d = changes(SHAPES["odd"])
    for low, high in ((LOW, HIGH), (HIGH, HIGH), (-1e9, 1e9)):
        found, levels = severity(d.transpose(-1, -2), "triton", low=low, high=high)
        assert torch.equal(levels, (found > low).to(torch.uint8) + (found > high).to(torch.uint8))
    assert torch.equal(found, severity(d, "triton")[0].transpose(-1, -2))


def test_no_rows_and_no_locations():
    for shape in ((4, 0, 5, 5), (4, 2, 0, 5)):
        found, levels = severity(torch.zeros(shape, device=DEVICE), "triton")
        assert found.shape == levels.shape == shape[1:]


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"low": 1.0, "high": 0.0}, "low must not lie above high"), ({"still": Gumbel(0.0, 0.0)}, "scale")],
)
def test_arguments_are_checked(changed, words):
    given = {"still": STILL, "jump": JUMP, "low": 0.0, "high": 1.0, **changed}
    with pytest.raises(ValueError, match=words):
        ops.temporal_severity(torch.rand(4, 1, 3, 3), [1.0] * 4, given.pop("still"), given.pop("jump"), **given)


def test_another_dtype_of_the_same_shape_is_read_as_what_it_is():
    d = changes(SHAPES["odd"])
    for one in (d, d.bfloat16(), d, d.half()):
        expected = severity(one.cpu(), "reference")[0]
        torch.testing.assert_close(severity(one, "triton")[0].cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_in_a_graph():
    d = changes(SHAPES["several blocks"]).cuda()
    expected, scored = severity(d, "triton"), ops.temporal_scores(d, profile(len(d)), backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = severity(d, "triton")
        scores = ops.temporal_scores(d, profile(len(d)), backend="triton")
    for part in (*found, *scores):
        part.zero_()
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(scores, scored, strict=True))

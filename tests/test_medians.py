# SPDX-License-Identifier: MIT
"""CUDA plane statistics against numpy and the reference: on a GPU, elsewhere emulated on the CPU."""

import math

import emulation
import numpy as np
import pytest
import torch
from layouts import DEVICES

from ascedfast import _backend, _native_cuda, reference

ON_GPU = DEVICES == ["cuda"]
WHY_NOT = "" if ON_GPU and _backend.has_cuda() else "built without CUDA" if ON_GPU else emulation.why_not()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), *([pytest.mark.gpu] if ON_GPU else [])]

# A block, a cluster's whole and partial shares, a plane that needs more than one block.
COUNTS = [1, 2, 3, 4, 31, 2500, 4097, 20001] if not ON_GPU else [1, 2, 3, 4, 31, 4097, 16384, 65536, 65539, 262144]


@pytest.fixture(params=["clusters"] if ON_GPU else ["clusters", "groups"])  # on a GPU the size decides: test_large
def team(request, monkeypatch):
    if request.param == "groups":
        monkeypatch.setenv("EMULATED_CLUSTERS", "0")
    return request.param


def medians(values):
    return _native_cuda.medians(values.to("cuda")).cpu() if ON_GPU else emulation.medians(values)


def check(values):
    """Equal to numpy and to the reference where all of a plane is finite, NaN elsewhere."""
    center, mad = medians(values).unbind(1)
    with np.errstate(invalid="ignore", over="ignore"):
        array = values.numpy()
        middle = np.median(array, axis=1)
        spread = np.median(np.abs(array - middle[:, None]), axis=1)
    wild = ~np.isfinite(array).all(1)
    middle[wild] = spread[wild] = np.nan
    np.testing.assert_array_equal(center.numpy(), middle)
    np.testing.assert_array_equal(mad.numpy(), spread)
    tame = values[~torch.from_numpy(wild)]
    truth = reference.median(tame)
    np.testing.assert_array_equal(center.numpy()[~wild], truth.numpy())
    np.testing.assert_array_equal(mad.numpy()[~wild], reference.median((tame - truth[:, None]).abs()).numpy())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(values):
    """Two neighbouring floats and little else: digits that agree to the last."""
    return torch.where(values > 0, torch.tensor(0.3), torch.tensor(np.nextafter(np.float32(0.3), np.float32(1))))


KINDS = {
    "magnitudes": torch.abs,
    "any sign": lambda v: v,
    "ties": lambda v: (4 * v).round(),
    "constant": lambda v: torch.full_like(v, 0.7),
    "neighbours": close,
    "many scales": lambda v: torch.exp(20 * v),
    "middle overflows": lambda v: torch.where(v > 0, 3.4e38, 3.3e38),
    "deviations overflow": lambda v: torch.where(v > 0.1, 3e38, -3e38),
    "subnormal": lambda v: v * 1e-40,
    "mostly inf": lambda v: torch.where(v > -0.3, math.inf, v),
    "some inf": lambda v: torch.where(v > 1, math.inf, v),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(team, kind, count):
    base = KINDS[kind](normal(3, count + 3, seed=count))
    check(base[:, 1 : count + 1] if count % 2 else base[:, :count].contiguous())


def test_nan_and_inf_stay_in_their_plane(team):
    values = normal(6, 3001).abs()
    values[1, 1500] = math.nan
    values[2, 3000] = -math.nan
    values[3, 0] = math.inf
    values[5, 3000] = -math.inf
    check(values)
    assert medians(values).isnan().all(1).tolist() == [False, True, True, True, False, True]
    assert not medians(values)[::4].isnan().any()


def test_many_planes(team):
    check(normal(40, 300).abs())


def test_no_planes():
    assert medians(torch.zeros(0, 5)).shape == (0, 2)


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("count", [700 * 700, 2048 * 2048, 2048 * 2048 + 1])
@pytest.mark.parametrize("kind", ["magnitudes", "ties", "constant", "many scales"])
def test_large(kind, count):
    check(KINDS[kind](normal(2, count)))
    check(KINDS[kind](normal(3, count + 2))[:, 1 : count + 1])


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("side", [256, 1024])
def test_captured_in_a_graph(side):
    values = torch.zeros(4, side * side, device="cuda")
    _native_cuda.medians(values)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = _native_cuda.medians(values)
    for seed in (1, 2):
        fresh = normal(4, side * side, seed=seed).abs()
        values.copy_(fresh)
        graph.replay()
        np.testing.assert_array_equal(found[:, 0].cpu().numpy(), np.median(fresh.numpy(), axis=1))


def test_extension_checks_its_arguments():
    native = _backend.native() if ON_GPU else emulation.extension()
    good = {"values": 16, "stride": 4, "planes": 2, "count": 4, "statistics": 16, "scratch": 0, "scratch_bytes": 0}
    for change in ({"planes": -1}, {"count": 0}, {"values": 0}, {"statistics": 0}):
        with pytest.raises(ValueError, match="expected"):
            native.medians_cuda(**{**good, **change}, device=0, stream=0)

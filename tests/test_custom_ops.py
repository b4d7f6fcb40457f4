# SPDX-License-Identifier: MIT
"""The ops inside ``torch.compile(fullgraph=True)``: traced as one node each, same results as eager."""

import pytest
import torch
from layouts import DEVICES, same_bits

import ascedfast  # noqa: F401 - registers the ops
from ascedfast import custom_ops, ops

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
DEVICE = DEVICES[0]
AUTO = "auto" if DEVICE == "cuda" else "reference"
PROFILE = (3.0, 2.5, 2, 1.5, 1.0)


def compiled(function):
    torch._dynamo.reset()
    # The eager backend still traces with fakes and refuses a graph break; a compiler would only take longer.
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def regions(maps):
    flags, z = ops.robust_threshold(maps, mad_scale=1.0, mad_floor=0.01, blur_sigma=1.0, z_floor=0.01, backend=AUTO)
    labels, kept, overflow = ops.label_regions(flags, connectivity=4, min_area=2, backend=AUTO)
    return flags, z, labels, kept, overflow, ops.dilate_mask(kept, 2, backend=AUTO)


def test_detection_is_one_graph():
    maps = randn(4, 2, 1, 16, 16).abs()
    for ours, eager in zip(compiled(regions)(maps), regions(maps), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.parametrize("backend", [AUTO, "reference", "triton"])
def test_levels_are_one_graph(backend):
    """What follows relies on the types that the fake tells: bool and int32, though levels are uint8."""
    levels = (randn(3, 16, 16) > 0).byte() + (randn(3, 16, 16) > 1.5)

    def find(levels):
        labels, kept, overflow = ops.label_regions(levels, connectivity=4, min_area=1, backend=backend)
        return labels, ~kept, ~overflow, torch.where(kept, labels, 0)

    for view in (levels, levels.transpose(1, 2)):
        for ours, eager in zip(compiled(find)(view), find(view), strict=True):
            assert ours.dtype == eager.dtype
            assert torch.equal(ours, eager)


@pytest.mark.parametrize("first", [True, False])
def test_step_dynamics_is_one_graph(first):
    x, m, previous = (randn(2, 3, 8, 8, seed=k) for k in range(3))
    a, b = randn(2), randn(2, seed=1)

    def step(x, m, previous):
        x0, d = ops.step_dynamics(x, m, a, b, previous, clip=1.0, backend=AUTO)
        return x0 * 2, d

    previous = None if first else previous
    for ours, eager in zip(compiled(step)(x, m, previous), step(x, m, previous), strict=True):
        assert (ours is None and eager is None) or same_bits(ours, eager)


@pytest.mark.parametrize(
    ("backend", "dtype"), [("triton", torch.float32), (AUTO, torch.float32), (AUTO, torch.float64)], ids=str
)
def test_temporal_scores_is_one_graph(backend, dtype):
    d = randn(5, 2, 7, 9).abs().to(dtype)

    def score(d):
        return ops.temporal_scores(d, PROFILE, backend=backend)

    for view in (d, d.transpose(2, 3)):
        ours, eager = compiled(score)(view), score(view)
        assert same_bits(ours.still, eager.still)
        assert same_bits(ours.jump, eager.jump)


def test_ops_in_place_are_seen_by_the_compiler():
    mask = randn(2, 8, 8) > 0
    keys = {name: torch.tensor([3, 4], device=DEVICE) for name in ("seeds", "steps", "draws")}

    def correct(x, entry, current):
        one = torch.ones(2, device=DEVICE)
        ops.renoise_(x, mask, current, one, one, **keys, backend=AUTO)
        ops.history_fill_([entry], mask, current, backend=AUTO)
        return x + entry

    ours, eager = ([randn(2, 3, 8, 8, seed=k) for k in range(3)] for _ in range(2))
    assert same_bits(compiled(correct)(*ours), correct(*eager))
    for a, b in zip(ours, eager, strict=True):
        assert same_bits(a, b)


def test_opcheck():
    x, m, previous = (randn(2, 3, 8, 8, seed=k) for k in range(3))
    a = randn(2)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(custom_ops.step_dynamics, (x, m, a, a, previous, None, "mean", AUTO), test_utils=checks)
    torch.library.opcheck(custom_ops.step_dynamics, (x, m, a, a, None, 1.0, "max", AUTO), test_utils=checks)
    maps = randn(4, 2, 1, 16, 16).abs()
    for count in (False, True):
        arguments = (maps, 1.0, None, 0.01, 1.0, 0.01, count, AUTO)
        torch.library.opcheck(custom_ops.robust_threshold, arguments, test_utils=checks)
        video = (randn(4, 2, 1, 3, 8, 8).abs(), *arguments[1:], True)
        torch.library.opcheck(custom_ops.robust_threshold, video, test_utils=checks)
    for d in (maps[:, :, 0], maps[:2, :, 0].transpose(2, 3), maps.double()):
        arguments = (d, PROFILE[: len(d)], AUTO)
        torch.library.opcheck(custom_ops.temporal_scores, arguments, test_utils=checks)
    mask = randn(2, 8, 8) > 0
    for levels in (mask, mask.byte() * 2, (mask.byte() * 2)[:0]):
        torch.library.opcheck(custom_ops.label_regions, (levels, 4, 0.0, 99.0, 1, AUTO), test_utils=checks)
    torch.library.opcheck(custom_ops.dilate_mask, (mask, 2, AUTO), test_utils=checks)
    key = torch.tensor([3, 4], device=DEVICE)
    arguments = (x.clone(), mask, previous, a, a, key, key, key, None, AUTO)
    torch.library.opcheck(custom_ops.renoise_, arguments, test_utils=checks)
    torch.library.opcheck(custom_ops.history_fill_, ([x.clone()], mask, m, AUTO), test_utils=checks)


def test_masks_in_any_order_give_dense_results():
    """As the fakes promise; what a compiled graph does next relies on it."""
    mask = (randn(2, 7, 9, seed=2) > 0).transpose(1, 2)
    checks = ("test_schema", "test_faketensor")
    for backend in (AUTO, "reference"):
        for levels in (mask, mask + mask.byte()):
            torch.library.opcheck(custom_ops.label_regions, (levels, 4, 0.0, 99.0, 1, backend), test_utils=checks)
        for radius in (0, 2):
            torch.library.opcheck(custom_ops.dilate_mask, (mask, radius, backend), test_utils=checks)

    def flat(mask):
        grown = ops.dilate_mask(mask, 0, backend="reference")
        labels, _, _ = ops.label_regions(grown, connectivity=4, backend="reference")
        return grown.view(2, -1), labels.view(2, -1)

    for found, expected in zip(
        torch.compile(flat, backend="aot_eager", fullgraph=True)(mask), flat(mask.contiguous()), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_wrong_argument_is_still_refused():
    def wrong(x):
        return ops.dilate_mask(x, 1, backend=AUTO)

    with pytest.raises(Exception, match="mask must be bool"):
        compiled(wrong)(randn(2, 8, 8))

# SPDX-License-Identifier: MIT
"""T_c by csrc's launch sequences has the bits of the ops one by one; what cannot be put together goes by the ops."""

import io
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import DEVICES, same_bits
from null_tables import calibrated

from ascedfast import AscedConfig, _backend, process
from ascedfast.engine import Engine
from ascedfast.lockstep import LockstepPlan
from ascedfast.prepared_correction import Found
from ascedfast.prepared_memory import ALIGNED, Parts
from ascedfast.schedule import Schedule

DEVICE = DEVICES[0]
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
STEPS, T_C = 7, 4  # three maps in the window
SCHEDULE = Schedule.from_levels([process.flow(1 - k / STEPS) for k in range(STEPS)])
SHAPES = {
    "latents": (1, 4, 12, 15),
    "rows": (2, 3, 12, 14),
    "video": (1, 1, 2, 12, 13),
    "medians by csrc": (1, 1, 66, 64),
}
LARGE = {"latents of 2048": (2, 4, 256, 256), "several blocks a row": (1, 1, 500, 500)} if DEVICE == "cuda" else {}
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float16]
# By what the build says of itself: one that has CUDA and no LaunchSequence fails.
needs_cuda_build = pytest.mark.skipif(not _backend.has_cuda(), reason="the extension holds no CUDA: nvcc builds it")


@given(st.lists(st.integers(0, 100), max_size=6))
def test_parts_of_a_buffer_are_aligned_and_do_not_overlap(sizes):
    parts = Parts(torch.device("cpu"), 3, *sizes)
    assert all(base == 3 and start % ALIGNED == 0 for base, start in parts.places)
    ends = [start + size for (_, start), size in zip(parts.places, sizes, strict=True)]
    assert all(end <= start for end, (_, start) in zip(ends, parts.places[1:], strict=False))
    assert parts.bytes.numel() >= max(ends, default=0)


@needs_cuda_build
def test_a_sequence_refuses_what_no_call_can_give():
    new = _backend.native().LaunchSequence
    sequence = new(2)
    with pytest.raises(ValueError, match="one of 2 addresses, got one after 2"):
        sequence.medians((2, 0), 1, 1, 1, (0, 0), (1, 0), 0)
    with pytest.raises(ValueError, match="one value or more"):
        sequence.medians((0, 0), 1, 1, 0, (0, 0), (1, 0), 0)
    places = dict.fromkeys(("mask", "labels", "kept", "overflow", "scratch"), (0, 0))
    rules = {"connectivity": 5, "min_area": 0, "max_area": 9, "core_width": 1}
    with pytest.raises(ValueError, match="connectivity"):
        sequence.label_regions(strides=[1] * 4, shape=[1] * 4, scratch_bytes=0, **places, **rules)
    with pytest.raises(ValueError, match="another number of addresses"):
        sequence(0, 0, 16)
    with pytest.raises(ValueError, match="at most 16"):
        new(17)
    sequence(0, 0, 16, 32)  # nothing was added: nothing is launched


def settings(**changes):
    changes = {"window_start": 0, "reference_size": None, "min_area": 3, "core_width": 2, "grow": 1} | changes
    return AscedConfig.fast(t_c=T_C, **changes)


def outputs(shape, dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    quiet = torch.randn(shape, generator=g)
    for k in range(STEPS):
        m = quiet + 0.01 * torch.randn(shape, generator=g)
        m[..., 4:8, 5:9] += 0.4 * (-1) ** k
        yield m.to(DEVICE).to(dtype)


class Runs:
    """Runs that share one plan, as those of a scheduler do."""

    def __init__(self, shape, config, dtype=torch.float32, make_x=lambda x: x):
        self.shape, self.config, self.dtype, self.make_x = shape, config, dtype, make_x
        self.plan = None

    def _plan(self, rows, x, m):
        self.plan = self.plan or LockstepPlan(rows[0], len(rows), x, m, lambda t: t)
        return self.plan

    def run(self):
        """The state after T_c, and the engine."""
        engine = Engine(self._plan)
        for row in range(self.shape[0]):
            engine.add(SCHEDULE, self.config, seed=7 + row)
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(6)).to(DEVICE).to(self.dtype)
        for m in outputs(self.shape, self.dtype):
            engine.observe(x, m)
            x = x - m / STEPS
            if engine.due:
                x = self.make_x(x)
                engine.correct_(x)
                return x, engine
        raise AssertionError("T_c never came")


def same_detections(one, other):
    return all(
        torch.equal(a, b) if a.dtype != torch.float32 else same_bits(a, b) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("x0_noise", [0.0, 0.3] if DEVICE == "cuda" else [0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", (SHAPES | LARGE).values(), ids=SHAPES | LARGE)
def test_the_second_correction_has_the_bits_of_the_first(by_csrc, shape, dtype, x0_noise):
    runs = Runs(shape, settings(x0_noise=x0_noise), dtype)
    (x, by_ops), (y, at_once) = runs.run(), runs.run()
    assert isinstance(at_once._lockstep._found, Found)
    assert not isinstance(by_ops._lockstep._found, Found)
    assert same_bits(x, y)
    one, other = by_ops._lockstep.detection, at_once._lockstep.detection
    assert one.mask.any()
    assert same_detections(one, other)
    assert at_once.report.rows[-1].severity == by_ops.report.rows[-1].severity


@pytest.mark.parametrize("shape", (SHAPES | LARGE).values(), ids=SHAPES | LARGE)
def test_the_second_calibrated_correction_has_the_bits_of_the_first(by_csrc, shape):
    """And, but for locations at a threshold (test_temporal_severity), the mask of the reference. The thresholds are
    such that some regions hold a seed and others do not."""
    config = partial(calibrated, SCHEDULE, T_C, shape[2:])
    z = Runs(shape, config(above=50.0, backend="reference"), DTYPES[-1]).run()[1].report[0].detection.z
    low, high = (float(z.quantile(share)) + 1e-4 for share in (0.9, 0.98))
    config = partial(config, above=high, spread=high - low)
    runs = Runs(shape, config(x0_noise=0.3), DTYPES[-1])
    (x, by_ops), (y, at_once) = runs.run(), runs.run()
    assert isinstance(at_once._lockstep._found, Found)
    assert not isinstance(by_ops._lockstep._found, Found)
    assert same_bits(x, y)
    one, other = by_ops._lockstep.detection, at_once._lockstep.detection
    assert 0 < int(one.mask.sum()) < one.mask.numel() / 2
    assert same_detections(one, other)
    assert [row.p_value for row in at_once.report] == [row.p_value for row in by_ops.report]
    _, reference = Runs(shape, config(backend="reference"), DTYPES[-1]).run()
    for ours, theirs in zip(at_once.report, reference.report, strict=True):
        assert 0 < len(ours.labels[ours.mask].unique()) < int(ours.labels.max())  # some regions hold no seed
        assert int((ours.mask != theirs.mask).sum()) <= ours.mask.numel() // 5000


def test_it_equals_the_reference(by_csrc):
    config = settings()
    runs = Runs(SHAPES["rows"], config)
    runs.run()
    x, engine = runs.run()
    expected, other = Runs(SHAPES["rows"], settings(backend="reference")).run()
    assert isinstance(engine._lockstep._found, Found)
    assert same_bits(x, expected)
    for ours, theirs in zip(engine.report.rows, other.report.rows, strict=True):
        assert torch.equal(ours.mask_grown, theirs.mask_grown)
        assert (ours.status, ours.severity) == (theirs.status, theirs.severity)


VIDEOS = {"rows": (2, 1, 2, 12, 13), "medians by csrc": (1, 1, 2, 66, 64)}


@pytest.mark.parametrize("shape", VIDEOS.values(), ids=VIDEOS)
def test_statistics_by_frame(by_csrc, shape):
    runs = Runs(shape, settings(statistics="frame"))
    (x, by_ops), (y, at_once) = runs.run(), runs.run()
    assert isinstance(at_once._lockstep._found, Found)
    assert not isinstance(by_ops._lockstep._found, Found)
    assert same_bits(x, y)
    assert same_detections(by_ops._lockstep.detection, at_once._lockstep.detection)
    expected, other = Runs(shape, settings(statistics="frame", backend="reference")).run()
    assert same_bits(x, expected)
    assert other.report.masks_grown.any()
    for ours, theirs in zip(at_once.report, other.report, strict=True):
        assert same_bits(ours.z, theirs.z)
        assert torch.equal(ours.mask, theirs.mask)


def moved(x):
    """The same values at an address that is not aligned."""
    return torch.empty(x.numel() + 1, device=x.device, dtype=x.dtype)[1:].view(x.shape).copy_(x)


def test_a_state_that_is_not_aligned_is_corrected_by_the_ops(by_csrc):
    runs = Runs(SHAPES["latents"], settings())
    x, _ = runs.run()
    runs.make_x = moved
    y, engine = runs.run()
    assert y.data_ptr() % ALIGNED
    assert not isinstance(engine._lockstep._found, Found)
    assert same_bits(x, y)


def test_a_first_state_that_is_not_aligned_leaves_the_next_ones_their_launches(by_csrc):
    runs = Runs(SHAPES["latents"], settings(), make_x=moved)
    runs.run()
    runs.make_x = lambda x: x
    assert [isinstance(runs.run()[1]._lockstep._found, Found) for _ in range(2)] == [False, True]


def test_what_a_later_run_found_can_be_saved(by_csrc):
    runs = Runs(SHAPES["rows"], settings())
    runs.run()
    _, engine = runs.run()
    found = engine._lockstep.detection
    torch.save(list(found), io.BytesIO())
    torch.save(engine.report, io.BytesIO())
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in found)


def test_other_strides_get_launches_of_their_own(by_csrc):
    runs = Runs(SHAPES["latents"], settings())
    x, _ = runs.run()
    runs.make_x = lambda x: x.contiguous(memory_format=torch.channels_last)
    for at_once in (False, True):
        y, engine = runs.run()
        assert isinstance(engine._lockstep._found, Found) == at_once
        assert same_bits(x, y.contiguous())


@pytest.mark.parametrize(
    ("changes", "at_once"),
    [({"blur_sigma": 0.0}, True), ({"correct": False}, False)] + [({"backend": "triton"}, False)] * (DEVICE == "cuda"),
)
def test_settings_that_csrc_serves_or_not(by_csrc, changes, at_once):
    runs = Runs(SHAPES["latents"], settings(**changes))
    (x, first), (y, second) = runs.run(), runs.run()
    assert isinstance(second._lockstep._found, Found) == at_once
    assert same_bits(x, y)
    assert same_detections(first._lockstep.detection, second._lockstep.detection)

# SPDX-License-Identifier: MIT
"""More than 2^31 elements: offsets of 32 bits would wrap. The last rows are compared with the op on them alone."""

import gc

import pytest
import torch
from layouts import same_bits

from ascedfast import ops

GIB = 1 << 30
NEEDED = 40 * GIB
"""Free bytes; the largest test holds some 27 GiB at once."""
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def memory():
    """A device with enough of it, and all of it given back afterwards."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < NEEDED:
        pytest.skip(f"needs {NEEDED // GIB} GiB of free GPU memory")
    yield
    gc.collect()
    torch.cuda.empty_cache()


pytestmark = [pytest.mark.gpu, pytest.mark.slow]
STATES = {
    "rows": (9, 4, 8192, 8192),  # the last row begins at element 2^31
    "channels": (1, 33, 8192, 8192),  # the last channel does
    "volume": (1, 4, 9, 8192, 8192),
}
MASK = (33, 8192, 8192)


def generator(seed):
    return torch.Generator(DEVICE).manual_seed(seed)


def noise(shape, seed, dtype=torch.float16):
    made = torch.empty(shape, dtype=dtype, device=DEVICE)
    assert made.numel() > 2**31
    return made.normal_(generator=generator(seed))


def sparse(shape, share):
    """Random bools, row by row: float32 of all rows would take four times the memory."""
    made = torch.empty(shape, dtype=torch.bool, device=DEVICE)
    g = generator(7)
    for row in made:
        torch.lt(torch.rand(row.shape, device=DEVICE, generator=g), share, out=row)
    return made


def rows_of(shape):
    seeds = torch.arange(shape[0], device=DEVICE)
    return torch.rand(shape[0], device=DEVICE, generator=generator(5)) + 0.25, seeds


@pytest.mark.parametrize("patch", [1, 8])
@pytest.mark.parametrize("shape", STATES.values(), ids=STATES)
def test_step_dynamics(shape, patch):
    """x0_hat and d of the last lines of the last row (and of all channels) as in a call on these lines."""
    x, m, previous = noise(shape, 1), noise(shape, 2), noise(shape, 3)
    a, _ = rows_of(shape)
    x0, d = ops.step_dynamics(x, m, a, -a, previous, clip=2.0, patch=patch)
    for lines in (slice(0, 16), slice(-16, None)):
        for row in (slice(0, 1), slice(-1, None)):
            parts = (t[row, ..., lines, :].clone() for t in (x, m))
            few = ops.step_dynamics(
                *parts,
                a[row],
                -a[row],
                previous[row, ..., lines, :].clone(),
                clip=2.0,
                patch=patch,
                backend="reference",
            )
            of_d = slice(0, 16 // patch) if lines.start == 0 else slice(-(16 // patch), None)
            assert same_bits(x0[row, ..., lines, :], few[0])
            assert same_bits(d[row, ..., of_d, :], few[1])


@pytest.mark.parametrize("radius", [1, 20])
def test_dilate_mask(radius):
    mask = sparse(MASK, 1e-3)
    assert mask.numel() > 2**31
    grown = ops.dilate_mask(mask, radius)
    for row in (0, -1):
        few = mask[row][None].clone()
        assert few.any()
        assert torch.equal(grown[row][None], ops.dilate_mask(few, radius))


def test_dilate_mask_of_one_volume():
    mask = sparse(MASK, 1e-3)
    grown = ops.dilate_mask(mask[None], 2)[0]
    assert torch.equal(grown[-2:], ops.dilate_mask(mask[-2:].clone(), 2))


@pytest.mark.parametrize("name", ["rows", "channels"])
def test_renoise(name):
    """Noise depends on a location's index, so that whole rows are compared, or whole channels by the first few."""
    shape = STATES[name]
    x, x0 = noise(shape, 1), noise(shape, 2, torch.float32)
    mask = sparse((shape[0], *shape[2:]), 0.25)
    level, seeds = rows_of(shape)
    keys = {"seeds": seeds, "steps": seeds + 1, "draws": seeds * 0}
    before = x[-1:].clone()
    ops.renoise_(x, mask, x0, level, level, **keys, x0_noise=level)
    if name == "rows":
        last = {key: value[-1:] for key, value in keys.items()}
        ops.renoise_(before, mask[-1:], x0[-1:], level[-1:], level[-1:], **last, x0_noise=level[-1:])
        assert same_bits(x[-1:], before)
    else:
        line = ~mask[0, -1]  # of the last channel: kept outside the mask, and new inside
        assert torch.equal(x[0, -1, -1][line], before[0, -1, -1][line])
        assert (x[0, -1, -1][~line] != before[0, -1, -1][~line]).float().mean() > 0.9
        few = before[:, :8].clone()
        ops.renoise_(few, mask, x0[:, :8], level, level, **keys, x0_noise=level)
        assert same_bits(x[:, :8], few)


@pytest.mark.parametrize("shape", STATES.values(), ids=STATES)
def test_history_fill(shape):
    entries, current = [noise(shape, 1), noise(shape, 2)], noise(shape, 3)
    mask = sparse((shape[0], *shape[2:]), 0.25)
    last = (slice(-1, None), slice(-1, None))  # the last channel of the last row
    few = [entry[last].clone() for entry in entries]
    ops.history_fill_(entries, mask, current)
    ops.history_fill_(few, mask[-1:], current[last].clone())
    for entry, part in zip(entries, few, strict=True):
        assert same_bits(entry[last], part)
        assert same_bits(entry[last], torch.where(mask[-1:, None], current[last], part))

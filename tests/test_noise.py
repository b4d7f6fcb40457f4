# SPDX-License-Identifier: MIT
"""The counter-based noise: the published generator, true normals, and the same bits wherever a request runs."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascedfast import noise
from ascedfast.noise import Purpose, normal, philox4x32, seed_to_int64

WORD = st.integers(0, 2**32 - 1)
SEED = st.integers(-(2**63), 2**64 - 1)


def seeds(*values):
    return torch.tensor([seed_to_int64(value) for value in values])


def draw(*values, channels=4, grid=(8, 8), step=5, purpose=Purpose.RENOISE, **options):
    return normal(seeds(*values), channels, grid, step=step, purpose=purpose, **options)


# Random123's known-answer file (kat_vectors), philox4x32 10.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, answer):
    counter, key, answer = ([int(word, 16) for word in text.split()] for text in (counter, key, answer))
    assert [int(word) for word in philox4x32(counter, key)] == answer


def python_philox(counter, key):
    """Salmon et al., Fig. 2, with Python's own integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@given(st.lists(WORD, min_size=6, max_size=6))
def test_philox_equals_integer_arithmetic(words):
    assert [int(word) for word in philox4x32(words[:4], words[4:])] == python_philox(words[:4], words[4:])


def exact_normals(u, w):
    """Box-Muller in float64: u in (0, 1] from 24 bits, the angle from the 27 bits that are used."""
    u, w = u.double(), w
    radius = (-2 * (((u / 256).floor() + 1) * 2.0**-24).log()).sqrt()
    quadrant = (w + (1 << 29)) >> 30
    rest = ((w - (quadrant << 30)) >> 5 << 5).double()
    angle = (quadrant.double() * 2**30 + rest) * (2 * np.pi / 2**32)
    return radius * angle.cos(), radius * angle.sin()


def assert_close_to_exact(u, w):
    for got, exact in zip(noise.box_muller(u, w), exact_normals(u, w), strict=True):
        assert got.dtype == torch.float32
        error = (got.double() - exact).abs()
        ulp = torch.from_numpy(np.spacing(exact.abs().float().numpy())).double()
        bad = (error > 4 * ulp) & (error > 5e-7)
        assert not bad.any(), (u[bad][:4], w[bad][:4], error[bad][:4])
        assert got.abs().max() <= 5.77


def test_normals_against_float64():
    words = torch.randint(0, 2**32, (2, 400_000), generator=torch.Generator().manual_seed(3))
    assert_close_to_exact(*words)


def test_normals_at_the_edges_of_every_quadrant_and_exponent():
    corners = [0, 1, 255, 256, 257, 2**32 - 1, 2**32 - 257, 0xB504F300, 0xB504F3FF, 0xB5050000]
    corners += [(1 << bit) + shift for bit in range(9, 32) for shift in (-257, -256, -1, 0, 255, 256)]
    angles = [(eighth << 29) + shift for eighth in range(8) for shift in (-33, -32, -1, 0, 1, 31, 32, 33)]
    u = torch.tensor([word % 2**32 for word in corners])
    w = torch.tensor([word % 2**32 for word in angles])
    assert_close_to_exact(*(part.flatten() for part in torch.meshgrid(u, w, indexing="ij")))


def test_moments_and_correlations():
    z = draw(*range(8), channels=8, grid=(128, 128)).double()
    n = z.numel()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    neighbours = (
        z[..., 1:] * z[..., :-1],
        z[..., 1:, :] * z[..., :-1, :],
        z[:, 1:] * z[:, :-1],
        z[1:] * z[:-1],
    )
    for product in neighbours:
        assert abs(product.mean()) < 5 / product.numel() ** 0.5


def test_share_of_the_tails():
    z = draw(1, channels=16, grid=(256, 256)).abs()
    for limit, share in ((1, 0.31731), (2, 0.045500), (3, 0.0026998), (4, 6.334e-5)):
        got = (z > limit).double().mean()
        assert abs(got - share) < 5 * (share / z.numel()) ** 0.5


@given(st.lists(SEED, min_size=1, max_size=4), st.data())
def test_rows_do_not_depend_on_the_batch(values, data):
    order = data.draw(st.permutations(range(len(values))))
    together = draw(*values)
    shuffled = draw(*(values[i] for i in order))
    for position, i in enumerate(order):
        assert torch.equal(shuffled[position], together[i])
        assert torch.equal(draw(values[i])[0], together[i])


def test_rows_may_stand_at_other_steps_and_draws():
    mixed = normal(
        seeds(1, 2, 1), 4, (8, 8), step=torch.tensor([3, 9, 3]), draw=torch.tensor([0, 7, 1]), purpose=Purpose.RENOISE
    )
    assert torch.equal(mixed[:1], draw(1, step=3))
    assert torch.equal(mixed[1:2], draw(2, step=9, draw=7))
    assert torch.equal(mixed[2:], draw(1, step=3, draw=1))


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 16])
def test_channels_in_front_do_not_depend_on_their_number(channels):
    assert torch.equal(draw(7, channels=channels), draw(7, channels=21)[:, :channels])


def test_noise_belongs_to_the_flat_location():
    flat = draw(7, grid=(4 * 6,))
    assert torch.equal(draw(7, grid=(4, 6)).flatten(2), flat)
    assert torch.equal(draw(7, grid=(2, 2, 6)).flatten(2), flat)


def test_every_counter_and_key_word_matters():
    variants = {
        "as is": draw(7),
        "step": draw(7, step=6),
        "draw": draw(7, draw=1),
        "last draw": draw(7, draw=65535),
        "purpose": draw(7, purpose=Purpose.PERTURB_X0),
        "low seed word": draw(8),
        "high seed word": draw(7 + 2**32),
        "top seed bit": draw(7 + 2**63),
    }
    blocks = list(variants.values())
    for i, one in enumerate(blocks):
        for other in blocks[:i]:
            assert (one == other).double().mean() < 0.01


def test_draws_do_not_share_blocks_with_channels():
    many = draw(7, channels=64, grid=(16,))
    for other in (1, 2, 16, 64):
        assert not set(draw(7, draw=other, grid=(16,)).flatten().tolist()) <= set(many.flatten().tolist())


def test_purpose_0_is_left_to_torch():
    assert all(int(purpose) >= 1 for purpose in Purpose)
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose)


def test_the_users_generators_are_not_drawn_from():
    before = torch.get_rng_state()
    draw(7)
    assert torch.equal(torch.get_rng_state(), before)


def test_golden_bits():
    # If these change, every stated seed gives other noise: raise NOISE_VERSION and state the new digests.
    block = draw(0, 2**63, 2**64 - 1, -1, 0x0123456789ABCDEF, channels=6, grid=(5, 7), step=12, draw=3)
    perturbed = draw(42, channels=3, grid=(2, 3, 4), step=0, purpose=Purpose.PERTURB_X0)
    digests = [hashlib.sha256(part.contiguous().numpy().tobytes()).hexdigest()[:16] for part in (block, perturbed)]
    assert (noise.NOISE_VERSION, *digests) == (1, "e8eb29056553a207", "078e74e4c8e070bf")


@pytest.mark.parametrize(
    ("seed", "bits"),
    [(0, 0), (1, 1), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1), (-1, -1), (-(2**63), -(2**63))],
)
def test_seed_bits(seed, bits):
    assert seed_to_int64(seed) == bits
    assert draw(seed).isfinite().all()


def test_negative_seeds_are_the_same_64_bits():
    assert torch.equal(draw(-1), draw(2**64 - 1))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_seeds_past_64_bits(seed):
    with pytest.raises(ValueError, match="64 bits"):
        seed_to_int64(seed)


@pytest.mark.parametrize(
    "seed", [1.0, "1", None, True, torch.tensor(1), np.int64(1)], ids=lambda seed: type(seed).__name__
)
def test_seeds_that_are_no_ints(seed):
    with pytest.raises(TypeError, match="seed"):
        seed_to_int64(seed)

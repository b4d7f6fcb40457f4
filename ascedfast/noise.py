# SPDX-License-Identifier: MIT
"""Counter-based Gaussian noise: the same bits for a request in any batch, at any position, on any device.

Generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    key     = (seed mod 2^32, seed div 2^32)      the request's 64-bit seed, unchanged
    counter = (location, channel // 4 + (draw << 16), step, purpose)

location is the flat index in the request's own grid, never the batch row; word ``channel % 4`` of a block belongs to
the channel, so the layout in memory does not matter. Under one key the map is a bijection of the counter: no two
(location, channel, draw, step, purpose) share a block. Purpose 0 is left free: it is what torch's own CUDA generator
draws for the same seed. Limits: 2^32 locations, 2^18 channels, 2^16 draws, 2^32 steps.

Normals are Box-Muller in float32 using only +, -, *, one correctly rounded square root and integer decoding, so that
every implementation can give the same bits: error to the exact value at most 4 ulp, |z| <= 5.77.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

NOISE_VERSION = 1
"""Raised whenever the bits for a given (seed, counter) change."""


class Purpose(IntEnum):
    """What a draw is for: the fourth counter word. 0 is never used."""

    RENOISE = 1
    PERTURB_X0 = 2


_MASK = 0xFFFFFFFF
_MUL = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_EIGHTH_TURN = math.pi / 4 / (1 << 24)


def seed_to_int64(seed: int) -> int:
    """A seed in [-2^63, 2^64) as the int64 with the same 64 bits. ValueError outside, TypeError if it is no int."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"a seed must be an int, got {type(seed).__name__}")
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"a seed must fit in 64 bits, got {seed}")
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def _mul_hi_lo(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of word*constant; 16-bit limbs keep every product below 2^49, inside int64."""
    low = word * (constant & 0xFFFF)
    high = word * (constant >> 16)
    middle = (low >> 16) + (high & 0xFFFF)
    return (high >> 16) + (middle >> 16), ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors or ints that broadcast, values in [0, 2^32).
        key: two of the same.
    Returns: four int64 tensors of the broadcast shape on the tensors' device, values in [0, 2^32).
    """
    given = (*counter, *key)
    device = next((word.device for word in given if isinstance(word, Tensor)), None)
    words = torch.broadcast_tensors(*(torch.as_tensor(word, dtype=torch.int64, device=device) for word in given))
    c0, c1, c2, c3, k0, k1 = words
    for _ in range(10):
        hi0, lo0 = _mul_hi_lo(c0, _MUL[0])
        hi1, lo1 = _mul_hi_lo(c2, _MUL[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _log_of_uniform(word: Tensor) -> Tensor:
    """ln(((word >> 8) + 1) * 2^-24) in float32, in [-16.64, 0]. The fraction is brought to [sqrt(1/2), sqrt(2)] by
    integer arithmetic, then the Cephes logf polynomial."""
    bits = ((word >> 8) + 1).to(torch.float32).view(torch.int32)
    exponent = (bits >> 23) - 127
    fraction = (bits & 0x7FFFFF) | 0x3F800000
    large = fraction > 0x3FB504F3  # sqrt(2)
    exponent = exponent + large.to(torch.int32) - 24
    fraction = torch.where(large, fraction - 0x800000, fraction)
    f = fraction.view(torch.float32) - 1.0
    z = f * f
    p = torch.full_like(f, 7.0376836292e-2)
    for c in (
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ):
        p = p * f + c
    e = exponent.to(torch.float32)
    y = (p * f) * z
    y = y + e * -2.12194440e-4  # ln 2 in two parts: 0.693359375 is exact in few bits
    y = y - z * 0.5
    return (f + y) + e * 0.693359375


def _sin_cos_of_uniform(word: Tensor) -> tuple[Tensor, Tensor]:
    """sin and cos of 2*pi*word/2^32 in float32: nearest quadrant by integers, Cephes polynomials on [-pi/4, pi/4]."""
    quadrant = ((word + (1 << 29)) >> 30) & 3
    rest = word - (((word + (1 << 29)) >> 30) << 30)  # signed, in [-2^29, 2^29)
    angle = (rest >> 5).to(torch.float32) * _EIGHTH_TURN
    z = angle * angle
    s = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z - 1.6666654611e-1) * z * angle + angle
    c = ((z * 2.443315711809948e-5 - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - z * 0.5 + 1.0
    odd = (quadrant & 1) == 1
    sine = torch.where(odd, c, s)
    cosine = torch.where(odd, s, c)
    sine = torch.where(quadrant >= 2, -sine, sine)
    cosine = torch.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
    return sine, cosine


def box_muller(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals from two 32-bit words (int64 tensors in [0, 2^32)); float32, the same bits everywhere."""
    # In float64 and back the root is correctly rounded; torch's float32 square root is not on every CPU.
    radius = (_log_of_uniform(u) * -2.0).double().sqrt().float()
    sine, cosine = _sin_cos_of_uniform(w)
    return radius * cosine, radius * sine


def normal(
    seeds: Tensor,
    channels: int,
    grid: Sequence[int],
    *,
    step: Tensor | int,
    purpose: Purpose,
    draw: Tensor | int = 0,
) -> Tensor:
    """Standard normal noise for a batch of requests.

    Args:
        seeds: int64 [R], the bits of each request's 64-bit seed (``seed_to_int64``). Decides the device.
        channels: C.
        grid: sizes of the location axes, for example (H, W).
        step: executed step index, int or int64 [R].
        purpose: what the draw is for.
        draw: which draw, int or int64 [R], in [0, 2^16).
    Returns: float32 [R, C, *grid].
    """
    device = seeds.device
    locations = 1
    for size in grid:
        locations *= size
    groups = -(-channels // 4)

    def per_row(value: Tensor | int) -> Tensor:
        return torch.as_tensor(value, dtype=torch.int64, device=device).reshape(-1, 1, 1)

    location = torch.arange(locations, device=device).view(1, 1, -1)
    group = torch.arange(groups, device=device).view(1, -1, 1) + (per_row(draw) << 16)
    key = (per_row(seeds) & _MASK, (per_row(seeds) >> 32) & _MASK)
    w0, w1, w2, w3 = philox4x32((location, group, per_row(step), int(purpose)), key)
    blocks = torch.stack((*box_muller(w0, w1), *box_muller(w2, w3)), dim=2)  # [R, groups, 4, locations]
    return blocks.reshape(seeds.numel(), groups * 4, *grid)[:, :channels]

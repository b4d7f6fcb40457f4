# SPDX-License-Identifier: MIT
"""Device functions for the noise of ``ascedfast.noise``: the same bits as the torch reference.

Only +, -, * on float32 and one correctly rounded square root are used, and launches turn contraction into fused
multiply-adds off (``enable_fp_fusion=False``), so that a GPU rounds where the reference rounds.
"""

import triton
import triton.language as tl

_EIGHTH_TURN = tl.constexpr(0.7853981633974483 / 16777216)  # pi/4 * 2^-24


@triton.jit
def block_of_normals(
    location,  # uint32 [N], flat index in the request's own grid
    group,  # uint32, channel // 4 + (draw << 16)
    step,  # uint32
    purpose,  # uint32, never 0
    key0,  # uint32, seed mod 2^32
    key1,  # uint32, seed div 2^32
):
    """Four float32 [N] of standard normals: channels 4*group .. 4*group + 3."""
    zero = location & 0
    w0, w1, w2, w3 = tl.philox(
        (key1.to(tl.uint64) << 32) | key0.to(tl.uint64), location, zero + group, zero + step, zero + purpose
    )
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def box_muller(u, w):
    """Two normals from two uint32 words (noise.box_muller)."""
    radius = tl.sqrt_rn(log_of_uniform(u) * -2.0)
    sine, cosine = sin_cos_of_uniform(w)
    return radius * cosine, radius * sine


@triton.jit
def log_of_uniform(word):
    """ln(((word >> 8) + 1) * 2^-24): exponent by integers, then the Cephes logf polynomial."""
    bits = ((word >> 8) + 1).to(tl.float32).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 127
    fraction = (bits & 0x7FFFFF) | 0x3F800000
    large = fraction > 0x3FB504F3  # sqrt(2)
    exponent = tl.where(large, exponent + 1, exponent) - 24
    fraction = tl.where(large, fraction - 0x800000, fraction)
    f = fraction.to(tl.float32, bitcast=True) - 1.0
    z = f * f
    p = f * 7.0376836292e-2 + -1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f + -1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f + -1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f + -2.4999993993e-1
    p = p * f + 3.3333331174e-1
    e = exponent.to(tl.float32)
    y = (p * f) * z
    y = y + e * -2.12194440e-4
    y = y - z * 0.5
    return (f + y) + e * 0.693359375


@triton.jit
def sin_cos_of_uniform(word):
    """sin and cos of 2*pi*word/2^32: nearest quadrant by integers, Cephes polynomials on [-pi/4, pi/4]."""
    turned = word + 0x20000000  # wraps: the quadrant counts modulo 4
    quadrant = turned >> 30
    rest = (turned & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    angle = (rest >> 5).to(tl.float32) * _EIGHTH_TURN
    z = angle * angle
    s = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z - 1.6666654611e-1) * z * angle + angle
    c = ((z * 2.443315711809948e-5 - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - z * 0.5 + 1.0
    odd = (quadrant & 1) == 1
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    sine = tl.where(quadrant >= 2, -sine, sine)
    cosine = tl.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
    return sine, cosine

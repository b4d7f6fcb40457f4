# SPDX-License-Identifier: MIT
"""The update of a solver with the stock scheduler's own roundings (``solver.solver_update``).

Each operation is done in fp32 and rounded to the type that the stock's tensors have at that place; scalars come from a
table that was made for the device the stock step would run on. Launch with ``enable_fp_fusion=False``.
"""

import triton
import triton.language as tl


@triton.jit
def _rounded(value, T: tl.constexpr):
    return value.to(T).to(tl.float32)


@triton.jit
def _over(value, scalar, DIVIDE: tl.constexpr):
    """Where the stock's scalar lives on the host, CUDA multiplies by its reciprocal, which the table then holds."""
    if DIVIDE:
        return tl.div_rn(value, tl.zeros_like(value) + scalar)
    else:
        return value * scalar


@triton.jit
def next_state(
    x,
    m,
    own_x0_prev,
    scalars,
    clip,
    P: tl.constexpr,
    SOLVER: tl.constexpr,
    PREDICTION: tl.constexpr,
    DIVIDE: tl.constexpr,
    CLIP: tl.constexpr,
):
    """x_next and the solver's own prediction of x0, both fp32, of tiles x and m.

    P: the type in which the stock adds x and m ("euler" and "flow" widen x to fp32 first).
    """
    X: tl.constexpr = x.dtype
    M: tl.constexpr = m.dtype
    s0 = tl.load(scalars)
    s1 = tl.load(scalars + 1)
    s2 = tl.load(scalars + 2)
    s3 = tl.load(scalars + 3)
    s4 = tl.load(scalars + 4)
    s5 = tl.load(scalars + 5)
    x = x.to(tl.float32)
    m = m.to(tl.float32)
    if SOLVER == "flow":
        own = x
        y = x + _rounded(s0 * m, M)
    elif SOLVER == "euler":
        own = x - _rounded(s0 * m, M) if PREDICTION == "eps" else _rounded(s3 * m, M) + _over(x, s4, DIVIDE)
        y = x + _over(x - own, s1, DIVIDE) * s2
    else:
        if PREDICTION == "eps":
            own = _rounded(_over(_rounded(x - _rounded(s0 * m, M), P), s1, DIVIDE), P)
        elif PREDICTION == "v":
            own = _rounded(_rounded(s1 * x, X) - _rounded(s0 * m, M), P)
        else:
            own = _rounded(x - _rounded(s0 * m, M), P)
        if CLIP:
            own = _rounded(tl.where(own > clip, clip, tl.where(own < -clip, -clip, own)), P)
        if SOLVER == "ddim":
            if PREDICTION == "eps":
                direction = _rounded(s2 * m, M)
            else:
                direction = _rounded(s2 * _rounded(_rounded(s4 * m, M) + _rounded(s5 * x, X), P), P)
            y = _rounded(s3 * own, P) + direction
        else:
            y = s2 * x - _rounded(s3 * own, P)
            if SOLVER == "dpm2":
                y += _rounded(s5 * _rounded(s4 * _rounded(own - own_x0_prev, P), P), P)
    return y, own

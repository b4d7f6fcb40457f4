# SPDX-License-Identifier: MIT
"""A solver's update in the stock scheduler's own order of operations and roundings, and its truth in plain torch.

The stock step does each operation in the type of its tensors, one rounding an operation, with scalars that are float32
tensors on the host or on the device; which of both decides how torch rounds them. ``Update`` says which operations, the
table that goes with it (``adapters.parity``) holds the scalars as torch would use them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SCALARS = 6
"""Scalars of one step, s0..s5 below."""


@dataclass(frozen=True)
class Update:
    """One step of a solver, with D(y, s) = y / s, or y * s where torch multiplies by the reciprocal (``divide``).

    The solver's own prediction, x0, with r(.) a rounding to the type torch computes in there:

        eps, "ddim" "dpm1" "dpm2"     D(r(x - r(s0*m)), s1)
        v,   "ddim" "dpm1" "dpm2"     r(r(s1*x) - r(s0*m))
        flow, "dpm1" "dpm2"           r(x - r(s0*m))
        eps, "euler"                  x - r(s0*m)                     x widened to float32
        v,   "euler"                  r(s3*m) + D(x, s4)

    is clamped to [-clip, clip] ("ddim"), and the next state is

        "ddim"    r(s3*x0) + r(s2*e)           e = m, or r(r(s4*m) + r(s5*x)) for v
        "euler"   x + D(x - x0, s1) * s2
        "flow"    x + r(s0*m)                  x widened to float32
        "dpm1"    s2*x - r(s3*x0)
        "dpm2"    s2*x - r(s3*x0) + r(s5*r(s4*r(x0 - x0 of the step before)))

    Source: DDIM, Euler, FlowMatchEuler and DPM-Solver++ (midpoint, heun) of diffusers 0.42.
    """

    solver: Literal["ddim", "euler", "flow", "dpm1", "dpm2"]
    prediction: Literal["eps", "v", "flow"]
    divide: bool = True
    clip: float | None = None

    def state_dtype(self, x: torch.dtype, m: torch.dtype) -> torch.dtype:
        """Type of the next state."""
        return m if self.solver in ("euler", "flow") else torch.promote_types(x, m)

    def own_x0_dtype(self, x: torch.dtype, m: torch.dtype) -> torch.dtype | None:
        """Type of the solver's own prediction; None where the solver makes none ("flow")."""
        if self.solver == "flow":
            return None
        return torch.float32 if self.solver == "euler" else torch.promote_types(x, m)


def solver_update(
    update: Update, x: Tensor, m: Tensor, scalars: Tensor, own_x0_prev: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The next state and the solver's own prediction of x0.

    Args:
        x, m: [R, C, *grid], fp32, bf16 or fp16. scalars: float32 [R, 6] or [6] on x's device.
        own_x0_prev: the solver's own prediction of the step before, for "dpm2".
    Returns: tensors like x, of ``update.state_dtype`` and ``update.own_x0_dtype``; the second None for "flow".
    """
    state_dtype = update.state_dtype(x.dtype, m.dtype)

    def r(value: Tensor, dtype: torch.dtype) -> Tensor:
        return value.to(dtype).float()

    def over(value: Tensor, scalar: Tensor) -> Tensor:
        return value / scalar if update.divide else value * scalar

    s = [scalars[..., i].reshape(-1, *([1] * (x.dim() - 1))) for i in range(SCALARS)]
    x_type, m_type = x.dtype, m.dtype
    x, m = x.float(), m.float()
    if update.solver == "flow":
        return (x + r(s[0] * m, m_type)).to(state_dtype), None
    if update.solver == "euler":
        own = x - r(s[0] * m, m_type) if update.prediction == "eps" else r(s[3] * m, m_type) + over(x, s[4])
        return (x + over(x - own, s[1]) * s[2]).to(state_dtype), own
    if update.prediction == "eps":
        own = r(over(r(x - r(s[0] * m, m_type), state_dtype), s[1]), state_dtype)
    elif update.prediction == "v":
        own = r(r(s[1] * x, x_type) - r(s[0] * m, m_type), state_dtype)
    else:
        own = r(x - r(s[0] * m, m_type), state_dtype)
    if update.clip is not None:
        own = r(own.clamp(-update.clip, update.clip), state_dtype)
    if update.solver == "ddim":
        if update.prediction == "eps":
            direction = r(s[2] * m, m_type)
        else:
            direction = r(s[2] * r(r(s[4] * m, m_type) + r(s[5] * x, x_type), state_dtype), state_dtype)
        y = r(s[3] * own, state_dtype) + direction
    else:
        y = s[2] * x - r(s[3] * own, state_dtype)
        if update.solver == "dpm2":
            y = y + r(s[5] * r(s[4] * r(own - own_x0_prev.float(), state_dtype), state_dtype), state_dtype)
    return y.to(state_dtype), own.to(state_dtype)

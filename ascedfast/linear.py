# SPDX-License-Identifier: MIT
"""A deterministic solver's steps as sums, with what it remembers reduced to at most three tensors.

A step reads the state x, the model output m and the carried tensors c_i, and writes

    x_next = s_x*x + s_m*m + sum_i s_i*c_i + s_clip*clip(a*x + b*m)
    c_j    = the same form without the clipped term, for each tensor that later steps need

with float64 coefficients and float64 arithmetic, one rounding at the end. It is the solver's own step in exact
arithmetic and not the stock scheduler's bits: stock rounds at each operation and has float32 scalars. Carried tensors
are float32: a history entry, or what a corrector will need of all that came before (P in x_corrected = P + w*h, h the
entry of the coming step).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

READS, WRITES = 3, 2
"""Most carried tensors that a step reads and writes."""
COLUMNS = 3 + READS
"""Coefficients of a sum: x, m, the carried tensors, the clipped prediction."""
WIDTH = (1 + WRITES) * COLUMNS + 2
"""float64 of a step in a table: the sum of the state, those of the written tensors, and a and b of the clipped term."""


@dataclass(frozen=True)
class LinearStep:
    """One step. Carried tensors live in slots; a written slot may be one that is read.

    state: coefficients of x, m and each of ``reads``. clipped: of clip(a*x + b*m), the solver's own prediction.
    writes: slots, and ``carried`` the coefficients of each, as in ``state``.
    repair: (slot, of x, of m) of every carried tensor that is alive before this step: what it is when the sample has
        always been where x is now. Written inside the mask after a correction.
    """

    state: tuple[float, ...]
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    carried: tuple[tuple[float, ...], ...] = ()
    clipped: float = 0.0
    own: tuple[float, float] = (0.0, 0.0)
    repair: tuple[tuple[int, float, float], ...] = ()

    def row(self) -> list[float]:
        """This step in a table, WIDTH numbers."""
        sums = [self.state, *self.carried]
        found = []
        for coefficients in (*sums, *[(0.0,) * 2] * (1 + WRITES - len(sums))):
            found += [*coefficients, *[0.0] * (COLUMNS - 1 - len(coefficients)), 0.0]
        found[COLUMNS - 1] = self.clipped
        return [*found, *self.own]


@dataclass(frozen=True)
class LinearPlan:
    """The steps of a run from its first executed one on. slots: carried tensors. clip: of the solver's own prediction,
    None where no step has a clipped term."""

    steps: tuple[LinearStep, ...]
    slots: int
    clip: float | None = None

    def table(self) -> Tensor:
        """float64 [steps, WIDTH]."""
        return torch.tensor([step.row() for step in self.steps], dtype=torch.float64)


def linear_update(
    step: LinearStep, x: Tensor, m: Tensor, carried: Sequence[Tensor], clip: float | None, state_dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """One step in plain torch, the truth of the kernel.

    Args:
        x, m: [R, C, *grid], fp32, bf16 or fp16. carried: the tensors of ``step.reads``, float32, like x.
        clip: bound of the solver's own prediction. state_dtype: of the next state.
    Returns: the next state; the tensors of ``step.writes``, float32; the solver's own prediction a*x + b*m, clipped,
        float64. Error of the state against exact arithmetic on the same inputs: at most eps(state_dtype) times the sum
        of |coefficient * input|.
    """
    inputs = [x.double(), m.double(), *(tensor.double() for tensor in carried)]

    def total(coefficients: Sequence[float]) -> Tensor:
        parts = [c * tensor for c, tensor in zip(coefficients, inputs, strict=True)]
        result = parts[0]
        for part in parts[1:]:
            result = result + part
        return result

    own = step.own[0] * inputs[0] + step.own[1] * inputs[1]
    own = own if clip is None else own.clamp(-clip, clip)
    state = total(step.state) if clip is None else total(step.state) + step.clipped * own
    return state.float().to(state_dtype), tuple(total(row).float() for row in step.carried), own

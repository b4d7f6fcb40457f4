# SPDX-License-Identifier: MIT
"""A second look at what was re-noised, and once another draw of it: for samplers that own their loop.

    second = ascedfast.SecondPass(run)         # run: what ascedfast.begin returned
    k = 0
    while k < len(timesteps):
        m = denoiser(x, timesteps[k])
        second.observe(x, m)                   # instead of run.observe
        x = solver_step(m, k, x)
        k = second.next_step_(k, x)            # corrects at T_c, as run.correct_ does; k + 1, or once T_c again

A pipeline of diffusers owns its loop and cannot go back: this is not for it.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.calibration.windows import smoothed
from ascedfast.config import AscedConfig
from ascedfast.dlpack import as_tensor
from ascedfast.engine import Engine
from ascedfast.lockstep import WITHOUT_GRADIENTS
from ascedfast.noise import seed_to_int64
from ascedfast.report import RowReport

LEAST_AFTER = 3
"""Predictions that make two changes, the fewest that ``ops.temporal_scores`` takes."""
SECOND_DRAW = 1 << 31
"""Added to the step that counts the noise. No run is that long, so no correction of any seed has drawn these bits; the
draw, the other free word, tells the images of one request apart."""


@dataclass(eq=False)
class _Kept:
    """From T_c until the look is over. x: the corrected state at T_c, x0: the prediction before it, [R, C, *grid].
    rows: of all; looked: indices of those with a mask. failed: of these, the re-noised ones. later: the state after
    the first look."""

    x: Tensor
    x0: Tensor
    rows: list[RowReport]
    looked: list[int]
    failed: list[int] = field(default_factory=list)
    later: Tensor | None = None


class SecondPass:
    """Looks at each corrected region again, ``after`` predictions after T_c, inside the mask of the correction alone.
    Rows that score above ``threshold`` there are re-noised once more at T_c, inside that mask, with other noise; the
    loop does these ``after`` steps again, and of the two draws of a row the less severe goes on.

    Rows without a mask, and rows not above the threshold, go on with the bits of a run without this. At T_c the second
    draw differs inside its own row's mask alone. Its noise depends on the row's seed, as all noise here does. With
    nothing found nothing is kept and no step is done twice; else ``after`` more evaluations of the batch at the most.

    One draw is compared with another, not with sound runs: the table of mode "calibrated" knows windows that end at
    T_c, and re-noised regions move in their own way. So by default the second draw is always tried. A threshold saves
    evaluations, and is the user's to find from ``severity`` of runs that came out well.

    Kept from T_c on, where something was corrected: the state and x0_hat there, fp32 maps of the changes, and, while
    steps are done again, the state to which the first draw came. Reads flags back at T_c, and severities after each
    look: no loop to capture in a CUDA graph. The report of ``run`` is of the first pass.

    The solver's step must be a function of the model's output and x. One that remembers earlier steps has to put its
    memory back where ``next_step_`` returns another step than k + 1: to what it was when it first came to that step. A
    step that draws noise draws anew.

    Args:
        run: an engine before its first step, whose rows share schedule and T_c.
        after: predictions after T_c that are looked at, 3 or more, and no more than steps follow it.
        threshold: severity above which a row is drawn again, see ``severity_inside``; None: always.
    Attributes:
        step: index in the schedule of the coming step.
        evaluations: of the denoiser, of the whole batch, that were done again so far.
        severity: by row, () without a correction, (first,) or (first, second draw); filled when looked.
        kept_second: by row, whether the second draw went on.
    Raises: TypeError, ValueError.
    """

    def __init__(self, run: Engine, *, after: int = 5, threshold: float | None = None) -> None:
        if not isinstance(run, Engine):
            raise TypeError(f"run must be what ascedfast.begin returned, got {type(run).__name__}")
        if isinstance(after, bool) or not isinstance(after, int):
            raise TypeError(f"after must be an int, got {after!r}")
        if after < LEAST_AFTER:
            raise ValueError(f"after must be {LEAST_AFTER} or more: two changes are scored at least, got {after}")
        if threshold is not None and math.isnan(threshold):
            raise ValueError("threshold must be a number, or None to try a second draw always")
        if not run.rows:
            raise ValueError("this engine has no rows: give begin its seeds, or add the rows first")
        if any(run.step_of(row) for row in run.rows):
            raise ValueError("this run has begun: make its SecondPass before the first step")
        places = {run.schedule_of(row) for row in run.rows}
        t_c = {row.plan.t_c for row in run.report if row.plan.reason is None}
        if len(places) > 1 or len(t_c) > 1:
            raise ValueError("the rows differ in schedule or T_c and cannot go back together: give each an engine")
        self._schedule, first = places.pop()
        self._first = first
        backends = {row.config.backend for row in run.report}
        self._backend = backends.pop() if len(backends) == 1 else "auto"
        self._t_c = first + t_c.pop() if t_c else None
        left = 0 if self._t_c is None else len(self._schedule) - self._t_c
        if self._t_c is not None and after > left:
            raise ValueError(
                f"{left} steps follow T_c, after = {after} are to be looked at: take more steps, an earlier t_c or a "
                "smaller after"
            )
        self.run, self.after, self.threshold = run, after, threshold
        self.step, self.evaluations = first, 0
        self.severity: list[tuple[float, ...]] = [()] * len(run.rows)
        self.kept_second = [False] * len(run.rows)
        self._ids = run.rows
        self._again: Engine | None = None
        self._kept: _Kept | None = None
        self._changes: list[Tensor] = []
        self._x0: Tensor | None = None
        self._observed: Tensor | None = None

    def observe(self, x: Tensor, m: Tensor | None = None, *, x0: Tensor | None = None) -> Tensor:
        """``Engine.observe`` of all rows, for steps that are done again too. Args, returns, raises: as there;
        ValueError when called twice for a step."""
        if self._observed is not None:
            raise ValueError("this step was observed: do the solver's step, then call next_step_(k, x)")
        if self.run.rows != self._ids:
            raise ValueError("rows were added or removed: a SecondPass is for the rows that it began with")
        if self._kept is not None:
            self._check_shape(as_tensor(x))
        seen = (self._again or self.run).observe(x, m, x0=x0)
        self._observed = seen
        if self._again is not None:
            self.evaluations += 1
        if self._kept is not None:
            self._look(seen)
        return seen

    @torch.no_grad()
    def next_step_(self, k: int, x: Tensor) -> int:
        """Call it after each solver step; corrects at T_c, and may go back, both in place.

        Args:
            k: index in the schedule of the step that was done. x: [R, C, *grid], the state that it returned; modified
                at T_c inside the masks, and at the end of a look.
        Returns: the index of the step to do next: k + 1, or that of T_c, when x holds the state to do it from.
        Raises: ValueError, TypeError; then x and the rows are as they were.
        """
        x = as_tensor(x, write=True)
        if self._observed is None:
            raise ValueError(
                "next_step_ without a prediction: call second.observe(x, m), not run.observe, at each step"
            )
        if k != self.step:
            raise ValueError(
                f"step {self.step} was observed, got k = {k}: go on with the step that next_step_ returned"
            )
        self._check_shape(x)
        if self._kept is not None and x.requires_grad:
            raise ValueError(WITHOUT_GRADIENTS)
        if self._again is None:
            self.run.correct_(x)
        at, seen = self.step + 1, self._observed
        self.step, self._observed = at, None
        if self._t_c is not None and at == self._t_c:
            self._keep(x, seen)
        elif self._kept is not None and at == self._t_c + self.after:
            self._first_look_(x) if self._again is None else self._second_look_(x)
        return self.step

    def _check_shape(self, x: Tensor) -> None:
        of = self._observed if self._kept is None else self._kept.x
        if x.shape != of.shape or x.device != of.device or (self._kept is not None and x.dtype != of.dtype):
            raise ValueError(
                f"x must be {tuple(of.shape)} on {of.device} in the dtype of the states before, got {tuple(x.shape)} "
                f"on {x.device}, {x.dtype}"
            )

    def _keep(self, x: Tensor, x0: Tensor) -> None:
        """Of the state at T_c what going back takes, where a row was corrected."""
        rows = list(self.run.report)
        looked = [i for i, row in enumerate(rows) if row.status == "corrected"]
        if looked:
            self._kept = _Kept(x.clone(), x0.clone(), rows, looked)

    @torch.no_grad()
    def _look(self, x0: Tensor) -> None:
        if self._x0 is not None:
            nought, one = torch.tensor([[0.0], [1.0]], dtype=torch.float32, device=x0.device).expand(2, len(x0))
            self._changes.append(ops.step_dynamics(x0, x0, nought, one, self._x0, backend=self._backend)[1])
        self._x0 = x0.clone()

    def _scores(self, rows: list[int]) -> dict[int, float]:
        """Of the look that has just ended; its maps go."""
        changes = torch.stack(self._changes)
        self._changes, self._x0 = [], None
        return {i: severity_inside(changes[:, i], self._kept.rows[i].mask_grown, backend=self._backend) for i in rows}

    def _first_look_(self, x: Tensor) -> None:
        kept = self._kept
        for i, severity in self._scores(kept.looked).items():
            self.severity[i] = (severity,)
        kept.failed = [i for i in kept.looked if self.threshold is None or not self.severity[i][0] <= self.threshold]
        if not kept.failed:
            self._kept = None
            return
        kept.later = x.clone()
        x.copy_(self._drawn_again())
        self.step = self._t_c
        self._again = Engine()  # the rows' own engine has seen these steps
        for row in kept.rows:
            config = AscedConfig(backend=row.config.backend)
            seed = {"seed": row.seed, "draw": row.draw}
            self._again.add(self._schedule, config, **seed, first=self.step, left_alone="this is a second pass")

    def _drawn_again(self) -> Tensor:
        """The state at T_c, re-noised once more inside the masks of the rows that failed."""
        kept = self._kept
        state, rows, device = kept.x.clone(), kept.rows, kept.x.device
        mask = torch.zeros(len(rows), *state.shape[2:], dtype=torch.bool, device=device)
        for i in kept.failed:
            mask[i] = rows[i].mask_grown
        alpha, sigma = self._schedule.after[self._t_c - 1]
        x0_noise = [0.0] * len(rows)
        for i in kept.failed:  # others' tables may not know their windows
            x0_noise[i] = rows[i].config.x0_noise_at(rows[i].logsnr[rows[i].plan.start : rows[i].plan.t_c])
        perturb = torch.tensor(x0_noise, dtype=torch.float32, device=device)
        step = self._t_c - self._first + SECOND_DRAW
        return ops.renoise_(
            state,
            mask,
            kept.x0,
            torch.full((len(rows),), alpha, dtype=torch.float32, device=device),
            torch.full((len(rows),), sigma, dtype=torch.float32, device=device),
            seeds=torch.tensor([seed_to_int64(row.seed) for row in rows], dtype=torch.int64, device=device),
            steps=torch.full((len(rows),), step, dtype=torch.int64, device=device),
            draws=torch.tensor([row.draw for row in rows], dtype=torch.int64, device=device),
            x0_noise=perturb if any(x0_noise) else None,
            backend=self._backend,
        )

    def _second_look_(self, x: Tensor) -> None:
        kept = self._kept
        for i, severity in self._scores(kept.failed).items():
            self.severity[i] += (severity,)
            self.kept_second[i] = severity < self.severity[i][0]
        first = [i for i, second in enumerate(self.kept_second) if not second]
        x[first] = kept.later[first]
        self._kept = self._again = None


def severity_inside(changes: Tensor, mask: Tensor, *, backend: str = "auto") -> float:
    """How much a region stood still or leapt, by the measure of its own sample.

    ``ops.temporal_scores`` of the smoothed changes, with the row's own mean change as the profile; of each of the two
    scores the largest inside the mask: log(1 + still) + log(1 + jump). A sum of logarithms, since the units of the two
    differ and only two draws of one region are compared.

    Args: changes: float [K, *grid], mean over channels of |change of x0_hat| at K >= 2 steps, one row's. mask: bool
        [*grid], not empty.
    Returns: 0 or more, no unit; infinite where a change is NaN or Inf. Source: this project (``docs/calibration.md``).
    """
    if not bool(changes.isfinite().all()):
        return math.inf
    d = smoothed(changes.float(), backend=backend)
    profile = d.double().flatten(1).mean(1).clamp(min=torch.finfo(torch.float32).tiny).tolist()
    scores = ops.temporal_scores(d[:, None], profile, backend=backend)
    return sum(math.log1p(float(score[0][mask].max())) for score in scores)

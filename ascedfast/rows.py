# SPDX-License-Identifier: MIT
"""One request inside the engine: its plan, its place in the run, and what has been seen of it."""

from dataclasses import dataclass, field

from torch import Tensor

from ascedfast.config import AscedConfig
from ascedfast.detect import Detection
from ascedfast.report import RowReport
from ascedfast.schedule import MIN_PREDICTIONS, Plan, Schedule

WHAT_TO_DO = "let the cache begin after T_c, or skip less"


@dataclass(eq=False, slots=True)
class Row:
    """State of one request. ``step`` counts executed steps; ``bank`` holds what its mode keeps of each step. ``keep``:
    bool, broadcasts against [*grid], what is never re-noised. ``looks_back``: a cache may answer for steps, and the
    window reaches back over them to as many predictions as it would hold without it; ``repeated`` counts such steps."""

    id: int
    schedule: Schedule
    config: AscedConfig
    seed: int
    draw: int
    first: int
    plan: Plan
    enabled: bool = True
    keep: Tensor | None = None
    looks_back: bool = False
    step: int = 0
    repeated: int = 0
    bank: list[Tensor] = field(default_factory=list)
    dynamics: list[tuple[int, Tensor]] = field(default_factory=list)
    finite: Tensor | None = None
    finite_after: Tensor | None = None
    x0: Tensor | None = None
    detection: Detection | None = None

    @property
    def opens(self) -> int:
        """First step that may be banked."""
        by_default = self.config.mode == "fast" and self.config.window_start is None
        return 0 if self.looks_back and by_default else self.plan.start

    @property
    def _wanted_entries(self) -> int:
        return self.plan.t_c - self.plan.start - self.banks_changes

    @property
    def watched(self) -> bool:
        """The window is open at this step."""
        return self.enabled and self.plan.reason is None and self.opens <= self.step < self.plan.t_c

    @property
    def wanted(self) -> bool:
        """The dynamics of this step go into the report, or feed the next step's."""
        return self.enabled and (self.watched or self.config.record == "run")

    @property
    def window_logsnr(self) -> list[float]:
        """logSNR of the predictions of the window, in the order of the run."""
        window = self.schedule.before[self.first + self.plan.start : self.first + self.plan.t_c]
        return [level.logsnr for level in window]

    @property
    def x0_noise(self) -> float:
        """Noise on x0_hat of this row's correction. Raises: ValueError where the table does not know its window."""
        return self.config.x0_noise_at(self.window_logsnr)

    @property
    def banks_changes(self) -> bool:
        """The mode keeps the dynamics of a step, and no signal of its own."""
        return self.config.mode in ("fast", "calibrated")

    @property
    def gap(self) -> str | None:
        """Why the window cannot be judged; None where every step of it was banked, or answered for by a cache while
        enough were computed."""
        steps = self.plan.t_c - self.opens
        computed = steps - self.repeated
        entries = min(max(computed - self.banks_changes, 0), self._wanted_entries)
        if len(self.bank) != entries or any(entry is None for entry in self.bank):
            return "the row was off, or its steps were not observed, for a part of its window"
        told = f"a cache skipped {self.repeated} of the {steps} steps before T_c that are watched"
        if self.repeated and self.config.mode == "calibrated":  # its table knows runs whose steps are all seen
            return f"{told}, mode 'calibrated' needs them all: {WHAT_TO_DO}"
        if computed < MIN_PREDICTIONS:
            return f"{told}, {MIN_PREDICTIONS} must be computed: {WHAT_TO_DO}"
        return None

    @property
    def due(self) -> bool:
        """T_c has come, and nothing was detected yet."""
        return self.enabled and self.plan.reason is None and self.step == self.plan.t_c and self.detection is None

    def take(self, x0: Tensor, d: Tensor | None, signal: Tensor | None, finite: Tensor) -> None:
        """Keep of an observed step what the plan asks for, and go on to the next step.

        Args:
            x0: [C, *grid]. d: [*grid], or None without a previous prediction. finite: 0-dim bool.
            signal: what the row's mode banks of a step; None where it banks d itself.
        """
        # A step that is observed for the sake of other rows leaves no trace in this one.
        self.x0 = x0 if self.wanted else None
        if self.wanted:
            if self.detection is None:
                self.finite = finite if self.finite is None else self.finite & finite
            else:
                self.finite_after = finite if self.finite_after is None else self.finite_after & finite
            if d is not None:
                self.dynamics.append((self.step, d))
        if self.watched and not self.banks_changes:
            self.bank.append(signal)
        elif self.watched and self.step - self.repeated > self.opens:  # there is a prediction in the window
            self.bank.append(d)
        if self.watched and len(self.bank) > self._wanted_entries:
            del self.bank[0]
        self.step += 1

    def pass_by(self, repeated: bool) -> None:
        """A step that is not observed; ``repeated``: because a cache answered for it. Such a step is no calm one: it
        adds no change, and the next change is taken against the last prediction that was computed."""
        self.x0 = self.x0 if repeated else None
        self.repeated += repeated and self.watched
        self.step += 1

    def detach(self) -> None:
        """Own what is kept, instead of views that hold a whole batch."""
        self.dynamics = [(step, d.clone()) for step, d in self.dynamics]
        self.finite = None if self.finite is None else self.finite.clone()
        self.finite_after = None if self.finite_after is None else self.finite_after.clone()
        if self.detection is not None:
            self.detection = Detection(*(part.clone() for part in self.detection))

    def report(self) -> RowReport:
        """A snapshot; nothing is read back from the device."""
        return RowReport(
            config=self.config,
            seed=self.seed,
            draw=self.draw,
            enabled=self.enabled,
            plan=self.plan,
            steps=len(self.schedule) - self.first,
            executed=self.step,
            finite=self.finite,
            finite_after=self.finite_after,
            detection=self.detection,
            dynamics=tuple(self.dynamics),
            logsnr=tuple(level.logsnr for level in self.schedule.before[self.first :]),
            keep=self.keep,
        )

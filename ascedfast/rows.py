# SPDX-License-Identifier: MIT
"""One request inside the engine: its plan, its place in the run, and what has been seen of it."""

from dataclasses import dataclass, field

from torch import Tensor

from ascedfast.config import AscedConfig
from ascedfast.detect import Detection
from ascedfast.report import RowReport
from ascedfast.schedule import Plan, Schedule


@dataclass(eq=False, slots=True)
class Row:
    """State of one request. ``step`` counts executed steps; ``bank`` holds what its mode keeps of each step. ``keep``:
    bool, broadcasts against [*grid], what is never re-noised."""

    id: int
    schedule: Schedule
    config: AscedConfig
    seed: int
    draw: int
    first: int
    plan: Plan
    enabled: bool = True
    keep: Tensor | None = None
    step: int = 0
    bank: list[Tensor] = field(default_factory=list)
    dynamics: list[tuple[int, Tensor]] = field(default_factory=list)
    finite: Tensor | None = None
    finite_after: Tensor | None = None
    x0: Tensor | None = None
    detection: Detection | None = None

    @property
    def watched(self) -> bool:
        """The window is open at this step."""
        return self.enabled and self.plan.reason is None and self.plan.start <= self.step < self.plan.t_c

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
    def whole(self) -> bool:
        """Every step of the window was banked."""
        wanted = self.plan.t_c - self.plan.start - self.banks_changes
        return len(self.bank) == wanted and all(entry is not None for entry in self.bank)

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
        elif self.watched and self.step > self.plan.start:
            self.bank.append(d)
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
        )

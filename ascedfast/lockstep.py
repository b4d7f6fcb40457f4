# SPDX-License-Identifier: MIT
"""The rows of an engine while all of them agree: one launch a step, however many they are.

Rows agree when they share schedule, settings, plan and step, as the images of one pipeline call do. Their state is then
kept for the batch, in buffers made once, and handed to the rows (``settle``) when somebody asks for one of them.
"""

import threading
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ascedfast._backend import BackendError
from ascedfast.detect import Detection
from ascedfast.device_guard import on_device_of
from ascedfast.noise import seed_to_int64
from ascedfast.prepared_calibration import PreparedCalibration
from ascedfast.prepared_correction import Found, PreparedCorrection
from ascedfast.prepared_detection import PreparedDetection
from ascedfast.prepared_memory import ALIGNED, shell
from ascedfast.protected import keep_of_all, unprotected
from ascedfast.rows import Row
from ascedfast.solver import SCALARS, Update
from ascedfast.upload import upload

if TYPE_CHECKING:  # importing ascedfast needs no Triton
    from ascedfast.kernels.step_launch import StepLauncher

WITHOUT_GRADIENTS = "correct_ writes in place, without gradients: call it on x.detach() or under no_grad"
WARM_UP = "ascedfast has not been warmed up for this run: call warm_up before the capture of a CUDA graph"


class WindowRefusedError(ValueError):
    """The table of sound runs does not know windows like these; the message says why."""


def agree(rows: Sequence[Row]) -> bool:
    """Whether rows can run in lockstep: their mode banks changes, over the window, watched from the first step on."""
    if not rows:
        return False
    first = rows[0]
    if not first.banks_changes or first.config.record != "window" or first.plan.reason is not None:
        return False
    if first.looks_back or first.step > first.plan.start:
        return False
    common = first.config, first.plan, first.first, first.step
    for row in rows:
        if row.schedule is not first.schedule or not row.enabled:
            return False
        if (row.config, row.plan, row.first, row.step) != common:
            return False
    return True


class LockstepPlan:
    """What lockstep runs of one kind have in common, made once: tables on the device and the prepared launches.

    Args:
        row: one of the rows. rows: their number.
        x, m: the coming step's state and model output. view: sees either as [R, C, *grid].
        updates, scalars: the solver's updates and their scalars, float32 [steps, 6] on the host (``adapters.parity``);
            without them the steps are observed only.
    Raises: WindowRefusedError, RuntimeError while a graph is captured.
    """

    def __init__(
        self,
        row: Row,
        rows: int,
        x: Tensor,
        m: Tensor,
        view: Callable[[Tensor], Tensor],
        updates: Sequence[Update] | None = None,
        scalars: Tensor | None = None,
    ) -> None:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(WARM_UP)
        self.schedule, self.plan, self.view, self.updates = row.schedule, row.plan, view, updates
        self._kinds = list(dict.fromkeys(updates or ()))
        levels = row.schedule.before[row.first :]
        self.steps = len(levels)
        self.script = [self._launch_of(step) for step in range(self.steps)]
        table = torch.zeros(self.steps, 2 + SCALARS)
        table[:, :2] = torch.tensor([(level.a, level.b) for level in levels])
        if scalars is not None:
            table[:, 2:] = scalars
        self.shape = view(x).shape
        maps = (self.plan.t_c - self.plan.start - 1, rows, *view(x).shape[2:])
        self.detect = _detection_of(row, maps, x.device)
        alpha, sigma = row.schedule.after[row.first + self.plan.t_c - 1]
        levels = torch.tensor([alpha, sigma, row.x0_noise])[:, None].expand(3, rows)
        self.levels, self.perturbs = upload(levels, x.device), row.x0_noise > 0
        self.bank = shell(torch.empty(maps, device=x.device))
        self.keys = HostKeys(rows, self.plan.t_c)
        self.corrections: dict[tuple, PreparedCorrection | None] = {}
        self.keeps_own = any(two_steps for *_, two_steps in self.script)
        self.launch = self._launcher(row, x, m, upload(table, x.device))
        self.x0 = shell(self.launch.new_x0(x))

    @property
    def solves(self) -> bool:
        """Whether the steps are the solver's own; else they are observed beside it."""
        return self.updates is not None

    def begin(self, rows: Sequence[Row], x: Tensor) -> "Lockstep":
        """A run of such rows, whose coming state is x."""
        return Lockstep(rows, self, x)

    def _launcher(self, row: Row, x: Tensor, m: Tensor, table: Tensor) -> "StepLauncher":
        from ascedfast.kernels.step_launch import StepLauncher

        clip, reduce = row.schedule.clip, row.config.channels
        return StepLauncher(x, m, self.view, table=table, updates=self._kinds, clip=clip, reduce=reduce)

    def _launch_of(self, step: int) -> tuple[int, int, int | None, bool]:
        """Of a step: observe, slot of the bank, which update (as ``StepLauncher`` takes them), and whether it reads the
        solver's own x0 of the step before."""
        update = None if self.updates is None else self.updates[step]
        which = None if update is None else self._kinds.index(update)
        start, t_c = self.plan.start, self.plan.t_c
        if start < step < t_c:
            observe, slot = 2, step - start - 1
        else:  # outside the window only somebody who asked for x0_hat gets it
            observe, slot = int(not self.solves or step == start), 0
        return observe, slot, which, update is not None and update.solver == "dpm2"


def _detection_of(row: Row, maps: tuple[int, ...], device: torch.device) -> PreparedDetection | PreparedCalibration:
    """What detects in banks of this shape, by the row's mode. Raises: WindowRefusedError."""
    if row.config.mode != "calibrated":
        return PreparedDetection(maps, device, row.config)
    try:
        null = row.config.table.at(row.window_logsnr, maps[2:])
    except ValueError as error:
        raise WindowRefusedError(str(error)) from error
    return PreparedCalibration(maps, device, row.config, null)


class HostKeys:
    """What tells the noise of rows apart, int64 [3, rows] on the host: seeds, steps, draws. Filled anew for each run:
    making a small tensor takes ten times as long."""

    def __init__(self, rows: int, t_c: int) -> None:
        self._of, self._lock = (rows, t_c), threading.Lock()  # a plan may serve engines of several threads
        self._values = array("q", [0] * rows + [t_c] * rows + [0] * rows)
        self._tensor = torch.frombuffer(self._values, dtype=torch.int64).view(3, rows)

    def __reduce__(self) -> tuple:
        return HostKeys, self._of  # copied one by one, array and tensor would have no memory in common

    def upload(self, rows: Sequence[Row], device: torch.device) -> Tensor:
        """Of such rows, a copy on ``device``."""
        values, draws = self._values, 2 * len(rows)
        with self._lock:
            for i, row in enumerate(rows):
                values[i] = seed_to_int64(row.seed)
                values[draws + i] = row.draw
            keys = upload(self._tensor, device)  # has read them when it returns
            return keys.clone() if keys is self._tensor else keys


class Lockstep:
    """State of rows that agree, from a step before their window on.

    Args: rows: rows for which ``agree`` holds. plan: made for such rows. x: the coming step's state.
    Allocates: x0_hat fp32 as x, one fp32 map a step of the window. Copies to the device do not wait for it.
    """

    def __init__(self, rows: Sequence[Row], plan: LockstepPlan, x: Tensor) -> None:
        self.rows, self.config, self.plan = tuple(rows), rows[0].config, plan.plan
        self.step = rows[0].step
        self._found: Detection | Found | None = None
        self._solves, self._script, self._steps = plan.solves, plan.script, plan.steps
        self._view, self._launch, self._levels, self._shape = plan.view, plan.launch, plan.levels, plan.shape
        self._corrections = plan.corrections
        self._x0_like, self._host_keys = plan.x0, plan.keys
        self.x0: Tensor | None = torch.empty_like(plan.x0)
        self.bank = torch.empty_like(plan.bank)
        self._keys = plan.keys.upload(rows, x.device)
        self._own: Tensor | None = None
        self._keep = keep_of_all([row.keep for row in rows], plan.shape[2:], x.device)
        self._keeps_own, self._detect, self._perturbs = plan.keeps_own, plan.detect, plan.perturbs

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(row.id for row in self.rows)

    @property
    def wanted(self) -> bool:
        """The window is open at the coming step."""
        return self.plan.start <= self.step < self.plan.t_c

    @property
    def due(self) -> bool:
        """T_c has come, and nothing was detected yet."""
        return self.step == self.plan.t_c and self._found is None

    @property
    def detection(self) -> Detection | None:
        """What was found at T_c; None before."""
        if isinstance(self._found, Found):
            self._found = self._found.read()
        return self._found

    @property
    def has_x0(self) -> bool:
        """``x0`` holds a prediction of this run."""
        return self.step > self.plan.start and self.x0 is not None

    @property
    def reads_own_x0(self) -> bool:
        """The coming step needs the solver's own prediction of the last one."""
        return self.reads_own_x0_at(self.step)

    def reads_own_x0_at(self, step: int) -> bool:
        """Whether that step needs the solver's own prediction of the one before."""
        return self._script[step][3]

    @property
    def last_own_x0(self) -> Tensor | None:
        """A two-step solver's own prediction of the last fused step, the tensor that ``advance`` returned."""
        return self._own

    def fits(self, x: Tensor, m: Tensor) -> bool:
        """Whether a step is left, and x and m have the shapes, strides, types and device of the first step's."""
        return self.step < self._steps and self._launch.fits(x, m)

    def skip(self) -> None:
        """Count a step that is not watched."""
        self.step += 1

    def observe(self, x: Tensor, m: Tensor) -> Tensor:
        """Watch a step beside the solver's own; returns x0_hat, [R, C, *grid] fp32, valid until the next step."""
        observe, slot, *_ = self._script[self.step]
        if self.x0 is None:
            self.x0 = torch.empty_like(self._x0_like)
        with on_device_of(x):
            self._launch(x, m, self.x0, self.bank, self.step, slot, max(observe, 1), None, None)
        self.step += 1
        return self.x0

    def advance(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor | None]:
        """Do the solver's step and watch it. Returns the next state and the solver's own x0 (None for "flow")."""
        step = self.step
        observe, slot, which, two_steps = self._script[step]
        own_prev = self._own if two_steps else None
        x0 = self.bank if self.x0 is None else self.x0  # after T_c neither is touched
        with on_device_of(x):
            out = self._launch(x, m, x0, self.bank, step, slot, observe, which, own_prev)
        if self._keeps_own:
            self._own = out[1]
        self.step = step + 1
        return out

    def correct_(self, x: Tensor) -> Tensor | None:
        """At T_c re-noise x in place inside the mask; bool [R, 1, *grid], or None when nothing is due.

        Raises: ValueError, TypeError, BackendError for an x that is no state of these rows; then all is as it was.
        """
        if not self.due:
            return None
        seen = self._checked(x)
        with on_device_of(x):
            mask = self._correct_at_once_(seen) if self.config.correct else None
            if mask is None:
                mask = self._correct_by_ops_(seen)
        if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):  # a graph goes on writing where x0 lies
            self.x0 = None  # the largest of what a run keeps, and nobody needs it now
        return mask

    def _correct_at_once_(self, x: Tensor) -> Tensor | None:
        """The mask; None, and nothing done, where a part is protected or the launches of such corrections have not been
        put together."""
        if self._keep is not None:
            return None
        prepared = self._corrections.get((x.dtype, x.stride(), self.x0.stride()))
        found = None if prepared is None else prepared(self.bank, x, self.x0, self._keys)
        if found is None:
            return None
        self._found = found
        return found.grown

    def _correct_by_ops_(self, x: Tensor) -> Tensor | None:
        """The mask, None without a correction. The first of its kind has its launches put together."""
        found = self._detect(self.bank)
        if self._keep is not None:
            found = unprotected(found, self._keep, self.config)
        if self.config.correct:
            self._renoise_(x, found.grown)
        self._found = found  # a failure above leaves the rows as they were
        if not self.config.correct:
            return None
        if self._keep is None:
            self._put_together(x)
        return found.grown[:, None]

    def _put_together(self, x: Tensor) -> None:
        from ascedfast.kernels.prepared import NoSequence

        key = (x.dtype, x.stride(), self.x0.stride())
        if key in self._corrections or x.data_ptr() % ALIGNED:
            return
        try:
            made = PreparedCorrection(self._detect, self.bank, self._levels, self._keys, x, self.x0, self._perturbs)
        except NoSequence:
            made = None
        self._corrections[key] = made

    def _checked(self, x: Tensor) -> Tensor:
        """x as [R, C, *grid]. Kernels take it as it is: refuse what is no float state of these rows on their device."""
        if not x.is_floating_point():
            raise TypeError(f"x must be of a float dtype, got {x.dtype}")
        if x.dtype == torch.float64:
            raise BackendError("these rows run by Triton, in float32; float64 needs backend='reference'")
        seen, device = self._view(x), self.bank.device
        shape = seen.shape
        if shape != self._shape or x.device != device:
            raise ValueError(
                f"x must be {tuple(self._shape)} on {device}, as the states before, got {tuple(shape)} on {x.device}"
            )
        if x.requires_grad and self.config.correct:
            raise ValueError(WITHOUT_GRADIENTS)
        return seen

    def _renoise_(self, x: Tensor, mask: Tensor) -> None:
        from ascedfast.kernels.renoise import renoise_

        alpha, sigma, x0_noise = self._levels
        seeds, steps, draws = self._keys
        noise = {"seeds": seeds, "steps": steps, "draws": draws}
        noise["x0_noise"] = x0_noise if self._perturbs else None
        renoise_(x, mask, self.x0, alpha, sigma, **noise)

    @torch.inference_mode()  # the keys may be inference tensors, if the run began in that mode
    def reseed(self) -> None:
        """Take the rows' seeds anew, into the tensors that a captured graph reads."""
        self._keys.copy_(self._host_keys.upload(self.rows, self._keys.device))

    def warm_up(self, x: Tensor, m: Tensor) -> None:
        """Compile everything that a run will launch, on copies; the rows stay at their first step."""
        began = self.step
        for _ in range(began, self._steps if self._solves else self.plan.t_c):
            copy = self.advance(x, m)[0] if self._solves else x.clone()
            if not self._solves:
                self.observe(x, m)
            self.correct_(copy)
        self.step, self._found, self._own, self.x0 = began, None, None, torch.empty_like(self._x0_like)

    def settle(self) -> None:
        """Bring the rows up to date; nothing is read back from the device."""
        plan = self.plan
        banked = min(max(self.step - plan.start - 1, 0), len(self.bank))
        maps = self.bank[:banked]
        finite = maps.isfinite().flatten(2).all(2).all(0) if banked else None
        for i, row in enumerate(self.rows):
            row.step = self.step
            row.x0 = self.x0[i] if plan.start < self.step <= plan.t_c and self.x0 is not None else None
            row.dynamics = [(plan.start + 1 + k, maps[k, i]) for k in range(banked)]
            row.bank = [] if self._found is not None else [maps[k, i] for k in range(banked)]
            row.finite = None if finite is None else finite[i]
            if self.detection is not None:
                row.detection = Detection(*(part[i] for part in self.detection))

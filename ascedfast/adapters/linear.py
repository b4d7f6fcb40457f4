# SPDX-License-Identifier: MIT
"""diffusers' deterministic solvers in linear form: coefficients, and which tensors have to be carried.

First-order solvers follow from the noise levels alone: x_next = alpha'*x0_hat + sigma'*e, with e = (x - alpha*x0_hat) /
sigma. The others are probed (``solver_probe``), and what they remember is reduced: a tensor that no later step reads is
not kept, and what a corrector reads of the last sample and the history is summed into one tensor, P.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, SASolverScheduler, SchedulerMixin

from ascedfast.adapters.class_swap import stock_class
from ascedfast.adapters.solver_probe import LISTS, Entry, Probe, probe, probe_copy
from ascedfast.adapters.support import SUPPORT, supported_base
from ascedfast.linear import READS, LinearPlan, LinearStep
from ascedfast.schedule import Schedule

NEGLIGIBLE = 1e-11
"""A coefficient below this share of its row's largest is a zero that cancellation left."""
LAST = ("last_sample", "cur_sample")
Row = dict[Any, float]


def linear_plan(host: SchedulerMixin, schedule: Schedule, first: int) -> LinearPlan | None:
    """The run from step ``first`` on, or None where the solver is not linear, is stochastic, or needs more memory.

    Args: host: the scheduler with its levels on the host (``host_copy``). schedule: its levels.
    """
    if not _is_linear(host):
        return None
    if _is_first_order(host):
        steps = tuple(_first_order(schedule, k) for k in range(first, len(schedule)))
        # The kernel takes the bound in float32.
        clip = None if schedule.clip is None else torch.tensor(schedule.clip, dtype=torch.float32).item()
        plan = LinearPlan(steps, 0, clip)
    else:
        if first and not hasattr(host, "_step_index"):  # PNDM counts calls, not places in the schedule
            return None
        twin = probe_copy(host, exact=True)
        if hasattr(twin, "_step_index"):
            twin._step_index = first
        plan = reduce([probe(twin, timestep, exact=True) for timestep in twin.timesteps[first:]])
        if plan is not None:
            levels = schedule.before[first:]
            owned = (replace(step, own=(at.a, at.b)) for step, at in zip(plan.steps, levels, strict=True))
            plan = replace(plan, steps=tuple(owned))
    if plan is None or not plan.table().isfinite().all():
        return None
    return plan


def _is_linear(host: SchedulerMixin) -> bool:
    config, base = host.config, supported_base(host)
    if base is None or stock_class(host) is not base or config.get("thresholding"):
        return False
    if not SUPPORT[base.__name__].fused:
        return False
    if config.get("stochastic_sampling") or config.get("variance_type") in ("learned", "learned_range"):
        return False
    if base is DPMSolverMultistepScheduler and config.algorithm_type not in ("dpmsolver", "dpmsolver++"):
        return False
    if base is SASolverScheduler and any(host.tau_func(t) for t in host.timesteps.tolist()):
        return False
    return not getattr(host, "lower_order_nums", 0) and getattr(host, "solver_p", None) is None


def _is_first_order(host: SchedulerMixin) -> bool:
    if hasattr(host, "model_outputs"):
        return supported_base(host) is DPMSolverMultistepScheduler and host.config.solver_order == 1
    return not any(hasattr(host, name) for name in LISTS)


def _first_order(schedule: Schedule, k: int) -> LinearStep:
    level, (alpha, sigma) = schedule.before[k], schedule.after[k]
    kept = sigma / level.sigma
    if schedule.clip is None:
        moved = alpha - level.alpha * kept
        return LinearStep((kept + moved * level.a, moved * level.b), own=(level.a, level.b))
    noise = -level.alpha * kept  # of the prediction before it is clipped
    state = (kept + noise * level.a, noise * level.b)
    return LinearStep(state, clipped=alpha, own=(level.a, level.b))


def reduce(probes: list[Probe]) -> LinearPlan | None:
    """Probed steps to a plan; None where a step needs more than three carried tensors, or reads noise."""
    steps = [_Parts(step) for step in probes]
    if any(step.reads_noise for step in steps):
        return None
    sums = [step.next_state() for step in steps]
    merged: list[Row | None] = [step.to_merge(after) for step, after in itertools.pairwise(steps)] + [None]
    alive: list[set] = [set() for _ in range(len(steps) + 1)]
    for k in reversed(range(len(steps))):
        if "P" not in alive[k + 1]:
            merged[k] = None
        passed = {steps[k].before(entry) for entry in alive[k + 1] if entry != "P"} - {None}
        used = {*sums[k], *(merged[k] or {})} - {"x", "m"}
        alive[k] = passed | used
        if len(alive[k]) > READS:
            return None
    return _place(steps, sums, merged, alive)


class _Parts:
    """One probed step, by the roles of its inputs: x, m, the merged tensor P and history entries by age."""

    def __init__(self, step: Probe) -> None:
        names = [entry for entry in step.memory if entry[0] in LISTS]
        self.entry = step.memory[names[0][0], 0]
        self.name = names[0][0]
        self.appends = bool(self.entry["x"] or self.entry["m"])
        self.state = step.state
        corrected = step.memory.get(("last_sample", 0))
        if corrected is None:
            corrected = {"x": 1.0} if ("cur_sample", 0) not in step.state else {("cur_sample", 0): 1.0}
        self.corrected = corrected

    @property
    def last(self) -> Entry | None:
        """The sample of an earlier step that this one goes back to."""
        return next(((name, 0) for name in LAST if self.corrected.get((name, 0))), None)

    @property
    def reads_noise(self) -> bool:
        return bool(self.state.get(("last_noise", 0)) or self.corrected.get(("last_noise", 0)))

    def next_state(self) -> Row:
        """x_next over x, m, "P" and entries."""
        share = self.state[self.last] / self.corrected[self.last] if self.last else 0.0
        row = {"x": self.state["x"], "m": self.state["m"], "P": share}
        for entry, value in self.state.items():
            if entry[0] == self.name:
                row[entry] = value - share * self.corrected.get(entry, 0.0)
        return _without_zeros(row)

    def to_merge(self, after: "_Parts") -> Row | None:
        """P of the coming step, ``after``, over this step's x, m, "P" and entries."""
        if after.last is None:
            return None
        row: Row = {"x": 0.0, "m": 0.0}
        for entry, weight in after.corrected.items():
            if entry in ("x", "m") or not weight:
                continue
            for part, value in self._value(entry, after.last).items():
                row[part] = row.get(part, 0.0) + weight * value
        return _without_zeros(row)

    def _value(self, entry: Entry, last: Entry) -> Mapping:
        """What a remembered tensor is after this step, over its inputs."""
        if entry == last:
            mine = {"x": self.corrected.get("x", 0.0), "m": self.corrected.get("m", 0.0)}
            return mine | ({"P": 1.0} if self.last else {})
        older = self.before(entry)
        return {"x": self.entry["x"], "m": self.entry["m"]} if older is None else {older: 1.0}

    def before(self, entry: Entry) -> Entry | None:
        """The same tensor as it was known before this step; None where this step made it."""
        name, age = entry
        if not self.appends:
            return entry
        return (name, age - 1) if age else None

    def repair(self, entry: Entry | str) -> tuple[float, float]:
        """Coefficients of x and m: what a carried tensor is when the sample has always been where x is now."""
        if entry == "P":  # so that the corrector returns x
            return 1.0 - self.corrected.get("x", 0.0), -self.corrected.get("m", 0.0)
        return (self.entry["x"], self.entry["m"]) if self.appends else (0.0, 1.0)


def _without_zeros(row: Row) -> Row:
    largest = max(map(abs, row.values()))
    return {part: value for part, value in row.items() if part in ("x", "m") or abs(value) > NEGLIGIBLE * largest}


def _place(steps: list[_Parts], sums: list[Row], merged: list[Row | None], alive: list[set]) -> LinearPlan:
    """Give carried tensors their slots: one that stays keeps its own, a new one takes any that is free by then."""
    slots: dict[Entry | str, int] = {}
    found, most = [], 0
    for k, step in enumerate(steps):
        used = [entry for entry in slots if entry in sums[k] or entry in (merged[k] or {})]
        repair = tuple((slot, *step.repair(entry)) for entry, slot in slots.items())
        following: dict[Entry | str, int] = {}
        written: list[tuple[Entry | str, Row]] = []
        for entry in sorted(alive[k + 1], key=str):
            older = None if entry == "P" else step.before(entry)
            if older is not None:
                following[entry] = slots[older]
            else:
                written.append((entry, merged[k] if entry == "P" else {"x": step.entry["x"], "m": step.entry["m"]}))
        free = [slot for slot in range(READS) if slot not in following.values()]
        for entry, _ in written:
            following[entry] = free.pop(0)
        most = max([most, *(slot + 1 for slot in following.values())])
        inputs = ["x", "m", *used]
        found.append(
            LinearStep(
                state=tuple(sums[k].get(part, 0.0) for part in inputs),
                reads=tuple(slots[entry] for entry in used),
                writes=tuple(following[entry] for entry, _ in written),
                carried=tuple(tuple(row.get(part, 0.0) for part in inputs) for _, row in written),
                repair=repair,
            )
        )
        slots = following
    return LinearPlan(tuple(found), most)

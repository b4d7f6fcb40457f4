# SPDX-License-Identifier: MIT
"""Levels of the schedulers of rectified flows and of TrigFlow.

Each function takes a scheduler that is set to a run, its levels on the host, and gives a ``Schedule`` in float64.
"""

from collections.abc import Callable

from diffusers import SchedulerMixin

from ascedfast import process
from ascedfast.adapters.levels_sigma import dpm, in_pairs
from ascedfast.process import Coefficients
from ascedfast.schedule import Schedule


def flow_match(scheduler: SchedulerMixin) -> Schedule:
    """FlowMatchEuler; ``invert_sigmas`` turns time round (Mochi)."""
    return _in_a_row(scheduler, process.inverted_flow if scheduler.config.invert_sigmas else process.flow)


def flow(scheduler: SchedulerMixin) -> Schedule:
    """FlowMatchLCM (whose step does not look at ``invert_sigmas``), FlowMapEuler, LTXEulerAncestralRF, Helios."""
    return _in_a_row(scheduler, process.flow)


def flow_to_data(scheduler: SchedulerMixin) -> Schedule:
    """MiniMaxH3: the velocity points to the data, m = x0 - e."""
    return _in_a_row(scheduler, lambda s: process.interpolant(1 - s, s, 1.0, -1.0))


def flow_heun(scheduler: SchedulerMixin) -> Schedule:
    """FlowMatchHeun: its sigmas but the first stand twice."""
    levels = [process.flow(s) for s in scheduler.sigmas.double().tolist()]
    begins = in_pairs(scheduler)
    after = [levels[call + 1] for call in begins]
    return Schedule(tuple(levels[call] for call in begins), tuple((level.alpha, level.sigma) for level in after))


def helios(scheduler: SchedulerMixin) -> Schedule:
    """Helios, of a flow or of another prediction (its UniPC has them all)."""
    return flow(scheduler) if scheduler.config.prediction_type == "flow_prediction" else dpm(scheduler)


def helios_dmd(scheduler: SchedulerMixin) -> Schedule:
    """HeliosDMD: the sigma of a call is that of the timestep nearest to its whole part."""
    sigmas, timesteps = scheduler.sigmas.double().tolist(), scheduler.timesteps.tolist()
    nearest = [min(range(len(timesteps)), key=lambda k, t=t: abs(timesteps[k] - int(t))) for t in timesteps]
    levels = [process.flow(sigmas[k]) for k in nearest]
    return Schedule.from_levels(levels)


def trigflow(scheduler: SchedulerMixin) -> Schedule:
    """SCM: N + 1 angles, the last of them 0."""
    return _in_a_row(scheduler, lambda s: process.trigflow(s, scheduler.config.sigma_data), scheduler.timesteps)


def _in_a_row(scheduler: SchedulerMixin, kind: Callable[[float], Coefficients], levels=None) -> Schedule:
    found = [kind(s) for s in (scheduler.sigmas if levels is None else levels).double().tolist()]
    return Schedule(tuple(found[:-1]), tuple((level.alpha, level.sigma) for level in found[1:]))

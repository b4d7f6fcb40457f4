# SPDX-License-Identifier: MIT
"""What is known of each scheduler class of diffusers 0.42: the code and ``docs/schedulers.md`` read it here."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from diffusers import SchedulerMixin

from ascedfast.adapters import levels_flow, levels_sigma, levels_vp
from ascedfast.adapters.class_swap import stock_class
from ascedfast.schedule import Schedule


@dataclass(frozen=True)
class Facts:
    """Of one scheduler class.

    levels: reads its ``Schedule``. parameterisation, order: for the reader. counts: how the step of a call is known:
    by the scheduler's own index, or by the timestep of the call.
    begins: calls of ``step`` that begin a step of the solver; None: all. calls: timesteps of all calls; None: those of
    the scheduler. inner: calls that begin no step are evaluations within one, where nothing may be edited.
    repair: of the solver's memory after a correction: "fill" the entries inside the mask; "invert", fill and invert the
    corrector too; "argument", fill the old prediction that the caller holds; "" where nothing is remembered.
    fused: on a GPU: "parity", with the stock's bits; "linear", on request; "" never.
    threshold: where the prediction of dynamic thresholding is found: "returned" by step, "remembered" by the scheduler,
    "recomputed" with its own function; "" where step does not threshold.
    noise: what makes it add noise; "" where nothing does. inverse: runs from the sample to noise, only observed.
    """

    levels: Callable[[SchedulerMixin], Schedule]
    parameterisation: str
    order: str = "1"
    counts: Literal["index", "timestep"] = "index"
    begins: Callable[[SchedulerMixin], list[int]] | None = None
    calls: Callable[[SchedulerMixin], list[float]] | None = None
    inner: bool = False
    repair: Literal["", "fill", "invert", "argument"] = ""
    fused: Literal["", "parity", "linear"] = ""
    threshold: Literal["", "returned", "remembered", "recomputed"] = ""
    noise: str = ""
    inverse: bool = False


VP = "variance preserving: eps, v, sample"
DPM = "variance preserving: eps, v, sample; flow"
VE, VE_ALL = "variance exploding: eps, v", "variance exploding: eps, v, sample"
EDM = "EDM: eps, v"
FLOW = "flow"
ALWAYS = "always"
_BY_TIME = functools.partial(Facts, counts="timestep")
_PAIRS = functools.partial(Facts, order="2", begins=levels_sigma.in_pairs, inner=True)

SUPPORT: dict[str, Facts] = {
    "DDIMScheduler": _BY_TIME(levels_vp.ddim, VP, fused="parity", threshold="returned", noise="eta"),
    "DDIMParallelScheduler": _BY_TIME(levels_vp.ddim, VP, threshold="returned", noise="eta"),
    "CogVideoXDDIMScheduler": _BY_TIME(levels_vp.cogvideox, VP),
    "DDIMInverseScheduler": _BY_TIME(levels_vp.ddim_inverse, VP, inverse=True),
    "DDPMScheduler": _BY_TIME(levels_vp.ddpm, VP, threshold="returned", noise=ALWAYS),
    "DDPMParallelScheduler": _BY_TIME(levels_vp.ddpm, VP, threshold="returned", noise=ALWAYS),
    "DDPMWuerstchenScheduler": _BY_TIME(levels_vp.wuerstchen, "variance preserving, t in [0, 1]: eps", noise=ALWAYS),
    "UnCLIPScheduler": _BY_TIME(levels_vp.ddpm, "variance preserving: eps, sample", noise=ALWAYS),
    "RePaintScheduler": _BY_TIME(
        levels_vp.repaint,
        "variance preserving: eps",
        calls=levels_vp.repaint_calls,
        begins=levels_vp.repaint_begins,
        noise=ALWAYS,
    ),
    "PNDMScheduler": _BY_TIME(
        levels_vp.pndm, "variance preserving: eps, v", order="1 to 4", repair="fill", fused="linear"
    ),
    "CogVideoXDPMScheduler": _BY_TIME(levels_vp.cogvideox, VP, order="2", repair="argument", noise=ALWAYS),
    "HeliosDMDScheduler": _BY_TIME(levels_flow.helios_dmd, FLOW, noise=ALWAYS),
    "LCMScheduler": Facts(levels_vp.lcm, VP, threshold="recomputed", noise=ALWAYS),
    "TCDScheduler": Facts(levels_vp.tcd, VP, noise="eta, .3 by default"),
    "SCMScheduler": Facts(levels_flow.trigflow, "TrigFlow", noise=ALWAYS),
    "IPNDMScheduler": Facts(levels_vp.ipndm, "variance preserving: v", "1 to 4", repair="fill", fused="linear"),
    "EulerDiscreteScheduler": Facts(levels_sigma.euler, VE_ALL, fused="parity", noise="s_churn"),
    "EulerAncestralDiscreteScheduler": Facts(levels_sigma.euler, VE, noise=ALWAYS),
    "LMSDiscreteScheduler": Facts(levels_sigma.euler, VE_ALL, "1 to 4", repair="fill", fused="linear"),
    "HeunDiscreteScheduler": _PAIRS(levels_sigma.second_order, VE_ALL),
    "KDPM2DiscreteScheduler": _PAIRS(levels_sigma.second_order, VE),
    "KDPM2AncestralDiscreteScheduler": _PAIRS(levels_sigma.second_order, VE, noise=ALWAYS),
    "DPMSolverSDEScheduler": _PAIRS(levels_sigma.second_order, VE, noise=ALWAYS),
    "CMStochasticIterativeScheduler": Facts(levels_sigma.consistency, "consistency model", noise=ALWAYS),
    "EDMEulerScheduler": Facts(levels_sigma.edm, EDM, noise="s_churn"),
    "EDMDPMSolverMultistepScheduler": Facts(
        levels_sigma.edm, EDM, "1 to 3", repair="fill", threshold="remembered", noise="sde-dpmsolver++"
    ),
    "CosineDPMSolverMultistepScheduler": Facts(levels_sigma.edm, EDM, "1, 2", repair="fill", noise=ALWAYS),
    "DPMSolverMultistepScheduler": Facts(
        levels_sigma.dpm, DPM, "1 to 3", repair="fill", fused="parity", threshold="remembered", noise="sde-dpmsolver"
    ),
    "DPMSolverMultistepInverseScheduler": Facts(
        levels_sigma.dpm_inverse, DPM, "1 to 3", threshold="remembered", noise="sde-dpmsolver", inverse=True
    ),
    "DPMSolverSinglestepScheduler": Facts(
        levels_sigma.dpm_singlestep,
        DPM,
        "1 to 3",
        begins=levels_sigma.in_order_list,
        inner=True,
        threshold="remembered",
        noise="sde-dpmsolver++",
    ),
    "UniPCMultistepScheduler": Facts(
        levels_sigma.dpm, DPM, "1 to 3", repair="invert", fused="linear", threshold="remembered"
    ),
    "DEISMultistepScheduler": Facts(
        levels_sigma.dpm, DPM, "1 to 3", repair="fill", fused="linear", threshold="recomputed"
    ),
    "SASolverScheduler": Facts(
        levels_sigma.dpm, DPM, "1 to 4", repair="invert", fused="linear", threshold="remembered", noise="tau_func"
    ),
    "FlowMatchEulerDiscreteScheduler": Facts(levels_flow.flow_match, FLOW, fused="parity", noise="stochastic_sampling"),
    "FlowMatchHeunDiscreteScheduler": _PAIRS(levels_flow.flow_heun, FLOW, noise="s_churn"),
    "FlowMatchLCMScheduler": Facts(levels_flow.flow, FLOW, noise=ALWAYS),
    "FlowMapEulerDiscreteScheduler": Facts(levels_flow.flow, "flow, mean velocity to the next level"),
    "LTXEulerAncestralRFScheduler": Facts(levels_flow.flow, FLOW, noise="eta, 1 by default"),
    "MiniMaxH3Scheduler": Facts(levels_flow.flow_to_data, "flow, velocity to the data"),
    "HeliosScheduler": Facts(levels_flow.helios, "flow; " + VP, "1 to 3", repair="invert", threshold="remembered"),
}
"""By the name of the class in diffusers."""

_TOKENS = "it samples tokens, not a state with noise in it: there is no x0_hat to watch"
_SCORE = (
    "its loop has another form than model, step, state: write the loop with ascedfast.begin (examples/ddim_loop.py), "
    "or load the model with EulerDiscreteScheduler where its parameterisation allows"
)
REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "KarrasVeScheduler": _SCORE,
    "ScoreSdeVeScheduler": _SCORE,
    "ScoreSdeVpScheduler": _SCORE,
    "ConsistencyDecoderScheduler": "it decodes latents in two steps, too few to watch: enable ASCED on the pipeline "
    "that makes the latents",
    "RFD4ProteinaScheduler": "its states are atoms, not a picture with locations",
    "PiflowScheduler": "its model gives a policy that is rolled out, not a prediction of x or of a velocity: use a "
    "FlowMatchEulerDiscreteScheduler and a model for it",
}
"""Reasons, and what to do instead, for the classes that are not watched."""


def supported_base(scheduler: SchedulerMixin) -> type | None:
    """The supported class whose ``step`` this scheduler runs, or None."""
    return _supported_base(stock_class(scheduler))


def facts_of(scheduler: SchedulerMixin) -> Facts:
    """Of a supported scheduler. Raises: KeyError for another."""
    base = supported_base(scheduler)
    return SUPPORT["" if base is None else base.__name__]


@functools.cache
def _supported_base(stock: type) -> type | None:
    # By name: importing forty modules, and torchsde for two of them, would slow every start.
    for cls in stock.__mro__:
        if cls.__name__ in SUPPORT and cls.__module__.startswith("diffusers.schedulers."):
            return cls if stock.step is cls.step else None
    return None

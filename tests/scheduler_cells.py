# SPDX-License-Identifier: MIT
"""Cells of the matrix of schedulers and layouts, and the plain loop that each of them is run in. ``docs/matrix.md`` is
written from what is here (``tests/matrix_page.py``)."""

import schedulers_page
import solvers
import tiny
import torch

from ascedfast.adapters.support import REFUSED, SUPPORT

LAYOUTS = {
    "BCHW": (16, 16),
    "BSC": (16, 16),
    "BCFHW": (3, 12, 12),
    "BFCHW": (3, 12, 12),
    "BFHWC": (3, 12, 12),
    "BCL": (1, 128),
}
"""Axes of the latents, and the grid on which they are run."""
ROWS, CHANNELS, STEPS = 2, 3, 25
USUAL = {
    "DPMSolverMultistepScheduler": "dpm2",
    "DPMSolverSinglestepScheduler": "dpm-single2",
    "FlowMatchEulerDiscreteScheduler": "flow-shift",
    "UniPCMultistepScheduler": "unipc2",
    "CogVideoXDDIMScheduler": "ddim-cogvideox-v",
    "CogVideoXDPMScheduler": "dpm-cogvideox-v",
    "RePaintScheduler": "repaint-eta",
    "CMStochasticIterativeScheduler": "cm-unclipped",
}
"""Cases that stand for a scheduler better than the first of those it is tested with: its usual order or settings, and
no clipping of x0_hat, under which what was injected may end at the same bound as what it replaced."""
CASES = {name: USUAL.get(name, cases[0]) for name, cases in schedulers_page.tested_with().items()}
CASES = {name: CASES[name] for name in SUPPORT}
"""Of each scheduler that is watched, the case of ``tiny.SCHEDULERS`` or ``solvers.SETTINGS`` that is run."""
FIVE_AXES = "its `step` shapes sigma as [B, 1, 1, 1, 1]"
CANNOT = {("HeliosDMDScheduler", axes): FIVE_AXES for axes in ("BCHW", "BSC", "BCL")}
"""Why a scheduler of diffusers cannot step such latents at all."""
FORGET = ("lcm", "scm", "cm-unclipped", "flow-lcm", "helios-dmd")
"""Cases that draw each state anew from the prediction: what was injected goes on only through the next one."""

THRESHOLD = (*tiny.THRESHOLDING, *(name for name in solvers.SETTINGS if name.endswith("-threshold")))
"""Cases whose x0_hat is cut at a quantile of its sample."""


def kind_of(name, axes):
    """ "tested", "observed only", "refused", or "cannot"."""
    if name in REFUSED:
        return "refused"
    if (name, axes) in CANNOT:
        return "cannot"
    return "observed only" if SUPPORT[name].inverse else "tested"


def make(case, rows=slice(None)):
    """A scheduler for these rows of the batch."""
    if case in tiny.SCHEDULERS:
        return tiny.SCHEDULERS[case]()
    # One tree of noise a row, as the generators are.
    return solvers.make(case, **({"noise_sampler_seed": [7, 8][rows]} if case == "dpm-sde" else {}))


def laid_out(t, axes):
    """[R, C, *grid] as latents of these axes, contiguous."""
    if axes == "BSC":
        return t.flatten(2).transpose(1, 2).contiguous()
    if axes == "BCL":
        return t[:, :, 0].contiguous()
    return t.permute(["BCFHW".replace("F", "" if t.dim() == 4 else "F").index(axis) for axis in axes]).contiguous()


def seen(t, axes):
    """A view of such latents as [R, C, *grid]."""
    if axes == "BSC":
        return t.transpose(1, 2).unflatten(2, LAYOUTS["BSC"])
    if axes == "BCL":
        return t[:, :, None]
    return t.permute([axes.index(axis) for axis in ("BCFHW" if t.dim() == 5 else "BCHW")])


def spot(axes):
    """bool [R, 1, *grid]: where the denoiser cannot settle; of a video in its first two frames."""
    *frames, height, width = LAYOUTS[axes]
    if height == 1:
        where = torch.zeros(ROWS, 1, 1, width, dtype=torch.bool)
        for row in range(ROWS):
            where[row, ..., 30 + 40 * row : 45 + 40 * row] = True
        return where
    where = tiny.spot((height, width), ROWS)
    if frames:
        where = where[:, :, None].repeat(1, 1, *frames, 1, 1)
        where[:, :, 2:] = False
    return where


def generators():
    return [tiny.generator(9 + row) for row in range(ROWS)]


def known(case, axes):
    """bool, broadcasts against [R, 1, *grid]: what RePaint is given, the first two columns."""
    return (torch.arange(LAYOUTS[axes][-1]) < 2) & case.startswith("repaint")


def run(scheduler, axes, drawn, rows=slice(None)):
    """States of a run of these rows of the batch. The denoiser works location by location: the exact one of a Gaussian,
    which leaps to and fro where it cannot settle. drawn: generators, one a row."""
    x = laid_out(tiny.randn(ROWS, CHANNELS, *LAYOUTS[axes], seed=4), axes)[rows]
    unsteady = laid_out(spot(axes), axes)[rows]
    calm, leaps = solvers.gaussian(), solvers.jumping(unsteady, mean=0)

    def predict(step, level, x):
        return calm(step, level, x) + leaps(step, level, torch.zeros_like(x))

    return solvers.sample(scheduler, x, predict, steps=STEPS, generator=drawn[rows], seen=lambda t: seen(t, axes))


NO_ORDER, NO_SCALE = "no `order`", "no `init_noise_sigma`"
FLOW_CASES = ("flow-heun", "flow-lcm", "flow-map", "ltx-euler-a", "minimax", "helios-unipc")
FLOW_CASES += ("dpm2-flow", "dpm-single3-flow", "unipc2-flow", "deis3-flow", "sa3-flow")
NOT_IN = {
    "ddpm-wuerstchen": NO_ORDER,
    "unclip": NO_ORDER,
    "repaint-eta": "`step` needs the known part",
    "dpm-cogvideox-v": "`step` needs the old prediction",
    "scm": "`set_timesteps` needs `intermediate_timesteps=None`",
    "helios-dmd": NO_SCALE,
    **dict.fromkeys(("flow-shift", *FLOW_CASES[:6]), NO_SCALE),
}
"""Why the stock's StableDiffusionPipeline cannot call such a scheduler."""
SWAPPED = {
    "sd15": tuple(case for case in CASES.values() if case not in NOT_IN),
    "sd3": FLOW_CASES,
    "flux": ("flow-lcm", "helios-unipc", "unipc2-flow"),
}
"""Pipelines of ``matrix.CELLS``, and the schedulers that are put into them."""

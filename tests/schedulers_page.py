# SPDX-License-Identifier: MIT
"""Writes ``docs/schedulers.md`` from the table of facts that the code reads, the cases that the tests run, and what was
measured of the solvers' noise (``docs/schedulers-noise.json``, written anew with ``--measure``, a few minutes):

python tests/schedulers_page.py [--measure]
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import solvers
import tiny
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from ascedfast import AscedConfig, enable_asced
from ascedfast.adapters.support import REFUSED, SUPPORT

DOCS = Path(__file__).parent.parent / "docs"
PAGE, NOISE = DOCS / "schedulers.md", DOCS / "schedulers-noise.json"
SAMPLES, SIDES = 16, (32, 64, 128)
LOUD = {
    "ddim, eta 1": (lambda: DDIMScheduler(clip_sample=False), {"eta": 1.0}),
    "ddim, eta 0": (lambda: DDIMScheduler(clip_sample=False), {}),
    "dpm2-sde": (lambda: DPMSolverMultistepScheduler(**tiny.SCALED, algorithm_type="sde-dpmsolver++"), {}),
}
HISTORY = {
    "": "-",
    "fill": "filled inside the mask",
    "invert": "filled, corrector inverted",
    "argument": "the caller's old prediction filled",
}
FUSED = {"": "-", "parity": "stock's bits", "linear": '`form="linear"`'}
TEXT = """# Schedulers of diffusers 0.42

<!-- Written by `python tests/schedulers_page.py` from ascedfast/adapters/support.py and the cases of the tests. -->

Of {names} names {supported} are watched, {refused} are refused. Every case of the last column is a test: bit-identical
with ASCED off, and on with nothing found; a planted region is found and only its mask changes at T_c, and to the end
with a denoiser that works location by location (the inverse ones are never corrected); x0_hat is the scheduler's own
within `4*eps*(|a*x| + |b*m|)` where it tells one; the caller's generator, the signature and the return value of `step`
stay as they are; copies, pickles and saved files work. Cases that end in "-threshold" keep the rest of the sample at
T_c only: a dynamic threshold depends on all of it. DPMSolverSDE and CosineDPMSolverMultistep need `torchsde`.

{table}

What the columns leave open:

- **Steps of several calls** (Heun, KDPM2, DPMSolverSDE, FlowMatchHeun; DPMSolverSinglestep of order 2 and 3). A step is
  the whole step of the solver, and so `t_c` and the report count. x0_hat is read where a step begins; a correction
  waits for its end, since what is written between two evaluations is thrown away. A run that begins within a step
  (`set_begin_index` of an odd call) is left alone and no x0_hat is told of it: stock pairs its evaluations otherwise
  there, KDPM2 at other levels.
- **Flow sigmas** (DPM-Solver, UniPC, DEIS, SASolver): `prediction_type="flow_prediction"` without
  `use_flow_sigmas=True` raises, and `"v_prediction"` with it, since stock itself mixes two processes there. With the
  exact model of Gaussian data of mean .5 and deviation .3 its samples have .99 to 1.01 and .006 to .007 (DEIS: .69 and
  17), and .21 and .18; in all other combinations .48 to .49 and .28 to .31 (`tests/test_solvers_runs.py`, 50 steps).
- **PNDM** needs `skip_prk_steps=True`, and runs from the first timestep on.
- **RePaint**: the last pass over each timestep is watched; what is done over before is not. The known part of the image
  is another distribution than the rest and may be flagged; what is put there is overwritten by the next step.
- **LCM, TCD with noise, SCM, consistency models, FlowMatchLCM, HeliosDMD** draw their state anew from the prediction at
  every step: what was injected goes on only through the next prediction. With their usual one to four steps fewer than
  three predictions precede T_c: severity is "unavailable", and the bits are the stock's. LCM's x0_hat is the prediction
  before it is blended with the state.
- **Inverse schedulers** are observed (`on_x0`, `record="run"`), never corrected; severity is "unavailable".
- **FlowMapEuler**'s model gives a mean velocity; x - s*m is where it leads if it stayed the same. `r_timestep` must be
  the next level, as by default. **UnCLIP** must be told `prev_timestep`, as its pipelines do.
- **Helios** with stages above 1, and **FlowMatchLCM** with scale_factors, are left alone: their levels, or sizes,
  change under way. Layouts of latents: `docs/layouts.md`; each scheduler on each of them: `docs/matrix.md`.
- **One scheduler object serves one loop at a time.** A run that begins again before T_c of the one under way, without
  `set_timesteps`, is left alone until `set_timesteps` is called, with one warning: in two loops that take turns,
  predictions of one would be judged as the other's. After T_c a second loop may begin. Pipelines that put copies of
  `scheduler.__dict__` back by turns (StableDiffusionPanorama) are left alone too. Give each loop
  `copy.deepcopy(scheduler)`: copies are enabled, with runs of their own (`tests/test_nested_pipelines.py`).

## Runs that start late or end early
Thirteen kinds are run on tiny pipelines (`tests/test_partial_runs.py`): image-to-image, inpainting, an SDXL base with
`denoising_end`, LEDITS++, timesteps or sigmas of the caller's, and others. With nothing found the bits are the stock's;
a planted region is found, and at T_c nothing else changes.

- **T_c is the step whose noise is nearest to logSNR -2.26**, wherever the run starts. `t_c` in the report counts
  executed steps: SDXL's image-to-image with `strength=0.95` makes 23 of 25 steps and is corrected after 5 of them, at
  1.0 after 7.
- **A run that starts below that noise is left alone**, with one warning: a refiner from `denoising_start=0.7` on, or a
  small `strength`. Severity is "unavailable" and the bits are the stock's. Enable ASCED on the base.
- **An early end is not known beforehand.** With `denoising_end=0.7` the report has 40 `steps` and 28 `executed`. A run
  that ends before T_c was not judged: nothing is corrected, status is "pending" and severity "unavailable".
- **What is known of an inpainting** is written over by the pipeline after each step, a correction there too. Give it as
  `keep_mask`, so that nothing is found in it.

## Noise that a solver adds
It moves x0_hat everywhere alike. Nothing is subtracted: each step is judged by its own median and MAD, which rise with
the noise, and smoothing and the area rule drop what single locations leave above them. Below: the exact denoiser of
white Gaussian data, default settings, 25 steps, {samples} samples; how many have a flagged region, and the share of
locations in one. On small latents, where the rules are scaled down to regions of two locations, noise alone is flagged:
give `blur_sigma` and `min_area` by hand there.

{noise}

## Refused
{why}
"""


def tested_with():
    """Names of the tests' cases, by scheduler class."""
    found = {}
    for name, make in tiny.SCHEDULERS.items():
        found.setdefault(type(make()).__name__, []).append(name)
    for name, (kind, _) in solvers.SETTINGS.items():
        found.setdefault(f"{kind}Scheduler", []).append(name)
    return found


def table(*rows):
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def page():
    tested = tested_with()
    rows = [
        (
            "scheduler",
            "x0_hat from",
            "order",
            "adds noise",
            "memory after a correction",
            "fused on a GPU",
            "tested with",
        )
    ]
    for name, facts in SUPPORT.items():
        history = "observed only" if facts.inverse else HISTORY[facts.repair]
        cells = [name.removesuffix("Scheduler"), facts.parameterisation, facts.order, facts.noise or "-", history]
        rows.append([*cells, FUSED[facts.fused], ", ".join(tested[name])])
    noise = [("case", *(f"{side}x{side}" for side in SIDES))]
    for name, found in json.loads(NOISE.read_text()).items():
        noise.append((name, *(f"{flagged}, {share:.2%}" if flagged else "0" for flagged, share in found)))
    return TEXT.format(
        names=len(SUPPORT) + len(REFUSED),
        supported=len(SUPPORT),
        refused=len(REFUSED),
        samples=SAMPLES,
        table=table(*rows),
        noise=table(*noise),
        why=table(("scheduler", "why"), *((name.removesuffix("Scheduler"), why) for name, why in REFUSED.items())),
    )


def flagged(make, options, side):
    """How many of the samples have a flagged region, and the share of flagged locations."""
    scheduler = make()
    handle = enable_asced(scheduler, AscedConfig(correct=False), seeds=list(range(SAMPLES)))
    torch.manual_seed(0)  # torchsde's tree takes its seed from there
    x = tiny.randn(SAMPLES, 4, side, side, seed=1)
    solvers.sample(scheduler, x, solvers.gaussian(), generator=tiny.generator(2), **options)
    masks = handle.report.masks.flatten(1)
    return int(masks.any(1).sum()), round(float(masks.float().mean()), 6)


def measure():
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", UserWarning)
    left_out = (*solvers.INVERSE, *solvers.WITH_A_KNOWN_PART, "helios-dmd")
    cases = {name: (lambda name=name: solvers.make(name), {}) for name in solvers.SETTINGS if name not in left_out}
    return {name: [flagged(*case, side) for side in SIDES] for name, case in {**LOUD, **cases}.items()}


if __name__ == "__main__":
    if "--measure" in sys.argv:
        found = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in measure().items()]
        NOISE.write_text("{\n" + ",\n".join(found) + "\n}\n")
    PAGE.write_text(page())

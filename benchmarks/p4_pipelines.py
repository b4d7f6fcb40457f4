# SPDX-License-Identifier: MIT
"""P4: whole pipelines with random weights, ASCED on over off, in pairs of short runs that take turns at each step.

A run of 6 steps with 3 of them watched and T_c bears more of ASCED than the usual one of 25 with 6. The value is a
one-sided 95 % limit of the median ratio, free of any distribution (``timing.upper_limit``).

Pairs one after the other were tried first: the clocks of an H100 at its limit of power move SDXL's by 5 % (``turns``).
On a CUDA device both runs replay one CUDA graph of the network (``graphed``), as servers do. A network launched from
Python waits for the host, whose noise of some per cent hides what is measured here. With the network's memory inside
its graph, ``peak_bytes`` compares the pipelines around it.
"""

from collections.abc import Callable
from copy import copy, deepcopy
from functools import partial

import torch
from diffusers import DiffusionPipeline

import ascedfast
from ascedfast import AscedConfig
from benchmarks import graphed, models
from benchmarks.device import peak_of
from benchmarks.measurement import Bench, Cases, Measurement
from benchmarks.targets import PIPELINES
from benchmarks.timing import spread, upper_limit
from benchmarks.turns import Turns, in_turns

PAIRS = {"SD1.5": 160, "SDXL": 120, "FLUX": 24, "Wan": 24}
STEPS, T_C = 6, 4


def cases(bench: Bench) -> Cases:
    """One for each size of pipeline."""
    return {f"P4/{name}": partial(_on_over_off, bench, name) for name in PIPELINES}


def _runner(pipe: DiffusionPipeline, call: models.Call, device: torch.device) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(0)
        return pipe(**call, num_inference_steps=STEPS, generator=generator)[0]

    return run


def _on_over_off(bench: Bench, name: str) -> Measurement:
    off, call = models.build(name, bench.device, bench.quick)
    on = copy(off)  # the same weights, a scheduler of its own
    on.scheduler = deepcopy(off.scheduler)
    if bench.device.type == "cuda":
        graphed.replay_forward(models.network(off))
    handle = ascedfast.enable_asced(on, AscedConfig(t_c=T_C), seeds=0)
    run_on, run_off = _runner(on, call, bench.device), _runner(off, call, bench.device)
    latents = run_on()
    turns, repeats = Turns(bench.device), 5 if bench.quick else PAIRS[name]
    turns.at_each_call(models.network(off))
    pairs = in_turns(turns, run_on, run_off, repeats)
    ratio = spread(pairs.ratios)
    notes = [f"median {ratio.p50:.5f}; {repeats} pairs of {STEPS} steps in turns, corrected after step {T_C}"]
    notes[0] += ", the network in a CUDA graph" * (bench.device.type == "cuda")
    reason = handle.report.rows[0].plan.reason
    notes += [f"left alone: {reason}"] * (reason is not None)
    notes += ["latents are not finite"] * (not bool(latents.isfinite().all()))
    return Measurement(
        value=None if len(notes) > 1 else upper_limit(pairs.ratios),
        shape=tuple(latents.shape),
        dtype=latents.dtype,
        baseline="the same pipeline with ASCED off, wall time of a run",
        ours_us=pairs.ours_us,
        baseline_us=pairs.baseline_us,
        p20=ratio.p20,
        p80=ratio.p80,
        peak_bytes=peak_of(run_on, bench.device) - peak_of(run_off, bench.device),
        note="; ".join(notes),
    )

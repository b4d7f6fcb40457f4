# SPDX-License-Identifier: MIT
"""The packaged models, sampled once without and once with correction from a shared first half."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ascedfast.adapters.pipeline_folder import load_pipeline
from ascedfast.adapters.schedules import schedule_of
from ascedfast.begin_run import begin
from ascedfast.config import AscedConfig
from ascedfast.report import Report
from ascedfast.schedule import plan_run

MODELS = {"unet": "emoji64-unet", "dit": "emoji64-dit"}


@dataclass(frozen=True)
class PairedRun:
    """Images in [0, 1], [R, 3, H, W], and what it took. before: without correction, after: with it.

    report: of the corrected rows. seconds: of one corrected run. asced_seconds: the part of it inside the engine.
    """

    before: Tensor
    after: Tensor
    report: Report
    seconds: float
    asced_seconds: float


def load_model(name: str, device: torch.device | str = "cpu") -> tuple[torch.nn.Module, Any]:
    """A packaged denoiser and its scheduler. Raises: ValueError for an unknown name."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    with resources.as_file(resources.files("ascedfast") / "assets" / MODELS[name]) as folder:
        pipe = load_pipeline(Path(folder))
    denoiser = pipe.unet if name == "unet" else pipe.transformer
    return denoiser.to(device).eval(), pipe.scheduler


def denoise(model: torch.nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """Model output [R, 3, H, W] for states x at one timestep."""
    if hasattr(model, "pos_embed"):  # diffusers' transformers want a timestep a row
        return model(x, timestep=t.expand(len(x)).to(x.device), return_dict=False)[0]
    return model(x, t, return_dict=False)[0]


@torch.inference_mode()
def paired_run(
    model: torch.nn.Module,
    scheduler: Any,
    config: AscedConfig,
    *,
    seed: int = 0,
    samples: int = 8,
    steps: int = 25,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PairedRun:
    """Sample with a one-step scheduler (DDIM, FlowMatchEuler) until T_c once, then go on both ways.

    Args:
        seed: of the first sample; sample i has seed + i, for its initial noise and for its correction.
        progress: called as progress(done, total), in network evaluations of ``samples`` rows.
    """
    device = next(model.parameters()).device
    seeds = [seed + i for i in range(samples)]
    shape = (1, model.config.in_channels, model.config.sample_size, model.config.sample_size)
    x = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(device)
    scheduler.set_timesteps(steps)
    schedule = schedule_of(scheduler)
    run = begin(schedule, dataclasses.replace(config, record="run"), seeds=seeds)
    plan = plan_run(schedule, config)
    t_c = steps if plan.reason else plan.t_c
    clock, network = _Clock(device), _Clock(device)
    frames: dict[str, dict[int, Tensor]] = {"without correction": {}, "with correction": {}}
    plain = None
    seconds, done = 0.0, 0
    for k, t in enumerate(scheduler.timesteps):
        both = x if plain is None else torch.cat([x, plain])
        with network:
            m = denoise(model, both, t)
            following = scheduler.step(m, t, both, return_dict=False)[0]
        with clock:
            frames["with correction"][k] = run.observe(x, m[:samples])
        shared = plain is None
        rest = frames["with correction"][k] if shared else schedule.x0_hat(k, plain, m[samples:])
        frames["without correction"][k] = rest
        x, plain = following[:samples], None if shared else following[samples:]
        if k + 1 == t_c:
            plain = x.clone()
            with clock:
                run.correct_(x)
        seconds += network.last if shared else network.last / 2
        done += 1 if shared else 2
        progress(done, 2 * steps - t_c)
    before, after = (_pixels(state) for state in (x if plain is None else plain, x))
    report = run.report.attach(before=before, after=after)
    report.attach_frames({name: {k: _pixels(frame) for k, frame in film.items()} for name, film in frames.items()})
    return PairedRun(before, after, report, seconds + clock.seconds, clock.seconds)


def _pixels(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


class _Clock:
    """Adds up the time spent inside ``with`` blocks, device work included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = self.last = 0.0

    def __enter__(self) -> None:
        self._started = self._now()

    def __exit__(self, *_: object) -> None:
        self.last = self._now() - self._started
        self.seconds += self.last

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

# SPDX-License-Identifier: MIT
"""The grid of samples in a model's folder: unselected, with fresh noise at each step.

A step that adds noise forgets the errors of the steps before it. With these small networks that makes the difference
between blobs and emoji, at the price of more steps; the demonstrations take 25 steps without noise, as most pipelines
do.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from emoji.card import SAMPLES
from PIL import Image
from rich.progress import track

from ascedfast.adapters.schedules import schedule_of
from ascedfast.pipelines import PixelFlowPipeline

COLUMNS = 8
CHUNK = 16


@torch.inference_mode()
def sample_grid(pipeline: DiffusionPipeline, steps: int, count: int = SAMPLES) -> np.ndarray:
    """Samples of the seeds 0 to count - 1, uint8 (count / 8 * S, 8 * S, 3).

    Each step goes to x' = alpha'*x0 + sqrt(sigma'^2 - v)*e + sqrt(v)*z with DDIM's v at eta 1 (arXiv 2010.02502,
    Eq. 16), for the noise-predicting model and for the flow alike. As in diffusers, a clamp of x0 leaves e as the
    model predicts it. All noise of an image comes from its own generator on the CPU. Raises: FloatingPointError where
    a value is not finite.
    """
    pipeline.scheduler.set_timesteps(steps)
    schedule = schedule_of(pipeline.scheduler)
    unclipped = replace(schedule, clip=None)
    flow = isinstance(pipeline, PixelFlowPipeline)
    network = pipeline.transformer if flow else pipeline.unet
    size, device = network.config.sample_size, network.device
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]

    def noise() -> torch.Tensor:
        return torch.stack([torch.randn(3, size, size, generator=g) for g in generators]).to(device, network.dtype)

    x = noise()
    for k in track(range(steps), description="sampling", transient=True):
        level, (alpha, sigma) = schedule.before[k], schedule.after[k]
        t = pipeline.scheduler.timesteps[k].to(device)
        parts = x.split(CHUNK)
        named = [{"timestep": t.expand(len(part))} if flow else {"timestep": t} for part in parts]
        m = torch.cat([network(part, **more, return_dict=False)[0] for part, more in zip(parts, named, strict=True)])
        x0 = schedule.x0_hat(k, x, m)
        e = (x - level.alpha * unclipped.x0_hat(k, x, m)) / level.sigma
        kept = (level.alpha * sigma / (alpha * level.sigma)) ** 2
        fresh = sigma * math.sqrt(max(0.0, 1 - kept))
        x = alpha * x0 + math.sqrt(max(0.0, sigma**2 - fresh**2)) * e
        if fresh:
            x = x + fresh * noise()
    if not x.isfinite().all():
        raise FloatingPointError("the model samples values that are not finite")
    images = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    tiles = images.reshape(count // COLUMNS, COLUMNS, size, size, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(count // COLUMNS * size, COLUMNS * size, 3)


def draw_samples(pipeline: DiffusionPipeline, folder: Path, steps: int) -> None:
    """Writes ``folder``/samples.png."""
    Image.fromarray(sample_grid(pipeline, steps)).save(folder / "samples.png", optimize=True)

# SPDX-License-Identifier: MIT
"""A local pipeline of the user's as a subject: an unconditional U-Net and its scheduler, in pixels."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ascedfast.lab.sampling import start_noise
from ascedfast.schedule import Schedule

STEPS = 25


@dataclass(frozen=True, eq=False)
class FolderSubject:
    """``subject.Subject`` without features, judge and real images: what needs them is reported as absent.

    name: the folder's path, as given. make_scheduler: a new one of its own, whose levels are followed by
    ``sampling.sample``, so the images are not those of a multistep or random solver.
    """

    name: str
    net: nn.Module
    make_scheduler: Any
    steps: int = STEPS

    @property
    def shape(self) -> tuple[int, int, int]:
        config, size = self.net.config, self.net.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @functools.cached_property
    def scheduler(self) -> Any:
        scheduler = self.make_scheduler()
        scheduler.set_timesteps(self.steps)
        return scheduler

    @functools.cached_property
    def schedule(self) -> Schedule:
        from ascedfast.adapters.schedules import schedule_of

        return schedule_of(self.scheduler)

    @property
    def last_conv(self) -> nn.Conv2d | None:
        return getattr(self.net, "conv_out", None)

    @torch.no_grad()
    def denoise(self, x: Tensor, step: int) -> Tensor:
        return self.net(x, self.scheduler.timesteps[step].to(x.device).expand(len(x)), return_dict=False)[0]

    def start(self, seeds: Sequence[int]) -> Tensor:
        level = self.schedule.before[0]
        scale = level.sigma if level.alpha == 1 and level.sigma > 1 else 1.0  # variance-exploding levels
        return start_noise(seeds, self.shape).to(self.net.device) * scale

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def with_steps(self, steps: int) -> "FolderSubject":
        return FolderSubject(self.name, self.net, self.make_scheduler, steps)


def load_folder(folder: Path, device: str) -> FolderSubject:
    """From a folder of a diffusers pipeline with safetensors.

    Raises: ValueError where the pipeline is none that this can sample: a U-Net without conditions and a scheduler that
    the schedules of ``ascedfast.adapters`` read.
    """
    from ascedfast.adapters.pipeline_folder import load_pipeline

    pipe = load_pipeline(folder, device)
    net = getattr(pipe, "unet", None)
    if type(net).__name__ != "UNet2DModel" or getattr(net, "class_embedding", None) is not None:
        raise ValueError(f"{folder}: the laboratory samples pipelines with an unconditional UNet2DModel")
    kind, config = type(pipe.scheduler), pipe.scheduler.config
    net = net.float().eval().requires_grad_(False)
    return FolderSubject(str(folder), net, lambda: kind.from_config(config))

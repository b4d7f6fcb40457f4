# SPDX-License-Identifier: MIT
"""Models whose rows are stepped together though each is at its own place of a run of its own length."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ascedfast.adapters.pipeline_folder import FolderError, load_pipeline
from ascedfast.adapters.schedules import schedule_of
from ascedfast.calibration.folder import NAME, load_table
from ascedfast.calibration.packaged import packaged_table
from ascedfast.calibration.table import NullTable
from ascedfast.schedule import Schedule
from ascedfast.server.settings import PACKAGED, ServerSettings

Network = Callable[[Tensor, Tensor], Tensor]
"""Model outputs [R, C, H, W] for states x [R, C, H, W] and timesteps t [R]."""


@dataclass(frozen=True, eq=False)
class Course:
    """A run of some number of steps: its levels, its timesteps [steps] on the device, its solver.

    scheduler: set to that number of steps. lengths: float32 [steps] on the device, sigma's change in each step, where
    the solver is Euler's for a flow; None where the scheduler steps.
    """

    schedule: Schedule
    timesteps: Tensor
    scheduler: Any
    lengths: Tensor | None


class RowModel:
    """A denoiser in pixel space that takes no prompt, and a solver without memory or noise of its own.

    Args:
        scheduler: FlowMatchEulerDiscreteScheduler or DDIMScheduler; never modified.
        shape: (C, H, W) of a state; 3 channels are pixels in [-1, 1].
    Raises: FolderError for another solver.
    """

    def __init__(
        self,
        network: Network,
        scheduler: Any,
        shape: tuple[int, int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        why = _refusal(scheduler)
        if why is not None:
            raise FolderError(why)
        self.network, self.shape, self.dtype, self.device = network, shape, dtype, torch.device(device)
        self._scheduler = scheduler
        self.course = functools.lru_cache(maxsize=64)(self._course)

    def _course(self, steps: int) -> Course:
        scheduler = type(self._scheduler).from_config(self._scheduler.config)
        scheduler.set_timesteps(steps)
        lengths = None
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            lengths = (scheduler.sigmas[1:] - scheduler.sigmas[:-1]).to(self.device)
        return Course(schedule_of(scheduler), scheduler.timesteps.to(self.device), scheduler, lengths)

    def noise(self, seed: int, n: int) -> Tensor:
        """The states [n, C, H, W] that a stock pipeline begins with: n images drawn one after another from one
        generator with that seed."""
        generator = torch.Generator().manual_seed(seed)
        images = [torch.randn(1, *self.shape, generator=generator, dtype=self.dtype) for _ in range(n)]
        return torch.cat(images).to(self.device)

    def predict(
        self, x: Tensor, places: Sequence[tuple[Course, int]], alone: Sequence[int], together: Tensor | None
    ) -> Tensor:
        """Model outputs [R, C, H, W] for rows at these places of their courses.

        Args: alone: rows that are evaluated one by one. together: the others, int64 on the device; None for all.
        """
        t = torch.stack([course.timesteps[k] for course, k in places])
        if together is None:
            return self.network(x, t)
        m = torch.empty_like(x)
        if len(together):
            m[together] = self.network(x[together], t[together])
        for i in alone:
            m[i] = self.network(x[i : i + 1], t[i : i + 1])[0]
        return m

    def step(self, x: Tensor, m: Tensor, places: Sequence[tuple[Course, int]]) -> Tensor:
        """The rows' next states, with the stock scheduler's bits; new memory."""
        if all(course.lengths is not None for course, _ in places):
            lengths = torch.stack([course.lengths[k] for course, k in places]).view(-1, 1, 1, 1)
            return (x.float() + lengths * m).to(m.dtype)  # multiplied, then added, each rounded: as the stock step
        rows = [
            course.scheduler.step(m[i : i + 1], course.scheduler.timesteps[k], x[i : i + 1], return_dict=False)[0]
            for i, (course, k) in enumerate(places)
        ]
        return torch.cat(rows)


def _refusal(scheduler: Any) -> str | None:
    config = scheduler.config
    if type(scheduler) is FlowMatchEulerDiscreteScheduler:
        odd = [name for name in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling") if config.get(name)]
        return f"FlowMatchEulerDiscreteScheduler with {odd[0]} is not served: set it to False" if odd else None
    if type(scheduler) is DDIMScheduler:
        return "DDIMScheduler with thresholding is not served: set it to False" if config.thresholding else None
    return (
        f"{type(scheduler).__name__} is not served: it remembers, or draws, by the batch. Save the pipeline with "
        "FlowMatchEulerDiscreteScheduler or DDIMScheduler"
    )


def load_model(settings: ServerSettings) -> RowModel:
    """The model that the settings name, on a GPU where replicas are given one.

    Raises: FolderError for a folder that cannot be loaded, or whose pipeline cannot be served row by row.
    """
    device = "cuda" if settings.num_gpus else "cpu"
    if settings.pipeline is not None:
        return row_model(load_pipeline(settings.pipeline, device), settings.pipeline)
    with resources.as_file(resources.files("ascedfast") / "assets" / PACKAGED) as folder:
        return row_model(load_pipeline(Path(folder), device), Path(folder))


def row_model(pipe: Any, folder: Path) -> RowModel:
    """A loaded pipeline's denoiser and solver. Raises: FolderError."""
    kind = type(pipe).__name__
    if kind == "PixelFlowPipeline":
        denoiser = pipe.transformer.eval()

        def network(x: Tensor, t: Tensor) -> Tensor:
            return denoiser(x, timestep=t, return_dict=False)[0]
    elif kind == "DDIMPipeline":
        denoiser = pipe.unet.eval()

        def network(x: Tensor, t: Tensor) -> Tensor:
            return denoiser(x, t, return_dict=False)[0]
    else:
        raise FolderError(
            f"{folder}: {kind} is not served: its rows cannot be stepped at places of their own. PixelFlowPipeline and "
            "DDIMPipeline are; for others see ascedfast generate"
        )
    size = denoiser.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    try:
        shape = (denoiser.config.in_channels, height, width)
        return RowModel(network, pipe.scheduler, shape, denoiser.dtype, denoiser.device)
    except FolderError as error:
        raise FolderError(f"{folder}: {error}") from None


def load_null_table(settings: ServerSettings) -> NullTable:
    """What sound runs score, for mode "calibrated": the settings' table, the pipeline folder's, or the packaged one.

    Raises: OSError, ValueError where a table is damaged or was made for another pipeline.
    """
    folder = settings.pipeline
    if settings.table is not None:
        return NullTable.load(settings.table) if folder is None else load_table(folder, settings.table)
    return load_table(folder) if folder is not None and (folder / NAME).exists() else packaged_table()

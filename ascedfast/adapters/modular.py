# SPDX-License-Identifier: MIT
"""ASCED as a block of diffusers' modular pipelines, in front of the denoising loop.

    blocks.sub_blocks.insert("asced", AscedStep(), index)  # index: that of the block "denoise"
    pipe = blocks.init_pipeline()
    state = pipe(..., generator=generator)
    state.get("asced").report

Their loops call ``components.scheduler.step``, so the scheduler is enabled as any other is; the block tells it what the
pipeline alone knows: the generators, the image size that packed latents do not show, the frames of a video.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam, PipelineState
from torch import Tensor

from ascedfast.adapters import caches, class_swap
from ascedfast.adapters.diffusers import Handle, enable_asced
from ascedfast.adapters.layout import PipelineContext, checked_axes
from ascedfast.adapters.modular_span import Span, end_others, following
from ascedfast.adapters.pipeline_context import order_of
from ascedfast.adapters.run import SchedulerRun
from ascedfast.adapters.run_settings import checked_grid, checked_seeds
from ascedfast.config import AscedConfig
from ascedfast.protected import checked_keep_mask


class AscedStep(ModularPipelineBlocks):
    """Watches the run that follows. Where it stands, the pipeline must have its latents and timesteps already.

    Args: config: default ``AscedConfig.fast()``. seeds, grid, axes, keep_mask: as of ``enable_asced``, for the runs
        that this block stands before; default: what the scheduler was enabled with, or the generators' seeds. The mask
        is copied with the blocks, as ``init_pipeline`` does.
    Mutates: the scheduler's class, until ``disable_asced(pipe.scheduler)``; the classes of the blocks behind this one
        while they run. Output "asced": the ``Handle``.
    Raises: ValueError, TypeError for bad arguments; when the pipeline runs, what ``enable_asced`` raises; ValueError
        where the scheduler is enabled already with another configuration, or where no block follows.
    """

    def __init__(
        self,
        config: AscedConfig | None = None,
        seeds: Sequence[int] | int | None = None,
        *,
        grid: tuple[int, ...] | None = None,
        axes: str | None = None,
        keep_mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._asced = AscedConfig() if config is None else config
        given = {
            "seeds": checked_seeds(seeds),
            "grid": checked_grid(grid, axes),
            "axes": checked_axes(axes),
            "keep_mask": checked_keep_mask(keep_mask),
        }
        self._given = {name: value for name, value in given.items() if value is not None}

    @property
    def description(self) -> str:
        return "Finds regions that turn into artifacts in the denoising loop that follows, and re-noises them once."

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam(name) for name in ("generator", "height", "width", "num_frames")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("asced", type_hint=Handle, description="Report and settings of the correction.")]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Enable ASCED on the pipeline's scheduler where it is not, and tell it of the run that follows."""
        block_state = self.get_block_state(state)
        scheduler, behind = components.scheduler, following(components._blocks, self)
        if not behind:
            raise ValueError("AscedStep must stand in the pipeline's blocks, in front of the denoising loop")
        run = getattr(scheduler, "__dict__", {}).get(class_swap.STATE)
        if run is not None and run.config != self._asced:
            raise ValueError("ASCED is enabled on this scheduler with another configuration: call disable_asced first")
        if run is None:
            enable_asced(scheduler, self._asced)
            run = scheduler.__dict__[class_swap.STATE]
        end_others(behind)
        with contextlib.ExitStack() as opened:
            if run.enter_pipeline(_context(components, block_state)):
                opened.callback(run.leave_pipeline)
                opened.enter_context(_lent(run, self._given))
                run.caches = opened.enter_context(caches.watched(components))
            Span(behind, opened.pop_all().close)
        block_state.asced = Handle(scheduler, scheduler, run)
        self.set_block_state(state, block_state)
        return components, state


@contextlib.contextmanager
def _lent(run: SchedulerRun, settings: dict[str, Any]) -> Iterator[None]:
    """Settings of a run, in the place of those the scheduler was enabled with, for the length of a ``with`` block."""
    own = {name: getattr(run, name) for name in settings}
    vars(run).update(settings)
    try:
        yield
    finally:
        vars(run).update(own)


def _context(components: Any, given: Any) -> PipelineContext:
    known = {"generator": given.generator, "height": given.height, "width": given.width}
    names = ("vae_scale_factor", "vae_scale_factor_spatial")
    known["scale"] = next((getattr(components, name) for name in names if hasattr(components, name)), 1)
    known["order"] = order_of(type(components))
    apart = getattr(components, "vae_scale_factor_temporal", None)
    if given.num_frames is not None and apart is not None:
        frames = given.num_frames
        # Pipelines round a number of frames that does not fit down or up.
        known |= {"frames": frames, "latent_frames": ((frames - 1) // apart + 1, frames // apart + 1)}
    return PipelineContext(**known)

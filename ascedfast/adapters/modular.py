# SPDX-License-Identifier: MIT
"""ASCED as a block of diffusers' modular pipelines, in front of the denoising loop.

    blocks.sub_blocks.insert("asced", AscedStep(), index)  # index: that of the block "denoise"
    pipe = blocks.init_pipeline()
    state = pipe(..., generator=generator)
    state.get("asced").report

Their loops call ``components.scheduler.step``, so the scheduler is enabled as any other is; the block tells it what the
pipeline alone knows: the generators, the image size that packed latents do not show, the frames of a video.
"""

from collections.abc import Sequence
from typing import Any

from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam, PipelineState

from ascedfast.adapters import class_swap
from ascedfast.adapters.diffusers import Handle, enable_asced
from ascedfast.adapters.layout import PipelineContext
from ascedfast.adapters.pipeline_context import order_of
from ascedfast.config import AscedConfig


class AscedStep(ModularPipelineBlocks):
    """Watches the run that follows. Where it stands, the pipeline must have its latents and timesteps already.

    Args: config: default ``AscedConfig.fast()``. seeds: as of ``enable_asced``; default: those of the generators.
    Mutates: the scheduler's class, until ``disable_asced(pipe.scheduler)``. Output "asced": the ``Handle``.
    Raises: when the pipeline runs, what ``enable_asced`` raises; ValueError where the scheduler is enabled already with
        another configuration.
    """

    def __init__(self, config: AscedConfig | None = None, seeds: Sequence[int] | int | None = None) -> None:
        super().__init__()
        self._asced = AscedConfig() if config is None else config
        self._seeds = seeds

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
        """Enable ASCED on the pipeline's scheduler where it is not, and tell it of this run."""
        block_state = self.get_block_state(state)
        scheduler = components.scheduler
        run = getattr(scheduler, "__dict__", {}).get(class_swap.STATE)
        if run is not None and run.config != self._asced:
            raise ValueError("ASCED is enabled on this scheduler with another configuration: call disable_asced first")
        if run is None:
            enable_asced(scheduler, self._asced, seeds=self._seeds)
            run = scheduler.__dict__[class_swap.STATE]
        run.context = _context(components, block_state)
        block_state.asced = Handle(scheduler, scheduler, run)
        self.set_block_state(state, block_state)
        return components, state


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

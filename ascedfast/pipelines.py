# SPDX-License-Identifier: MIT
"""A pipeline for unconditional flow-matching transformers in pixel space.

diffusers has stock pipelines for unconditional U-Nets (`DDIMPipeline`) but none for a transformer that predicts a
velocity on pixels, so the bundled `emoji64-dit` brings this one. It needs diffusers and nothing else of ascedfast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput, PixArtTransformer2DModel
from diffusers.utils.torch_utils import randn_tensor

__all__ = ["PixelFlowPipeline"]


class PixelFlowPipeline(DiffusionPipeline):
    """Samples images by integrating a learned velocity from noise (s = 1) to data (s = 0).

    The convention is that of diffusers' flow-matching schedulers: x = (1 - s) * x0 + s * noise, the model predicts
    v = noise - x0 and is told the timestep 1000 * s.

    Args:
        transformer: maps (B, C, S, S) and B timesteps to velocities (B, C, S, S); takes no caption.
        scheduler: any flow-matching scheduler whose `step(v, t, x)` returns the next x.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: PixArtTransformer2DModel, scheduler: FlowMatchEulerDiscreteScheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 25,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[PixelFlowPipeline, int, torch.Tensor, dict], dict | None] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draws `batch_size` images.

        Args:
            batch_size: number of images B.
            num_inference_steps: solver steps.
            generator: for the initial noise; a list holds one for each image, so that an image's noise does not
                depend on the batch that it is drawn in.
            output_type: `"pil"` for a list of B images, `"np"` for float32 (B, S, S, C), `"pt"` for (B, C, S, S);
                arrays and tensors are in [0, 1].
            return_dict: whether to return an `ImagePipelineOutput` or the tuple `(images,)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": x})` after each step, with
                x of shape (B, C, S, S) in the units of the network, [-1, 1]; a returned dict may replace `latents`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"got {len(generator)} generators for a batch of {batch_size}")

        config, device = self.transformer.config, self._execution_device
        shape = (batch_size, config.in_channels, config.sample_size, config.sample_size)
        x = randn_tensor(shape, generator=generator, device=device, dtype=self.transformer.dtype)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            v = self.transformer(x, timestep=t.expand(batch_size), return_dict=False)[0]
            x = self.scheduler.step(v, t, x, return_dict=False)[0]
            if callback_on_step_end is not None:
                x = (callback_on_step_end(self, i, t, {"latents": x}) or {}).get("latents", x)

        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.float().cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

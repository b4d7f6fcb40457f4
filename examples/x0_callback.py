# SPDX-License-Identifier: MIT
"""See the predicted clean sample at every step, in any supported pipeline."""

from importlib import resources

import torch
from diffusers import DDIMPipeline

import ascedfast


def show(step, timestep, x0):
    """x0: [B, C, H, W] fp32 in the units of the latents (here pixels in [-1, 1]). Yours to read, not to write into."""
    print(f"step {step:2d}  t {int(timestep):3d}  x0_hat in [{x0.min():+.2f}, {x0.max():+.2f}]")


pipe = DDIMPipeline.from_pretrained(str(resources.files("ascedfast") / "assets" / "emoji64-unet"))
pipe.set_progress_bar_config(disable=True)
with ascedfast.asced(pipe, ascedfast.AscedConfig(correct=False), on_x0=show):
    pipe(batch_size=1, generator=torch.Generator().manual_seed(0), num_inference_steps=10)

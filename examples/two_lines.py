# SPDX-License-Identifier: MIT
"""Two lines on a pipeline: enable, and read the report after the call."""

from importlib import resources

import torch
from diffusers import DDIMPipeline

import ascedfast

pipe = DDIMPipeline.from_pretrained(str(resources.files("ascedfast") / "assets" / "emoji64-unet"))
handle = ascedfast.enable_asced(pipe)
images = pipe(batch_size=1, generator=torch.Generator().manual_seed(3), num_inference_steps=25).images
print(handle.report)

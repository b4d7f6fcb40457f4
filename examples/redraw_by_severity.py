# SPDX-License-Identifier: MIT
"""Draw several candidates and keep the one that ASCED found the least wrong with: best of n by severity."""

from importlib import resources

import torch
from diffusers import DDIMPipeline

import ascedfast

CANDIDATES = 3

pipe = DDIMPipeline.from_pretrained(str(resources.files("ascedfast") / "assets" / "emoji64-unet"))
pipe.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(seed) for seed in range(CANDIDATES)]
with ascedfast.asced(pipe) as handle:
    images = pipe(batch_size=CANDIDATES, generator=generators, num_inference_steps=25).images
    severity = [row.severity for row in handle.report]

# "unavailable" says that a sample was left alone, not that it is good: such samples come last.
ranked = sorted(range(CANDIDATES), key=lambda i: float("inf") if severity[i] == "unavailable" else severity[i])
print("severity by seed:", severity, "-> keep seed", ranked[0])
best = images[ranked[0]]

# SPDX-License-Identifier: MIT
"""The two networks of the emoji models: shapes, what each is trained to predict, and the pipeline that samples it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    UNet2DModel,
)
from torch import Tensor, nn

from ascedfast.lab.nets import plain_dit
from ascedfast.lab.objectives import (
    TRAIN_STEPS,
    NoiseLoss,
    draw_logit_normal,
    draw_uniform_steps,
    velocity_loss,
)
from ascedfast.pipelines import PixelFlowPipeline

FLOW_SHIFT = 3.0  # more of the sampler's steps at high noise; at 25 steps samples are cleaner than with 1 or 2


@dataclass(frozen=True)
class Recipe:
    """One model: how to build it, how to draw its noise levels, what it is trained on.

    `build(size, small)` returns the network, `compile` whether to compile it: the U-Net's many shapes take minutes for
    a fifth more speed; the transformer's step is bound by memory, and fusing its small operations doubled its speed.
    `draw_levels(count, device, generator)` returns float32 (count,) timesteps. `loss(model, x0, noise, t)` takes images
    and noise (B, 3, S, S), t (B,) and returns a scalar. `sample_steps` of the samples' grid, with fresh noise at each,
    were found by looking: with 50, more of the U-Net's samples can be recognised than with 25, 75 or 250.
    """

    folder: str
    summary: str
    build: Callable[[int, bool], nn.Module]
    compile: bool
    draw_levels: Callable[[int, torch.device, torch.Generator], Tensor]
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    pipeline: Callable[[nn.Module], DiffusionPipeline]
    pipeline_class: type[DiffusionPipeline]
    sampler: str
    sample_steps: int
    batch: int
    learning_rate: float
    channels_last: bool


def build_unet(size: int, small: bool) -> UNet2DModel:
    """Attention at a quarter and an eighth of the size; 4.6M parameters when not small."""
    if small:
        shape = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
        down = ("DownBlock2D", "AttnDownBlock2D")
    else:
        shape = {"block_out_channels": (32, 64, 88, 112), "layers_per_block": 2, "norm_num_groups": 8}
        down = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        attention_head_dim=8,
        down_block_types=down,
        up_block_types=up,
        **shape,
    )


def build_dit(size: int, small: bool) -> PixArtTransformer2DModel:
    """Patches of 4x4 pixels; 4.7M parameters when not small."""
    heads, layers = (2, 2) if small else (7, 7)
    return plain_dit(size, 3, 4, heads, 32, layers)


def unet_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=True
    )


RECIPES = {
    "unet": Recipe(
        folder="emoji64-unet",
        summary="U-Net (diffusers `UNet2DModel`), predicts the noise, linear beta 1e-4 to 0.02 over 1000 steps; loss "
        "weighted by min(SNR, 5) / SNR",
        build=build_unet,
        compile=False,
        draw_levels=draw_uniform_steps,
        loss=NoiseLoss(unet_scheduler().alphas_cumprod),
        pipeline=lambda model: DDIMPipeline(model, unet_scheduler()),
        pipeline_class=DDIMPipeline,
        sampler="DDIM",
        sample_steps=50,
        batch=64,
        learning_rate=6e-4,
        channels_last=True,
    ),
    "dit": Recipe(
        folder="emoji64-dit",
        summary="diffusion transformer (diffusers `PixArtTransformer2DModel` without captions, patches of 4x4 pixels), "
        "rectified flow in pixel space: x = (1 - s) * x0 + s * noise, predicts noise - x0; logit(s) ~ N(0.5, 1), one "
        "draw in ten uniform; sampled with a shift of 3",
        build=build_dit,
        compile=True,
        draw_levels=draw_logit_normal,
        loss=velocity_loss,
        pipeline=lambda model: PixelFlowPipeline(model, FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)),
        pipeline_class=PixelFlowPipeline,
        sampler="Euler",
        sample_steps=250,
        batch=128,
        learning_rate=8e-4,
        channels_last=False,
    ),
}

# SPDX-License-Identifier: MIT
"""The two networks of the emoji models: shapes, what each is trained to predict, and the pipeline that samples it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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

from ascedfast.pipelines import PixelFlowPipeline

TRAIN_STEPS = 1000  # of the noise schedule; flow models are told 1000 * s, after diffusers' convention
SNR_CAP = 5.0
UNIFORM_SHARE = 0.1
FLOW_SHIFT = 3.0  # more of the sampler's steps at high noise; at 25 steps samples are cleaner than with 1 or 2


@dataclass(frozen=True)
class Recipe:
    """One model: how to build it, how to draw its noise levels, what it is trained on.

    `build(size, small)` returns the network, `compile(network)` a faster form of it on the same parameters;
    None where compiling gains too little: the U-Net's many shapes take minutes for a fifth more speed.
    `draw_levels(count, device, generator)` returns float32 (count,) timesteps. `loss(model, x0, noise, t)` takes images
    and noise (B, 3, S, S), t (B,) and returns a scalar.
    """

    folder: str
    summary: str
    build: Callable[[int, bool], nn.Module]
    compile: Callable[[nn.Module], Callable] | None
    draw_levels: Callable[[int, torch.device, torch.Generator], Tensor]
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    pipeline: Callable[[nn.Module], DiffusionPipeline]
    pipeline_class: type[DiffusionPipeline]
    sampler: str
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
    """A DiT whose blocks share one modulation, so that the parameters go into depth; 4.7M when not small."""
    heads, layers = (2, 2) if small else (7, 7)
    model = PixArtTransformer2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        patch_size=4,
        num_attention_heads=heads,
        attention_head_dim=32,
        num_layers=layers,
        cross_attention_dim=None,
        caption_channels=None,
        use_additional_conditions=False,
        interpolation_scale=1,
    )
    # Every block starts as the identity and the output at 0: deep transformers learn faster from there.
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.adaln_single.emb.timestep_embedder.linear_1.weight, std=0.02)
    nn.init.normal_(model.adaln_single.emb.timestep_embedder.linear_2.weight, std=0.02)
    for start_at_zero in (model.adaln_single.linear.weight, model.proj_out.weight, model.scale_shift_table):
        nn.init.zeros_(start_at_zero)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.scale_shift_table)
    return model


def unet_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=True
    )


class NoiseLoss:
    """Squared error of the predicted noise, weighted by min(SNR, 5) / SNR: the nearly clean steps, which are the
    most and the easiest, would otherwise take most of the gradient."""

    def __init__(self) -> None:
        self.alphas_cumprod = unet_scheduler().alphas_cumprod

    def __call__(self, model: nn.Module, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.alphas_cumprod.device != x0.device:  # before any graph is captured: warm-up runs come first
            self.alphas_cumprod = self.alphas_cumprod.to(x0.device)
        signal = self.alphas_cumprod[t.long()]
        weight = (SNR_CAP * (1 - signal) / signal).clamp(max=1.0)
        signal = signal[:, None, None, None]
        predicted = model(signal.sqrt() * x0 + (1 - signal).sqrt() * noise, t, return_dict=False)[0]
        return (weight * (predicted.float() - noise).square().mean((1, 2, 3))).mean()


def velocity_loss(model: nn.Module, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Squared error of the predicted velocity noise - x0 at x = (1 - s) * x0 + s * noise, s = t / 1000."""
    s = (t / TRAIN_STEPS)[:, None, None, None]
    predicted = model((1 - s) * x0 + s * noise, timestep=t, return_dict=False)[0]
    return (predicted.float() - (noise - x0)).square().mean()


def draw_uniform_steps(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.randint(TRAIN_STEPS, (count,), device=device, generator=generator).float()


def draw_logit_normal(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """1000 * s with logit(s) ~ N(0.5, 1): what an emoji becomes is decided at high noise. One draw in ten is uniform,
    since the sampler also starts at s = 1 and ends near 0, where the normal has almost no mass."""
    normal, uniform, choice = (
        torch.randn(count, device=device, generator=generator),
        torch.rand(count, device=device, generator=generator),
        torch.rand(count, device=device, generator=generator),
    )
    return TRAIN_STEPS * torch.where(choice < UNIFORM_SHARE, uniform, torch.sigmoid(normal + 0.5))


RECIPES = {
    "unet": Recipe(
        folder="emoji64-unet",
        summary="U-Net (diffusers `UNet2DModel`), predicts the noise, linear beta 1e-4 to 0.02 over 1000 steps; loss "
        "weighted by min(SNR, 5) / SNR",
        build=build_unet,
        compile=None,
        draw_levels=draw_uniform_steps,
        loss=NoiseLoss(),
        pipeline=lambda model: DDIMPipeline(model, unet_scheduler()),
        pipeline_class=DDIMPipeline,
        sampler="DDIM",
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
        compile=partial(torch.compile, dynamic=False),
        draw_levels=draw_logit_normal,
        loss=velocity_loss,
        pipeline=lambda model: PixelFlowPipeline(model, FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)),
        pipeline_class=PixelFlowPipeline,
        sampler="Euler",
        batch=128,
        learning_rate=8e-4,
        channels_last=False,
    ),
}

# SPDX-License-Identifier: MIT
"""Pipelines of the sizes people run, with random weights made on the device: nothing is downloaded.

The configurations are those of the published models, written by hand. ``tiny`` shrinks each to a smoke test.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)

from benchmarks.loops import LATENTS, randn

Call = dict[str, Any]
Build = Callable[[torch.device, bool], tuple[DiffusionPipeline, Call]]


def build(name: str, device: torch.device, tiny: bool) -> tuple[DiffusionPipeline, Call]:
    """The pipeline in bf16 (tiny: fp32), its weights drawn by torch's own initialisation, and the arguments to call it
    with; it returns latents."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if tiny else torch.bfloat16)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(0)
            pipe, call = _BUILDERS[name](device, tiny)
    finally:
        torch.set_default_dtype(before)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {**call, "output_type": "latent"}


def network(pipe: DiffusionPipeline) -> torch.nn.Module:
    """The module that a pipeline calls at each step."""
    return pipe.components.get("unet") or pipe.components["transformer"]


def _scheduler(kind: type[SchedulerMixin], **settings: Any) -> SchedulerMixin:
    """On the host in float32, as users have it, whatever the defaults: schedulers make their tables with numpy too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            return kind(**settings)
    finally:
        torch.set_default_dtype(before)


def _prompts(device: torch.device, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {
        name: randn(shape, seed, device).to(torch.get_default_dtype())
        for seed, (name, shape) in enumerate(shapes.items())
    }


def _vae() -> AutoencoderKL:
    """Never called: pipelines ask it for its scale alone, 8 pixels a latent as in the models themselves."""
    return AutoencoderKL(
        block_out_channels=[4] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=2,
    )


def _sd15(device: torch.device, tiny: bool) -> tuple[DiffusionPipeline, Call]:
    width, side = (8, 64) if tiny else (768, 512)
    sizes = {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2, "attention_head_dim": 2, "layers_per_block": 1}
    unet = UNet2DConditionModel(cross_attention_dim=width, sample_size=side // 8, **(sizes if tiny else {}))
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = _scheduler(DPMSolverMultistepScheduler, **LATENTS, steps_offset=1)
    pipe = StableDiffusionPipeline(vae=_vae(), unet=unet, scheduler=scheduler, requires_safety_checker=False, **parts)
    prompts = _prompts(device, prompt_embeds=(1, 77, width), negative_prompt_embeds=(1, 77, width))
    return pipe, {**prompts, "height": side, "width": side}


def _sdxl(device: torch.device, tiny: bool) -> tuple[DiffusionPipeline, Call]:
    width, pooled, side = (16, 8, 64) if tiny else (2048, 1280, 1024)
    sizes: Call = {"block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20)}
    if tiny:
        sizes = {"block_out_channels": (4, 4, 8), "attention_head_dim": (2, 2, 2), "norm_num_groups": 2}
    unet = UNet2DConditionModel(
        sample_size=side // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1) if tiny else (1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + pooled,
        cross_attention_dim=width,
        **sizes,
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = _scheduler(EulerDiscreteScheduler, **LATENTS, steps_offset=1, timestep_spacing="leading")
    pipe = StableDiffusionXLPipeline(vae=_vae(), unet=unet, scheduler=scheduler, add_watermarker=False, **parts)
    # The pipeline checks that the time embedding's width is that of its pooled prompt.
    text = dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), (1, 77, width))
    pools = dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), (1, pooled))
    return pipe, {**_prompts(device, **text, **pools), "height": side, "width": side}


def _flux(device: torch.device, tiny: bool) -> tuple[DiffusionPipeline, Call]:
    width, pooled, side = (16, 8, 128) if tiny else (4096, 768, 1024)
    sizes: Call = {"num_layers": 19, "num_single_layers": 38}
    if tiny:
        sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
        sizes["axes_dims_rope"] = (4, 4, 8)
    transformer = FluxTransformer2DModel(
        in_channels=64, joint_attention_dim=width, pooled_projection_dim=pooled, guidance_embeds=True, **sizes
    )
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = _scheduler(FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True, shift=3.0)
    pipe = FluxPipeline(transformer=transformer, scheduler=scheduler, **parts)
    prompts = _prompts(device, prompt_embeds=(1, 32 if tiny else 512, width), pooled_prompt_embeds=(1, pooled))
    return pipe, {**prompts, "height": side, "width": side}


def _wan(device: torch.device, tiny: bool) -> tuple[DiffusionPipeline, Call]:
    """The 1.3B model at 480p, 17 frames: five latent frames keep a run to seconds."""
    width = 16 if tiny else 4096
    sizes: Call = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    if tiny:
        sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 32, "freq_dim": 32}
    transformer = WanTransformer3DModel(text_dim=width, rope_max_seq_len=1024, **sizes)
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = _scheduler(FlowMatchEulerDiscreteScheduler, shift=3.0)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)
    tokens = 32 if tiny else 512
    prompts = _prompts(device, prompt_embeds=(1, tokens, width), negative_prompt_embeds=(1, tokens, width))
    size = {"height": 64, "width": 64, "num_frames": 5} if tiny else {"height": 480, "width": 832, "num_frames": 17}
    return pipe, {**prompts, **size}


_BUILDERS: dict[str, Build] = {"SD1.5": _sd15, "SDXL": _sdxl, "FLUX": _flux, "Wan": _wan}

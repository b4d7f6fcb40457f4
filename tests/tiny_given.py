# SPDX-License-Identifier: MIT
"""Pipelines with random weights that are given an image, beside those of ``tiny_layouts``."""

import tiny
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    QwenImageLayeredPipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered
from PIL import Image
from tiny import randn
from tiny_layouts import Nothing, ltx, qwen_transformer


def ltx_coder():
    """Of [B, 8, F, H, W]: 16 pixels a location, every second frame."""
    blocks, no = (8, 8, 8, 8), (False,) * 4
    return tiny.weights(
        lambda: AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=blocks,
            decoder_block_out_channels=blocks,
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(*no, False),
            upsample_residual=no,
            upsample_factor=(1,) * 4,
            patch_size=1,
        )
    )


def ltx_image_to_video():
    """Packed [B, 3 * 16 * 16, 8], unpacked and stepped as [B, C, 2, 16, 16]: the first frame is given."""
    video, kwargs = ltx()
    parts = {"scheduler": video.scheduler, "transformer": video.transformer, "text_encoder": None, "tokenizer": None}
    size = {"height": 64, "width": 64, "num_frames": 9}
    image = randn(1, 3, 64, 64, seed=3).sigmoid()
    return LTXImageToVideoPipeline(vae=ltx_coder(), **parts), {**kwargs, **size, "image": image}


def ltx_condition(**given):
    """Packed [B, 3 * 16 * 16, 8], stepped with timesteps by token. given: image, strength, frame_index."""
    video, kwargs = ltx()
    parts = {"scheduler": video.scheduler, "transformer": video.transformer, "text_encoder": None, "tokenizer": None}
    size = {"height": 64, "width": 64, "num_frames": 9}
    return LTXConditionPipeline(vae=ltx_coder(), **parts), {**kwargs, **size, **given}


def qwen_layered(layers=3):
    """Packed, a stack of images: [B, 4 * 8 * 6, 16] of 128 x 96 pixels, and an image that is given. The pipeline itself
    makes 640 x 640 pixels at least (see ``small_layers``), and raises where latents are asked for."""
    transformer = qwen_transformer(use_additional_t_cond=True, use_layer3d_rope=True)
    latents = {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    coder = tiny.weights(lambda: AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **latents))
    parts = {"vae": coder, "text_encoder": Nothing(), "tokenizer": None, "processor": None}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = QwenImageLayeredPipeline(transformer=transformer, scheduler=scheduler, **parts)
    prompt = {"prompt_embeds": randn(1, 7, 16, seed=1), "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long)}
    image = Image.new("RGB", (96, 128), (90, 40, 200))
    return pipe, {"image": [image], "prompt": [""], **prompt, "layers": layers, "output_type": "pt"}


def small_layers(monkeypatch):
    """Images of 128 x 96 pixels in the place of those that ``QwenImageLayeredPipeline`` makes."""
    monkeypatch.setattr(pipeline_qwenimage_layered, "calculate_dimensions", lambda area, ratio: (96, 128))

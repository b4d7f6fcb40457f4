# SPDX-License-Identifier: MIT
"""The networks of the laboratory's families, and small ones of the same kind for tests."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel, UNet2DModel
from torch import Tensor

from ascedfast.lab.objectives import start_as_identity


def unet32(classes: int | None = None, small: bool = False) -> UNet2DModel:
    """Grey 32x32 images, attention at 16x16 and 8x8, 976,289 parameters when not small.

    Args: classes: of a class-conditional net; one more embedding, the last, means "no class".
    """
    return UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16) if small else (32, 48, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D") if small else ("DownBlock2D", *2 * ("AttnDownBlock2D",)),
        up_block_types=("AttnUpBlock2D", "UpBlock2D") if small else (*2 * ("AttnUpBlock2D",), "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4 if small else 8,
        num_class_embeds=None if classes is None else classes + 1,
    )


def plain_dit(size: int, channels: int, patch: int, heads: int, width: int, layers: int) -> PixArtTransformer2DModel:
    """A transformer without captions that starts as the identity; its blocks share one modulation, so that the
    parameters go into depth. width: channels of a head."""
    model = PixArtTransformer2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        patch_size=patch,
        num_attention_heads=heads,
        attention_head_dim=width,
        num_layers=layers,
        cross_attention_dim=None,
        caption_channels=None,
        use_additional_conditions=False,
        interpolation_scale=1,
    )
    start_as_identity(model)
    return model


def latent_dit(small: bool = False) -> PixArtTransformer2DModel:
    """4x16x16 latents, a token a location; 1,461,604 parameters when not small."""
    heads, width, layers = (2, 16, 1) if small else (5, 32, 4)
    return plain_dit(16, 4, 1, heads, width, layers)


def emoji_vae(small: bool = False) -> AutoencoderKL:
    """3x64x64 images to 4x16x16 latents; 460,695 parameters when not small. No attention: what stands at one place of
    the latents stands at one place of the image."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=3 * ("DownEncoderBlock2D",),
        up_block_types=3 * ("UpDecoderBlock2D",),
        block_out_channels=(8, 8, 8) if small else (32, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4 if small else 8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def to_latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Means of the posterior in units of each channel's standard deviation over the real images: [n, 4, S/4, S/4]."""
    mean, deviation = _statistics(vae, images)
    return (vae.encode(images).latent_dist.mean - mean) / deviation


def from_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The inverse of ``to_latents``, up to what the VAE loses; not clipped."""
    mean, deviation = _statistics(vae, latents)
    return vae.decode(latents * deviation + mean).sample


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Writes the channels' mean and standard deviation over these images into the VAE's configuration."""
    means = torch.cat([vae.encode(part).latent_dist.mean.float() for part in images.split(256)])
    # Rounded: the configuration is a text file that people read.
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in means.mean((0, 2, 3)).tolist()],
        latents_std=[round(v, 5) for v in means.std((0, 2, 3)).tolist()],
    )


def _statistics(vae: AutoencoderKL, like: Tensor) -> tuple[Tensor, Tensor]:
    if vae.config.latents_mean is None or vae.config.latents_std is None:
        raise ValueError("the VAE does not say its latents' mean and deviation: it was not finished")
    mean, deviation = (like.new_tensor(v)[:, None, None] for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean, deviation

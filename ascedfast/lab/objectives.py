# SPDX-License-Identifier: MIT
"""What the denoisers learn: losses, the noise levels they are trained at, and where a transformer starts.

A loss is called as loss(model, x0, noise, t, labels): x0, noise [B, C, H, W], t float32 [B] timesteps, labels int64 [B]
or None, and returns a scalar. ``draw_*(count, device, generator)`` return timesteps, float32 [count].
"""

from __future__ import annotations

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

TRAIN_STEPS = 1000  # of the noise schedule; flow models are told 1000 * s, after diffusers' convention
SNR_CAP = 5.0
UNIFORM_SHARE = 0.1


class NoiseLoss:
    """Squared error of the predicted noise, weighted by min(SNR, 5) / SNR (arXiv 2303.09556): the nearly clean steps,
    which are the most and the easiest, would otherwise take most of the gradient.

    Args: alphas_cumprod: [TRAIN_STEPS], alpha^2 of each timestep.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod

    def __call__(self, model: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.alphas_cumprod.device != x0.device:  # before any graph is captured: warm-up runs come first
            self.alphas_cumprod = self.alphas_cumprod.to(x0.device)
        signal = self.alphas_cumprod[t.long()]
        weight = (SNR_CAP * (1 - signal) / signal).clamp(max=1.0)
        signal = signal[:, None, None, None]
        given = {} if labels is None else {"class_labels": labels}
        predicted = model(signal.sqrt() * x0 + (1 - signal).sqrt() * noise, t, return_dict=False, **given)[0]
        return (weight * (predicted.float() - noise).square().mean((1, 2, 3))).mean()


def velocity_loss(model: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, labels: None = None) -> Tensor:
    """Squared error of the predicted velocity noise - x0 at x = (1 - s) * x0 + s * noise, s = t / 1000."""
    s = (t / TRAIN_STEPS)[:, None, None, None]
    predicted = model((1 - s) * x0 + s * noise, timestep=t, return_dict=False)[0]
    return (predicted.float() - (noise - x0)).square().mean()


def draw_uniform_steps(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.randint(TRAIN_STEPS, (count,), device=device, generator=generator).float()


def draw_logit_normal(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """1000 * s with logit(s) ~ N(0.5, 1): what an image becomes is decided at high noise. One draw in ten is uniform,
    since the sampler also starts at s = 1 and ends near 0, where the normal has almost no mass."""
    normal, uniform, choice = (
        torch.randn(count, device=device, generator=generator),
        torch.rand(count, device=device, generator=generator),
        torch.rand(count, device=device, generator=generator),
    )
    return TRAIN_STEPS * torch.where(choice < UNIFORM_SHARE, uniform, torch.sigmoid(normal + 0.5))


def start_as_identity(model: PixArtTransformer2DModel) -> None:
    """Every block starts as the identity and the output at 0: deep transformers learn faster from there."""
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

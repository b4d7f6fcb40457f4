# SPDX-License-Identifier: MIT
"""ASCED in an ancestral loop as guided-diffusion's p_sample_loop: respaced steps, a model that learns its variance."""

import math

import torch

import ascedfast
from ascedfast import process


@torch.no_grad()
def p_sample_loop(model, x, abar, timesteps, seeds, generator, config=None):
    """Ancestral sampling (arXiv 2006.11239, Eq. 7) with learned variance (arXiv 2102.09672, Eq. 15).

    model(x, t) -> [B, 2C, H, W]: eps, and v in [-1, 1]; x: [B, C, H, W] noise; abar: alpha_bar by t; timesteps fall.
    """
    levels = [process.eps(abar[t] ** 0.5, (1 - abar[t]) ** 0.5) for t in timesteps]
    schedule = ascedfast.Schedule.from_levels(levels, clip=1.0, linear_beta=True)
    run = ascedfast.begin(schedule, config, seeds=seeds)
    for k, t in enumerate(timesteps):
        eps, v = model(x, t).chunk(2, dim=1)
        x0 = run.observe(x, eps)  # clipped, as clip_denoised does
        before, now = schedule.after[k][0] ** 2, abar[t]
        beta = 1 - now / before  # of this respaced step
        x = (beta * before**0.5 * x0 + (1 - before) * (1 - beta) ** 0.5 * x) / (1 - now)
        if k < len(timesteps) - 1:
            least = math.log(beta * (1 - before) / (1 - now))
            share = (v + 1) / 2
            noise = torch.randn(x.shape, generator=generator)
            x = x + (0.5 * (share * math.log(beta) + (1 - share) * least)).exp() * noise
        run.correct_(x)  # after the step's noise: in place, once, at T_c
    return x, run.report


if __name__ == "__main__":
    from ascedfast.demo import load_model

    unet, scheduler = load_model("unet")

    def model(x, t):
        """The packaged model learned no variance: halfway between the bounds."""
        eps = unet(x, t).sample
        return torch.cat([eps, torch.zeros_like(eps)], dim=1)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 64, 64, generator=generator)
    abar = scheduler.alphas_cumprod.double().tolist()
    _, report = p_sample_loop(model, noise, abar, range(960, -1, -40), [0, 1], generator)
    print(report)

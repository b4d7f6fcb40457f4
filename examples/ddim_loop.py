# SPDX-License-Identifier: MIT
"""ASCED in a hand-written DDIM loop: three calls, no scheduler class, no pipeline."""

import torch

import ascedfast
from ascedfast import process


@torch.no_grad()
def sample(denoiser, x, abar, timesteps, seeds, config=None):
    """DDIM, eta 0 (arXiv 2010.02502, Eq. 12). denoiser(x, t) -> eps; x: [B, C, H, W] noise; abar: alpha_bar by t."""
    levels = [process.eps(abar[t] ** 0.5, (1 - abar[t]) ** 0.5) for t in timesteps]
    schedule = ascedfast.Schedule.from_levels(levels, clip=1.0, linear_beta=True)
    run = ascedfast.begin(schedule, config, seeds=seeds)
    for k, t in enumerate(timesteps):
        eps = denoiser(x, t)
        x0 = run.observe(x, eps)  # the clean sample this step predicts, yours to look at
        (alpha, sigma), now = schedule.after[k], levels[k]
        x = alpha * x0 + sigma * (x - now.alpha * x0) / now.sigma
        run.correct_(x)  # in place, once, at T_c
    return x, run.report


if __name__ == "__main__":
    from ascedfast.demo import load_model

    unet, scheduler = load_model("unet")
    seeds = [0, 1]
    noise = torch.cat([torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(s)) for s in seeds])
    abar = scheduler.alphas_cumprod.double().tolist()
    _, report = sample(lambda x, t: unet(x, t).sample, noise, abar, range(960, -1, -40), seeds)
    print(report)

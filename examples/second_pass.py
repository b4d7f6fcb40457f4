# SPDX-License-Identifier: MIT
"""A second look at what was re-noised, in a DDIM loop of one's own: where the first draw came out worse, another."""

import torch

import ascedfast
from ascedfast import process


@torch.no_grad()
def sample(denoiser, x, abar, timesteps, seeds, config=None, **options):
    """DDIM as in ddim_loop.py. options: of ``ascedfast.SecondPass``. Returns the samples and the SecondPass."""
    levels = [process.eps(abar[t] ** 0.5, (1 - abar[t]) ** 0.5) for t in timesteps]
    schedule = ascedfast.Schedule.from_levels(levels, clip=1.0, linear_beta=True)
    second = ascedfast.SecondPass(ascedfast.begin(schedule, config, seeds=seeds), **options)
    k = 0
    while k < len(timesteps):
        eps = denoiser(x, timesteps[k])
        x0 = second.observe(x, eps)
        (alpha, sigma), now = schedule.after[k], levels[k]
        x = alpha * x0 + sigma * (x - now.alpha * x0) / now.sigma
        k = second.next_step_(k, x)  # k + 1; or once, some predictions after T_c, the step after T_c again
    return x, second


if __name__ == "__main__":
    from ascedfast.demo import load_model

    unet, scheduler = load_model("unet")
    seeds = [0, 1, 2]
    noise = torch.cat([torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(s)) for s in seeds])
    abar = scheduler.alphas_cumprod.double().tolist()
    _, second = sample(lambda x, t: unet(x, t).sample, noise, abar, range(960, -1, -40), seeds)
    for seed, severity, kept in zip(seeds, second.severity, second.kept_second, strict=True):
        draws = ", ".join(f"{value:.2f}" for value in severity)
        print(
            f"seed {seed}: severity by draw {draws or 'none, nothing was found'}; kept {'second' if kept else 'first'}"
        )
    print(f"{len(range(960, -1, -40)) + second.evaluations} evaluations, {second.evaluations} of them again")

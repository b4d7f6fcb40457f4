# SPDX-License-Identifier: MIT
"""What is left of the dynamics of x0_hat in steps of which a cache reuses a part: the rows of the table in
``docs/company.md``, printed.

The packaged transformer, trained, with a cache, and beside it the same transformer without one on the same states: at
each step with a part from the cache the change of x0_hat since the last prediction, as it comes and as it would be.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import (
    HookRegistry,
    apply_faster_cache,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from diffusers.utils import logging
from torch import Tensor, nn

import ascedfast
from ascedfast.adapters import caches
from ascedfast.adapters.schedules import schedule_of
from ascedfast.pipelines import PixelFlowPipeline
from ascedfast.schedule import plan_run

MODEL = Path(ascedfast.__file__).parent / "assets" / "emoji64-dit"
STEPS, SEEDS = 25, range(8)
BLOCKS = {"spatial_attention_block_identifiers": ("transformer_blocks",)}
FULL_BLOCK = r"^transformer_blocks\.\d+$"
Apply = Callable[[nn.Module, Callable[[], float]], None]


def broadcast(every: int) -> Apply:
    skips = {"spatial_attention_block_skip_range": every, "spatial_attention_timestep_skip_range": (-1, 1001)}
    return lambda model, timestep: apply_pyramid_attention_broadcast(
        model, PyramidAttentionBroadcastConfig(**skips, **BLOCKS, current_timestep_callback=timestep)
    )


def faster(every: int) -> Apply:
    skips = {"spatial_attention_block_skip_range": every, "spatial_attention_timestep_skip_range": (-1, 990)}
    more = {"is_guidance_distilled": True, "tensor_format": "BCHW"}
    return lambda model, timestep: apply_faster_cache(
        model, FasterCacheConfig(**skips, **BLOCKS, **more, current_timestep_callback=timestep)
    )


def taylor(order: int, what: str) -> Apply:
    config = TaylorSeerCacheConfig(2, 2, max_order=order, cache_identifiers=[what], taylor_factors_dtype=torch.float32)
    return lambda model, timestep: apply_taylorseer_cache(model, config)


CACHES: dict[str, Apply] = {
    "PyramidAttentionBroadcast, 1 of 2": broadcast(2),
    "PyramidAttentionBroadcast, 2 of 3": broadcast(3),
    "FasterCache, 1 of 2": faster(2),
    "FasterCache, 2 of 3": faster(3),
    "FirstBlockCache, .1": lambda model, timestep: apply_first_block_cache(model, FirstBlockCacheConfig(0.1)),
    "FirstBlockCache, .3": lambda model, timestep: apply_first_block_cache(model, FirstBlockCacheConfig(0.3)),
    "MagCache": lambda model, timestep: apply_mag_cache(
        model, MagCacheConfig(1.0, 1, 0.1, STEPS, mag_ratios=torch.ones(STEPS))
    ),
    "TaylorSeer, order 1, blocks": taylor(1, FULL_BLOCK),
    "TaylorSeer, order 1, attention": taylor(1, FULL_BLOCK[:-1] + r"\.attn1$"),
}


def load() -> PixelFlowPipeline:
    return PixelFlowPipeline.from_pretrained(MODEL)


@torch.no_grad()
def reused(apply: Apply, seeds: range = SEEDS) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each step before T_c of which a part came from the cache: the change of x0_hat, [R, H, W], as it came, as it
    would be in full, and what it is wrong by."""
    plain, pipe, now = load().transformer, load(), []
    model, scheduler = pipe.transformer, pipe.scheduler
    apply(model, lambda: float(now[-1]))
    HookRegistry.check_if_exists_or_initialize(model).invalidate_child_registries_cache()
    scheduler.set_timesteps(STEPS)
    t_c = plan_run(schedule_of(scheduler), ascedfast.AscedConfig(), 0).t_c
    x = torch.stack([torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    last, found = None, []
    with caches.watched(pipe) as watch:
        for k, t in enumerate(scheduler.timesteps[:t_c]):
            now.append(t)
            _set_cache_context(model, CacheContext("inference"))
            m, m_full = (net(x, timestep=t.expand(len(x)), return_dict=False)[0] for net in (model, plain))
            x0, x0_full = (x - scheduler.sigmas[k] * out for out in (m, m_full))
            if watch.skipped():
                parts = x0 - last, x0_full - last, x0 - x0_full
                found.append(tuple(part.abs().mean(1) for part in parts))
            last, x = x0, scheduler.step(m, t, x, return_dict=False)[0]
    return found


def row_of(found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, float, float, float]:
    """Means over the steps: the change over the full one's, the same where the full one's is among the largest 5 %, the
    correlation of the two over the locations, the error over the full one's."""
    rows = []
    for seen, full, error in found:
        large = full.flatten(1) >= full.flatten(1).quantile(0.95, dim=1, keepdim=True)
        correlation = torch.corrcoef(torch.stack([seen.flatten(), full.flatten()]))[0, 1]
        at_large = seen.flatten(1)[large].mean() / full.flatten(1)[large].mean()
        rows.append(torch.stack([seen.mean() / full.mean(), at_large, correlation, error.mean() / full.mean()]))
    return tuple(torch.stack(rows).mean(0).tolist())


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name, apply in CACHES.items():
        found = reused(apply)
        print(f"| {name} | {len(found)} | " + " | ".join(f"{value:.2f}" for value in row_of(found)) + " |")
        sys.stdout.flush()

# SPDX-License-Identifier: MIT
"""The block of diffusers' modular pipelines, in tiny modular pipelines of Flux, SDXL and Wan built offline."""

import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, PNDMScheduler
from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxCoreDenoiseStep
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLCoreDenoiseStep,
)
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep

from ascedfast import AscedConfig, disable_asced, enable_asced
from ascedfast.adapters.modular import AscedStep

FAMILIES = {
    "flux": (FluxCoreDenoiseStep, tiny.flux, ("transformer", "scheduler")),
    "sdxl": (StableDiffusionXLCoreDenoiseStep, tiny.sdxl, ("unet", "vae", "scheduler")),
    "wan": (WanCoreDenoiseStep, tiny.wan, ("transformer", "scheduler")),
}
CONFIG = AscedConfig(mad_scale=1.0)
NOTHING = AscedConfig(min_area=1e9, max_area=1e10)
STEPS = 12


def modular(family, block=None):
    """(pipeline, keyword arguments of its call)."""
    make, parts_of, names = FAMILIES[family]
    blocks = make()
    if block is not None:
        blocks.sub_blocks.insert("asced", block, list(blocks.sub_blocks).index("denoise"))
    for part in blocks.sub_blocks.values():
        if hasattr(part, "set_progress_bar_config"):
            part.set_progress_bar_config(disable=True)
    pipe = blocks.init_pipeline()
    stock, call = parts_of()
    pipe.update_components(**{name: getattr(stock, name) for name in names})
    return pipe, {name: value for name, value in call.items() if name != "output_type"}


def run(pipe, call, seed=3, **changes):
    return pipe(**{**call, "num_inference_steps": STEPS, "generator": tiny.generator(seed), **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_denoising_loop_is_watched_and_corrected(family):
    pipe, call = modular(family, AscedStep(CONFIG))
    state = run(pipe, call)
    report = state.get("asced").report
    assert (report[0].status, report.seeds) == ("corrected", [3])
    assert report.image_size == (call["height"], call["width"])
    stock, call = modular(family)
    assert not torch.equal(state.get("latents"), run(stock, call).get("latents"))


@pytest.mark.parametrize("family", ["flux"])
def test_nothing_found_is_the_stocks_bits(family):
    pipe, call = modular(family, AscedStep(NOTHING))
    state = run(pipe, call)
    assert state.get("asced").report[0].status == "clean"
    stock, call = modular(family)
    assert torch.equal(state.get("latents"), run(stock, call).get("latents"))


def test_it_does_what_the_ordinary_pipeline_does():
    pipe, call = modular("flux", AscedStep(CONFIG))
    state = run(pipe, call)
    ordinary, call = tiny.flux()
    handle = enable_asced(ordinary, CONFIG)
    packed = tiny.run(ordinary, call, seed=3, num_inference_steps=STEPS)
    unpacked = FluxPipeline._unpack_latents(packed, call["height"], call["width"], 8)
    assert torch.equal(state.get("latents"), unpacked)
    assert torch.equal(state.get("asced").report.masks, handle.report.masks)


def test_every_run_has_its_own_seeds_and_a_new_scheduler_is_enabled_too():
    pipe, call = modular("flux", AscedStep(CONFIG))
    assert [run(pipe, call, seed=seed).get("asced").report.seeds for seed in (3, 4)] == [[3], [4]]
    generators = [tiny.generator(5), tiny.generator(6)]
    state = run(pipe, call, generator=generators, num_images_per_prompt=2)
    assert state.get("asced").report.seeds == [5, 6]
    pipe.update_components(scheduler=FlowMatchEulerDiscreteScheduler())
    state = run(pipe, call, seed=7)
    assert state.get("asced").scheduler is pipe.scheduler
    assert state.get("asced").report.seeds == [7]
    disable_asced(pipe.scheduler)
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler


def test_without_the_block_the_scheduler_can_be_enabled_by_hand():
    """Then the seeds, and the grid of packed latents, must be said."""
    pipe, call = modular("flux", AscedStep(CONFIG))
    expected = run(pipe, call).get("latents")
    pipe, call = modular("flux")
    grid = (call["height"] // 16, call["width"] // 16)
    enable_asced(pipe.scheduler, CONFIG, seeds=[3], grid=grid)
    assert torch.equal(run(pipe, call).get("latents"), expected)


def test_bad_combinations_say_what_to_do():
    pipe, call = modular("flux", AscedStep(CONFIG))
    enable_asced(pipe.scheduler)
    with pytest.raises(ValueError, match="call disable_asced first"):
        run(pipe, call)
    disable_asced(pipe.scheduler)
    run(pipe, call)
    pipe, call = modular("sdxl", AscedStep())
    pipe.update_components(scheduler=PNDMScheduler())
    with pytest.raises(ValueError, match="skip_prk_steps=True"):
        run(pipe, call)


def test_a_copy_of_the_blocks_is_as_good():
    pipe, call = modular("flux", AscedStep(CONFIG, seeds=[8]))
    again = pipe.blocks.init_pipeline()
    again.update_components(transformer=pipe.transformer, scheduler=pipe.scheduler)
    assert run(again, call).get("asced").report.seeds == [8]

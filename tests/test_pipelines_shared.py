# SPDX-License-Identifier: MIT
"""Pipelines that are not alone: shared schedulers, odd image sizes, packed video, lists of one generator."""

import copy

import pytest
import tiny
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline

from ascedfast import AscedConfig, enable_asced
from ascedfast.adapters.layout import PipelineContext, layout_of
from ascedfast.adapters.schedules import schedule_of
from ascedfast.schedule import PAPER_T_C_LOGSNR, plan_run


def test_a_pipeline_that_shares_the_scheduler_is_left_alone(asced_warnings):
    pipe, kwargs = tiny.flux()
    other = FluxPipeline(**pipe.components)
    stock = tiny.run(other, kwargs)
    handle = enable_asced(pipe, AscedConfig.fast(mad_scale=1.0))
    assert torch.equal(tiny.run(other, kwargs), stock)
    assert any("left alone" in message for message in asced_warnings())
    assert len(handle.report) == 0
    tiny.run(pipe, kwargs)
    assert len(handle.report) > 0


@pytest.mark.parametrize(("height", "width"), [(1536, 648), (1200, 600), (250, 130), (1536, 270), (64, 2048)])
def test_packed_images_of_any_size(height, width):
    """The pipeline rounds each side down to whole blocks of 16 pixels."""
    rows, columns = height // 16, width // 16
    x = torch.arange(rows * columns * 4.0).reshape(1, rows * columns, 4)
    seen = layout_of(x, PipelineContext(height=height, width=width), None)
    assert seen.view(x).shape == (1, 4, rows, columns)
    assert seen.view(x)[0, 1, 1, 0] == x[0, columns, 1]
    assert seen.image_size == (rows * 16, columns * 16)


def test_packed_video_is_refused():
    x = torch.zeros(1, 16 * 12, 8)  # 16 frames of 4 x 3, which would pass for one image of 16 x 12
    with pytest.raises(ValueError, match="video"):
        layout_of(x, PipelineContext(height=128, width=96, frames=121), None)


def test_video_latents_are_a_volume():
    """Wan's [B, C, F, H, W]: five pixel frames are two of its latents."""
    x, context = torch.zeros(1, 16, 2, 6, 4), PipelineContext(frames=5, latent_frames=(2,), channels=(16,), scale=8)
    seen = layout_of(x, context, None)
    assert seen.view(x) is x
    assert seen.image_size == (48, 32)


@pytest.mark.parametrize(
    "context",
    [
        PipelineContext(),
        PipelineContext(frames=16),
        PipelineContext(frames=16, latent_frames=(4,)),
        PipelineContext(frames=61, latent_frames=(16,), channels=(16,)),
    ],
)
def test_video_latents_in_another_order_are_refused(context):
    """[B, F, C, H, W] would pass for 16 channels of 4 frames."""
    with pytest.raises(ValueError, match="video"):
        layout_of(torch.zeros(1, 4, 16, 6, 6), context, None)


def test_a_video_is_corrected_as_a_volume():
    def corrected(backend):
        pipe, kwargs = tiny.wan()
        config = AscedConfig.fast(mad_scale=1.0, min_area=0, core_width=1, backend=backend)
        handle = enable_asced(pipe, config, seeds=[4])
        return tiny.run(pipe, kwargs), handle.report

    pipe, kwargs = tiny.wan()
    stock = tiny.run(pipe, kwargs)
    watched, report = corrected("reference")
    assert torch.equal(corrected("triton")[0], watched)
    assert stock.shape == watched.shape == (1, 16, 3, 16, 16)
    assert report.rows[0].status == "corrected"
    assert report.masks.shape == (1, 1, 3, 16, 16)
    assert report.masks_image().shape == (1, 1, 3, 128, 128)
    assert not torch.equal(stock, watched)


@pytest.mark.parametrize(("frames", "latent"), [(7, 2), (8, 3), (10, 3), (12, 4)])
def test_numbers_of_frames_that_the_pipeline_rounds(frames, latent):
    pipe, kwargs = tiny.wan()
    stock = tiny.run(pipe, kwargs, num_frames=frames, num_inference_steps=4)
    enable_asced(pipe)
    watched = tiny.run(pipe, kwargs, num_frames=frames, num_inference_steps=4)
    assert watched.shape[2] == latent
    assert torch.equal(stock, watched)  # too few steps for a correction


def test_a_list_of_one_generator_serves_every_row():
    pipe, kwargs = tiny.dit()
    handle = enable_asced(pipe)
    tiny.run(pipe, kwargs, generator=[tiny.generator(8)])
    assert set(handle.report.seeds) == {8}
    assert [row.draw for row in handle.report] == list(range(len(handle.report)))


def test_generators_that_do_not_match_the_rows_stop_nothing():
    """Stock never looks at them in a deterministic step."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    handle = enable_asced(scheduler)
    scheduler.set_timesteps(25)
    x = tiny.randn(3, 4, 8, 8, seed=1)
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x, generator=[tiny.generator(5), tiny.generator(6)]).prev_sample
    assert [(row.seed, row.draw) for row in handle.report] == [(5, 0), (5, 1), (5, 2)]


def test_part_of_the_process_takes_the_noise_level_rule():
    scheduler = EulerDiscreteScheduler(beta_schedule="linear")
    scheduler.set_timesteps(timesteps=list(range(999, 499, -20)))
    schedule = schedule_of(scheduler)
    assert not schedule.linear_beta
    t_c = plan_run(schedule, AscedConfig()).t_c
    distance = [abs(level.logsnr - PAPER_T_C_LOGSNR) for level in schedule.before]
    assert t_c == distance.index(min(distance))


def test_uneven_timesteps_are_not_the_papers_setting():
    scheduler = EulerDiscreteScheduler(beta_schedule="linear")
    scheduler.set_timesteps(timesteps=[*range(999, 499, -100), *range(499, 0, -20), 0])
    assert not schedule_of(scheduler).linear_beta


def test_a_copy_keeps_the_grid():
    scheduler = FlowMatchEulerDiscreteScheduler()
    enable_asced(scheduler, grid=(8, 4))
    twin = copy.deepcopy(scheduler)
    twin.set_timesteps(25)
    x = tiny.randn(1, 32, 16, seed=1)
    for t in twin.timesteps:
        x = twin.step(0.1 * x, t, x).prev_sample
    assert twin.__dict__["_asced"].report.masks.shape == (1, 1, 8, 4)


def test_log_linear_sigmas_are_not_the_papers_setting():
    scheduler = EulerDiscreteScheduler(beta_schedule="linear", interpolation_type="log_linear")
    scheduler.set_timesteps(25)
    assert not schedule_of(scheduler).linear_beta

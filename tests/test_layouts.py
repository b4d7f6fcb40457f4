# SPDX-License-Identifier: MIT
"""Latents in any order of axes are seen as [R, C, *grid]; those that nobody can read are left alone, with words."""

import copy

import pytest
import tiny
import tiny_given
import tiny_layouts
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanModularPipeline
from row_loop import bits

from ascedfast import AscedConfig, asced, enable_asced
from ascedfast.adapters.layout import PipelineContext, UnknownLayoutError, checked_axes, layout_of, opaque
from ascedfast.adapters.pipeline_context import order_of

VIDEO = PipelineContext(height=48, width=32, frames=9, latent_frames=(3,), channels=(5,), scale=8)
SENSITIVE = AscedConfig(mad_scale=1.0, min_area=0, core_width=1)
ORDERS = {"BCFHW": (2, 5, 3, 6, 4), "BFCHW": (2, 3, 5, 6, 4), "BFHWC": (2, 3, 6, 4, 5)}


def numbered(*shape):
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


@pytest.mark.parametrize("axes", ORDERS)
def test_orders_of_a_video(axes):
    x = numbered(*ORDERS[axes])
    for seen in (layout_of(x, VIDEO), layout_of(x, PipelineContext(), axes=axes)):
        there = [axes.index(letter) for letter in "BCFHW"]
        assert torch.equal(seen.view(x), x.permute(there))
        assert torch.equal(seen.latents(seen.view(x)), x)
        assert seen.view(x).data_ptr() == x.data_ptr()  # in place reaches the pipeline's tensor
    assert layout_of(x, VIDEO).image_size == (48, 32)


def test_a_slice_without_the_first_frame_is_the_same_video():
    x = numbered(*ORDERS["BFHWC"])[:, 1:, ..., :5]
    assert layout_of(x, VIDEO).view(x).shape == (2, 5, 2, 6, 4)


def test_as_many_channels_as_frames():
    """The family's order decides; of a pipeline that is none of diffusers' it is not known."""
    x, facts = torch.zeros(1, 3, 3, 6, 4), {"frames": 9, "latent_frames": (3,), "channels": (3,)}
    assert layout_of(x, PipelineContext(**facts, order="BFCHW")).view(x).stride(1) == x.stride(2)
    assert layout_of(x, PipelineContext(**facts, order="BCFHW")).view(x) is x
    with pytest.raises(UnknownLayoutError, match="pass axes="):
        layout_of(x, PipelineContext(**facts))


@pytest.mark.parametrize(("frames", "size", "block"), [(3, (384, 320), 32), (16, (128, 96), 16), (1, (512, 704), 32)])
def test_packed_video(frames, size, block):
    rows, columns = size[0] // block, size[1] // block
    x = numbered(1, frames * rows * columns, 4)
    told = PipelineContext(height=size[0], width=size[1], frames=frames, latent_frames=(frames,), scale=block)
    for seen in (layout_of(x, told), layout_of(x, PipelineContext(), grid=(frames, rows, columns))):
        assert seen.view(x).shape == (1, 4, frames, rows, columns)
        assert seen.view(x)[0, 1, -1, 1, 0] == x[0, (frames - 1) * rows * columns + columns, 1]
        assert torch.equal(seen.latents(seen.view(x)), x)
    assert layout_of(x, told).image_size == size


@pytest.mark.parametrize(("locations", "scale"), [(91 * 91, 8), (91 * 91, 1), (160 * 160, 8), (5 * 80 * 80, 8)])
def test_a_grid_is_not_made_up(locations, scale):
    """Blocks of 7 pixels would fit, or of 4 where a latent location has 8: no pipeline has such."""
    told = PipelineContext(height=640, width=640, scale=scale)
    with pytest.raises(UnknownLayoutError, match="pass grid="):
        layout_of(torch.zeros(1, locations, 4), told)


@pytest.mark.parametrize("scale", [1, 6, 8, 16, 24])
@pytest.mark.parametrize("patch", [1, 2])
def test_a_pipelines_own_scale_is_a_block(scale, patch):
    block = scale * patch
    told = PipelineContext(height=240 * patch, width=192 * patch, scale=scale)
    seen = layout_of(torch.zeros(1, (240 // scale) * (192 // scale), 4), told)
    assert seen.view(torch.zeros(1, (240 // scale) * (192 // scale), 4)).shape[2:] == (240 // scale, 192 // scale)
    assert seen.image_size == (240 * patch // block * block, 192 * patch // block * block)


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_are_a_stack_of_images(layers, monkeypatch):
    """Qwen's: the layers that were asked for, behind the image that they make together."""
    tiny_given.small_layers(monkeypatch)
    pipe, kwargs = tiny_given.qwen_layered(layers)
    stock = tiny.run(pipe, kwargs)
    grid = (layers + 1, 8, 6)
    assert stock.shape == (1, layers, 3, 128, 96)
    for keep_mask, first in ((None, 0), (torch.arange(layers + 1).view(1, 1, -1, 1, 1) == 0, 1)):
        with asced(pipe, SENSITIVE, keep_mask=keep_mask) as handle:
            watched = tiny.run(pipe, kwargs)
            assert handle.report[0].status == "corrected"
            masks = handle.report.masks_grown
            assert masks.shape == (1, 1, *grid)
            assert handle.report.image_size == (128, 96)
            assert masks[:, :, first:].any()
            assert not masks[:, :, :first].any()
    assert not torch.equal(watched, stock)


def test_sound():
    context = PipelineContext(audio=True, channels=(4,))
    line, turned, image = numbered(2, 4, 50), numbered(2, 50, 4), numbered(2, 4, 10, 8)
    seen = layout_of(line, context)
    assert torch.equal(seen.view(line), line[:, :, None])
    assert seen.line
    for x, layout in ((turned, layout_of(turned, context)), (turned, layout_of(turned, PipelineContext(), axes="BLC"))):
        assert torch.equal(layout.view(x), x.transpose(1, 2)[:, :, None])
        assert torch.equal(layout.latents(layout.view(x)), x)
    assert layout_of(image, context).view(image) is image
    with pytest.raises(UnknownLayoutError, match="'BCL' or 'BLC'"):
        layout_of(numbered(2, 4, 4), context)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 4), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 7)])
def test_what_nobody_knows(shape):
    x = numbered(*shape)
    with pytest.raises(UnknownLayoutError, match="pass"):
        layout_of(x, PipelineContext())
    assert torch.equal(opaque(x).latents(opaque(x).view(x)), x)


@pytest.mark.parametrize("axes", ["", "BC", "CHW", "BCHWL", "BBCHW", "bchw", "BCFH", 3, "BCXY"])
def test_wrong_axes(axes):
    with pytest.raises(ValueError, match="axes must be"):
        enable_asced(FlowMatchEulerDiscreteScheduler(), axes=axes)
    assert checked_axes("BFHWC") == "BFHWC"


GIVEN = [
    ((1, 4, 12, 10), None, (12, 10), (10, 12)),
    ((1, 4, 3, 12, 10), "BCFHW", (3, 12, 10), (12, 10)),
    ((1, 6, 5), "BCL", (1, 5), (5, 1)),
    ((1, 60, 4), None, (12, 5), (12, 6)),
]


@pytest.mark.parametrize(("shape", "axes", "own", "other"), GIVEN)
def test_a_grid_is_that_of_the_latents_or_refused(shape, axes, own, other):
    """Of latents that are not packed too, where it says nothing new."""
    x = torch.zeros(shape)
    assert layout_of(x, PipelineContext(), own, axes).view(x).shape[2:] == own
    with pytest.raises(ValueError, match=r"grid .* does not hold|grid .* is not that of"):
        layout_of(x, PipelineContext(), other, axes)


def test_a_grid_that_does_not_fit_stops_the_first_step():
    scheduler = FlowMatchEulerDiscreteScheduler()
    handle = enable_asced(scheduler, grid=(3, 3))
    scheduler.set_timesteps(25)
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"grid 3 x 3 is not that of .*leave grid out"):
        scheduler.step(x, scheduler.timesteps[0], x)
    assert len(handle.report) == 0


def test_what_the_user_gave_must_fit():
    with pytest.raises(ValueError, match="has 4 axes"):
        layout_of(torch.zeros(1, 6, 4), PipelineContext(), axes="BCHW")
    with pytest.raises(ValueError, match="does not hold"):
        layout_of(torch.zeros(1, 6, 4), PipelineContext(), grid=(2, 2, 2))
    with pytest.raises(ValueError, match="has no S"):
        enable_asced(FlowMatchEulerDiscreteScheduler(), axes="BCHW", grid=(2, 3))
    with pytest.raises(ValueError, match="frames, height, width"):
        enable_asced(FlowMatchEulerDiscreteScheduler(), grid=(2,))


def flow(x, **options):
    """The states of a run whose output is unsteady where the first channel of x's view says so, its handle."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    handle = enable_asced(scheduler, seeds=list(range(len(x))), **options) if options else None
    scheduler.set_timesteps(25)
    states = [x]
    for k, t in enumerate(scheduler.timesteps):
        output = tiny.output_of(scheduler, k)
        states.append(scheduler.step(output(states[-1], 0.01 * k + 0.1 * x * (k % 2)), t, states[-1])[0])
    return states, handle


TOKENS = (1, 30, 4)


@pytest.mark.parametrize("options", [{"seeds": [1]}, {"seeds": [1], "on_x0": True}])
def test_tokens_without_a_grid_are_left_alone(asced_warnings, options):
    seen = []
    options = options | ({"on_x0": lambda step, t, x0: seen.append(x0.shape)} if "on_x0" in options else {})
    x = tiny.randn(*TOKENS, seed=1)
    scheduler = FlowMatchEulerDiscreteScheduler()
    handle = enable_asced(scheduler, **options)
    scheduler.set_timesteps(25)
    for t in scheduler.timesteps:
        out = scheduler.step(0.5 * x, t, x)[0]
    assert torch.equal(out, flow_step(x))
    assert handle.report[0].status == "unavailable"
    assert len(asced_warnings()) == 1
    assert "without a grid" in asced_warnings()[0]
    assert set(seen) <= {TOKENS}
    assert bool(seen) == ("on_x0" in options)


def flow_step(x):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(25)
    for t in scheduler.timesteps:
        out = scheduler.step(0.5 * x, t, x)[0]
    return out


AXES = {
    "BCHW": ((2, 3, 12, 10), {}),
    "BCTM": ((2, 3, 12, 10), {}),
    "BSC": ((2, 120, 3), {"grid": (12, 10)}),
    "BCS": ((2, 3, 120), {"grid": (12, 10)}),
    "BHWC": ((2, 12, 10, 3), {}),
    "BCFHW": ((2, 3, 3, 12, 10), {}),
    "BFCHW": ((2, 3, 3, 12, 10), {}),
    "BFHWC": ((2, 3, 12, 10, 3), {}),
    "BCL": ((2, 3, 120), {}),
    "BLC": ((2, 120, 3), {}),
}


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("axes", AXES)
def test_on_a_scheduler_alone(axes, backend):
    """The same tensor in another order of axes gets the same bits, and only the mask changes."""
    shape, options = AXES[axes]
    x = tiny.randn(*shape, seed=4)
    x = torch.where(x.abs() > 1.5, 9 * x, x)
    config = AscedConfig(mad_scale=2.0, min_area=0, core_width=1, backend=backend)
    states, handle = flow(x, axes=axes, config=config, **options)
    stock, _ = flow(x)
    report = handle.report
    assert [row.status for row in report] == ["corrected"] * 2
    assert (handle._run._fused is not None) == (backend == "triton")  # the solver's steps in the launch, too
    t_c = report[0].plan.t_c
    assert all(torch.equal(one, other) for one, other in zip(states[:t_c], stock[:t_c], strict=True))
    seen = layout_of(x, PipelineContext(), options.get("grid"), axes).view
    moved = (bits(seen(states[t_c]).contiguous()) != bits(seen(stock[t_c]).contiguous())).any(1, keepdim=True)
    assert torch.equal(moved, report.masks_grown)
    standard = seen(x).contiguous()
    plain = {4: "BCHW", 5: "BCFHW"}[standard.dim()]
    if "L" not in axes:
        others, _ = flow(standard, axes=plain, config=config)
        assert all(torch.equal(seen(one), other) for one, other in zip(states, others, strict=True))


def test_a_long_line_has_regions():
    """A core is a square, which no line holds: lines have none."""
    x = tiny.randn(1, 2, 9000, seed=4)
    x[..., 3000:3400] *= 20
    _, handle = flow(x, axes="BCL", config=AscedConfig(grow=0))
    assert handle.report.masks[..., 3050:3350].all()
    assert handle.report.masks.float().mean() < 0.1


def test_a_slice_of_a_larger_tensor():
    """Pipelines that are given a first frame step the others: a view that is not contiguous."""
    whole = tiny.randn(1, 3, 4, 12, 10, seed=4)
    runs = {}
    for name, first in (("slice", whole.clone()[:, :, 1:]), ("own", whole[:, :, 1:].clone())):
        scheduler, states = FlowMatchEulerDiscreteScheduler(), []
        handle = enable_asced(scheduler, SENSITIVE, axes="BCFHW", seeds=[3])
        scheduler.set_timesteps(25)
        x, start = first, first.clone()
        for k, t in enumerate(scheduler.timesteps):
            m = tiny.output_of(scheduler, k)(x, 0.01 * k + 0.1 * start * (k % 2))
            x[:] = scheduler.step(m, t, x)[0]
            states.append(x.clone())
        assert x.is_contiguous() == (name == "own")
        assert handle.report[0].status == "corrected"
        runs[name] = states
    assert all(torch.equal(one, other) for one, other in zip(*runs.values(), strict=True))


def test_a_pipeline_that_is_given_its_first_frame():
    pipe, kwargs = tiny_given.ltx_image_to_video()
    stock = tiny.run(pipe, kwargs)
    with asced(pipe, SENSITIVE) as handle:
        watched = tiny.run(pipe, kwargs)
        assert handle.report[0].status == "corrected"
        assert handle.report.masks.shape == (1, 1, 2, 16, 16)
        assert handle.report.image_size == (64, 64)
    assert not torch.equal(watched, stock)
    assert torch.equal(watched[:, :256], stock[:, :256])


def test_orders_of_families():
    assert order_of(tiny_layouts.Kandinsky5T2VPipeline) == "BFHWC"
    assert order_of(tiny_layouts.CogVideoXPipeline) == "BFCHW"
    assert order_of(tiny_layouts.LTXPipeline) == order_of(WanModularPipeline) == "BCFHW"
    assert order_of(AscedConfig) is None


@pytest.mark.parametrize("name", ["cogvideox", "ltx", "stable-audio", "kandinsky5"])
def test_reports_of_volumes_and_lines_are_written(name, tmp_path):
    pipe, kwargs = tiny_layouts.PIPELINES[name]()
    with asced(pipe, SENSITIVE) as handle:
        tiny.run(pipe, kwargs)
        grid = handle.report.masks.shape[2:]
        assert handle.report.masks_image().shape[-2:] == handle.report.image_size
        handle.report.save(tmp_path)
    assert (tmp_path / "report.html").is_file()
    assert len(grid) == (2 if name == "stable-audio" else 3)


@pytest.mark.parametrize("when", ["before", "after"])
def test_frames_dropped_under_way(when):
    """Before T_c the run is watched anew; after it the report stays."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    handle = enable_asced(scheduler, SENSITIVE, axes="BCFHW", seeds=[3])
    scheduler.set_timesteps(25)
    x, dropped_at = tiny.randn(1, 3, 4, 12, 10, seed=4), {"before": 2, "after": 18}[when]
    first = x
    for k, t in enumerate(scheduler.timesteps):
        if k == dropped_at:
            x, first = x[:, :, 1:], first[:, :, 1:]
        x = scheduler.step(tiny.output_of(scheduler, k)(x, 0.01 * k + 0.1 * first * (k % 2)), t, x)[0]
    report = handle.report
    assert report[0].status == "corrected"
    assert report.masks.shape[2] == {"before": 3, "after": 4}[when]
    assert report[0].executed == {"before": 23, "after": 25}[when]


def test_copies_within_a_call_are_left_alone_with_one_warning(asced_warnings, monkeypatch):
    """As LTX2 does for its sound, SkyReels for every frame."""
    pipe, kwargs = tiny.sd3()
    stock = tiny.run(pipe, kwargs)
    handle = enable_asced(pipe, SENSITIVE)
    prepare = type(pipe).prepare_latents

    def prepare_and_copy(self, *args, **kwargs):
        for twin in [copy.deepcopy(self.scheduler) for _ in range(3)]:
            twin.set_timesteps(5)
            x = torch.zeros(1, 7, 3)
            twin.step(x, twin.timesteps[0], x)
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "prepare_latents", prepare_and_copy)
    assert not torch.equal(tiny.run(pipe, kwargs), stock)
    assert handle.report[0].status == "corrected"
    assert len(asced_warnings()) == 1
    assert "copies" in asced_warnings()[0]


def test_a_pipeline_that_steps_twice_an_iteration():
    """Cosmos: the first of the two calls has two rows, and is no step of the run."""
    pipe, kwargs = tiny_layouts.cosmos()
    for guidance in (7.0, 1.0):
        stock = tiny.run(pipe, kwargs, guidance_scale=guidance)
        with asced(pipe, AscedConfig(correct=False, record="run")) as handle:
            assert torch.equal(tiny.run(pipe, kwargs, guidance_scale=guidance), stock)
            assert [row.executed for row in handle.report] == [25]
            assert len(handle.report[0].dynamics) == 24

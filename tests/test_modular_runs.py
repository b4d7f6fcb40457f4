# SPDX-License-Identifier: MIT
"""What a modular pipeline's block tells of a run is of that run: settings, context, caches; it ends with the run."""

import copy

import company
import pytest
import tiny
import torch
from diffusers import MagCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState, SequentialPipelineBlocks
from test_modular import CONFIG, NOTHING, modular, run

from ascedfast import AscedConfig, disable_asced, enable_asced
from ascedfast.adapters import class_swap
from ascedfast.adapters.layout import PipelineContext
from ascedfast.adapters.modular import AscedStep
from ascedfast.adapters.modular_span import Span, following

EAGER = AscedConfig(mad_scale=0.5, min_area=0, core_width=1)


CACHES = {
    "mag": lambda step: MagCacheConfig(0.3, 1, 0.1, company.STEPS, mag_ratios=torch.ones(company.STEPS)),
    "pyramid": lambda step: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=1000,
        spatial_attention_timestep_skip_range=(-1, 1000),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500 if step() % 2 else 1000,
    ),
}


class Cached:
    """A modular Flux with a cache, noting whether its last block, or its attention, was computed in each step."""

    def __init__(self, name, block=None):
        self.pipe, self.call = modular("flux", block)
        self.computed = []
        block = self.pipe.transformer.single_transformer_blocks[-1]
        part = block if name == "mag" else block.attn
        part.forward = self._counted(part.forward)
        self.pipe.transformer.register_forward_pre_hook(lambda *_: self.computed.append(False))
        self.pipe.transformer.enable_cache(CACHES[name](lambda: len(self.computed) - 1))

    def _counted(self, forward):
        def counted(*args, **kwargs):
            self.computed[-1] = True
            return forward(*args, **kwargs)

        return counted

    def __call__(self):
        self.computed.clear()
        self.pipe.transformer._reset_stateful_cache()
        return run(self.pipe, self.call, num_inference_steps=company.STEPS)


@pytest.mark.parametrize("name", CACHES)
def test_what_a_cache_skips_is_seen_and_nothing_of_it_stays(name, questions):
    stock, made = Cached(name), Cached(name, AscedStep(NOTHING))
    expected = stock().get("latents")
    state = made()
    assert made.computed == stock.computed
    assert questions == [not full for full in made.computed]
    assert torch.equal(state.get("latents"), expected)
    assert state.get("asced").report[0].status == "clean"
    assert company.ours(made.pipe.transformer) == []


@pytest.mark.parametrize("name", CACHES)
def test_the_step_after_a_correction_is_computed_in_full(name):
    stock, made = Cached(name), Cached(name, AscedStep(EAGER))
    stock()
    row = made().get("asced").report[0]
    assert row.status == "corrected"
    assert made.computed[: row.plan.t_c] == stock.computed[: row.plan.t_c]
    assert (stock.computed[row.plan.t_c], made.computed[row.plan.t_c]) == (False, True)


@pytest.mark.parametrize("where", ["denoise", "behind"])
def test_a_run_that_raises_ends_too(where):
    made = Cached("mag", AscedStep(CONFIG))
    blocks = made.pipe._blocks.sub_blocks
    if where == "behind":
        blocks["behind"] = Raises()
    else:
        made.pipe.transformer.proj_out.forward = raises
    kinds = {name: type(block) for name, block in blocks.items()}
    with pytest.raises(KeyError):
        made()
    assert company.ours(made.pipe.transformer) == []
    assert {name: type(block) for name, block in blocks.items()} == kinds
    assert not any(class_swap.is_swapped(block) for block in blocks.values())
    state = made.pipe.scheduler.__dict__[class_swap.STATE]
    assert (state.context, state.caches) == (PipelineContext(), None)


def raises(*args, **kwargs):
    raise KeyError


class Raises(ModularPipelineBlocks):
    __call__ = raises


def test_the_context_is_of_the_run_alone():
    """A loop of one's own on the scheduler, behind a pipeline's run: nobody tells the grid of its packed latents."""
    pipe, call = modular("flux", AscedStep(CONFIG))
    handle = run(pipe, call).get("asced")
    assert handle.report.image_size == (call["height"], call["width"])
    scheduler = pipe.scheduler
    scheduler.set_timesteps(12, mu=1.0)
    x = tiny.randn(1, call["height"] * call["width"] // 256, 16)
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
    assert handle.report[0].status == "unavailable"
    assert "grid" in handle.report[0].reason


def test_every_block_has_its_own_seeds():
    pipes = [modular("flux", AscedStep(CONFIG, seeds=seeds)) for seeds in ([1], [2], None)]
    scheduler = pipes[0][0].scheduler
    for pipe, _ in pipes:
        pipe.update_components(scheduler=scheduler)
    for _ in range(2):
        assert [run(*made, seed=7).get("asced").report.seeds for made in pipes] == [[1], [2], [7]]


def test_what_the_scheduler_was_enabled_with_comes_back():
    pipe, call = modular("flux", AscedStep(CONFIG, seeds=[2]))
    plain, _ = modular("flux", AscedStep(CONFIG))
    plain.update_components(scheduler=pipe.scheduler)
    handle = enable_asced(pipe.scheduler, CONFIG, seeds=[9])
    assert [run(one, call).get("asced").report.seeds for one in (pipe, plain)] == [[2], [9]]
    assert handle.report.seeds == [9]


def test_parts_are_protected_as_in_an_ordinary_pipeline():
    _, call = modular("flux")
    grid = (call["height"] // 16, call["width"] // 16)
    keep = torch.zeros(1, 1, *grid, dtype=torch.bool)
    keep[..., : grid[1] // 2] = True
    pipe, _ = modular("flux", AscedStep(CONFIG, keep_mask=keep))
    state = run(pipe, call)
    report = state.get("asced").report
    free, _ = modular("flux", AscedStep(CONFIG))
    assert (run(free, call).get("asced").report.masks_grown & keep).any()
    assert report.masks_grown.any()
    assert not (report.masks_grown & keep).any()
    ordinary, call = tiny.flux()
    handle = enable_asced(ordinary, CONFIG, keep_mask=keep)
    packed = tiny.run(ordinary, call, seed=3, num_inference_steps=12)
    assert torch.equal(report.masks_grown, handle.report.masks_grown)
    unpacked = ordinary._unpack_latents(packed, call["height"], call["width"], 8)
    assert torch.equal(state.get("latents"), unpacked)


def test_grid_and_axes_reach_the_run():
    pipe, call = modular("flux", AscedStep(CONFIG))
    expected = run(pipe, call).get("latents")
    grid = (call["height"] // 16, call["width"] // 16)
    pipe, call = modular("flux", AscedStep(CONFIG, grid=grid, axes="BSC"))
    assert torch.equal(run(pipe, call).get("latents"), expected)
    pipe, call = modular("flux", AscedStep(CONFIG, grid=(grid[0] - 1, grid[1])))
    with pytest.raises(ValueError, match="grid"):
        run(pipe, call)


@pytest.mark.parametrize(
    "bad", [{"seeds": []}, {"grid": (0, 3)}, {"axes": "BCX"}, {"keep_mask": torch.zeros(1, 1, 4, 4)}]
)
def test_bad_settings_are_refused_at_once(bad):
    with pytest.raises((ValueError, TypeError)):
        AscedStep(CONFIG, **bad)


def test_a_block_that_nothing_follows_says_where_it_belongs():
    pipe, call = modular("flux")
    pipe._blocks.sub_blocks["asced"] = AscedStep(CONFIG)
    with pytest.raises(ValueError, match="in front of the denoising loop"):
        run(pipe, call)
    with pytest.raises(ValueError, match="in front of the denoising loop"):
        AscedStep(CONFIG)(pipe, PipelineState())


class Says(ModularPipelineBlocks):
    def __init__(self, said):
        super().__init__()
        self.said = said

    def __call__(self, components, state):
        self.said.append(type(self).__name__)
        return components, state


class Begins(Says):
    """Begins a span, as AscedStep does."""

    root = None

    def __call__(self, components, state):
        self.span = Span(following(Begins.root, self), lambda: self.said.append("end"))
        self.said.append("begin")
        return components, state


def sequence(**blocks):
    return SequentialPipelineBlocks.from_blocks_dict(blocks)


@pytest.mark.parametrize("nested", [False, True])
def test_a_span_ends_with_the_last_block_that_follows_or_when_another_one_begins(nested):
    said = []
    first = Begins(said)
    first = sequence(before=Says(said), first=first) if nested else first
    Begins.root = sequence(first=first, a=Says(said), second=Begins(said), b=Says(said), c=Says(said))
    Begins.root(None, None)
    assert said[nested:] == ["begin", "Says", "end", "begin", "Says", "Says", "end"]
    assert not any(class_swap.is_swapped(block) for block in Begins.root.sub_blocks.values())


def test_a_copy_of_a_block_within_a_span_is_of_its_own_class():
    said = []
    Begins.root = sequence(first=Begins(said), a=Says(said))
    Begins.root.sub_blocks["first"](None, None)
    block = Begins.root.sub_blocks["a"]
    again = copy.deepcopy(block)
    assert class_swap.is_swapped(block)
    assert type(again) is Says
    assert class_swap.STATE not in again.__dict__
    again(None, None)
    assert said == ["begin"]


def test_disabled_within_a_run_nothing_stays():
    pipe, call = modular("flux", AscedStep(CONFIG))
    pipe.transformer.register_forward_hook(lambda *_: disable_asced(pipe.scheduler))
    run(pipe, call)
    assert not class_swap.is_swapped(pipe.scheduler)
    assert not any(class_swap.is_swapped(block) for block in pipe._blocks.sub_blocks.values())

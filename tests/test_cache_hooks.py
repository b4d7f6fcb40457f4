# SPDX-License-Identifier: MIT
"""What is put into caching hooks while a pipeline runs: nothing of it stays, whatever happens in the call."""

import copy
import functools
import logging
import pickle
import threading

import company
import pytest
import tiny
import tiny_layouts
import torch
from diffusers import FirstBlockCacheConfig, FluxPipeline, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, ModelHook, apply_pyramid_attention_broadcast
from row_loop import bits

from ascedfast import AscedConfig, disable_asced, enable_asced
from ascedfast.adapters import caches

NOTHING = AscedConfig.official(mad_scale=1e9, max_area=101)
T_C = {"faster-cache": 12}
"""Of Flux it is 9."""
EAGER = AscedConfig(mad_scale=0.5, min_area=0, core_width=1)


def within(made, act, at):
    """Let ``act(step)`` happen at the end of a step of the next calls."""
    keep = made._keep

    def kept(pipe, step, timestep, tensors):
        keep(pipe, step, timestep, tensors)
        if step == at:
            act(step)
        return tensors

    made._keep = kept


class Cosmos:
    """The pipeline that steps twice an iteration, with a cache; counts the attentions that were computed in each."""

    def __init__(self):
        self.pipe, self.call = tiny_layouts.cosmos()
        self.pipe.set_progress_bar_config(disable=True)
        self.computed, self.states = [0], []
        self.all = 0
        for name, module in self.pipe.transformer.named_modules():
            if name.endswith(("attn1", "attn2")):
                self.all += 2  # the unconditional half is a call of its own
                module.forward = self._counted(module.forward)
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=1000,
            spatial_attention_timestep_skip_range=(-1, 1000),
            spatial_attention_block_identifiers=("transformer_blocks",),
            current_timestep_callback=lambda: 500 if len(self.states) % 3 else 1000,
        )
        apply_pyramid_attention_broadcast(self.pipe.transformer, config)

    def _counted(self, forward):
        def counted(*args, **kwargs):
            self.computed[-1] += 1
            return forward(*args, **kwargs)

        return counted

    def _keep(self, pipe, step, timestep, tensors):
        self.computed.append(0)
        self.states.append(tensors["latents"].clone())
        return tensors

    def __call__(self):
        """Whether each step was computed in full."""
        self.computed[:], self.states[:] = [0], []
        at_steps = {"callback_on_step_end": self._keep, "generator": tiny.generator(1)}
        self.pipe(**{**self.call, **at_steps, "num_inference_steps": company.STEPS})
        return [count == self.all for count in self.computed[:-1]]


def test_a_rehearsed_step_is_asked_for_once_and_told_what_was_skipped(questions):
    twin, made = Cosmos(), Cosmos()
    stock = twin()
    assert any(stock)
    assert not all(stock)
    handle = enable_asced(made.pipe, NOTHING)
    full = made()
    assert full == stock
    assert questions == [not whole for whole in full]
    assert handle.report[0].status == "clean"
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(made.states, twin.states, strict=True))


def test_a_rehearsed_step_after_a_correction_is_computed_in_full():
    made = Cosmos()
    handle = enable_asced(made.pipe, EAGER, seeds=1)
    full = made()
    t_c = handle.report[0].plan.t_c
    assert handle.report[0].status == "corrected"
    stock = Cosmos()()
    assert full[:t_c] == stock[:t_c]
    assert (stock[t_c], full[t_c]) == (False, True)


def test_a_cache_that_is_disabled_within_a_call_takes_ours_along():
    made, twin, copies = (company.COMPANY["first-block-cache"](), company.COMPANY["first-block-cache"](), [])
    transformer = made.pipe.transformer

    def off(step):
        transformer.disable_cache()
        copies.append((copy.deepcopy(made.pipe.transformer.transformer_blocks[0]), company.ours(transformer)))

    within(made, off, 4)
    within(twin, lambda step: twin.pipe.transformer.disable_cache(), 4)
    enable_asced(made.pipe, NOTHING)
    made()
    twin()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(made.states, twin.states, strict=True))
    assert company.ours(transformer) == copies[0][1] == []
    pickle.dumps(transformer.transformer_blocks[0])
    for block in (copies[0][0], copy.deepcopy(transformer.transformer_blocks[0])):
        own = {id(part) for part in block.modules()}
        assert id(getattr(block.forward, "__self__", None)) in own


@pytest.mark.parametrize("name", company.CACHED)
def test_a_copy_of_a_cached_denoiser_within_a_call_has_nothing_of_ours(name):
    made, copies, t_c = company.COMPANY[name](), [], T_C.get(name, 9)
    within(made, lambda step: copies.append(copy.deepcopy(made.pipe.transformer)), t_c - 1)
    handle = enable_asced(made.pipe)
    made()
    assert handle.report[0].plan.t_c == t_c  # the copy was made between a correction and the step after it
    assert company.ours(copies[0]) == company.ours(made.pipe.transformer) == []
    copies[0].disable_cache()
    assert company.ours(copies[0]) == []


@pytest.mark.parametrize("name", company.CACHED)
def test_a_call_that_raises_leaves_nothing_behind(name):
    made = company.COMPANY[name]()
    enable_asced(made.pipe)
    made()
    expected, keep = list(made.states), made._keep

    def fail(step):
        assert company.ours(made.pipe.transformer)  # else this test sees nothing
        raise KeyError(step)

    within(made, fail, 8)
    with pytest.raises(KeyError):
        made()
    assert company.ours(made.pipe.transformer) == []
    made._keep = keep
    made.pipe.transformer._reset_stateful_cache()  # diffusers does so where a call ends, not where one raises
    made()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(made.states, expected, strict=True))


@pytest.mark.parametrize("name", company.CACHED)
def test_disabled_right_after_a_correction_the_rest_is_the_stocks(name):
    """The caches begin anew, as at the start of a call, and skip again."""
    made, t_c = company.COMPANY[name](), T_C.get(name, 9)
    handle = enable_asced(made.pipe)
    within(made, lambda step: disable_asced(made.pipe), t_c - 1)
    made()
    assert handle.report[0].plan.t_c == t_c
    assert handle.report[0].status == "corrected"
    assert company.ours(made.pipe.transformer) == []
    assert len(made.states) == company.STEPS


def shared(made):
    """Another pipeline with the same denoiser and a scheduler of its own."""
    scheduler = made.pipe.scheduler
    return FluxPipeline(**{**made.pipe.components, "scheduler": scheduler.from_config(scheduler.config)})


@pytest.mark.parametrize("inner_enabled", [False, True])
def test_a_call_within_a_call_on_the_same_denoiser_leaves_nothing_behind(inner_enabled):
    made = company.COMPANY["first-block-cache"]()
    inner = shared(made)
    inner.set_progress_bar_config(disable=True)
    made.pipe.set_progress_bar_config(disable=True)
    handle = enable_asced(made.pipe, NOTHING)
    if inner_enabled:
        enable_asced(inner, NOTHING)
    arguments = {**made.arguments, "num_inference_steps": 5}
    within(made, lambda step: inner(**arguments, generator=tiny.generator(9)), 3)
    made()
    assert company.ours(made.pipe.transformer) == []
    assert handle.report[0].status == "clean"


def test_of_two_calls_on_one_denoiser_the_first_to_begin_may_be_the_first_to_end():
    made = company.COMPANY["first-block-cache"]()
    inner = shared(made)
    for pipe in (made.pipe, inner):
        pipe.set_progress_bar_config(disable=True)
        enable_asced(pipe, NOTHING)
    begun, may_end = threading.Event(), threading.Event()

    def wait(pipe, step, timestep, tensors):
        begun.set()
        may_end.wait(60)
        return tensors

    call = {**made.arguments, "num_inference_steps": 5, "generator": tiny.generator(9), "callback_on_step_end": wait}
    other = threading.Thread(target=lambda: inner(**call))
    within(made, lambda step: other.start() or begun.wait(60), 3)
    made()
    assert company.ours(made.pipe.transformer)  # the other one's
    may_end.set()
    other.join()
    assert company.ours(made.pipe.transformer) == []


class Sometimes(ModelHook):
    skips = False

    def new_forward(self, module, x):
        return x if self.skips else self.fn_ref.original_forward(x)


def test_a_skipped_call_is_told_to_the_watch_that_began_last():
    module, hook, x = torch.nn.Linear(4, 4), Sometimes(), torch.zeros(3, 4)
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "sometimes")
    outer, inner = caches.CacheWatch([(module, hook)]), caches.CacheWatch([(module, hook)])
    with outer.counting():
        module(x)
        hook.skips = True
        with inner.counting():
            module(x)
        assert (outer.skipped(), inner.skipped()) == (False, True)
        module(x)
        assert (outer.skipped(), inner.skipped()) == (True, False)
    module(x)
    assert not outer.skipped()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_cache_enabled_before_t_c_leaves_the_run_alone_with_one_warning(caplog, backend):
    made, twin = company.flux(), company.flux()
    config = AscedConfig(backend=backend)
    enable = FirstBlockCacheConfig(threshold=0.3)
    for one in (made, twin):
        within(one, lambda step, one=one: one.pipe.transformer.enable_cache(enable), 5)
    handle = enable_asced(made.pipe, config)
    with caplog.at_level(logging.WARNING, "ascedfast"):
        made()
    twin()
    assert len(made.full) < company.STEPS
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(made.states, twin.states, strict=True))
    assert handle.report[0].status == "unavailable"
    assert "enable it before the call" in handle.report[0].reason
    assert sum("enable it before the call" in text for text in caplog.messages) == 1
    made._keep = functools.partial(company.Planted._keep, made)
    made()  # from the start now
    assert handle.report[0].status == "corrected"


def again(transformer):
    """Disable a cache, and enable it with the same configuration."""
    config = transformer._cache_config
    transformer.disable_cache()
    transformer.enable_cache(config)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_cache_enabled_anew_with_its_own_configuration_leaves_the_run_alone(caplog, backend):
    made, twin = company.COMPANY["first-block-cache"](), company.COMPANY["first-block-cache"]()
    for one in (made, twin):
        within(one, lambda step, one=one: again(one.pipe.transformer), 5)
    handle = enable_asced(made.pipe, AscedConfig(backend=backend))
    with caplog.at_level(logging.WARNING, "ascedfast"):
        made()
    twin()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(made.states, twin.states, strict=True))
    assert (handle.report[0].status, handle.report[0].reason) == ("unavailable", caches.LATE)
    assert sum("enable it before the call" in text for text in caplog.messages) == 1


def test_a_cache_enabled_anew_after_t_c_is_no_matter(caplog):
    made, plain = company.COMPANY["first-block-cache"](), company.COMPANY["first-block-cache"]()
    handle, expected = enable_asced(made.pipe), enable_asced(plain.pipe)
    within(made, lambda step: again(made.pipe.transformer), 9)
    with caplog.at_level(logging.WARNING, "ascedfast"):
        made()
    plain()
    assert not caplog.messages
    assert handle.report[0].status == "corrected"
    assert torch.equal(handle.report.masks_grown, expected.report.masks_grown)


@pytest.mark.parametrize("others", [False, True])
def test_a_cache_that_is_only_disabled_is_no_reason(caplog, others):
    """Also while another module's cache stays enabled."""
    made = company.COMPANY["first-block-cache"]()
    if others:
        made.pipe.transformer_2 = company.COMPANY["first-block-cache"]().pipe.transformer
    within(made, lambda step: made.pipe.transformer.disable_cache(), 4)
    handle = enable_asced(made.pipe)
    with caplog.at_level(logging.WARNING, "ascedfast"):
        made()
    assert handle.report[0].status == "corrected"
    assert not caplog.messages


def test_a_module_that_two_names_share_is_watched_once():
    made = company.COMPANY["first-block-cache"]()
    with caches.watched(made.pipe) as plain:
        hooks = plain._hooks
    made.pipe.transformer_2 = made.pipe.transformer
    with caches.watched(made.pipe) as watch:
        assert [id(hook) for _, hook in watch._hooks] == [id(hook) for _, hook in hooks]
        assert [id(part) for part, _ in watch._configs] == [id(made.pipe.transformer)]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_cache_enabled_after_t_c_is_no_matter(caplog, backend):
    made, plain = company.flux(), company.flux()
    config = AscedConfig(backend=backend)
    within(made, lambda step: made.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5)), 8)
    handle, expected = enable_asced(made.pipe, config), enable_asced(plain.pipe, config)
    with caplog.at_level(logging.WARNING, "ascedfast"):
        made()
    plain()
    assert not caplog.messages
    assert handle.report[0].plan.t_c == 9
    assert torch.equal(handle.report.masks_grown, expected.report.masks_grown)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(made.states[:10], plain.states[:10], strict=True))
    assert len(made.full) < company.STEPS


def test_modules_are_found_without_asking_a_pipeline_for_its_components():
    """diffusers raises there for a class whose signature is *args, **kwargs."""

    class Handed:
        def __init__(self):
            self.transformer = torch.nn.Linear(1, 1)
            self.transformer._is_cached = True

        @property
        def components(self):
            raise ValueError("incorrectly implemented")

    with caches.watched(Handed()) as watch:
        assert "cache-dit" in watch.untold

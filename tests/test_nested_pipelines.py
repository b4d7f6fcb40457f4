# SPDX-License-Identifier: MIT
"""A pipeline that is called within the call of another one, or of itself, on the same scheduler; samples that take
turns on one."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPanoramaPipeline,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionPipeline

from ascedfast import AscedConfig, asced, disable_asced, enable_asced, is_asced_enabled

STEPS = 12
EAGER = AscedConfig(mad_scale=1.0)


class Nested:
    """DDIM counts by timesteps: the outer run goes on where it was, if the inner one has as many steps."""

    def __init__(self, inner, steps, at=2):
        self.pipe, self.call = tiny.sd15(DDIMScheduler(steps_offset=1, clip_sample=False))
        parts = {**self.pipe.components, "requires_safety_checker": False}
        self.inner = self.pipe if inner == "itself" else StableDiffusionPipeline(**parts)
        self.steps, self.at, self.states, self.nests = steps, at, [], True
        for pipe in (self.pipe, self.inner):
            pipe.set_progress_bar_config(disable=True)

    def _keep(self, pipe, step, timestep, tensors):
        self.states.append(tensors["latents"].clone())
        if step == self.at and self.nests:
            inner = self.inner(**{**self.call, "num_inference_steps": self.steps}, generator=tiny.generator(2))
            self.states.append(inner.images)
        return tensors

    def __call__(self):
        self.states.clear()
        arguments = {**self.call, "num_inference_steps": STEPS, "callback_on_step_end": self._keep}
        self.pipe(**arguments, generator=tiny.generator(1))
        return list(self.states)


def same(states, others):
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(states, others, strict=True))


@pytest.mark.parametrize("steps", [STEPS, 5])
@pytest.mark.parametrize("inner", ["itself", "another"])
def test_both_are_left_alone_with_what_to_do(inner, steps, asced_warnings):
    nested = Nested(inner, steps)
    stock = nested()
    handle = enable_asced(nested.pipe, EAGER)
    assert same(nested(), stock)
    assert same(nested(), stock)
    (warning,) = asced_warnings()
    assert "called within the call of one that steps the same scheduler" in warning
    assert "pipe.scheduler.from_config(pipe.scheduler.config)" in warning
    assert (handle.report[0].status, handle.report[0].reason) == ("unavailable", warning)
    nested.nests = False
    nested()
    assert handle.report[0].status == "corrected"


def test_doing_so_helps(asced_warnings):
    nested, plain = Nested("another", 5), Nested("another", 5)
    nested.inner.scheduler = nested.pipe.scheduler.from_config(nested.pipe.scheduler.config)
    plain.nests = False
    handle, expected = enable_asced(nested.pipe, EAGER, seeds=1), enable_asced(plain.pipe, EAGER, seeds=1)
    inner_too = nested()
    del inner_too[nested.at + 1]
    assert same(inner_too, plain())
    assert handle.report[0].status == expected.report[0].status == "corrected"
    assert asced_warnings() == []


def test_it_helps_when_the_scheduler_was_enabled_first(asced_warnings):
    nested = Nested("another", 5)
    handle = enable_asced(nested.pipe, EAGER)
    nested.inner.scheduler = nested.pipe.scheduler.from_config(nested.pipe.scheduler.config)
    nested()
    assert handle.report[0].status == "corrected"
    assert asced_warnings() == []


def test_one_that_comes_after_t_c_says_so_where_the_outer_cannot_go_on():
    nested = Nested("another", 5, at=STEPS - 3)
    enable_asced(nested.pipe, EAGER)
    with pytest.raises(ValueError, match="another pipeline or loop has set this scheduler meanwhile, give each one"):
        nested()


def panorama(scheduler):
    """Five views; each has a copy of the scheduler's __dict__, put back before its steps."""
    pipe, call = tiny.sd15(scheduler)
    pipe = StableDiffusionPanoramaPipeline(**pipe.components, requires_safety_checker=False)
    assert len(pipe.get_views(64, 768)) == 5
    return pipe, {**call, "width": 768}


TURNS = {
    "ddim": lambda: DDIMScheduler(**tiny.SCALED, **tiny.NO_CLIP, steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(**tiny.SCALED, steps_offset=1),
    "dpm": lambda: DPMSolverMultistepScheduler(**tiny.SCALED, steps_offset=1),
}


@pytest.mark.parametrize(("name", "views"), [("ddim", 1), ("ddim", 5), ("euler", 1), ("dpm", 2)])
def test_a_panorama_is_left_alone_with_what_to_do(name, views, asced_warnings):
    pipe, call = panorama(TURNS[name]())
    stock = tiny.run(pipe, call, num_inference_steps=STEPS, view_batch_size=views)
    handle = enable_asced(pipe, EAGER, seeds=1)
    for _ in range(2):
        assert torch.equal(tiny.run(pipe, call, num_inference_steps=STEPS, view_batch_size=views), stock)
        assert handle.enabled
        assert {row.status for row in handle.report} == {"unavailable"}
    (warning,) = asced_warnings()
    assert "for each view" in warning
    assert "call disable_asced for such a pipeline" in warning
    assert handle.report[0].reason in warning
    usual = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    disable_asced(pipe)
    assert not handle.enabled
    assert not is_asced_enabled(pipe)
    assert torch.equal(tiny.run(pipe, call, num_inference_steps=STEPS, view_batch_size=views), stock)
    with asced(usual, EAGER) as handle:
        tiny.run(usual, {**call, "width": 48})
        assert handle.report[0].status == "corrected"


def test_a_panorama_that_breaks_off_leaves_nothing_behind():
    pipe, call = panorama(TURNS["ddim"]())
    handle = enable_asced(pipe, EAGER)
    boom = pipe.unet.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(InterruptedError()))
    with pytest.raises(InterruptedError):
        tiny.run(pipe, call)
    boom.remove()
    assert handle.enabled
    handle.disable()
    assert type(pipe.scheduler) is DDIMScheduler


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("name", TURNS)
def test_a_scheduler_whose_state_is_put_back_by_turns_is_left_alone(name, backend, asced_warnings):
    """Enabled on the scheduler: the first step is watched, and no later one."""

    def run(scheduler):
        tiny.set_steps(scheduler, STEPS)
        states = [copy.deepcopy(scheduler.__dict__)] * 2
        samples = [tiny.randn(1, 4, 16, 16, seed=seed) for seed in (1, 2)]
        for k, t in enumerate(scheduler.timesteps):
            for turn in (0, 1):
                scheduler.__dict__.update(states[turn])
                scheduler.scale_model_input(samples[turn], t)
                m = tiny.output_of(scheduler, k)(samples[turn], 0.3 * (k % 2) * samples[turn].sign())
                samples[turn] = scheduler.step(m, t, samples[turn])[0]
                states[turn] = copy.deepcopy(scheduler.__dict__)
        return samples

    stock, scheduler = run(TURNS[name]()), TURNS[name]()
    handle = enable_asced(scheduler, replace(EAGER, backend=backend), seeds=1)
    assert same(run(scheduler), stock)
    assert handle.enabled
    assert handle.report[0].status == "unavailable"
    (warning,) = asced_warnings()
    assert "give each sample copy.deepcopy(scheduler)" in warning
    x = tiny.sample(scheduler, tiny.randn(1, 4, 16, 16), tiny.spot((16, 16)), steps=STEPS)[-1]
    assert x.isfinite().all()
    assert handle.report[0].status == "corrected"


def by_turns(scheduler, steps_each):
    """Two samples, so many steps of one and as many of the other."""
    tiny.set_steps(scheduler, 25)
    samples = [tiny.randn(1, 3, 32, 32, seed=seed) for seed in (1, 2)]
    means = [0.3 * tiny.randn(1, 3, 32, 32, seed=seed) for seed in (11, 12)]
    for at in range(0, 25, steps_each):
        for turn in (0, 1):
            for k, t in list(enumerate(scheduler.timesteps))[at : at + steps_each]:
                m = tiny.pointwise(samples[turn], tiny.output_of(scheduler, k), k, means[turn], torch.zeros(1).bool())
                samples[turn] = scheduler.step(m, t, samples[turn])[0]
    return samples


@pytest.mark.parametrize("steps_each", [1, 4, 6])
def test_two_loops_that_take_turns_before_t_c_are_left_alone(steps_each, asced_warnings):
    """DDIM knows the step by the timestep, so that stock serves both; one's predictions are none of the other's."""
    stock, scheduler = by_turns(TURNS["ddim"](), steps_each), TURNS["ddim"]()
    handle = enable_asced(scheduler, AscedConfig(min_area=0), seeds=1)
    assert same(by_turns(scheduler, steps_each), stock)
    (warning,) = asced_warnings()
    assert "give each loop copy.deepcopy(scheduler), or call set_timesteps before each run" in warning
    assert handle.report[0].status == "unavailable"
    tiny.sample(scheduler, tiny.randn(1, 4, 16, 16), tiny.spot((16, 16)))
    assert handle.report[0].status == "corrected"


def test_a_loop_that_begins_when_the_other_is_past_t_c_is_judged(asced_warnings):
    stock, scheduler, statuses = by_turns(TURNS["ddim"](), 12), TURNS["ddim"](), []
    handle = enable_asced(scheduler, seeds=1, on_x0=lambda k, t, x0: statuses.append((k, handle.report[0].status)))
    assert same(by_turns(scheduler, 12), stock)
    assert statuses[11] == statuses[23] == (11, "clean")
    assert [text for text in asced_warnings() if "take turns" in text] == []

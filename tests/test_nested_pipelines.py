# SPDX-License-Identifier: MIT
"""A pipeline that is called within the call of another one, or of itself, on the same scheduler."""

import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion import StableDiffusionPipeline

from ascedfast import AscedConfig, enable_asced

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

# SPDX-License-Identifier: MIT
"""An enabled scheduler or pipeline as an object: copies, files, signatures, threads, and what is left after errors."""

import copy
import inspect
import json
import pickle
import threading

import diffusers
import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from row_loop import bits
from test_diffusers import SENSITIVE

from ascedfast import AscedConfig, asced, disable_asced, enable_asced, is_asced_enabled
from ascedfast.adapters.support import SUPPORT

GRID = (32, 24)
COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda obj: pickle.loads(pickle.dumps(obj))}
ONE_OF_EACH = ["ddim-eps", "euler-v", "flow-dynamic", "dpm3", "unipc2-flow", "deis2-v", "lms", "plms", "ipndm", "sa2"]


def sample(scheduler, seed=4, **options):
    return tiny.sample(scheduler, tiny.randn(2, 3, *GRID, seed=seed), tiny.spot(GRID, 2), **options)[-1]


def status(handle):
    return {row.status for row in handle.report}


def report_of(scheduler):
    """A copy has no handle; its report lies with its state."""
    return scheduler.__dict__["_asced"].report


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_copies_of_a_scheduler_work_and_are_separate(name, how):
    scheduler = tiny.SCHEDULERS[name]()
    stock = sample(scheduler)
    scheduler = tiny.SCHEDULERS[name]()
    handle = enable_asced(scheduler, AscedConfig(), seeds=[1, 2], on_x0=lambda *_: calls.append(1))
    calls = []
    if how == "pickle":
        scheduler.__dict__["_asced"].on_x0 = None  # a lambda; the callback stays behind in any case
    expected = sample(scheduler)
    assert not torch.equal(expected, stock)
    before, count = handle.report, len(calls)
    other = COPIES[how](scheduler)
    assert other is not scheduler
    assert type(other) is type(scheduler)
    assert is_asced_enabled(other)
    assert other.config == scheduler.config
    assert len(report_of(other)) == 0
    assert torch.equal(bits(sample(other)), bits(expected))
    assert [row.status for row in report_of(other)] == ["corrected"] * 2
    assert handle.report[0].mask is before[0].mask  # the original's run is as it was
    assert len(calls) == count
    disable_asced(other)
    assert is_asced_enabled(scheduler)
    assert torch.equal(bits(sample(other)), bits(stock))
    assert torch.equal(bits(sample(scheduler)), bits(expected))


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_in_the_middle_of_a_run_starts_afresh(how):
    scheduler = tiny.SCHEDULERS["flow"]()
    enable_asced(scheduler, seeds=[1, 2])
    whole = sample(scheduler)
    copies = []

    def edit(k, m):
        if k == 4:
            copies.append(COPIES[how](scheduler))
        return m

    assert torch.equal(sample(scheduler, edit=edit), whole)
    assert torch.equal(sample(copies[0]), whole)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_of_a_pipeline_work_and_are_separate(how):
    pipe, kwargs = tiny.sd15()
    stock = tiny.run(pipe, kwargs, num_inference_steps=12)
    handle = enable_asced(pipe, AscedConfig(**SENSITIVE))
    expected = tiny.run(pipe, kwargs, num_inference_steps=12)
    assert status(handle) == {"corrected"}
    assert not torch.equal(expected, stock)
    other = COPIES[how](pipe)
    assert type(other) is type(pipe)
    assert other.scheduler is not pipe.scheduler
    assert is_asced_enabled(other)
    disable_asced(pipe)
    assert torch.equal(tiny.run(other, kwargs, num_inference_steps=12), expected)
    assert report_of(other.scheduler).seeds == [0]  # it too saw the generator
    assert torch.equal(tiny.run(pipe, kwargs, num_inference_steps=12), stock)


def test_save_pretrained_writes_stock_classes(tmp_path):
    pipe, kwargs = tiny.dit()
    stock = tiny.run(pipe, kwargs)
    enable_asced(pipe, AscedConfig(**SENSITIVE))
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DiTPipeline"
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "DDIMScheduler"
    assert not any("asced" in key for key in config)
    again = DiTPipeline.from_pretrained(tmp_path)
    assert type(again) is DiTPipeline
    assert type(again.scheduler) is DDIMScheduler
    assert torch.equal(tiny.run(again, kwargs), stock)


@pytest.mark.parametrize("name", SUPPORT)
def test_a_scheduler_keeps_its_face(name):
    cls = getattr(diffusers, name)
    settings = {"skip_prk_steps": True} if cls is PNDMScheduler else {}
    scheduler, plain = cls(**settings), cls(**settings)
    enable_asced(scheduler)
    assert isinstance(scheduler, cls)
    assert (type(scheduler).__name__, type(scheduler).__module__) == (cls.__name__, cls.__module__)
    assert type(scheduler).__qualname__ == cls.__qualname__
    assert type(scheduler).__doc__ == cls.__doc__
    for name in ("step", "set_timesteps", "__init__"):
        assert inspect.signature(getattr(scheduler, name)) == inspect.signature(getattr(plain, name))
    assert scheduler.config == plain.config
    disable_asced(scheduler)
    assert type(scheduler) is cls
    assert scheduler.__dict__.keys() == plain.__dict__.keys()


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_pipeline_keeps_its_face(name):
    pipe, _ = tiny.PIPELINES[name]()
    cls, components = type(pipe), pipe.components
    enable_asced(pipe)
    assert isinstance(pipe, cls)
    assert (type(pipe).__name__, type(pipe).__module__) == (cls.__name__, cls.__module__)
    assert inspect.signature(type(pipe).__call__) == inspect.signature(cls.__call__)
    assert inspect.signature(pipe.__init__) == inspect.signature(cls.__init__.__get__(pipe))
    if hasattr(cls, "prepare_latents"):
        assert inspect.signature(pipe.prepare_latents) == inspect.signature(cls.prepare_latents.__get__(pipe))
    assert pipe.components == components
    disable_asced(pipe)
    assert type(pipe) is cls
    assert not is_asced_enabled(pipe)
    disable_asced(pipe)  # does nothing


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_from_config_on_a_swapped_type_is_stock(name):
    scheduler = tiny.SCHEDULERS[name]()
    stock = sample(scheduler)
    enable_asced(scheduler, seeds=[1, 2])
    fresh = type(scheduler).from_config(scheduler.config)
    assert not is_asced_enabled(fresh)
    assert torch.equal(bits(sample(fresh)), bits(stock))
    handle = enable_asced(fresh, seeds=[1, 2])
    assert torch.equal(bits(sample(fresh)), bits(sample(scheduler)))
    assert status(handle) == {"corrected"}


def test_enabling_twice():
    pipe, kwargs = tiny.dit()
    handle = enable_asced(pipe, AscedConfig(mad_scale=2.0))
    for target in (pipe, pipe.scheduler):
        with pytest.raises(ValueError, match="already enabled"):
            enable_asced(target)
    assert handle.config.mad_scale == 2.0
    tiny.run(pipe, kwargs)
    assert len(handle.report) == 4


def test_a_replaced_scheduler_is_warned_of():
    pipe, kwargs = tiny.sd15()
    handle = enable_asced(pipe, AscedConfig(**SENSITIVE))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.warns(RuntimeWarning, match="replaced"):
        replaced = tiny.run(pipe, kwargs)
    assert repr(handle.report) == "ascedfast report: no run was watched yet"
    assert not is_asced_enabled(pipe)
    again = enable_asced(pipe, AscedConfig(**SENSITIVE))
    assert not torch.equal(tiny.run(pipe, kwargs), replaced)
    assert status(again) == {"corrected"}
    handle.disable()
    assert not handle.enabled


def test_the_context_manager():
    pipe, kwargs = tiny.dit()
    stock = tiny.run(pipe, kwargs)
    with asced(pipe, AscedConfig(**SENSITIVE)) as handle:
        assert handle.enabled
        assert is_asced_enabled(pipe)
        assert not torch.equal(tiny.run(pipe, kwargs), stock)
        assert status(handle) == {"corrected"}
    assert type(pipe) is DiTPipeline
    assert not handle.enabled
    assert status(handle) == {"corrected"}  # of its last run
    assert repr(handle) == "<ascedfast handle of a DiTPipeline: mode 'fast', disabled>"
    assert torch.equal(tiny.run(pipe, kwargs), stock)
    with pytest.raises(InterruptedError), asced(pipe):
        raise InterruptedError
    assert type(pipe) is DiTPipeline


def test_a_handle_is_of_what_it_was_returned_for():
    pipe, kwargs = tiny.dit()
    with asced(pipe, AscedConfig(**SENSITIVE), seeds=1) as first:
        tiny.run(pipe, kwargs)
    with asced(pipe, seeds=2) as second:
        assert (first.enabled, second.enabled) == (False, True)
        first.disable()
        tiny.run(pipe, kwargs)
        assert second.enabled
        for act in (lambda: first.reseed([9]), lambda: first.warm_up(torch.zeros(1, 4, 8, 8))):
            with pytest.raises(ValueError, match="was disabled"):
                act()
    assert {row.seed for row in first.report} == {1}
    assert {row.seed for row in second.report} == {2}
    assert hash(first) == hash(second)  # of one scheduler
    third = enable_asced(pipe)
    copied = copy.deepcopy(third)
    assert copied.enabled
    assert copied.scheduler is not pipe.scheduler
    copied.disable()
    assert third.enabled
    disable_asced(pipe)
    assert not third.enabled


def test_the_context_manager_lets_go_of_a_replaced_scheduler():
    pipe, _ = tiny.sd15()
    first = pipe.scheduler
    with asced(pipe):
        pipe.scheduler = EulerDiscreteScheduler.from_config(first.config)
    assert type(first) is DDIMScheduler
    assert type(pipe) is StableDiffusionPipeline


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_two_runs_in_a_row(name):
    scheduler = tiny.SCHEDULERS[name]()
    handle = enable_asced(scheduler, seeds=[1, 2])
    first = sample(scheduler)
    report = handle.report
    other = sample(scheduler, seed=5, steps=17)
    extra = name == "plms"  # its second timestep comes twice
    assert handle.report[0].steps == 17 + extra
    assert torch.equal(bits(sample(scheduler)), bits(first))
    assert report[0].steps == 25 + extra
    assert not torch.equal(other, first)


def test_a_run_without_setting_the_timesteps_again():
    """DDIM keeps no index: the first timestep begins a run."""
    scheduler = tiny.SCHEDULERS["ddim-eps"]()
    handle = enable_asced(scheduler, seeds=[1, 2])
    expected = sample(scheduler)
    for _ in range(2):
        x = tiny.randn(2, 3, *GRID, seed=4)
        for k, t in enumerate(scheduler.timesteps):
            mean, where = torch.full((1, 3, *GRID), 0.5), tiny.spot(GRID, 2)
            x = scheduler.step(tiny.pointwise(x, tiny.output_of(scheduler, k), k, mean, where), t, x).prev_sample
        assert torch.equal(x, expected)
        assert handle.report[0].executed == 25


@pytest.mark.parametrize("name", ["euler-eps", "flow", "dpm3"])
@pytest.mark.parametrize("begin", [0, 1, 6])
def test_a_run_may_begin_later(name, begin):
    """set_timesteps begins a run, wherever the last one stood; its first step is the scheduler's begin index."""
    scheduler = tiny.SCHEDULERS[name]()
    handle = enable_asced(scheduler, AscedConfig(t_c=9), seeds=[1])
    x = tiny.randn(1, 3, *GRID)
    for steps, first in ((20, 0), (25, begin)):
        tiny.set_steps(scheduler, steps)
        scheduler.set_begin_index(first)
        t = scheduler.timesteps[first]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        scheduler.step(x, t, x)
        row = handle.report[0]
        assert (row.steps, row.executed) == (steps - first, 1)


@pytest.mark.parametrize("when", ["network", "callback", "before T_c", "after T_c"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_run_that_broke_off(name, when):
    scheduler = tiny.SCHEDULERS[name]()
    fail = {"on": False}
    at = {"network": 3, "callback": 9, "before T_c": 5, "after T_c": 14}[when]

    def on_x0(step, *_):
        if fail["on"] and when == "callback" and step == at:
            raise InterruptedError

    def edit(k, m):
        if fail["on"] and when != "callback" and k == at:
            raise InterruptedError
        return m

    handle = enable_asced(scheduler, seeds=[1, 2], on_x0=on_x0)
    whole = sample(scheduler)
    fail["on"] = True
    with pytest.raises(InterruptedError):
        sample(scheduler, edit=edit)
    fail["on"] = False
    assert torch.equal(bits(sample(scheduler, edit=edit)), bits(whole))
    assert status(handle) == {"corrected"}


def test_a_broken_pipeline_call_leaves_no_context():
    pipe, kwargs = tiny.dit()
    handle = enable_asced(pipe)
    with pytest.raises(TypeError, match="no_such_argument"):
        tiny.run(pipe, kwargs, no_such_argument=1)
    boom = pipe.transformer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(InterruptedError()))
    with pytest.raises(InterruptedError):
        tiny.run(pipe, kwargs, generator=tiny.generator(8))
    boom.remove()
    assert pipe.scheduler.__dict__["_asced"].context is None
    tiny.run(pipe, kwargs, generator=None)
    assert 8 not in handle.report.seeds


def test_threads_with_their_own_copies():
    base = tiny.SCHEDULERS["dpm3"]()
    enable_asced(base, seeds=[1, 2])
    expected = {seed: sample(copy.deepcopy(base), seed=seed) for seed in range(4)}
    results, errors = {}, []

    def work(seed, scheduler):
        try:
            for _ in range(3):
                results.setdefault(seed, []).append(sample(scheduler, seed=seed))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed, copy.deepcopy(base))) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for seed, states in results.items():
        assert all(torch.equal(bits(state), bits(expected[seed])) for state in states)
    assert len(report_of(base)) == 0


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_inference_mode(name):
    scheduler = tiny.SCHEDULERS[name]()
    handle = enable_asced(scheduler, seeds=[1, 2])
    expected = sample(scheduler)
    with torch.inference_mode():
        inside = sample(scheduler)
        report = handle.report
    assert torch.equal(bits(inside), bits(expected))
    assert [row.status for row in report] == ["corrected"] * 2  # read outside
    assert torch.equal(bits(sample(scheduler)), bits(expected))


def test_return_types_are_the_stocks():
    for name in ("ddim-eps", "flow"):
        scheduler, plain = tiny.set_steps(tiny.SCHEDULERS[name](), 8), tiny.set_steps(tiny.SCHEDULERS[name](), 8)
        enable_asced(scheduler)
        x = tiny.randn(1, 3, 8, 8)
        for return_dict in (True, False):
            t = plain.timesteps[int(return_dict)]
            one, two = (s.step(x, t, x, return_dict=return_dict) for s in (plain, scheduler))
            assert type(one) is type(two)
            assert len(one) == len(two)

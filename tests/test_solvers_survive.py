# SPDX-License-Identifier: MIT
"""What is injected under the solvers beside the first ten stays: inside the mask alone, to the end, or on a path of its
own. The denoiser is the exact one of a Gaussian, location by location; its flow has a closed form."""

import pytest
import solvers
import tiny
import torch
from row_loop import bits
from test_history_solvers import MEAN, difference, flow_to_the_end, mask
from test_solvers import enabled

from ascedfast import AscedConfig
from ascedfast.adapters import run as adapter_run
from ascedfast.adapters.schedules import begins_of, schedule_of
from ascedfast.adapters.support import facts_of
from ascedfast.engine import Engine

AT = 6
"""The step of the solver whose result is overwritten inside the mask."""
NAMES = [p for p in solvers.PARAMETERS if p not in (*solvers.INVERSE, "helios-dmd")]
NAMES = [p for p in NAMES if not p.endswith("-threshold")]
EXACT = ["ddim-parallel", "ddim-cogvideox", "ddim-cogvideox-v", "edm-euler", "edm-euler-v", "flow-map", "minimax"]
EXACT += ["ltx-euler-a-ode", "heun", "heun-v-karras", "kdpm2", "kdpm2-v", "flow-heun", "dpm-single1", "dpm-single2"]
EXACT += ["dpm-single2-v", "dpm-single3-flow", "edm-dpm2", "edm-dpm3-v", "helios-unipc", "helios-euler"]
REMEMBER = ["edm-dpm2", "edm-dpm3-v", "edm-dpm2-sde", "helios-unipc", "dpm-cogvideox", "dpm-cogvideox-v"]
REMEMBER += ["cosine-dpm2"]
FORGET = ("lcm", "scm", "cm", "flow-lcm")
"""Their state is a prediction with fresh noise: of what was injected only the prediction made from it goes on."""


def sample(name, monkeypatch, *, edit=False, repair=True, dtype=torch.float32):
    """States of a run with an enabled scheduler; with ``edit`` another state is put inside the mask after step AT."""
    scheduler, _ = enabled(name, AscedConfig(correct=False, record="run"))
    solvers.set_steps(scheduler)
    schedule, injected = schedule_of(scheduler), []

    def correct_(engine, state, rows=None):
        injected.append(AT)
        alpha, sigma = schedule.after[AT]
        new = alpha * MEAN + sigma * tiny.randn(*state.shape, seed=2)
        state.copy_(torch.where(mask(), new.to(state.dtype), state))
        return mask()

    def due(engine):
        return edit and not injected and engine.step_of(0) == AT + 1

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "due", property(due))
        patch.setattr(Engine, "correct_", correct_)
        if not repair:
            patch.setattr(adapter_run, "fill_history", lambda *args: None)
            patch.setattr(adapter_run, "fill_argument", lambda call, *args: call)
        torch.manual_seed(3)
        x = tiny.randn(2, 3, 16, 12, seed=1)
        states = solvers.sample(scheduler, x, solvers.gaussian(MEAN), generator=tiny.generator(3), dtype=dtype)
    assert bool(injected) == edit
    begins = begins_of(scheduler, schedule_of(scheduler))
    at = begins[AT + 1] if facts_of(scheduler).inner else begins[AT] + 1
    return states, at, schedule


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_only_the_inside_changes_to_the_end(name, dtype, monkeypatch):
    stock, at, _ = sample(name, monkeypatch, dtype=dtype)
    edited, _, _ = sample(name, monkeypatch, dtype=dtype, edit=True)
    outside = ~mask().expand_as(stock[0])
    for k, (one, other) in enumerate(zip(stock, edited, strict=True)):
        assert torch.equal(bits(one)[outside], bits(other)[outside]), k
    assert all(torch.equal(one, other) for one, other in zip(stock[:at], edited[:at], strict=True))
    assert difference(edited[at], stock[at]) > 0
    assert difference(edited[at + 1], stock[at + 1]) > 0
    if not name.startswith(FORGET):
        assert difference(edited[at + 1], stock[at + 1]) > 0.3 * difference(edited[at], stock[at])
        assert difference(edited[-1], stock[-1]) > 0
    assert edited[-1].isfinite().all()


@pytest.mark.parametrize("name", EXACT)
def test_what_was_injected_flows_to_its_own_end(name, monkeypatch):
    """Against the closed form, within the solver's own error in 25 steps (CogVideoX's schedule is the steepest)."""
    edited, at, schedule = sample(name, monkeypatch, edit=True)
    end = schedule.after[-1]
    assert end[1] < 0.05
    expected = flow_to_the_end(*schedule.after[AT], edited[at])
    assert difference(edited[-1], expected) < (0.1 if "cogvideox" in name else 0.06)


@pytest.mark.parametrize("name", REMEMBER)
def test_without_the_repair_it_goes_astray(name, monkeypatch):
    repaired, at, _ = sample(name, monkeypatch, edit=True)
    naive, _, _ = sample(name, monkeypatch, edit=True, repair=False)
    assert torch.equal(repaired[at], naive[at])
    outside = ~mask().expand_as(naive[0])
    assert torch.equal(bits(repaired[at + 1])[outside], bits(naive[at + 1])[outside])
    assert difference(repaired[at + 1], naive[at + 1]) > 3e-4


def test_cogvideox_keeps_the_callers_prediction():
    """The old prediction is an argument: what the repair changes is a copy of it."""
    scheduler, handle = enabled("dpm-cogvideox")
    kept, step = [], type(scheduler).step

    def look(self, m, old, *args, **kwargs):
        kept.append((old, None if old is None else old.clone()))
        return step(self, m, old, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(scheduler), "step", look)
        where = solvers.jumping(tiny.spot((32, 24), 2))
        sample_of = solvers.sample(scheduler, tiny.randn(2, 3, 32, 24, seed=4), where, generator=tiny.generator(9))
    assert handle.report[0].status == "corrected"
    assert sample_of[-1].isfinite().all()
    assert all(old is None or torch.equal(old, before) for old, before in kept)

# SPDX-License-Identifier: MIT
"""The schedulers beside the first ten: stock's bits where nothing is found, the mask alone where something is."""

import copy
import functools
import inspect
import json
import pickle

import pytest
import solvers
import tiny
import torch
from row_loop import bits

from ascedfast import AscedConfig, asced, disable_asced, enable_asced, is_asced_enabled
from ascedfast.adapters.layout import PipelineContext
from ascedfast.adapters.schedules import begins_of, schedule_of
from ascedfast.adapters.support import SUPPORT, facts_of, supported_base

GRID = (32, 24)
ROWS = 2
NOTHING = AscedConfig.official(mad_scale=1e9, max_area=101)
CORRECTED = [p for p in solvers.PARAMETERS if p not in solvers.INVERSE]
COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda obj: pickle.loads(pickle.dumps(obj))}
pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")


def noise(name, seed=4):
    return tiny.randn(ROWS, 3, *((2, *GRID) if name == "helios-dmd" else GRID), seed=seed)


def spot(name):
    where = tiny.spot(GRID, ROWS)
    return where[:, :, None].expand(-1, -1, 2, -1, -1) if name == "helios-dmd" else where


def enabled(name, config=None, **options):
    scheduler = solvers.make(name)
    handle = enable_asced(scheduler, config, **{"seeds": [5, 6]} | options)
    return scheduler, tell_frames(scheduler, name) or handle


def tell_frames(scheduler, name):
    """HeliosDMD steps videos alone, which a pipeline tells of."""
    if name == "helios-dmd":
        scheduler.__dict__["_asced"].context = PipelineContext(frames=2, latent_frames=(2,), channels=(3,))


def run(scheduler, name, *, unsteady=True, generator=None, **options):
    generator = tiny.generator(9) if generator is None else generator
    torch.manual_seed(3)  # torchsde's tree takes its seed from there, where no generator gives one
    return solvers.sample(
        scheduler, noise(name), solvers.jumping(spot(name) & unsteady), generator=generator, **options
    )


def assert_same(states, others):
    for k, (one, other) in enumerate(zip(states, others, strict=True)):
        assert torch.equal(bits(one), bits(other)), f"call {k}"


@pytest.mark.parametrize("name", solvers.PARAMETERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_found_is_the_stock_run(name, dtype):
    generators = tiny.generator(9), tiny.generator(9)
    stock = run(solvers.make(name), name, dtype=dtype, generator=generators[0])
    scheduler, handle = enabled(name, NOTHING)
    assert_same(run(scheduler, name, dtype=dtype, generator=generators[1]), stock)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert {row.status for row in handle.report} == ({"unavailable"} if name in solvers.INVERSE else {"clean"})


@pytest.mark.parametrize("name", solvers.PARAMETERS)
def test_disabled_is_the_stock_run(name):
    scheduler, _ = enabled(name)
    disable_asced(scheduler)
    assert type(scheduler) is type(solvers.make(name))
    assert_same(run(scheduler, name), run(solvers.make(name), name))


@pytest.mark.parametrize("name", CORRECTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_only_the_mask_changes(name, dtype):
    generators = tiny.generator(9), tiny.generator(9)
    stock = run(solvers.make(name), name, dtype=dtype, generator=generators[0])
    scheduler, handle = enabled(name)
    watched = run(scheduler, name, dtype=dtype, generator=generators[1])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    report = handle.report
    assert [row.status for row in report] == ["corrected"] * ROWS
    mask, plan = report.masks_grown, report[0].plan
    at = call_before_which(scheduler, plan.t_c)
    assert all(0 < row.float().mean() < 0.5 for row in mask)
    assert (mask & spot(name)).sum() > 0.9 * spot(name).sum()
    assert_same(watched[:at], stock[:at])
    moved = (bits(watched[at]) != bits(stock[at])).any(1, keepdim=True)
    assert torch.equal(moved, mask)
    if name.endswith("-threshold"):
        return
    outside = ~mask.expand_as(stock[0])
    for one, other in zip(watched[at:], stock[at:], strict=True):
        assert torch.equal(bits(one)[outside], bits(other)[outside])


def call_before_which(scheduler, t_c):
    """The call of ``step`` whose state was corrected, with the calls counted as the loop counts states."""
    begins = begins_of(scheduler, schedule_of(scheduler))
    return begins[t_c] if facts_of(scheduler).inner else begins[t_c - 1] + 1


@pytest.mark.parametrize("name", [p for p in CORRECTED if p not in solvers.WITH_A_KNOWN_PART])
def test_the_solvers_noise_is_not_found(name):
    """x0_hat of a stochastic run moves because noise is added, everywhere alike: the median and the MAD of each step
    rise with it, and smoothing and the area rule leave nothing of what is above them. From 64x64 on."""
    shape = (ROWS, 3, 2, 64, 64) if name == "helios-dmd" else (ROWS, 3, 64, 64)
    scheduler, handle = enabled(name)
    torch.manual_seed(3)
    states = solvers.sample(scheduler, tiny.randn(*shape, seed=4), solvers.gaussian(), generator=tiny.generator(9))
    assert states[-1].isfinite().all()
    assert handle.report.severity == [0.0] * ROWS


@pytest.mark.parametrize("name", solvers.PARAMETERS)
def test_few_steps_are_left_alone(name):
    scheduler, handle = enabled(name)
    assert_same(run(scheduler, name, steps=4), run(solvers.make(name), name, steps=4))
    assert handle.report.severity == ["unavailable"] * ROWS


@pytest.mark.parametrize("name", solvers.INVERSE)
def test_inverse_schedulers_are_observed_only(name, asced_warnings):
    scheduler, handle = enabled(name, AscedConfig(record="run"))
    assert_same(run(scheduler, name), run(solvers.make(name), name))
    assert handle.report.severity == ["unavailable"] * ROWS
    assert "never corrected" in handle.report[0].reason
    assert len(handle.report[0].dynamics) == 24
    assert handle.x0 is not None
    assert len(asced_warnings()) == 1


@pytest.mark.parametrize("name", solvers.PARAMETERS)
def test_x0_is_the_schedulers_own(name):
    """Within 4*eps*(|a*x| + |b*m|) of what the stock scheduler makes of the same inputs, where it tells."""
    seen, owns, inputs = [], [], []
    watching = AscedConfig(correct=False)
    scheduler, handle = enabled(name, watching, on_x0=lambda step, t, x0: seen.append((step, t, x0.clone())))
    twin = solvers.make(name)
    step = twin.step

    def look(*args, **kwargs):
        bound = inspect.signature(step).bind(*args, **kwargs).arguments
        out = step(*args, **kwargs)
        owns.append(own_x0(twin, out))
        inputs.append((bound["sample"], bound["model_output"][:, :3]))
        return out

    look.__signature__ = inspect.signature(step)
    twin.step = look
    assert_same(run(scheduler, name, unsteady=False), run(twin, name, unsteady=False))
    schedule = schedule_of(twin)
    begins = begins_of(twin, schedule)
    assert [k for k, _, _ in seen] == list(range(len(schedule)))
    assert torch.equal(handle.x0, seen[-1][2])
    for k, (call, level) in enumerate(zip(begins, schedule.before, strict=True)):
        x, m = inputs[call]
        if owns[call] is None:
            continue
        bound = 4 * torch.finfo(torch.float32).eps * (abs(level.a) * x.abs() + abs(level.b) * m.abs())
        if name.endswith("-threshold"):
            bound = torch.zeros_like(bound)
        assert ((seen[k][2] - owns[call]).abs() <= bound).all(), k


RETURN_X0 = (
    "DDIM",
    "DDPM",
    "UnCLIP",
    "RePaint",
    "SCM",
    "Euler",
    "EDMEuler",
    "Heun",
    "KDPM2",
    "CogVideoX",
    "DPMSolverSDE",
)


def own_x0(twin, out):
    """Of the step that the stock scheduler has just made; None where it keeps none."""
    name = supported_base(twin).__name__
    if hasattr(twin, "model_outputs"):
        keeps = getattr(twin, "predict_x0", not twin.config.get("algorithm_type", "++").startswith("dpmsolver-"))
        return twin.model_outputs[-1] if keeps and twin.model_outputs[-1] is not None else None
    return out[1] if name.startswith(RETURN_X0) and len(out) > 1 else None


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", solvers.PARAMETERS)
def test_copies_work_and_are_separate(name, how):
    scheduler, _ = enabled(name)
    expected = run(scheduler, name)
    if how == "pickle" and name in solvers.NEEDS_TORCHSDE:
        solvers.set_steps(scheduler)  # in the middle of a run the stock's own tree of noise does not pickle
    other = COPIES[how](scheduler)
    tell_frames(other, name)
    assert is_asced_enabled(other)
    assert type(other) is type(scheduler)
    assert_same(run(other, name), expected)
    disable_asced(other)
    assert is_asced_enabled(scheduler)
    assert_same(run(scheduler, name), expected)


@pytest.mark.parametrize("name", solvers.PARAMETERS)
def test_a_saved_scheduler_is_the_stocks(name, tmp_path):
    scheduler, _ = enabled(name)
    run(scheduler, name)
    scheduler.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    stock = type(solvers.make(name))
    assert config["_class_name"] == stock.__name__
    again = stock.from_pretrained(tmp_path)
    assert type(again) is stock
    assert_same(run(again, name), run(solvers.make(name), name))


@pytest.mark.parametrize("name", solvers.PARAMETERS)
def test_signatures_and_returns_are_the_stocks(name):
    stock, (scheduler, _) = solvers.make(name), enabled(name)
    for method in ("step", "set_timesteps"):
        assert inspect.signature(getattr(scheduler, method)) == inspect.signature(getattr(stock, method))
    assert isinstance(scheduler, type(stock))
    kinds = [[], []]
    for found, one in zip(kinds, (stock, scheduler), strict=True):
        step = type(one).step

        @functools.wraps(step)
        def look(*args, step=step, found=found, **kwargs):
            out = step(*args, **kwargs)
            found.append((type(out), len(out), [type(part) for part in out]))
            return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(one), "step", look)
            run(one, name)
    assert kinds[0] == kinds[1]


def test_every_supported_class_is_tested():
    tested = {f"{kind}Scheduler" for kind, _ in solvers.SETTINGS.values()}
    tested |= {type(make()).__name__ for make in tiny.SCHEDULERS.values()}
    assert tested == set(SUPPORT)


def test_a_context_manager_leaves_nothing():
    scheduler = solvers.make("heun")
    with asced(scheduler):
        run(scheduler, "heun")
    assert not is_asced_enabled(scheduler)

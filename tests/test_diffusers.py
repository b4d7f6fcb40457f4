# SPDX-License-Identifier: MIT
"""ASCED on diffusers' schedulers and pipelines: the stock's bits where nothing is found, the mask alone where it is."""

import inspect

import pytest
import tiny
import torch
from row_loop import bits

from ascedfast import AscedConfig, asced, disable_asced, enable_asced

NOTHING = AscedConfig.official(mad_scale=1e9, max_area=101)
GRID = (32, 24)
ROWS = 2
NAMES = list(tiny.SCHEDULERS)
LOCATION_WISE = [name for name in NAMES if name not in tiny.THRESHOLDING]
STOCHASTIC = {
    **{name: {} for name in tiny.STOCHASTIC},
    "ddim-eps": {"eta": 0.7},
    "ddim-v": {"eta": 0.5},
    "euler-eps": {"s_churn": 0.002},
}
SENSITIVE = {"mad_scale": 1.0, "min_area": 20}  # finds something in the output of untrained networks


def loop(name, *, seeds=(5, 6), config=None, options=None, unsteady=True, dtype=torch.float32, **arguments):
    """States of a sampling loop on the scheduler, and its handle (None: stock)."""
    scheduler = tiny.SCHEDULERS[name]()
    handle = None if config is None else enable_asced(scheduler, config, seeds=list(seeds))
    x = tiny.randn(ROWS, 3, *GRID, seed=4)
    where = tiny.spot(GRID, ROWS) & unsteady
    options = {"generator": tiny.generator(9)} | (options or {})
    states = tiny.sample(scheduler, x, where, dtype=dtype, **options, **arguments)
    return states, handle


def assert_same(states, others):
    for k, (one, other) in enumerate(zip(states, others, strict=True)):
        assert torch.equal(bits(one), bits(other)), f"step {k}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_nothing_found_is_the_stock_run(name, dtype):
    generators = tiny.generator(9), tiny.generator(9)
    stock, _ = loop(name, dtype=dtype, options={"generator": generators[0]})
    watched, handle = loop(name, dtype=dtype, config=NOTHING, options={"generator": generators[1]})
    assert_same(watched, stock)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert [row.status for row in handle.report] == ["clean"] * ROWS


@pytest.mark.parametrize("name", NAMES)
def test_a_steady_run_is_clean_with_the_defaults(name):
    stock, _ = loop(name, unsteady=False)
    watched, handle = loop(name, unsteady=False, config=AscedConfig())
    assert_same(watched, stock)
    assert handle.report.severity == [0.0] * ROWS


@pytest.mark.parametrize("name", NAMES)
def test_disabled_is_the_stock_run(name):
    stock, _ = loop(name)
    scheduler = tiny.SCHEDULERS[name]()
    enable_asced(scheduler)
    disable_asced(scheduler)
    x, options = tiny.randn(ROWS, 3, *GRID, seed=4), {"generator": tiny.generator(9)}
    assert_same(tiny.sample(scheduler, x, tiny.spot(GRID, ROWS), **options), stock)


def assert_corrected(stock, watched, handle, *, to_the_end=True):
    """Equal up to T_c, there equal outside the mask and nowhere inside, and outside to the end."""
    report = handle.report
    assert [row.status for row in report] == ["corrected"] * ROWS
    t_c, mask = report[0].plan.t_c, report.masks_grown
    assert all(0 < row.float().mean() < 0.5 for row in mask)
    assert_same(watched[:t_c], stock[:t_c])
    moved = (bits(watched[t_c]) != bits(stock[t_c])).any(1, keepdim=True)
    assert torch.equal(moved, mask)
    if to_the_end:
        outside = ~mask.expand_as(stock[0])
        for one, other in zip(watched[t_c:], stock[t_c:], strict=True):
            assert torch.equal(bits(one)[outside], bits(other)[outside])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_only_the_mask_changes(name, dtype):
    options = {"generator": tiny.generator(9)}, {"generator": tiny.generator(9)}
    stock, _ = loop(name, dtype=dtype, options=options[0])
    watched, handle = loop(name, dtype=dtype, config=AscedConfig(), options=options[1])
    assert torch.equal(options[0]["generator"].get_state(), options[1]["generator"].get_state())
    assert_corrected(stock, watched, handle, to_the_end=name not in tiny.THRESHOLDING)
    unsteady = tiny.spot(GRID, ROWS)
    assert torch.equal(handle.report.masks_grown & unsteady, unsteady)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_steps(name):
    stock, _ = loop(name, options={"generator": tiny.generator(9), **STOCHASTIC[name]})
    watched, handle = loop(name, config=AscedConfig(), options={"generator": tiny.generator(9), **STOCHASTIC[name]})
    assert_corrected(stock, watched, handle)


MODES = {
    "official": AscedConfig.official(min_area=10, max_area=400, blur_sigma=0.5, grow=1, mad_floor=3.0),
    "paper": AscedConfig.paper(),
    "fast": AscedConfig.fast(channels="max", x0_noise=0.1, connectivity=8),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ddim-eps", "euler-v", "flow", "flow-inverted", "dpm3"])
def test_every_mode_changes_only_the_mask(name, mode):
    stock, _ = loop(name)
    watched, handle = loop(name, config=MODES[mode])
    assert_corrected(stock, watched, handle)
    assert handle.report.mode == mode


def test_observing_only_is_the_stock_run():
    stock, _ = loop("dpm3")
    watched, handle = loop("dpm3", config=AscedConfig(correct=False, record="run"))
    assert_same(watched, stock)
    assert [row.status for row in handle.report] == ["observed"] * ROWS


@pytest.mark.parametrize("name", NAMES)
def test_on_x0_sees_every_step_as_the_scheduler_does(name):
    """Within 4*eps*(|a*x| + |b*m|) of the x0 that the stock scheduler computes for the same inputs."""
    from ascedfast.adapters.schedules import schedule_of

    scheduler, twin = tiny.SCHEDULERS[name](), tiny.set_steps(tiny.SCHEDULERS[name](), 25)
    seen, outputs, states = [], [], []
    handle = enable_asced(scheduler, on_x0=lambda step, t, x0: seen.append((step, t, x0.clone())))
    states = tiny.sample(
        scheduler,
        tiny.randn(ROWS, 3, *GRID, seed=4),
        tiny.spot(GRID, ROWS),
        edit=lambda k, m: outputs.append(m.clone()) or m,
        generator=tiny.generator(9),
    )
    assert [step for step, _, _ in seen] == list(range(len(scheduler.timesteps)))
    assert [float(t) for _, t, _ in seen] == [float(t) for t in scheduler.timesteps]
    assert torch.equal(handle.x0, seen[-1][2])
    schedule = schedule_of(twin)
    for k, t in enumerate(twin.timesteps):
        own = own_x0(twin, outputs[k], t, states[k])
        if own is None:
            continue
        level = schedule.before[k]
        bound = 4 * torch.finfo(torch.float32).eps * (abs(level.a) * states[k].abs() + abs(level.b) * outputs[k].abs())
        if name in tiny.THRESHOLDING:
            bound = torch.zeros_like(bound)
        assert ((seen[k][2] - own).abs() <= bound).all(), k


def test_x0_of_a_step_with_churn_is_the_schedulers():
    """Euler's s_churn adds noise to the state first, so its x0 is not a*x + b*m of what ``step`` was given."""
    scheduler = tiny.set_steps(tiny.SCHEDULERS["euler-karras"](), 10)
    handle = enable_asced(scheduler, AscedConfig(record="run"))
    x, m, t = tiny.randn(1, 3, *GRID, seed=1) * 14, tiny.randn(1, 3, *GRID, seed=2), scheduler.timesteps[0]
    scheduler.scale_model_input(x, t)
    out = scheduler.step(m, t, x, s_churn=3.0, generator=tiny.generator())
    assert torch.equal(handle.x0, out.pred_original_sample)


def own_x0(twin, m, t, x):
    """Of the stock scheduler, whose step is run; None where it has none."""
    if hasattr(twin, "scale_model_input"):
        twin.scale_model_input(x, t)
    takes_one = "generator" in inspect.signature(twin.step).parameters
    out = twin.step(m, t, x, **({"generator": tiny.generator()} if takes_one else {}))
    if hasattr(twin, "model_outputs"):
        keeps_x0 = getattr(twin, "predict_x0", twin.config.get("algorithm_type", "").endswith("++"))
        return twin.model_outputs[-1] if keeps_x0 else None
    return out.get("pred_original_sample")


# ---------------------------------------------------------------------------------------------- pipelines


def network_inputs(pipe, kwargs, **changes):
    """The result of a run, and the first tensor that the network saw at every step (one row where guidance doubles)."""
    network = getattr(pipe, "unet", None) or pipe.transformer
    seen = []

    def look(module, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        seen.append(x.detach().clone())

    hook = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        return tiny.run(pipe, kwargs, **changes), seen
    finally:
        hook.remove()


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_pipelines_without_a_finding_are_stock(name):
    pipe, kwargs = tiny.PIPELINES[name]()
    generator = tiny.generator(3)
    stock = tiny.run(pipe, kwargs, generator=generator)
    state = generator.get_state()
    with asced(pipe, NOTHING) as handle:
        generator = tiny.generator(3)
        watched = tiny.run(pipe, kwargs, generator=generator)
        assert {row.status for row in handle.report} == {"clean"}
        assert {row.seed for row in handle.report} == {3}
    assert torch.equal(watched, stock)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(tiny.run(pipe, kwargs, generator=tiny.generator(3)), stock)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_pipelines_are_corrected_inside_the_mask(name):
    pipe, kwargs = tiny.PIPELINES[name]()
    stock, before = network_inputs(pipe, kwargs)
    config = AscedConfig(**SENSITIVE)
    with asced(pipe, config) as handle:
        watched, after = network_inputs(pipe, kwargs)
        report = handle.report
    assert {row.status for row in report} == {"corrected"}
    masks = report.masks_grown[: len(report) // 2 if name == "dit" else None]
    assert all(0 < row.float().mean() < 1 for row in masks)
    t_c = report[0].plan.t_c
    assert all(torch.equal(one, other) for one, other in zip(before[:t_c], after[:t_c], strict=True))
    moved = before[t_c] != after[t_c]
    if moved.dim() == 3:  # packed
        moved = moved.unflatten(1, masks.shape[2:]).permute(0, 3, 1, 2)
    assert torch.equal(moved.any(1, keepdim=True)[: len(masks)], masks)
    assert not torch.equal(watched, stock)
    assert watched.isfinite().all()


@pytest.mark.parametrize(
    ("name", "grid", "size"),
    [
        ("sd15", (32, 24), (64, 48)),
        ("sdxl", (24, 32), (48, 64)),
        ("dit", (16, 16), (32, 32)),
        ("pixart", (16, 16), (32, 32)),
        ("flux", (16, 8), (256, 128)),
    ],
)
def test_masks_have_the_grid_and_the_image_size(name, grid, size):
    pipe, kwargs = tiny.PIPELINES[name]()
    with asced(pipe, AscedConfig(**SENSITIVE)) as handle:
        tiny.run(pipe, kwargs)
        assert handle.report.masks.shape[1:] == (1, *grid)
        assert handle.report.image_size == size
        image = handle.report.masks_image()
        assert image.shape[2:] == size
        assert torch.equal(image[..., :: size[0] // grid[0], :: size[1] // grid[1]], handle.report.masks)


def test_the_callers_size_is_used_where_the_pipeline_makes_its_own():
    pipe, kwargs = tiny.flux()
    kwargs["height"], kwargs["width"] = 250, 130  # the pipeline takes 240 x 128 of it
    with asced(pipe) as handle:
        tiny.run(pipe, kwargs)
        assert handle.report.masks.shape == (1, 1, 15, 8)


def test_packed_latents_on_a_scheduler_alone():
    stock = packed_run(tiny.SCHEDULERS["flow-shift"]())
    scheduler = tiny.SCHEDULERS["flow-shift"]()
    handle = enable_asced(scheduler, seeds=[5, 6], grid=GRID)
    watched = packed_run(scheduler)
    assert_corrected(stock, watched, handle)
    flat, _ = loop("flow-shift", config=AscedConfig())
    assert_same(watched, flat)  # the layout does not matter
    assert handle.x0 is None  # once corrected


def test_x0_of_packed_latents_is_packed():
    scheduler, shapes = tiny.SCHEDULERS["flow-shift"](), []
    enable_asced(scheduler, seeds=[5, 6], grid=GRID, on_x0=lambda step, t, x0: shapes.append(x0.shape))
    packed_run(scheduler)
    assert set(shapes) == {(ROWS, GRID[0] * GRID[1], 3)}


def packed_run(scheduler):
    """Like ``loop``, through packed tensors [B, S, C]; the states as [B, C, H, W]."""

    def unpack(t):
        return t.unflatten(1, GRID).permute(0, 3, 1, 2).contiguous()

    def pack(t):
        return t.flatten(2).transpose(1, 2).contiguous()

    tiny.set_steps(scheduler, 25)
    x = tiny.randn(ROWS, 3, *GRID, seed=4)
    states = [x]
    mean = 0.5 * torch.ones_like(x[:1])
    for k, t in enumerate(scheduler.timesteps):
        m = tiny.pointwise(states[-1], tiny.output_of(scheduler, k), k, mean, tiny.spot(GRID, ROWS))
        states.append(unpack(scheduler.step(pack(m), t, pack(states[-1]), return_dict=False)[0]))
    return states


def test_img2img_that_starts_late_is_left_alone(asced_warnings):
    pipe, kwargs = tiny.sd15_img2img(strength=0.5)
    stock = tiny.run(pipe, kwargs)
    with asced(pipe) as handle:
        watched = tiny.run(pipe, kwargs)
        assert [row.status for row in handle.report] == ["unavailable"]
        assert handle.report.severity == ["unavailable"]
        assert handle.report[0].steps == 12
    assert torch.equal(watched, stock)
    assert len(asced_warnings()) == 1
    assert "left alone" in asced_warnings()[0]


def test_img2img_that_starts_early_is_corrected_at_the_noise_level():
    pipe, kwargs = tiny.sd15_img2img(strength=0.98)
    _, before = network_inputs(pipe, kwargs, num_inference_steps=50)
    with asced(pipe, AscedConfig(**SENSITIVE)) as handle:
        _, after = network_inputs(pipe, kwargs, num_inference_steps=50)
        report = handle.report
    assert report[0].status == "corrected"
    t_c = report[0].plan.t_c
    assert report[0].logsnr[t_c] == pytest.approx(-2.26, abs=0.15)
    assert torch.equal(before[t_c - 1], after[t_c - 1])
    assert torch.equal((before[t_c] != after[t_c]).any(1, keepdim=True)[:1], report.masks_grown)

# SPDX-License-Identifier: MIT
"""The snippets of docs/servers.md, run as they stand; servers are stand-ins (``server_stubs``)."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import server_stubs
import tiny
import torch
import torch.distributed as dist
from diffusers import FlowMatchEulerDiscreteScheduler
from layouts import same_bits
from test_samplers_page import UNSTEADY, jump

import ascedfast
from ascedfast import AscedConfig, Engine, process

PAGE = (Path(__file__).parent.parent / "docs" / "servers.md").read_text()
SNIPPETS = {
    title: code
    for title, text in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    for code in re.findall(r"```python\n(.*?)```", text, re.S)
}
RULES = {"reference_size": None, "min_area": 3, "core_width": 2, "grow": 1}


def run(title, **names):
    exec(compile(SNIPPETS[title], title, "exec"), names)
    return names


def test_every_section_is_tested():
    assert set(SNIPPETS) == {"Rows of your own", "vllm-omni", "SGLang", "xDiT", "LightX2V", "ComfyUI", "Several GPUs"}
    assert PAGE.count("```python") == len(SNIPPETS)


def test_rows_of_ones_own():
    done = []

    def model(x, t):
        unsteady = torch.zeros(64, 64, dtype=torch.bool)
        unsteady[10:30, 10:30] = True
        return 0.5 * x + torch.where(unsteady, (-1.0) ** (40 * t).round().view(-1, 1, 1, 1), 0.0)

    run(
        "Rows of your own",
        device="cpu",
        noise=lambda seed: torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(seed)),
        model=model,
        finish=lambda x, report: done.append((x, report)),
    )
    assert [(report.seed, report.executed) for _, report in done] == [(12, 13), (11, 25)]
    assert all(x.isfinite().all() for x, _ in done)


def test_vllm_omni(monkeypatch):
    seen, names = [], ("vllm_omni", "vllm_omni.entrypoints", "vllm_omni.entrypoints.async_omni")
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    server_stubs.async_omni(seen)
    run("vllm-omni", model="a folder")
    (options,) = seen
    assert options["diffusion_scheduler"] in PAGE.split("| vllm-omni | ")[1].split("|")[0]
    from ascedfast.adapters.vllm_omni import PER_REQUEST, AscedFlowMatchEuler

    assert AscedFlowMatchEuler(**options["diffusion_scheduler_kwargs"]).__dict__["_asced"].config.mad_scale == 3.0
    assert all(f"`{name}`" in PAGE for name in PER_REQUEST)


def test_sglang():
    shape = (4, 16, 16)
    names = run("SGLang", shape=shape, device="cpu", dtype=torch.float32)
    states, expected = [], []
    for i, steps in enumerate((12, 20)):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(steps)
        states.append(server_stubs.state_of(scheduler, tiny.randn(2, *shape, seed=i)))
        names["request_joins"](states[-1], i, AscedConfig(correct=False, **RULES))
        expected.append(states[-1].denoising_context.latents.clone())
    x = torch.cat(expected)
    tables = [state.denoising_context.scheduler.sigmas for state in states for _ in range(2)]
    mine = x.clone()
    for step in range(12):
        m = tiny.randn(4, *shape, seed=step)
        x = server_stubs.packed_euler(tables, [step] * 4, m, x)
        mine = names["step_rows"](m, mine, states)
        assert same_bits(mine, x)
        for state in states:
            state.step_index = state.denoising_context.scheduler._step_index
    assert [state.step_index for state in states] == [12, 12]
    assert names["batch"].finished == tuple(states[0].asced_rows)
    assert names["batch"].remove(states[0].asced_rows[0]).status in ("observed", "clean")


def test_xdit():
    pipe, call = tiny.flux()
    handle = run("xDiT", runner=SimpleNamespace(pipe=pipe), seed=3)["handle"]
    pipe(**call | {"num_inference_steps": 25})
    assert handle.report.seeds == [3]
    assert handle.report[0].status in ("corrected", "clean")


def test_xdits_wrapped_scheduler_is_refused():
    with pytest.raises(TypeError, match="expected a diffusers pipeline or scheduler"):
        ascedfast.enable_asced(SimpleNamespace(module=FlowMatchEulerDiscreteScheduler()))


@pytest.mark.parametrize("correct", [True, False])
def test_lightx2v(correct):
    sigmas = [1 - k / 20 for k in range(21)]
    shape = (3, 2, *UNSTEADY.shape[-2:])
    scheduler, stock = (server_stubs.EulerOfLightX2V(sigmas, tiny.randn(*shape)) for _ in range(2))
    runs = run("LightX2V")["watch"](scheduler, 5, AscedConfig(correct=correct, **RULES))
    states = []
    for _ in range(2):  # two runs of one scheduler
        for one in (scheduler, stock):
            one.latents = tiny.randn(*shape)
        for k in range(20):
            for one in (scheduler, stock):
                one.step_pre(k)
                one.noise_pred = 0.3 * one.latents - jump(k)[0]
                one.step_post()
        report = runs[0].report
        assert report[0].status == ("corrected" if correct else "observed")
        assert report[0].seed == 5
        assert same_bits(scheduler.latents, stock.latents) != correct
        states.append(scheduler.latents)
    assert same_bits(*states)


def test_comfyui():
    names = run("ComfyUI")
    assert "AscedSampler" in names["NODE_CLASS_MAPPINGS"]


def test_several_gpus(tmp_path):
    """By one process; two are in tests/test_several_ranks.py."""
    schedule = ascedfast.Schedule.from_levels([process.flow(1 - k / 20) for k in range(20)])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        x = tiny.randn(1, 3, 24, 20)
        config = AscedConfig(**RULES)
        names = run(
            "Several GPUs",
            process_group=None,
            schedule=schedule,
            config=config,
            seed=4,
            timesteps=range(20),
            model=lambda x, t: 0.3 * x - jump(t)[:1],
            solver_step=lambda m, k, x: x - m / 20,
            x=x,
        )
    finally:
        dist.destroy_process_group()
    engine = Engine()
    engine.add(schedule, config, seed=4)
    for k in range(20):
        m = 0.3 * x - jump(k)[:1]
        engine.observe(x, m)
        x = x - m / 20
        engine.correct_(x)
    assert same_bits(names["x"], x)
    assert names["run"].report[0].status == "corrected"


def test_the_files_that_it_names_are_there():
    root = Path(__file__).parent.parent
    named = re.findall(r"`((?:docs|tests|examples)/[\w.]+)`", PAGE)
    there = {name for name in named if (root / name).is_file()}
    assert set(named) - there <= {"docs/serving.md"}  # a page of another part

# SPDX-License-Identifier: MIT
"""The snippets of docs/samplers.md, run as they stand with small models in the names that they leave open."""

import inspect
import re
from pathlib import Path

import comfy_stub
import k_diffusion_file
import pytest
import tiny
import torch
from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxCoreDenoiseStep

import ascedfast
from ascedfast import process

PAGE = (Path(__file__).parent.parent / "docs" / "samplers.md").read_text()
SNIPPETS = {
    title: code
    for title, text in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    for code in re.findall(r"```python\n(.*?)```", text, re.S)
}
SHAPE, STEPS = (2, 3, 24, 20), 25
UNSTEADY = tiny.spot(SHAPE[2:], 2)


def jump(step):
    return torch.where(UNSTEADY, 0.6 if step % 2 else -0.6, 0.0) + 0.25


def run(title, **names):
    exec(compile(SNIPPETS[title], title, "exec"), names)
    return names


def assert_corrected(report):
    assert [row.status for row in report] == ["corrected", "corrected"]
    assert (report.masks_grown & UNSTEADY).sum() == UNSTEADY.sum()
    assert report.masks_grown.float().mean() < 0.5


def test_every_section_is_tested():
    tested = {"k-diffusion", "ComfyUI", "guided-diffusion", "diffusers' modular pipelines", "A loop of your own"}
    assert set(SNIPPETS) == tested | {"A loop of your own with a cache"}
    assert PAGE.count("```python") == len(SNIPPETS)


def test_k_diffusion(capsys):
    sampling = k_diffusion_file.load_sampling()
    sigmas = sampling.get_sigmas_karras(STEPS, 0.05, 20.0)

    def model(x, sigma):
        return jump(int((sigmas > sigma[0]).sum())) + 0 * x

    names = run("k-diffusion", sampling=sampling, model=model, x=20 * tiny.randn(*SHAPE), sigmas=sigmas)
    assert_corrected(names["sampler"].report)
    assert names["images"].shape == SHAPE
    assert "row 1: corrected" in capsys.readouterr().out


def test_comfyui():
    names = run("ComfyUI")
    assert names["NODE_CLASS_MAPPINGS"].keys() == names["NODE_DISPLAY_NAME_MAPPINGS"].keys()
    (node,) = names["NODE_CLASS_MAPPINGS"].values()
    assert names["NODE_DISPLAY_NAME_MAPPINGS"]["AscedSampler"] in PAGE
    assert node().wrap(comfy_stub.Sampler(comfy_stub.sample_euler), "fast", 3.0, True)[0].sampler_function.enabled


class Diffusion:
    """What the page takes of guided-diffusion's GaussianDiffusion: its tables, and a loop that yields a step's result
    and goes on from it."""

    def __init__(self):
        abar = torch.linspace(0.98, 0.0005, STEPS, dtype=torch.float64)
        self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod = abar.sqrt().numpy(), (1 - abar).sqrt().numpy()
        self.states = []

    def p_sample_loop_progressive(self, model, shape):
        x = tiny.randn(*shape)
        for i in reversed(range(STEPS)):
            x0, alpha, sigma = model(x, i), self.sqrt_alphas_cumprod[i], self.sqrt_one_minus_alphas_cumprod[i]
            low = (self.sqrt_alphas_cumprod[i - 1], self.sqrt_one_minus_alphas_cumprod[i - 1]) if i else (1.0, 0.0)
            out = {"sample": low[0] * x0 + low[1] * (x - alpha * x0) / sigma, "pred_xstart": x0}
            before = out["sample"].clone()
            yield out
            x = out["sample"]
            self.states.append((before, x))


def test_guided_diffusion():
    diffusion = Diffusion()
    names = run("guided-diffusion", diffusion=diffusion, model=lambda x, t: jump(t) + 0 * x, shape=SHAPE)
    report = names["run"].report
    assert_corrected(report)
    moved = [k + 1 for k, (one, other) in enumerate(diffusion.states) if not torch.equal(one, other)]
    assert moved == [report[0].plan.t_c]
    before, after = diffusion.states[moved[0] - 1]
    assert torch.equal((before != after).any(1, keepdim=True), report.masks_grown)


def test_modular(capsys):
    stock, call = tiny.flux()
    call = {name: value for name, value in call.items() if name != "output_type"} | {"num_inference_steps": STEPS}
    components = {"transformer": stock.transformer, "scheduler": stock.scheduler}
    run("diffusers' modular pipelines", blocks=FluxCoreDenoiseStep(), components=components, call=call)
    assert "row 0: " in capsys.readouterr().out


def test_a_loop_of_ones_own():
    def model(x, t):
        x0 = jump(round(t * STEPS))
        return -2 * t * x0 + (x - (1 - t * t) * x0) / t

    names = run("A loop of your own", model=model, x=tiny.randn(*SHAPE), steps=STEPS)
    assert_corrected(names["run"].report)


def test_a_loop_of_ones_own_with_a_cache():
    answered, last = {3, 6, 7}, {}

    def model(x, t):
        step = STEPS - round(t * STEPS)
        last["x0"] = last["x0"] if step in answered else jump(step)
        return (x - last["x0"]) / t

    times = [1 - k / STEPS for k in range(STEPS)]
    schedule = ascedfast.Schedule.from_levels([process.flow(t) for t in times])
    names = {"schedule": schedule, "times": times, "answered": answered.__contains__, "ascedfast": ascedfast}
    names = run("A loop of your own with a cache", **names, model=model, x=tiny.randn(*SHAPE), steps=STEPS)
    assert_corrected(names["run"].report)
    steps = [step for step, _ in names["run"].report[0].dynamics]
    assert not answered & set(steps)
    assert steps[0] < names["run"].report[0].plan.start


def test_the_table_names_every_process():
    made_here = [made for made in vars(process).values() if getattr(made, "__module__", None) == process.__name__]
    functions = {made.__name__ for made in made_here if inspect.isfunction(made)}
    assert functions == set(re.findall(r"`(\w+)`", PAGE.split("| `ascedfast.process`")[1])) - {"x0"}
    assert {"interpolant", "edm"} <= functions


@pytest.mark.parametrize("name", ["ddim_loop.py", "guided_diffusion_loop.py"])
def test_the_examples_it_names_are_there(name):
    assert f"examples/{name}" in PAGE
    assert (Path(__file__).parent.parent / "examples" / name).is_file()

# SPDX-License-Identifier: MIT
"""ComfyUI's node, against stand-ins for ComfyUI (``comfy_stub``): levels, known regions, seeds, refusals."""

import functools
import logging
import subprocess
import sys

import comfy_stub
import k_diffusion_file
import pytest
import tiny
import torch
from row_loop import bits

from ascedfast.adapters import comfyui
from ascedfast.noise import Purpose, normal

SHAPE, STEPS = (2, 4, 24, 20), 20
FAMILIES = {
    "eps": (comfy_stub.Eps(), torch.cat([torch.logspace(1.3, -1.3, STEPS), torch.zeros(1)])),
    "flow": (comfy_stub.Const(), 3 * (s := torch.linspace(1, 0, STEPS + 1)) / (1 + 2 * s)),
}
UNSTEADY = tiny.spot(SHAPE[2:], 2)


def wrapped(sampler_function, **settings):
    """The node's output for that sampler function, as ComfyUI calls it."""
    node = comfyui.NODE_CLASS_MAPPINGS["AscedSampler"]
    given = {"sampler": comfy_stub.Sampler(sampler_function), "mode": "fast", "mad_scale": 8.0, "correct": True}
    assert given.keys() == node.INPUT_TYPES()["required"].keys()
    (sampler,) = getattr(node(), node.FUNCTION)(**{**given, **settings})
    return sampler


class Run:
    def __init__(self, family, sampler, denoise_mask=None, seed=5):
        sampling, self.sigmas = FAMILIES[family]
        self.seen, self.x0 = [], []
        latent = 0.5 * torch.ones(SHAPE)
        guider = comfy_stub.Guider(comfy_stub.BaseModel(sampling), self.denoiser)
        self.sampler = sampler
        self.x = sampler.sample(
            guider, self.sigmas, {"seed": seed}, self.on_step, tiny.randn(*SHAPE, seed=seed), latent, denoise_mask
        )

    def denoiser(self, x, sigma):
        step = int((self.sigmas > sigma[0]).sum())
        jump = 0.6 if step % 2 else -0.6
        return 0.25 + x * 0.015625 + 0.03125 * step + torch.where(UNSTEADY, jump, 0.0)

    def on_step(self, i, denoised, x, total_steps):
        assert (i, total_steps) == (len(self.seen), STEPS)
        self.seen.append(x.clone())
        self.x0.append(denoised.clone())

    @property
    def report(self):
        return self.sampler.sampler_function.report


@pytest.mark.parametrize("family", FAMILIES)
def test_a_region_is_renoised_by_the_models_own_rule(family):
    stock = Run(family, comfy_stub.Sampler(comfy_stub.sample_euler))
    run = Run(family, wrapped(comfy_stub.sample_euler))
    assert [row.status for row in run.report] == ["corrected"] * 2
    mask = run.report.masks_grown
    assert (mask & UNSTEADY).sum() == UNSTEADY.sum()
    t_c = run.report[0].plan.t_c
    moved = (bits(stock.seen[t_c]) != bits(run.seen[t_c])).any(1, keepdim=True)
    assert torch.equal(moved, mask)
    assert not (run.x != stock.x).any(1, keepdim=True)[~mask].any()
    assert [(row.seed, row.draw) for row in run.report] == [(5, 0), (5, 1)]
    noise = normal(torch.tensor([5, 5]), SHAPE[1], SHAPE[2:], step=t_c, purpose=Purpose.RENOISE, draw=torch.arange(2))
    expected = FAMILIES[family][0].noise_scaling(run.sigmas[t_c], noise, run.x0[t_c - 1])
    inside = mask.expand(SHAPE)
    torch.testing.assert_close(run.seen[t_c][inside], expected[inside], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_switched_to_observe_it_is_the_stocks_bits(family):
    stock = Run(family, comfy_stub.Sampler(comfy_stub.sample_euler))
    run = Run(family, wrapped(comfy_stub.sample_euler, correct=False))
    assert torch.equal(bits(stock.x), bits(run.x))
    assert [row.status for row in run.report] == ["observed"] * 2


def half_of_the_spot():
    """The columns up to the middle of the first row's spot."""
    return int(UNSTEADY[0, 0].any(0).nonzero().float().mean())


def test_a_known_region_is_never_written():
    """The denoise mask's zeros: what is no artifact, and nothing grows into."""
    drawn = torch.ones(SHAPE)
    drawn[..., : half_of_the_spot()] = 0
    known = drawn[:, :1] == 0
    free = Run("flow", wrapped(comfy_stub.sample_euler))
    stock = Run("flow", comfy_stub.Sampler(comfy_stub.sample_euler), drawn)
    run = Run("flow", wrapped(comfy_stub.sample_euler), drawn)
    t_c = run.report[0].plan.t_c
    moved = (stock.seen[t_c] != run.seen[t_c]).any(1, keepdim=True)
    assert (free.report.masks & known).any()
    assert torch.equal(moved, run.report.masks_grown)
    assert moved.any()
    assert not (moved & known).any()


@pytest.mark.parametrize("drawn", [False, True])
def test_the_nodes_mask_is_never_written(drawn):
    """In pixels, eight a side of a location; beside a denoise mask too."""
    node = comfyui.NODE_CLASS_MAPPINGS["AscedSampler"]
    assert node.INPUT_TYPES()["optional"] == {"keep_mask": ("MASK",)}
    kept = torch.zeros(1, 8 * SHAPE[2], 8 * SHAPE[3])
    kept[..., : 8 * half_of_the_spot() - 7] = 0.25  # one column of pixels in the last location
    keep = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.bool)
    keep[..., : half_of_the_spot()] = True
    denoise = None
    if drawn:
        denoise = torch.ones(SHAPE)
        denoise[:, :, :3] = 0
        keep = keep | (denoise[:, :1] == 0)
    stock = Run("eps", comfy_stub.Sampler(comfy_stub.sample_euler), denoise)
    run = Run("eps", wrapped(comfy_stub.sample_euler, keep_mask=kept), denoise)
    free = Run("eps", wrapped(comfy_stub.sample_euler), denoise)
    mask = run.report.masks_grown
    assert torch.equal(run.report.masks, free.report.masks & ~keep)
    assert (free.report.masks & keep).any()
    t_c = run.report[0].plan.t_c
    assert torch.equal((stock.seen[t_c] != run.seen[t_c]).any(1, keepdim=True), mask)
    assert mask.any()
    assert not (mask & keep).any()


@pytest.mark.parametrize(
    ("pixels", "grid"), [((64, 48), (8, 6)), ((61, 47), (8, 6)), ((3, 5), (8, 6)), ((8, 6), (8, 6))]
)
def test_no_marked_pixel_is_lost(pixels, grid):
    """Whatever the sizes: every pixel alone protects all locations that it touches, and no other."""
    height, width = pixels
    for y, x in [(0, 0), (height - 1, width - 1), (height // 2, width // 3), (height // 3, width - 2)]:
        mask = torch.zeros(1, height, width)
        mask[0, y, x] = 1e-3
        kept = comfyui.keep_mask_from(mask, grid)
        rows, columns = (
            [at * full < (k + 1) * side and (at + 1) * full > k * side for k in range(full)]
            for at, full, side in ((y, grid[0], height), (x, grid[1], width))
        )
        assert kept.shape == (1, 1, *grid)
        assert torch.equal(kept[0, 0], torch.tensor(rows)[:, None] & torch.tensor(columns)[None])


def test_masks_of_several_images():
    """Of images a mask a row; of a video a mask a frame, or one for all."""
    masks = torch.zeros(2, 16, 16)
    masks[1] = 1
    assert comfyui.keep_mask_from(masks, (2, 2)).flatten(1).all(1).tolist() == [False, True]
    assert comfyui.keep_mask_from(masks, (2, 2, 2))[0, 0].flatten(1).all(1).tolist() == [False, True]
    assert comfyui.keep_mask_from(masks[1], (4, 2, 2)).all()
    assert comfyui.keep_mask_from(masks[1], (2, 2)).shape == (1, 1, 2, 2)
    with pytest.raises(ValueError, match="keep_mask has 3 rows, the run has 2"):
        Run("eps", wrapped(comfy_stub.sample_euler, keep_mask=torch.ones(3, 16, 16)))
    with pytest.raises(TypeError, match="must be a MASK"):
        wrapped(comfy_stub.sample_euler, keep_mask="mask.png")


@pytest.mark.parametrize("ratio", [4, 8])
def test_pixel_frames_fall_on_the_latent_frames_that_are_made_of_them(ratio):
    """Of a causal VAE: the first of the first alone, each other one of the ``ratio`` behind."""
    count = 1 + 3 * ratio
    for frame in range(count):
        mask = torch.zeros(count, 16, 16)
        mask[frame, 5, 6] = 1
        kept = comfyui.keep_mask_from(mask, (4, 2, 2))
        expected = torch.zeros(1, 1, 4, 2, 2, dtype=torch.bool)
        expected[0, 0, (frame + ratio - 1) // ratio, 0, 0] = True
        assert torch.equal(kept, expected)


@pytest.mark.parametrize(("count", "frames"), [(12, 4), (2, 4), (3, 4), (14, 4), (5, 1)])
def test_numbers_of_frames_that_fit_nothing(count, frames):
    with pytest.raises(ValueError, match=f"{count} images, the latents have {frames} frames: give one image for all"):
        comfyui.keep_mask_from(torch.ones(count, 16, 16), (frames, 2, 2))


def test_a_videos_mask_is_never_written():
    """[1, 4, 4, 24, 20]: 13 pixel frames; the last four, the last latent frame, are kept."""
    shape = (1, 4, 4, 24, 20)
    unsteady = tiny.spot(shape[3:])[:, :, None]

    class Model:
        def __init__(self):
            self.inner_model = type("Inner", (), {"inner_model": comfy_stub.BaseModel(comfy_stub.Const())})()

        def __call__(self, x, sigma):
            jump = 0.6 if int((FAMILIES["flow"][1] > sigma[0]).sum()) % 2 else -0.6
            return 0.25 + x * 0.015625 + torch.where(unsteady, jump, 0.0)

    kept = torch.zeros(13, 8 * shape[3], 8 * shape[4])
    kept[9:] = 1
    for mask, frames in ((None, 4), (kept, 3)):
        sampler = wrapped(comfy_stub.sample_euler, keep_mask=mask).sampler_function
        sampler(Model(), tiny.randn(*shape), FAMILIES["flow"][1], callback=lambda info: None)
        assert sampler.report[0].status == "corrected"
        assert sampler.report.masks_grown[0, 0].flatten(1).any(1).tolist() == [True] * frames + [False] * (4 - frames)


def test_with_a_real_multistep_sampler():
    sampling = k_diffusion_file.load_sampling()
    stock = Run("eps", comfy_stub.Sampler(sampling.sample_dpmpp_2m))
    run = Run("eps", wrapped(sampling.sample_dpmpp_2m))
    moved = (run.x != stock.x).any(1, keepdim=True)
    assert torch.equal(moved & ~run.report.masks_grown, torch.zeros_like(moved))
    assert moved.any()


def test_every_run_is_logged_and_seeded_anew(caplog):
    caplog.set_level(logging.INFO, logger="ascedfast")
    sampler = wrapped(functools.partial(comfy_stub.sample_euler))
    first, again, other = (Run("eps", sampler, seed=seed).x for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [record.getMessage().startswith("ASCED in sample_euler:") for record in caplog.records] == [True] * 3


def test_the_sampler_given_is_not_modified():
    given = comfy_stub.Sampler(comfy_stub.sample_euler, {"disable": True}, {"random": True})
    sampler = wrapped(None, sampler=given)
    assert given.sampler_function is comfy_stub.sample_euler
    assert (sampler.extra_options, sampler.inpaint_options) == (given.extra_options, given.inpaint_options)
    assert sampler.sampler_function.__name__ == "sample_euler"


def named(name):
    def function(model, x, sigmas, extra_args, callback, disable):
        raise AssertionError("never called")

    function.__name__ = name
    return function


@pytest.mark.parametrize("name", ["sample_unipc", "sample_sa_solver", "dpm_adaptive_function", "dpm_fast_function"])
def test_what_cannot_be_corrected_is_refused(name):
    with pytest.raises(ValueError, match=f"cannot correct {name}: .*; take "):
        wrapped(named(name))


def test_without_comfyui_errors_say_what_was_expected():
    with pytest.raises(TypeError, match="expected a SAMPLER with a sampler_function"):
        wrapped(None, sampler="euler")
    sampler = wrapped(comfy_stub.sample_euler).sampler_function
    with pytest.raises(ValueError, match="for other models use"):
        sampler(lambda x, sigma: x, torch.zeros(SHAPE), FAMILIES["eps"][1])
    with pytest.raises(ValueError, match="unknown mode"):
        wrapped(comfy_stub.sample_euler, mode="quick")


def test_neither_comfyui_nor_diffusers_is_imported():
    code = "import sys; sys.modules['comfy'] = sys.modules['diffusers'] = None; import ascedfast.adapters.comfyui"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

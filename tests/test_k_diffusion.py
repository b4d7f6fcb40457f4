# SPDX-License-Identifier: MIT
"""ASCED in every sampler of k-diffusion's real sampling.py: what it corrects, what it leaves, and what it refuses."""

import functools

import k_diffusion_file
import pytest
import tiny
import torch
from row_loop import bits
from torch.utils._python_dispatch import TorchDispatchMode

from ascedfast import AscedConfig
from ascedfast.adapters.k_diffusion import asced_sampler

GRID, CHANNELS, STEPS = (24, 20), 3, 20
CONFIG = AscedConfig(mad_scale=8)
SEEDS = [3, 2**63 + 5]
EVALUATIONS = {
    "euler": 1,
    "euler_ancestral": 1,
    "heun": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "lms": 1,
    "dpm_fast": 3,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m": 1,
    "dpmpp_2m_sde": 1,
    "dpmpp_3m_sde": 1,
}
STOCHASTIC = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
every_sampler = pytest.mark.parametrize("name", EVALUATIONS)


@pytest.fixture(scope="module")
def sampling():
    return k_diffusion_file.load_sampling()


class Denoiser:
    """The exact denoiser of a Gaussian, location by location, but for a spot that jumps from level to level."""

    def __init__(self, sigmas, seeds=SEEDS, jumps=True):
        self.sigmas, self.seeds = sigmas, seeds
        self.unsteady = torch.cat([tiny.spot(GRID, 1 + seed % 4)[-1:] for seed in seeds]) & jumps
        self.seen = []

    def __call__(self, x, sigma, gain=1.0):
        self.seen.append(x.clone())
        step = int((self.sigmas > sigma[0] * 1.0001).sum())
        weight = float(0.25 / (0.25 + sigma[0] ** 2))
        x0 = 0.25 + weight * (x - 0.25) + 0.0625 * step
        return x0 * gain + torch.where(self.unsteady, 0.6 if step % 2 else -0.6, 0.0)


def noise_between(seeds, sigma, sigma_next):
    """The same noise for a row and two levels, in any batch and run."""
    return torch.cat([tiny.randn(1, CHANNELS, *GRID, seed=seed % 2**32 + int(1e4 * sigma)) for seed in seeds])


class Run:
    def __init__(
        self, sampling, name, *, asced=True, seeds=SEEDS, jumps=True, config=CONFIG, keep_mask=None, each=None, **more
    ):
        self.sigmas = sampling.get_sigmas_karras(STEPS, 0.05, 20.0)
        self.model = Denoiser(self.sigmas, seeds, jumps)
        self.callbacks = []
        x = torch.cat([20 * tiny.randn(1, CHANNELS, *GRID, seed=s % 2**32) for s in seeds])
        before = x.clone()
        levels = (0.05, 20.0, 3 * STEPS - 2) if name == "dpm_fast" else (self.sigmas,)
        if name in STOCHASTIC:
            more["noise_sampler"] = functools.partial(noise_between, seeds)
        stock = getattr(sampling, f"sample_{name}")
        self.sampler = asced_sampler(stock, config, seeds=seeds, keep_mask=keep_mask) if asced else stock
        self.x = self.sampler(self.model, x, *levels, callback=each or self.callbacks.append, disable=True, **more)
        assert torch.equal(x, before)

    @property
    def report(self):
        return self.sampler.report

    @property
    def at_t_c(self):
        return self.report[0].plan.t_c * EVALUATIONS[self.sampler.__name__.removeprefix("sample_")]


def test_every_sampler_of_the_file_is_here(sampling):
    assert {name for name in vars(sampling) if name.startswith("sample_")} - {"sample_dpm_adaptive"} == {
        f"sample_{name}" for name in EVALUATIONS
    }


@every_sampler
def test_off_and_nothing_found_are_the_stocks_bits(sampling, name):
    stock = Run(sampling, name, asced=False)
    for config in (AscedConfig(correct=False, mad_scale=8), AscedConfig(min_area=1e9, max_area=1e10)):
        other = Run(sampling, name, config=config)
        assert torch.equal(bits(other.x), bits(stock.x))
        assert [c["i"] for c in other.callbacks] == [c["i"] for c in stock.callbacks]
    steady, clean = Run(sampling, name, asced=False, jumps=False), Run(sampling, name, jumps=False)
    assert [row.status for row in clean.report] == ["clean", "clean"]
    assert torch.equal(bits(clean.x), bits(steady.x))


@every_sampler
def test_the_planted_region_is_corrected_and_nothing_else(sampling, name):
    stock, run = Run(sampling, name, asced=False), Run(sampling, name)
    assert [row.status for row in run.report] == ["corrected", "corrected"]
    mask = run.report.masks_grown
    assert (mask & run.model.unsteady).sum() == run.model.unsteady.sum()
    assert mask.float().mean() < 0.5
    calls = len(stock.model.seen)
    assert len(run.model.seen) == calls
    for k, (x, other) in enumerate(zip(stock.model.seen, run.model.seen, strict=True)):
        moved = (bits(x) != bits(other)).any(1, keepdim=True)
        assert not (moved & ~mask).any()
        assert k >= run.at_t_c or not moved.any()
        assert k != run.at_t_c or torch.equal(moved, mask)
    final = (run.x - stock.x).abs().mean(1, keepdim=True)
    assert not final[~mask].any()
    assert final[mask].mean() > 0.03


RESTARTABLE = [name for name in EVALUATIONS if name not in ("lms", "dpm_fast")]


@pytest.mark.parametrize("name", RESTARTABLE)
def test_inside_the_mask_the_run_goes_on_as_if_begun_there(sampling, name):
    """No memory of the old path is left: a run begun at T_c from the corrected state ends at the same sample."""
    run = Run(sampling, name)
    start, t_c = run.model.seen[run.at_t_c], run.report[0].plan.t_c
    more = {"noise_sampler": functools.partial(noise_between, SEEDS)} if name in STOCHASTIC else {}
    fresh = Denoiser(run.sigmas)
    end = getattr(sampling, f"sample_{name}")(fresh, start, run.sigmas[t_c:], disable=True, **more)
    mask = run.report.masks_grown.expand_as(end)
    torch.testing.assert_close(run.model.seen[run.at_t_c + 1][mask], fresh.seen[1][mask], rtol=1e-5, atol=1e-5)
    if name != "dpmpp_3m_sde":  # its third step looks back on a filled entry, where a fresh run has none
        torch.testing.assert_close(run.x[mask], end[mask], rtol=1e-5, atol=1e-5)


@every_sampler
def test_a_row_is_the_same_alone_and_in_a_batch(sampling, name):
    together = Run(sampling, name)
    for i, seed in enumerate(SEEDS):
        alone = Run(sampling, name, seeds=[seed])
        assert torch.equal(bits(alone.x), bits(together.x[i : i + 1]))
        assert alone.report[0].severity == together.report[i].severity


def test_churn_is_corrected_at_the_level_that_the_model_sees(sampling):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        run = Run(sampling, "euler", s_churn=8.0, s_tmax=10.0)
    t_c = run.report[0].plan.t_c
    hat = run.callbacks[t_c]["sigma_hat"]
    assert hat > run.sigmas[t_c]
    x0 = run.callbacks[t_c - 1]["denoised"]
    mask = run.report.masks_grown.expand_as(x0)
    noise = (run.model.seen[t_c] - x0)[mask]
    assert noise.std() / hat == pytest.approx(1, abs=0.1)
    levels = run.sampler._engine._rows[0].schedule.before
    told = [(float(c["sigma_hat"]), level.sigma) for c, level in zip(run.callbacks, levels, strict=True)]
    assert all(one == pytest.approx(other, rel=1e-5) for one, other in told)


def left(columns, rows=1):
    keep = torch.zeros(rows, 1, *GRID, dtype=torch.bool)
    keep[..., :columns] = True
    return keep


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_3m_sde"])
def test_what_is_protected_is_left(sampling, name):
    stock, free = Run(sampling, name, asced=False), Run(sampling, name)
    for keep in (left(8), torch.cat([left(8), left(20)])):
        run = Run(sampling, name, keep_mask=keep)
        mask = run.report.masks_grown
        assert (free.report.masks & keep).any()
        assert torch.equal(run.report.masks, free.report.masks & ~keep)
        assert not (mask & keep).any()
        for k, (x, other) in enumerate(zip(stock.model.seen, run.model.seen, strict=True)):
            moved = (bits(x) != bits(other)).any(1, keepdim=True)
            assert not (moved & ~mask).any()
            assert k != run.at_t_c or torch.equal(moved, mask)


def test_a_mask_that_does_not_fit_stops_the_run_before_it_begins(sampling):
    sigmas, model = sampling.get_sigmas_karras(STEPS, 0.05, 20.0), Denoiser(sampling.get_sigmas_karras(STEPS, 0.05, 20))
    for keep, words in (
        (left(8)[..., :9], "grid 24 x 9, the latents' is 24 x 20"),
        (left(8, 3), "3 rows, the run has"),
    ):
        sampler = asced_sampler(sampling.sample_euler, keep_mask=keep)
        with pytest.raises(ValueError, match=words):
            sampler(model, torch.zeros(2, CHANNELS, *GRID), sigmas, disable=True)
    assert model.seen == []
    with pytest.raises(TypeError, match="bool"):
        asced_sampler(sampling.sample_euler, keep_mask=torch.zeros(1, 1, *GRID))


def unsaid(model, x, sigmas, callback=None, disable=None, s_churn=None, s_tmin=None, s_tmax=None):
    """A sampler whose churn may be left unsaid."""
    return telling_the_start(model, x, sigmas, callback, disable)


@pytest.mark.parametrize("argument", ["s_churn", "s_tmin", "s_tmax"])
def test_churn_that_is_none_is_the_samplers_own_affair(sampling, argument):
    sigmas = sampling.get_sigmas_karras(STEPS, 0.05, 20.0)
    x = 20 * tiny.randn(2, CHANNELS, *GRID)
    sampler = asced_sampler(unsaid, CONFIG, seeds=SEEDS)
    sampler(Denoiser(sigmas), x, sigmas, **{"s_churn": 4.0, argument: None})
    levels = [level.sigma for level in sampler._engine._rows[0].schedule.before]
    churned = [sigma * (1 if argument == "s_churn" else 1 + 4 / STEPS) for sigma in sigmas[:-1].tolist()]
    assert levels == pytest.approx(churned)
    errors = []
    for function in (sampling.sample_euler, asced_sampler(sampling.sample_euler, CONFIG, seeds=SEEDS)):
        with pytest.raises(TypeError) as raised:
            function(Denoiser(sigmas), x, sigmas, disable=True, **{argument: None})
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


def test_a_model_that_keeps_its_output_is_not_written_into(sampling):
    kept = []

    class Keeping(Denoiser):
        def __call__(self, x, sigma):
            kept.append((out := super().__call__(x, sigma), out.clone()))
            return out

    sigmas = sampling.get_sigmas_karras(STEPS, 0.05, 20.0)
    sampler = asced_sampler(sampling.sample_dpmpp_2m, seeds=SEEDS)
    sampler(Keeping(sigmas), Run(sampling, "euler", asced=False).model.seen[0], sigmas, disable=True)
    assert sampler.report[0].status == "corrected"
    assert all(torch.equal(one, other) for one, other in kept)


def test_extra_arguments_and_attributes_reach_the_model(sampling):
    run = Run(sampling, "euler", extra_args={"gain": 0.5})
    stock = Run(sampling, "euler", asced=False, extra_args={"gain": 0.5})
    outside = ~run.report.masks_grown.expand_as(run.x)
    assert torch.equal(run.x[outside], stock.x[outside])

    def looks_inside(model, x, sigmas, callback=None):
        assert model.seeds == SEEDS
        return x

    assert asced_sampler(looks_inside)(run.model, run.x, run.sigmas) is run.x


def test_inference_mode(sampling):
    with torch.inference_mode():
        run = Run(sampling, "dpmpp_2m")
    assert torch.equal(run.x, Run(sampling, "dpmpp_2m").x)


class ReadBacks(TorchDispatchMode):
    """Counts the operations that read a value back to the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["euler_ancestral", "heun", "dpmpp_2m"])
def test_watching_reads_nothing_back(sampling, name):
    """Up to T_c, beyond what the sampler and its model read."""
    counts = []
    for config in (None, CONFIG):
        counts.append([])
        with ReadBacks() as seen:
            each = functools.partial(lambda seen, info: counts[-1].append(seen.count), seen)
            run = Run(sampling, name, asced=config is not None, config=config, each=each)
    t_c = run.report[0].plan.t_c
    assert counts[0][t_c - 1] > 0
    assert counts[0][:t_c] == counts[1][:t_c]


def test_seeds_and_switch(sampling):
    sigmas = sampling.get_sigmas_karras(STEPS, 0.05, 20.0)
    x = torch.zeros(2, CHANNELS, *GRID)
    sampler = asced_sampler(sampling.sample_euler, seeds=7)
    assert len(sampler.report) == 0
    sampler(Denoiser(sigmas), x, sigmas, disable=True)
    assert [(row.seed, row.draw) for row in sampler.report] == [(7, 0), (7, 1)]
    sampler.enabled = False
    last = sampler.report
    sampler(Denoiser(sigmas, [1]), x[:1], sigmas, disable=True)
    assert len(sampler.report) == len(last)
    with pytest.raises(ValueError, match="1 seeds were given for 2 rows"):
        asced_sampler(sampling.sample_euler, seeds=[7])(Denoiser(sigmas), x, sigmas, disable=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [("sample_dpm_adaptive", "take dpm_fast"), ("log_likelihood", "draws no sample"), ("to_d", "is no k-diffusion")],
)
def test_what_cannot_be_corrected_is_refused(sampling, name, words):
    with pytest.raises(ValueError, match=words):
        asced_sampler(getattr(sampling, name))


def test_bad_calls_say_what_to_do(sampling):
    sigmas = sampling.get_sigmas_karras(STEPS, 0.05, 20.0)
    sampler = asced_sampler(sampling.sample_euler)
    with pytest.raises(ValueError, match="for an inversion call the sampler itself"):
        sampler(Denoiser(sigmas), torch.zeros(2, CHANNELS, *GRID), sigmas.flip(0), disable=True)
    with pytest.raises(ValueError, match="for another layout"):
        sampler(Denoiser(sigmas), torch.zeros(2, 30, 3), sigmas, disable=True)
    with pytest.raises(ValueError, match="wrap the sampler function itself"):
        asced_sampler(sampler)
    with pytest.raises(TypeError, match="AscedConfig"):
        asced_sampler(sampling.sample_euler, {"mode": "fast"})
    with pytest.raises(TypeError, match="sampler function"):
        asced_sampler("euler")


def uneven(model, x, sigmas, callback=None, disable=None):
    """Steps of one and of two evaluations in turn."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].expand(len(x)))
        callback({"x": x, "i": i, "denoised": denoised})
        if i % 2:
            model(x, sigmas[i].expand(len(x)))
        x = denoised + (x - denoised) * (sigmas[i + 1] / sigmas[i])
    return x


def copying(model, x, sigmas, callback=None, disable=None):
    """Goes on from another tensor than the model saw."""
    for i in range(len(sigmas) - 1):
        denoised = model(x.clone(), sigmas[i].expand(len(x)))
        callback({"x": x, "i": i, "denoised": denoised})
        x = denoised + (x - denoised) * (sigmas[i + 1] / sigmas[i])
    return x


def telling_the_start(model, x, sigmas, callback=None, disable=None):
    """As ComfyUI's ipndm: what it tells is the x that it was given."""
    start = x
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].expand(len(x)))
        callback({"x": start, "i": i, "denoised": denoised})
        x = denoised + (x - denoised) * (sigmas[i + 1] / sigmas[i])
    return x


def test_what_a_sampler_tells_of_its_state_need_not_be_true(sampling, asced_warnings):
    sigmas = sampling.get_sigmas_karras(STEPS, 0.05, 20.0)
    x = 20 * tiny.randn(2, CHANNELS, *GRID)
    sampler = asced_sampler(telling_the_start, CONFIG, seeds=SEEDS)
    watched, stock = sampler(Denoiser(sigmas), x, sigmas), telling_the_start(Denoiser(sigmas), x, sigmas, dict)
    assert torch.equal((watched != stock).any(1, keepdim=True), sampler.report.masks_grown)
    assert sampler.report.masks_grown.any()
    assert asced_warnings() == []


@pytest.mark.parametrize(("sampler", "words"), [(uneven, "left alone from step"), (copying, "may be lost")])
def test_a_sampler_that_cannot_be_followed_gives_a_warning(sampling, sampler, words, asced_warnings):
    sigmas = sampling.get_sigmas_karras(STEPS, 0.05, 20.0)
    x = 20 * tiny.randn(2, CHANNELS, *GRID)
    watched = asced_sampler(sampler, seeds=SEEDS)(Denoiser(sigmas), x, sigmas)
    assert [words in message for message in asced_warnings()] == [True]
    if sampler is uneven:
        assert torch.equal(watched, uneven(Denoiser(sigmas), x, sigmas, callback=lambda info: None))

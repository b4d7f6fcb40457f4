# SPDX-License-Identifier: MIT
"""Plants in a model whose denoiser is known in closed form: data normal at each location, with a mean and a spread."""

import pytest
import torch

from ascedfast import process
from ascedfast.lab.planting import Plant, Planter, colour_direction, hold_steps, outcome, stroke_start
from ascedfast.lab.regions import GREY_LEVEL, Box, rms_difference
from ascedfast.lab.sampling import sample, start_noise
from ascedfast.schedule import Schedule

SHAPE = (3, 12, 10)
BOX = Box(2, 3, 5, 4)
SPREAD = 0.5
STEPS = 12
KINDS = ("eps", "v", "sample", "flow")


def mean():
    return torch.linspace(-0.5, 0.5, 360, dtype=torch.float64).reshape(SHAPE)


def vp_levels():
    """Variance-preserving levels from logSNR -9 to 3."""
    logsnr = torch.linspace(-9, 3, STEPS, dtype=torch.float64)
    return [(float(torch.sigmoid(v).sqrt()), float(torch.sigmoid(-v).sqrt())) for v in logsnr]


def schedule_of(kind, clip=None):
    if kind == "flow":
        levels = [process.flow(sigma / (alpha + sigma)) for alpha, sigma in vp_levels()]
    else:
        levels = [getattr(process, kind)(alpha, sigma) for alpha, sigma in vp_levels()]
    return Schedule.from_levels(levels, clip=clip)


def gain(level):
    """d x0_hat / d x of the exact denoiser."""
    return level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)


def denoiser_of(schedule):
    """The exact E[x0 | x], in the schedule's own parameterisation."""

    def denoise(x, step):
        level = schedule.before[step]
        x0 = mean().to(x.dtype) + gain(level) * (x - level.alpha * mean().to(x.dtype))
        return (x0 - level.a * x) / level.b

    return denoise


def start(kind, seeds, dtype=torch.float64):
    """The same point of the process in each parameterisation: flow states are shorter by alpha + sigma."""
    noise = start_noise(seeds, SHAPE, dtype)
    alpha, sigma = vp_levels()[0]
    return noise / (alpha + sigma) if kind == "flow" else noise


def run(kind, plants, seeds, dtype=torch.float64, clip=None):
    """(final state, {step: x0_hat})"""
    schedule, seen = schedule_of(kind, clip), {}
    planter = Planter(denoiser_of(schedule), schedule, plants)
    final = sample(planter, schedule, start(kind, seeds, dtype), on_step=lambda step, x, x0: seen.update({step: x0}))
    return final, seen


def plants():
    foreign = torch.linspace(0.7, -0.7, 360, dtype=torch.float64).reshape(SHAPE)
    return [
        Plant.trap(BOX, 5, 3, source=2),
        Plant.trap(BOX, 4, 2, content=foreign),
        Plant.jump(BOX, 6, colour_direction(7, 3), 0.4),
        Plant.null(BOX, 4),
    ]


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("clip", [None, 0.4])
def test_every_parameterisation_shows_the_same_plant(kind, clip):
    final, seen = run("eps", plants(), range(4), clip=clip)
    other_final, other = run(kind, plants(), range(4), clip=clip)
    for step in range(STEPS):
        torch.testing.assert_close(other[step], seen[step], rtol=0, atol=1e-11)
    torch.testing.assert_close(other_final, final, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_errs_as_the_linear_form_does(kind):
    _, exact = run(kind, plants(), range(4))
    _, seen = run(kind, plants(), range(4), torch.float32)
    for step, level in enumerate(schedule_of(kind).before):
        # eps at much noise: x0_hat is a small difference of large terms, here up to 90 times its size each. 4 is the
        # largest state, 4 epsilons the error of the linear form; what a step inherits is smaller than what it adds.
        bound = 4 * 1.2e-7 * 4 * (abs(level.a) + abs(level.b) + 1) * 2
        assert (seen[step] - exact[step]).abs().max() < bound


@pytest.mark.parametrize("kind", KINDS)
def test_x0_hat_is_what_was_planted(kind):
    twin, (_, free), (_, seen) = (
        mean(),
        run(kind, [p.twin() for p in plants()], range(4)),
        run(kind, plants(), range(4)),
    )
    inside = BOX.mask(SHAPE[1:])
    for step in (5, 6, 7):  # a trap: the prediction of step 2, held
        torch.testing.assert_close(seen[step][0][:, inside], free[2][0][:, inside], rtol=0, atol=1e-11)
    assert not torch.allclose(seen[8][0][:, inside], free[2][0][:, inside], atol=1e-3)
    for step in (4, 5):  # foreign content
        torch.testing.assert_close(seen[step][1][:, inside], plants()[1].content[:, inside], rtol=0, atol=1e-11)
    moved = seen[6][2] - free[6][2]  # a jump at one step
    expected = (0.4 * colour_direction(7, 3)).expand(SHAPE)
    torch.testing.assert_close(moved[:, inside], expected[:, inside], rtol=0, atol=1e-11)
    for row in range(4):
        for step in range(STEPS):  # the denoiser works location by location: nothing leaves the box
            assert torch.equal(seen[step][row][:, ~inside], free[step][row][:, ~inside])
    assert twin.shape == SHAPE


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_contrast_of_known_size_is_recovered(kind):
    """A jump of h moves the next state by (alpha' - sigma'*alpha/sigma)*h, so the next x0_hat by gain' times that."""
    height, at = 0.3, 9
    jump = Plant.jump(BOX, at, colour_direction(1, 3), height)
    schedule = schedule_of(kind)
    now, then = schedule.before[at], schedule.before[at + 1]
    carried = (then.alpha - then.sigma * now.alpha / now.sigma) * height
    expected = abs(gain(then) * carried) / GREY_LEVEL
    assert jump.read_at == at + 1
    (_, seen), (_, free) = run(kind, [jump], [3]), run(kind, [jump.twin()], [3])
    masks = BOX.mask(SHAPE[1:])[None]
    at_plant = rms_difference(seen[at], free[at], masks, clip=None)
    contrast = rms_difference(seen[jump.read_at], free[jump.read_at], masks, clip=None)
    clipped = rms_difference(seen[jump.read_at], free[jump.read_at], masks)  # a part of this image is beyond white
    assert 0.9 * expected < clipped < expected
    assert float(at_plant) == pytest.approx(height / GREY_LEVEL, rel=1e-9)
    assert expected > 1
    assert float(contrast) == pytest.approx(expected, rel=1e-9)


def test_a_planted_contrast_spread_over_seeds_is_within_its_interval():
    from ascedfast.lab.statistics import paired_bootstrap

    rows = [Plant.jump(BOX, 6, colour_direction(seed, 3), 0.25) for seed in range(40)]
    (_, seen), (_, free) = run("v", rows, range(40), torch.float32), run("v", [p.twin() for p in rows], range(40))
    masks = BOX.mask(SHAPE[1:]).expand(40, -1, -1)
    found = rms_difference(seen[6], free[6], masks, clip=None)
    noisy = found.numpy() + torch.randn(40, generator=torch.Generator().manual_seed(5)).numpy()
    estimate = paired_bootstrap(lambda values: values.mean(), noisy)
    assert estimate.low < 0.25 / GREY_LEVEL < estimate.high
    assert estimate.high - estimate.low < 0.05 / GREY_LEVEL


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_keeps_its_bits_in_any_batch(kind, dtype):
    batch, together = run(kind, plants(), [11, 12, 13, 14], dtype)
    for row, (plant, seed) in enumerate(zip(plants(), [11, 12, 13, 14], strict=True)):
        alone, seen = run(kind, [plant], [seed], dtype)
        assert torch.equal(alone[0], batch[row])
        assert all(torch.equal(seen[step][0], together[step][row]) for step in range(STEPS))


def test_a_null_returns_the_very_output():
    schedule = schedule_of("v")
    denoise = denoiser_of(schedule)
    made = []
    planter = Planter(lambda x, step: made.append(denoise(x, step)) or made[-1], schedule, [Plant.null(BOX)] * 2)
    x = start("v", range(2))
    assert all(planter(x, step) is made[-1] for step in range(STEPS))


def test_nothing_given_is_modified():
    schedule = schedule_of("eps")
    planter = Planter(denoiser_of(schedule), schedule, plants())
    x, before = start("eps", range(4)), start("eps", range(4))
    for step in range(6):
        m = denoiser_of(schedule)(x, step)
        kept = m.clone()
        planted = planter.plant(x, m, step)
        assert torch.equal(m, kept)
        assert torch.equal(x, before)
    assert not torch.equal(planted, m)
    outside = ~BOX.mask(SHAPE[1:])
    assert torch.equal(planted[:, :, outside], m[:, :, outside])


def test_a_stroke_differs_from_its_twin_by_the_paint_alone():
    schedule, first = schedule_of("flow"), 7
    level = schedule.before[first]
    images, noise = mean().expand(2, *SHAPE), start_noise([5, 5], SHAPE, torch.float64)
    stroke = Plant.stroke(BOX, first, torch.tensor([0.9, -0.9, 0.9], dtype=torch.float64).view(3, 1, 1))
    x = stroke_start(images, [stroke, stroke.twin()], level, noise)
    inside = BOX.mask(SHAPE[1:])
    assert torch.equal(x[0][:, ~inside], x[1][:, ~inside])
    paint = (stroke.content - mean())[:, inside]
    torch.testing.assert_close((x[0] - x[1])[:, inside], level.alpha * paint)
    seen = {}
    planter = Planter(denoiser_of(schedule), schedule, [stroke, stroke.twin()])
    sample(planter, schedule, x, first, on_step=lambda step, x, x0: seen.update({step: x0}))
    assert min(seen) == stroke.read_at == first
    contrast = rms_difference(seen[first][:1], seen[first][1:], inside[None])
    expected = gain(level) * level.alpha * paint.square().mean().sqrt() / GREY_LEVEL
    assert float(contrast) == pytest.approx(float(expected), rel=1e-9)
    assert torch.equal(images, mean().expand(2, *SHAPE))


def test_times_of_a_plant():
    trap = Plant.trap(BOX, 5, 3, source=2)
    assert (trap.release, trap.read_at) == (8, 6)
    assert trap.released_before(8)
    assert not trap.released_before(7)
    twin = trap.twin()
    assert (twin.kind, twin.box, twin.start, twin.steps, twin.content, twin.source) == ("null", BOX, 5, 0, None, None)
    assert twin.read_at == trap.read_at


@pytest.mark.parametrize("before", [True, False])
def test_holds_end_on_the_wanted_side_of_t_c(before):
    traps = [Plant.trap(BOX, 4, hold_steps(seed, 4, 9, 20, before=before), source=1) for seed in range(300)]
    assert {trap.release for trap in traps} == set(range(5, 10) if before else range(10, 20))
    assert {trap.released_before(9) for trap in traps} == {before}
    with pytest.raises(ValueError, match="cannot be released"):
        hold_steps(0, 9, 9 if before else 19, 20, before=before)


def test_colour_directions_have_size_one_and_belong_to_the_seed():
    for channels in (1, 3, 4):
        direction = colour_direction(3, channels)
        assert float(direction.square().mean()) == pytest.approx(1)
        assert torch.equal(direction, colour_direction(3, channels))
    assert not torch.equal(colour_direction(3, 3), colour_direction(4, 3))


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (8.0, "persisting"),
        (90.0, "persisting"),
        (7.99, "between"),
        (2.0, "between"),
        (1.99, "absorbed"),
        (0, "absorbed"),
    ],
)
def test_outcome(levels, expected):
    assert outcome(levels) == expected


def test_a_persisting_and_an_absorbed_plant_are_told_apart():
    """The exact denoiser forgets what was planted at much noise and keeps what was planted late."""
    rows = [Plant.jump(BOX, at, colour_direction(1, 3), 0.4) for at in (0, STEPS - 2)]
    (final, _), (free, _) = run("v", rows, [1, 1]), run("v", [p.twin() for p in rows], [1, 1])
    left = rms_difference(final, free, BOX.mask(SHAPE[1:]).expand(2, -1, -1))
    assert [outcome(float(value)) for value in left] == ["absorbed", "persisting"]


def test_what_cannot_be_planted_is_refused():
    schedule = schedule_of("v")
    denoise, x = denoiser_of(schedule), start("v", [0])
    with pytest.raises(ValueError, match="either"):
        Plant.trap(BOX, 5, 1)
    with pytest.raises(ValueError, match="before 5"):
        Plant.trap(BOX, 5, 1, source=5)
    with pytest.raises(ValueError, match="steps >= 1"):
        Plant.trap(BOX, 5, 0, source=1)
    with pytest.raises(ValueError, match="beyond"):
        Planter(denoise, schedule, [Plant.trap(BOX, 5, STEPS, source=1)])
    with pytest.raises(ValueError, match="2 plants"):
        Planter(denoise, schedule, [Plant.null(BOX)] * 2)(x, 0)
    with pytest.raises(ValueError, match="was not run"):
        Planter(denoise, schedule, [Plant.trap(BOX, 5, 1, source=2)])(x, 5)
    clean = Schedule.from_levels([process.flow(0.0)] * 3)
    with pytest.raises(ValueError, match="does not depend"):
        Planter(lambda x, step: x, clean, [Plant.jump(BOX, 0, torch.ones(3, 1, 1), 1.0)])(x, 0)
    with pytest.raises(ValueError, match="Planter"):
        stroke_start(x, [Plant.jump(BOX, 0, torch.ones(3, 1, 1), 1.0)], schedule.before[0], x)
    with pytest.raises(ValueError, match="NaN"):
        outcome(float("nan"))


def test_sampler_follows_the_exact_flow_of_a_normal_distribution():
    """x_t keeps its place in the normal distribution of its level, as the probability-flow ODE does."""

    def error(steps):
        logsnr = torch.linspace(-9, 9, steps, dtype=torch.float64)
        levels = [process.v(float(torch.sigmoid(v).sqrt()), float(torch.sigmoid(-v).sqrt())) for v in logsnr]
        schedule, first = Schedule.from_levels(levels), levels[0]
        x = start_noise([0], SHAPE, torch.float64)
        place = (x - first.alpha * mean()) / (first.alpha**2 * SPREAD**2 + first.sigma**2) ** 0.5
        return float((sample(denoiser_of(schedule), schedule, x) - mean() - SPREAD * place).abs().max())

    coarse, fine = error(300), error(600)
    assert fine < 0.05 * SPREAD
    assert 0.45 < fine / coarse < 0.55  # of first order


def test_start_noise_belongs_to_the_seed():
    both = start_noise([4, 9], SHAPE)
    assert torch.equal(both[1:], start_noise([9], SHAPE))
    assert torch.equal(both.double(), start_noise([4, 9], SHAPE, torch.float64))
    assert both.dtype == torch.float32
    schedule = schedule_of("v")
    with pytest.raises(ValueError, match="first"):
        sample(denoiser_of(schedule), schedule, both, first=STEPS)
    with pytest.raises(ValueError, match="without noise"):
        sample(lambda x, step: x, Schedule.from_levels([process.flow(0.0)]), both)

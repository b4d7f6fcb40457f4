# SPDX-License-Identifier: MIT
"""What correction by mode "calibrated" does, on the toy: controls, T_c, other ways, what re-noising writes."""

import math
import weakref

import numpy as np
import pytest
import torch
from scipy import stats

from ascedfast.lab import corrections, instant, mend, noising, redraw, tuned
from ascedfast.lab.corrections import finish, renoise, watch
from ascedfast.lab.evidence import left_out
from ascedfast.lab.figures import Figures
from ascedfast.lab.lab_plots import plots
from ascedfast.lab.plan import Cell
from ascedfast.lab.regions import seam_energy
from ascedfast.lab.steps import judged
from ascedfast.lab.subject import MissingAbility, Toy
from ascedfast.lab.suites import Lab, cells_of

FAMILY = "toy-blend"
STEPS = 20
T_C = 10


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"), source="one")


def blend():
    return Toy(name=FAMILY, haze=1.1)


def text_of(flags):
    return np.frombuffer(flags.encode(), np.uint8) == ord("1")


def mending(part="controls", count=64):
    return Cell("mend", FAMILY, part, "small", 1_000_000, count, (("runs", 120),))


def test_an_oracle_removes_defects_and_adds_none(lab):
    result = mend.mend(mending(), lab)
    flags = {name: text_of(one) for name, one in result["flags"].items()}
    assert set(flags) == set(mend.CONTROLS)
    assert flags["original"].any()
    # A tile's defect is the tile's own: re-noised by its map it is drawn anew, and no sound tile is.
    assert flags["oracle"].sum() < flags["original"].sum()
    assert not (flags["oracle"] & ~flags["original"]).any()
    measures = {one["measure"]: one for one in result["figures"]}
    assert measures["image auroc for defects"]["n"] == min(flags["original"].sum(), (~flags["original"]).sum())
    assert result["values"].keys() == set(mend.RUNS)
    again = mend.mend(mending("set"), lab)
    assert again["flags"] == {name: result["flags"][name] for name in mend.RUNS}
    assert "figures" not in again


def test_a_missing_judge_is_named(lab, monkeypatch):
    def none(*_):
        raise MissingAbility("no judge")

    monkeypatch.setattr(mend, "judged", none)
    result = mend.mend(mending(), lab)
    assert "flags" not in result
    assert left_out({mending(): result}, ["mend"]) == [f"mend, {FAMILY}, controls: defects: no judge"]


def test_rows_without_a_mask_are_the_originals(lab, monkeypatch):
    """No mask, no difference: corrected and permuted are the very same images."""
    monkeypatch.setattr(mend, "runs_of", lambda runs, s, c, grown, d, noise: [(n, grown & False, 0.1) for n in runs])
    result = mend.mend(mending(), lab)
    assert len(set(result["flags"].values())) == 1
    assert result["values"]["corrected"] == result["values"]["original"]


def test_masks_grow_as_the_engine_grows_them():
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 4, 4] = True
    grown = mend.grow(mask, 2)
    assert grown.sum() == 25
    assert grown[0, 2:7, 2:7].all()
    assert torch.equal(mend.grow(mask, 0), mask)


def test_severities_that_know_the_defects_are_told():
    marks = torch.zeros(20, 4, 4, dtype=torch.bool)
    marks[:8, 0, 0] = True
    maps = marks.float()
    found = {one["measure"]: one["value"] for one in mend.seen_defects(maps.flatten(1).amax(1).double(), maps, marks)}
    assert found == {"image auroc for defects": 1.0, "pixel auroc for defects": 1.0}
    assert mend.seen_defects(torch.zeros(20), maps, marks & False) == []


def test_a_run_watched_on_is_the_run_watched_at_once():
    subject, seeds = blend(), range(6)
    whole = watch(subject, seeds, t_c=14)
    early = watch(subject, seeds, t_c=9)
    later = corrections.prefix_at(subject, early, 14)
    for name in ("x", "before", "x0", "scores"):
        assert torch.equal(getattr(later, name), getattr(whole, name)), name
    assert (later.first, later.t_c, later.step, later.seeds) == (0, 14, 14, whole.seeds)
    assert corrections.prefix_at(subject, early, 9) is early
    with pytest.raises(ValueError, match="t_c must lie"):
        corrections.prefix_at(subject, early, 8)


def test_the_grid_of_t_c_and_the_rule(lab):
    subject = blend()
    assert instant.grid_of(subject) == {4, 6, 7, 8, 10, 12, 13, 14, 16}
    assert set(instant.times_of(subject)) == instant.grid_of(subject) | {T_C}
    tables = tuned.tables_at(lab, FAMILY, 120, (6, T_C))
    found = instant.at_times(subject, range(40), tables)
    single = instant.at_times(subject, range(40), {T_C: tables[T_C]})
    assert torch.equal(found["original"], single["original"])
    assert torch.equal(found[T_C], single[T_C])


def test_predictions_up_to_an_earlier_t_c_are_not_kept(lab, monkeypatch):
    """When the last correction is judged, one prefix is alive and not one for each T_c."""
    tables = tuned.tables_at(lab, FAMILY, 120, (6, T_C))
    alive = []
    monkeypatch.setattr(instant, "watch", lambda *args, **more: noted(watch(*args, **more)))
    monkeypatch.setattr(instant, "prefix_at", lambda *args: noted(corrections.prefix_at(*args)))

    def noted(prefix):
        alive.append(weakref.ref(prefix.x0))
        return prefix

    def counted(*args):
        seen.append(sum(one() is not None for one in alive))
        return judged(*args)

    seen = []
    monkeypatch.setattr(instant, "judged", counted)
    instant.at_times(blend(), range(8), tables)
    assert seen == [1, 1, 1]


def test_nothing_to_gain_is_said(lab):
    (cell, *_) = cells_of(["instant"], ["toy"], "small")
    with pytest.raises(MissingAbility, match="nothing to gain"):
        instant.instant(cell, lab)


def test_the_first_sound_draw_is_taken():
    severity = torch.tensor([[5.0, 0.0, 9.0], [1.0, 9.0, 7.0], [0.0, 9.0, 8.0]])
    index, tries = redraw.first_below(severity, 2.0)
    assert index.tolist() == [1, 0, 1]  # none is below in the last column: the least severe
    assert tries.tolist() == [2, 1, 3]
    assert redraw.pick(severity, index).tolist() == [1.0, 0.0, 7.0]


def test_every_way_and_its_cost(lab):
    cells = cells_of(["redraw"], [FAMILY], "small")
    results = {cell: redraw.redraw(cell, lab) for cell in cells}
    result = results[cells[0]]
    spent = {name: one["evaluations"] for name, one in result["values"].items()}
    assert spent["original"] == spent["corrected"] == STEPS
    assert (spent["best of 2"], spent["best of 4"]) == (STEPS + T_C, STEPS + 3 * T_C)
    assert spent["steering"] == 4 * (T_C + redraw.AFTER) + STEPS - T_C - redraw.AFTER
    assert STEPS <= spent["redrawn above 5%"] <= spent["redrawn above 20%"] <= spent["redrawn above 50%"]
    assert STEPS <= spent["corrected, second look"] <= STEPS + redraw.AFTER
    assert {len(one) for one in result["flags"].values()} == {cells[0].count}
    (plot,) = (plot for plot in plots(Figures(results, "one")) if plot.suite == "redraw")
    assert f"best of 4: {plot.alt.partition('best of 4: ')[2][:5]} at 50.0" in plot.alt


def test_a_second_look_sees_the_inside_alone(lab):
    subject = blend()
    look = redraw.second_null(lab, FAMILY, 120, False)
    assert len(look.profile) == redraw.AFTER - 1
    prefix = watch(subject, range(30))
    mask = torch.zeros(30, 16, 16, dtype=torch.bool)
    mask[:, :8, :8] = True
    later = redraw.renoised(subject, prefix, mask, 0.1, 0)
    assert (later.first, later.step) == (T_C, T_C + redraw.AFTER)
    severity = redraw.second_look(later, mask, look)
    everywhere = redraw.second_look(later, mask | True, look)
    assert bool((severity <= everywhere).all())
    assert bool((severity < everywhere).any())
    assert float(redraw.second_look(later, mask & False, look).max()) == -math.inf
    # Sound runs, re-noised: as many abnormal as the rate says.
    share = float((severity > look.threshold(0.5)).double().mean())
    assert share < 0.5 + 3 * math.sqrt(0.25 / 30)


def test_some_rows_of_a_run_go_on_as_the_run_does():
    subject = blend()
    prefix = watch(subject, range(8))
    rows = torch.tensor([1, 4, 6])
    some = redraw.rows_of(prefix, rows)
    assert some.seeds == (1, 4, 6)
    mask = torch.ones(8, 16, 16, dtype=torch.bool)
    torch.testing.assert_close(renoise(subject, some, mask[rows], 0.1), renoise(subject, prefix, mask, 0.1)[rows])
    torch.testing.assert_close(finish(subject, some), finish(subject, prefix)[rows])


def moments(x, mask):
    """By scipy, value by value: (variance, excess kurtosis, n) of masked values less their location's mean."""
    centred, freedom = [], 0
    for c in range(x.shape[1]):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                one = x[mask[:, i, j], c, i, j].numpy()
                if len(one) >= 2:
                    centred.append(one - one.mean())
                    freedom += len(one) - 1
    values = np.concatenate(centred)
    return (values**2).sum() / freedom, stats.kurtosis(values), len(values)


def some_values(rows=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, 5, 4, generator=generator, dtype=torch.float64)
    x = x * torch.rand(2, 5, 4, generator=generator) + 3 * torch.randn(2, 5, 4, generator=generator)
    return x, torch.rand(rows, 5, 4, generator=generator) < 0.3


def pooled(x, mask):
    found = noising.Moments()
    for part in range(0, len(x), 150):
        found.add(x[part : part + 150], mask[part : part + 150])
        found.count(mask[part : part + 150].int())
    return found.pooled()


def test_moments_against_scipy():
    x, mask = some_values()
    mask[1:, 0, 0] = False  # one value or none: left out
    variance, kurtosis, n = pooled(x, mask)
    expected = moments(x, mask)
    assert variance == pytest.approx(expected[0], rel=1e-9)
    # scipy's centre is the mean of all values, which is 0 but for rounding.
    assert kurtosis == pytest.approx(expected[1], abs=1e-9)
    assert n == expected[2]
    with pytest.raises(ValueError, match="two values"):
        pooled(x, mask & False)


def repeated(noise, runs=40, trials=300):
    """Variance and number of standard normal values of few runs, each masked 1 to 8 times at the one location, over
    many trials; the repeats share all but ``noise`` of their variance."""
    generator = torch.Generator().manual_seed(3)
    times = torch.randint(1, 9, (runs, 1, 1), generator=generator)
    found = []
    for _ in range(trials):
        moments = noising.Moments()
        x = torch.randn(runs, 1, 1, 1, generator=generator, dtype=torch.float64)
        for k in range(8):
            drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            moments.add(math.sqrt(1 - noise) * x + math.sqrt(noise) * drawn, times > k)
        moments.count(times)
        found.append(moments.pooled())
    variances = np.array([one[0] for one in found])
    return variances.mean(), variances.std() / math.sqrt(trials), found[0][2], times.double().flatten()


def test_repeats_of_a_run_are_no_values_of_their_own():
    mean, error, n, times = repeated(0.0)
    assert abs(mean - 1) < 3 * error
    total, squared = float(times.sum()), float(times.square().sum())
    assert n == int(total**2 / squared) < 40
    # As independent values they would seem less scattered than they are.
    assert mean * (total - squared / total) / (total - 1) < 1 - 3 * error / 2


def test_new_noise_in_repeats_moves_the_variance_by_one_in_as_many_runs():
    """Repeats that share nothing are more values than they are taken for."""
    mean, error, n, times = repeated(1.0)
    total, squared = float(times.sum()), float(times.square().sum())
    excess = (squared / total - 1) / (total - squared / total)
    assert abs(mean - 1 - excess) < 3 * error
    assert excess < 1 / (n - 1)


def test_a_change_of_three_per_cent_is_found_and_an_exact_renoise_passes():
    """Ten sets of 200,000 values: D12's interval tells 3 % of variance from none."""
    ratios = {1.0: [], 1.03: []}
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.ones(2000, 10, 10, dtype=torch.bool)
        one, other = (torch.randn(2000, 1, 10, 10, generator=generator) for _ in range(2))
        for factor, column in ratios.items():
            column.append(pooled(math.sqrt(factor) * other, mask)[0] / pooled(one, mask)[0])
    low, high = ({f: float(np.mean(c)) + s * 2.26 * float(np.std(c, ddof=1)) / math.sqrt(10) for f, c in ratios.items()}
                 for s in (-1, 1))  # fmt: skip
    assert 0.99 < low[1.0] <= 1 <= high[1.0] < 1.01
    assert low[1.03] > 1.01


def test_seams_are_summed_over_images_with_a_border():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(3, 1, 8, 8, generator=generator) for _ in range(2))
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    mask[2, 1:3, 1:3] = True
    shown = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = [float(seam_energy(images, shown)[[0, 2]].sum()) for images in (one, other)]
    assert noising.seam_sums(one, other, mask).tolist() == pytest.approx(expected)


def test_noising_counts_what_is_inside(lab):
    (cell, *_) = cells_of(["noising"], [FAMILY], "small")
    found = noising.noising(cell, lab)["values"]["corrected"]
    assert found["values"] > 100
    assert found["variance over the original's"] > 0

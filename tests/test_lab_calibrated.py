# SPDX-License-Identifier: MIT
"""The suites of mode "calibrated" on the toy: a seer and a blind detector, rates of a table, plants, what is kept."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from ascedfast import AscedConfig
from ascedfast.calibration.table import NullTable
from ascedfast.lab import contenders, detectors, faint, rates, recall, tuned
from ascedfast.lab.contenders import MAPS, OURS, RIVALS, Seen, best_rival, levels_of, overlap, seen_by, try_plants
from ascedfast.lab.corrections import watch
from ascedfast.lab.evidence import weighed
from ascedfast.lab.nulls import null_of, nulls_at, pooled_table
from ascedfast.lab.plan import Cell
from ascedfast.lab.planted import plant_rows
from ascedfast.lab.planting import Planter
from ascedfast.lab.regions import GREY_LEVEL
from ascedfast.lab.seeds import TuningSeeds
from ascedfast.lab.statistics import iou, wilson
from ascedfast.lab.subject import MissingAbility, Toy
from ascedfast.lab.suites import SUITES, Lab

RUNS = {"runs": 300, "nulls": 100, "tuning": 24}


def cell(suite, part, count, **settings):
    return Cell(suite, "toy", part, "small", 1_000_000, count, tuple(sorted((RUNS | settings).items())))


def trap_cell(ground="textured", count=128):
    return cell("recall", f"{ground} 40 %", count, ground=ground, side="40 %", most=100, least=8)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"), source="one")


def seer(subject, prefix, table, rate=0.01):
    """Says the planted boxes, and nothing of a run without a plant."""
    mask = torch.zeros(len(prefix.seeds), *subject.shape[1:], dtype=torch.bool)
    if isinstance(prefix.denoiser, Planter):
        mask = torch.stack([plant.box.mask(tuple(subject.shape[1:])) for plant in prefix.denoiser.plants])
    scores = mask.float() * 100
    return Seen(scores, scores.double().flatten(1).amax(1), mask, mask.flatten(1).any(1))


def blind(subject, prefix, table, rate=0.01):
    """Noise, whatever the run."""
    generator = torch.Generator().manual_seed(prefix.seeds[0])
    scores = torch.rand(len(prefix.seeds), *subject.shape[1:], generator=generator)
    severity = scores.double().flatten(1).amax(1)
    mask = scores > 1 - rate / scores[0].numel()
    return Seen(scores, severity, mask, mask.flatten(1).any(1))


def measured(lab, monkeypatch, detector):
    monkeypatch.setattr(contenders, "ours", detector)
    monkeypatch.setattr(rates, "ours", detector)
    traps = trap_cell()
    nulls = cell("rates", "20 steps", 200, steps=20, judged=1, packaged="", table="20")
    results = {traps: recall.traps(traps, lab), nulls: rates.rates(nulls, lab)}
    # The same rows as if their ground were plain, for the bar that asks for it.
    plain = dataclasses.replace(traps, settings=(*traps.settings, ("ground", "plain")))
    results[plain] = results[traps]
    parts = {}
    for part in weighed(json.loads(json.dumps([*results.values()])) and results)[0]:
        parts.setdefault(part.bar, part.estimate)
    return parts, results[traps]["figures"]


def test_a_perfect_detector_meets_its_bars(lab, monkeypatch):
    parts, figures = measured(lab, monkeypatch, seer)
    assert parts["D3a"].value == parts["D3b"].value == parts["D6"].value == 1
    assert parts["D3c"].high <= 0
    assert parts["D7a"][:3] == (1, 1, 1)
    aucs = {one["run"]: one["value"] for one in figures if one["measure"] == "pixel auroc"}
    assert aucs[OURS] == 1


def test_a_blind_detector_scores_chance(lab, monkeypatch):
    parts, figures = measured(lab, monkeypatch, blind)
    assert parts["D3b"].high < 0.2
    assert parts["D3c"].high > 0
    assert parts["D7a"].low < 0.5 < parts["D7a"].high
    (auc,) = (one for one in figures if (one["measure"], one["run"]) == ("pixel auroc", OURS))
    assert auc["low"] < 0.5 < auc["high"]


def test_a_table_keeps_its_rate_on_new_runs(lab):
    """At both rates, its own sampling error included, and at a number of steps between two of the table."""
    for steps in (20, 28):
        one = cell("rates", f"{steps} steps", 300, steps=steps, judged=0, packaged="", table="20 40")
        result = rates.rates(one, lab)
        for rate in (0.01, 0.05):
            (found,) = (f for f in result["figures"] if f["measure"] == f"flagged, nominal {rate:.0%}")
            table_error = 1.96 * math.sqrt(rate / RUNS["runs"])
            assert found["low"] - table_error <= rate <= found["high"] + table_error, (steps, found)


def test_the_rivals_rate_on_new_runs_is_reported(lab):
    one = cell("rates", "20 steps", 200, steps=20, judged=1, packaged="", table="20")
    found = {f["run"]: f for f in rates.rates(one, lab)["figures"] if f["measure"] == "flagged, nominal 1%"}
    assert set(found) == {"own table", *RIVALS}
    table_error = 1.96 * math.sqrt(0.01 / RUNS["nulls"])
    assert all(found[name]["n"] == 200 and found[name]["low"] - table_error <= 0.01 for name in RIVALS)
    # Thresholds are of 20 steps: of other runs they say nothing, nor does a cell that is not judged need them.
    for other in ({"steps": 28, "table": "20 40"}, {"judged": 0}):
        some = dataclasses.replace(one, count=20, settings=tuple((dict(one.settings) | other).items()))
        assert {f["run"] for f in rates.rates(some, lab)["figures"]} <= {"own table", "calibrated", "official"}


def test_p_values_of_sound_runs_are_uniform_to_within_the_band(lab):
    table = tuned.own_table(lab, "toy", RUNS["runs"])
    prefix = watch(Toy(), range(2_000_000, 2_000_300))
    severity = contenders.ours(Toy(), prefix, table).severity
    found = rates.distance_from_uniform(np.array([table.nulls[0].p_value(float(one)) for one in severity]))
    assert found.low <= 0.05
    uniform = (np.arange(100) + 0.5) / 100
    assert rates.distance_from_uniform(uniform).value == pytest.approx(0.005)
    assert rates.distance_from_uniform(np.full(400, 0.5)).value == pytest.approx(0.5)
    assert stats.kstwobign.sf(rates.DKW) == pytest.approx(0.05, abs=1e-4)


def test_ours_is_what_the_engine_finds(lab):
    table = tuned.own_table(lab, "toy", RUNS["runs"])
    prefix = watch(Toy(), range(40))
    for rate in (0.05, 0.5):
        seen = contenders.ours(Toy(), prefix, table, rate)
        found = detectors.by_mode(Toy().schedule, prefix, AscedConfig.calibrated(table, rate=rate))
        assert torch.equal(seen.mask, found.mask)
        assert torch.equal(seen.flagged, seen.severity > table.nulls[0].threshold(rate))


def test_left_out_windows_are_named(lab):
    one = cell("rates", "6 steps", 60, steps=6, judged=0, packaged="", table="20 40")
    with pytest.raises(MissingAbility, match="changes before T_c"):
        rates.rates(one, lab)
    with pytest.raises(MissingAbility, match="predictions precede"):
        rates.rates(dataclasses.replace(one, settings=(*one.settings, ("steps", 4))), lab)
    assert "absent" in SUITES["rates"].run(one, lab)


def test_every_rival_flags_its_share_of_tuning_runs(lab):
    levels = levels_of(lab, "toy", RUNS["nulls"])
    assert set(levels) == set(RIVALS)
    prefix = watch(Toy(), range(contenders.NULLS_FROM, contenders.NULLS_FROM + RUNS["nulls"]))
    for name in RIVALS:
        seen = seen_by(name, Toy(), prefix, levels)
        assert int(seen.flagged.sum()) <= 1
        if name in MAPS:
            assert int(seen.flagged.sum()) == 1
            assert torch.equal(seen.flagged, seen.mask.flatten(1).any(1))
    again = Lab(lab.folder, source="one")
    assert levels_of(again, "toy", RUNS["nulls"]) == levels  # from its file


def test_the_best_rival_is_the_one_that_finds_most(lab, monkeypatch):
    def only(name, subject, prefix, levels):
        return (seer if name == "official 4" else blind)(subject, prefix, None)

    monkeypatch.setattr(contenders, "seen_by", only)
    monkeypatch.setattr(contenders, "levels_of", lambda *_: {})

    def plant(subject, seeds):
        return plant_rows(subject, seeds, "trap", "large")

    best, shares = best_rival(lab, trap_cell(), "of this test", plant, recall.shown)
    assert best == "official 4"
    assert shares[best] == 1
    assert set(shares) == set(RIVALS)


def test_rare_places_are_looked_for_in_more_images(lab, monkeypatch):
    """A place in every tenth image: 24 plants of 240 and not of 24."""
    tried = []

    def plant(subject, seeds):
        tried.append(len(seeds))
        return plant_rows(subject, seeds[::10], "trap", "large")

    monkeypatch.setattr(contenders, "levels_of", lambda *_: {})
    monkeypatch.setattr(contenders, "seen_by", lambda name, subject, prefix, levels: seer(subject, prefix, None))
    small = Lab(lab.folder, source="one", batch=40)
    best_rival(small, trap_cell(), "of rare places", plant, recall.shown, spare=20)
    assert sum(tried) == 240
    tried.clear()
    best_rival(small, trap_cell(), "of few places", plant, recall.shown)
    assert sum(tried) == 24


def test_a_fit_needs_plants(lab):
    few = cell("faint", "textured", 32, ground="textured", each=4, least=100)
    with pytest.raises(MissingAbility, match="textured ground, 100 are needed"):
        faint.faint(few, lab)


def test_overlap_against_numpy():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(30, 6, 7, generator=generator) < 0.2 for _ in range(2))
    a[0] = b[0] = False
    assert np.allclose(overlap(a, b).numpy(), iou(a.numpy(), b.numpy()))


def test_jumps_are_told_by_what_became_of_them(lab):
    result = recall.jumps(cell("leaps", "jumps", 64), lab)
    assert len(result["rows"]["absorbed"]) > 30
    assert len(result["rows"]["persisting"]) == len(result["rows"]["persisting, rival"])
    (found,) = (f for f in result["figures"] if (f["measure"], f["run"]) == ("flagged at 1%, absorbed", OURS))
    hits = result["rows"]["absorbed"].count("1")
    assert found["value"] == wilson(hits, len(result["rows"]["absorbed"])).value


def test_hits_at_every_contrast_bound_the_contrast_at_half_recall():
    contrast = np.tile(faint.CONTRASTS, 30)
    hit = np.arange(len(contrast)) // 8 % 10 > 0  # nine of ten, of any contrast
    assert faint.contrast50(contrast, hit).high == math.inf
    found = faint.half_recall(contrast, hit)
    assert (found.low, found.high) == (0.0, 2.0)
    assert faint.half_recall(contrast, ~hit).high == math.inf
    rising = contrast > 6
    assert faint.half_recall(contrast, rising) == faint.contrast50(contrast, rising)


def test_faint_traps_have_the_contrast_that_was_chosen():
    planted = faint.faint_traps(Toy(), range(64), "textured")
    wanted = torch.tensor([faint.CONTRASTS[seed % 8] for seed in range(64)], dtype=torch.float64)[list(planted.kept)]
    torch.testing.assert_close(planted.shown, wanted, rtol=1e-4, atol=1e-4)
    inside = planted.twins.abs().amax(1)[planted.boxes]
    assert float(inside.max()) <= 1 - faint.MARGIN * GREY_LEVEL
    assert faint.faint_traps(Toy(), range(8), "plain") is None


def test_plants_of_each_contrast_are_counted():
    contrast = np.array([2.0, 2.2, 1.9, 0.0, 30.0, 9.0, 2.1])
    assert faint.first_of_each(contrast, 2).tolist() == [True, True, False, False, True, True, False]


@pytest.mark.parametrize(("name", "side"), [("8 px", 8), ("10 %", 5), ("40 %", 10), ("50 %", 11)])
def test_sides_on_a_grid_of_16(name, side):
    assert recall.side_of(Toy(), name) == side


def test_enough_is_enough(lab):
    """Batches of 16, until ten traps show: no more are planted."""
    small = Lab(lab.folder, source="one", batch=16)
    one = dataclasses.replace(trap_cell(), settings=(*trap_cell().settings, ("most", 10)))
    shown = len(recall.traps(one, small)["rows"]["hit"])
    assert 10 <= shown < len(recall.traps(trap_cell(), lab)["rows"]["hit"])


def test_no_more_is_tried_where_there_is_no_place(lab, monkeypatch):
    monkeypatch.setattr(contenders, "BARREN", 20)
    tried = []

    def plant(subject, seeds):
        tried.append(len(seeds))

    with pytest.raises(MissingAbility, match="in 20 images"):
        try_plants(Lab(lab.folder, source="one", batch=10), trap_cell(), range(100), plant, ())
    assert tried == [10, 10]


def test_tints_move_away_from_the_clip():
    planted = plant_rows(Toy(), range(48), "trap or tint", 5)
    tinted = [i for i in range(48) if i % 3 == 0]
    for i in tinted:
        plant = planted.prefix.denoiser.plants[i]
        shift = (plant.content - planted.twins[i])[plant.box.index] / GREY_LEVEL
        assert float(shift.std()) < 1e-3
        assert 23.9 < abs(float(shift.mean())) < 96.1
        assert float(shift.mean()) * float(planted.twins[i][plant.box.index].mean()) < 0
    assert {plant.source is None for plant in planted.prefix.denoiser.plants} == {True, False}


def test_too_few_traps_are_no_figure(lab):
    with pytest.raises(MissingAbility, match="no place"):
        recall.traps(trap_cell("plain", 16), lab)
    with pytest.raises(MissingAbility, match="traps persist"):
        recall.traps(trap_cell(count=4), lab)


def test_what_was_made_once_is_read_from_its_file(lab):
    made = []

    def make():
        made.append(1)
        return {"a": 1.5}

    assert tuned.kept(lab, "toy", "a thing", make) == {"a": 1.5}
    assert tuned.kept(lab, "toy", "a thing", make) == {"a": 1.5}
    lab.cache.clear()
    assert tuned.kept(lab, "toy", "a thing", make) == {"a": 1.5}
    assert len(made) == 1
    tuned.kept(Lab(lab.folder, source="other code"), "toy", "a thing", make)
    assert len(made) == 2
    (path,) = (lab.folder / "tuned").glob("toy-a-thing-one.json")
    path.write_text("{")
    lab.cache.clear()
    assert tuned.kept(lab, "toy", "a thing", make) == {"a": 1.5}
    assert len(made) == 3


def test_a_twin_is_compared_with_what_it_is_the_twin_of():
    assert [tuned.sound(name) for name in ("F1-P30", "F2-W4", "F5", "toy-blend")] == ["F1", "F2", "F5", "toy-blend"]


def test_several_times_from_the_same_runs(lab):
    seeds = TuningSeeds.of(0, 120)
    found = nulls_at(Toy(), seeds, (5, 10))
    assert [len(found[t_c].profile) for t_c in (5, 10)] == [4, 9]
    assert found[10] == null_of(Toy(), seeds)  # 10 is the rule's
    tables = tuned.tables_at(lab, "toy", 120, (5, 10))
    assert tables[5] == NullTable((found[5],))


def test_a_pooled_table_is_of_all_sources():
    seeds = TuningSeeds.of(0, 120)
    sources = (Toy(), Toy(name="hazy", haze=1.1))
    table = pooled_table(sources, seeds, (20, 12))
    assert [len(null.profile) for null in table.nulls] == [5, 9]
    assert {null.runs for null in table.nulls} == {240}
    assert table.grid == ()
    profiles = [np.array(null_of(one, seeds).profile) for one in sources]
    expected = np.mean([one / one.mean() for one in profiles], 0)
    assert np.allclose(table.nulls[1].profile, expected)
    with pytest.raises(TypeError, match="tuning seeds"):
        nulls_at(Toy(), range(3), (5,))


def test_a_pooled_table_serves_any_grid(lab):
    levels = [level.logsnr for level in Toy().schedule.before[:10]]
    table = tuned.packaged_table(lab, "toy", 120, (20,))
    assert table.refusal(levels, (16, 16)) is table.refusal(levels, (32, 48)) is None


def test_all_trials_are_kept_in_order(lab):
    def plant(subject, seeds):
        return plant_rows(subject, seeds, "trap", "large")

    small = Lab(lab.folder, source="one", batch=16)
    one = trap_cell()
    whole, parts = (try_plants(which, one, range(40), plant, ("max z",)) for which in (lab, small))
    assert whole.contrast.shape == parts.contrast.shape == (40,)
    assert whole.scores[OURS].shape == (40, 16, 16)
    assert np.allclose(whole.contrast[1::2], parts.contrast[1::2])  # foreign content is the batch's

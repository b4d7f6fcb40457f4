# SPDX-License-Identifier: MIT
"""The small suites from end to end on the toy: cells, figures, verdicts, page, command line."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from lab_weights import write_untrained
from rich.console import Console
from tiny import quietly
from typer.testing import CliRunner

from ascedfast.cli import app
from ascedfast.lab import cli, families, plan, probe, repairs, sources, steps, suites
from ascedfast.lab.bar_page import decided as bars_decided
from ascedfast.lab.bars import IDS
from ascedfast.lab.claims import CLAIMS, MissingResults, decide
from ascedfast.lab.figures import Figures, difference_of
from ascedfast.lab.report import claims_table, number, write_page, write_table
from ascedfast.lab.seeds import REPORTING_START, read_looks
from ascedfast.lab.subject import Subject, load
from ascedfast.lab.suites import SUITES, Lab, cells_of, read_results, run_suite

FAMILY = ["toy-blend"]
PARITY = {"sequences": 1040, "passed": 20, "failed": 0}


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    records = [{"id": "P2/256x256x3", "ours_us": 140.0, "command": "b"}, {"id": "P4/SDXL", "value": 1.001}]
    (folder / "benchmarks.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def figures(folder):
    lab = Lab(folder, source="one")
    results = {}
    for name in SUITES:
        results |= run_suite(name, FAMILY, "small", lab, quiet())
    return Figures(results, "one")


@pytest.fixture(scope="module")
def decided(figures, folder):
    return decide(figures, "small", FAMILY, benchmarks=folder, parity=PARITY)


def test_every_suite_gives_figures_on_the_toy(figures):
    assert {one.suite for one in figures.all} == set(SUITES)
    for one in figures.all:
        assert one.n >= 1
        assert one.seeds[0] >= REPORTING_START
        assert one.command.startswith(f"ascedfast lab run --suite {one.suite}")
        assert not one.low > one.high, one
        json.dumps(one.to_dict(), allow_nan=False)


def test_the_shared_seeds_make_the_pairs(figures):
    area = {run: figures.find("corrections", *FAMILY, "area", run).value for run in ("official", "permuted", "rolled")}
    assert area["official"] == area["permuted"] == area["rolled"] > 0
    assert figures.find("corrections", *FAMILY, "area", "whole image").value == 1
    assert figures.find("corrections", *FAMILY, "change outside", "original").value == 0
    # Tiles do not know each other: what is outside of every mask stays.
    assert figures.find("calls", *FAMILY, "calls more than the plain run", "official").value == 0
    more = figures.find("corrections", *FAMILY, "fd_local", "real against real")
    assert more.low <= more.value <= more.high


def test_features_are_kept_and_images_are_not(figures, folder):
    from safetensors.torch import load_file

    files = sorted((folder / "features").glob("*.safetensors"))
    assert len(files) == 3
    kept = load_file(files[0])
    assert {"original", "official", "segmenter (stand-in)"} <= kept.keys()
    assert kept["official"].shape == (24, 8)
    assert kept["official"].dtype == torch.float16


def test_every_look_at_the_reporting_seeds_is_logged(figures, folder):
    looks = read_looks(folder / "looks.jsonl")
    absent = sum("absent" in result for result in figures.results.values())  # some are known before a look
    assert len(figures.results) - absent <= len(looks) <= len(figures.results)
    assert {look["suite"] for look in looks} == set(SUITES)


def test_a_run_goes_on_where_it_stopped(figures, folder, monkeypatch):
    monkeypatch.setattr(suites, "load", lambda *_: pytest.fail("a cell was computed again"))
    again = run_suite("calls", FAMILY, "small", Lab(folder, source="one"), quiet())
    assert len(again) == 1
    assert len(read_results(folder, FAMILY, "small", "one")) == len(figures.results)


def test_the_verdicts_of_the_toy(decided):
    rows, cases = decided
    assert [row["id"] for row in rows] == [claim.id for claim in CLAIMS]
    allowed = {"reproduced", "not reproduced", "not testable here"}
    for row in rows:
        assert row.keys() == {"id", "verdict", "value", "low", "high", "n", "command"}
        assert row["verdict"] in allowed
    verdicts = {row["id"]: row["verdict"] for row in rows}
    assert verdicts["C8"] == "not testable here"
    assert verdicts["C11"] == verdicts["C17"] == verdicts["C10"] == "reproduced"
    assert verdicts["C12"] == "not reproduced"  # forced masks do break the toy's clean images
    assert cases["C11"][0].family == "toy-blend"


def test_the_bars_of_the_toy_are_decided(figures, folder):
    rows, parts, missing = bars_decided(folder, FAMILY, "small", "one")
    assert missing == {}
    verdicts = {row["id"]: row["met"] for row in rows}
    assert set(IDS) <= verdicts.keys()
    assert None not in verdicts.values()
    assert verdicts["D11"] is True
    assert verdicts["D3d"] is verdicts["D12d"] is False  # a small run is no evidence
    assert {part.family for part in parts} == set(FAMILY)
    json.dumps(rows, allow_nan=False)


def test_the_page_stands_alone_and_speaks(figures, decided, tmp_path):
    page = write_page(tmp_path / "report.html", figures, *decided, notes=["A note <b>."]).read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert 'name="viewport"' in page
    assert "A note &lt;b&gt;." in page
    alts = re.findall(r'<img src="data:[^"]*" alt="([^"]*)"', page)
    assert len(alts) == page.count("<img")
    assert len(alts) >= 16
    assert all(len(alt) > 20 for alt in alts)
    for suite in SUITES.values():
        assert suite.title in page
    assert "No verdicts" in write_page(tmp_path / "bare.html", figures).read_text()


def test_the_table_is_written_between_its_marks(decided, tmp_path):
    rows, _ = decided
    page = write_table(tmp_path / "lab.md", rows)
    assert page.read_text().count("| C1") == 9
    page.write_text(page.read_text().replace("# What", "# Kept. What") + "\nThe end.\n")
    write_table(page, rows[:3])
    assert "# Kept." in page.read_text()
    assert page.read_text().endswith("The end.\n")
    assert page.read_text().count("| C") == 3
    page.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        write_table(page, rows)
    assert claims_table(rows).count("\n") == 18
    assert [number(v) for v in (None, float("nan"), "inf", 0.12345)] == ["-", "none", "unbounded", "0.123"]


def test_missing_cells_are_named(figures, folder):
    part = {cell: result for cell, result in figures.results.items() if cell.suite != "harm"}
    with pytest.raises(MissingResults, match=r"3 of \d+ cells.*harm/toy-blend/set from seed 1000000.*--suite harm"):
        decide(Figures(part, "one"), "small", FAMILY, benchmarks=folder, parity=PARITY)


def test_the_full_cells_are_as_large_as_the_measures_ask():
    cells = cells_of(list(SUITES), None, "full")
    assert len(set(cells)) == len(cells)

    def total(suite, family, part=None):
        return [c.count for c in cells if (c.suite, c.family) == (suite, family) and part in (None, c.part)]

    assert total("corrections", "F1") == [1000] * 10
    assert total("harm", "F5") == [1000] * 10
    assert total("t_c", "F1-W4", "0.5") == [500] * 10
    assert len({c.part for c in cells if c.suite == "t_c"}) == 9
    assert total("natural", "F1-W4") == total("probe", "F1c") == [2000]
    assert total("accuracy", "F1") == [8000]  # of half of them, planted, a part persists
    assert total("evaluations", "F1-W4") == [1000] * 6
    with pytest.raises(ValueError, match="unknown suite"):
        cells_of(["nothing"], None, "full")
    with pytest.raises(ValueError, match="size must be"):
        cells_of(["calls"], None, "huge")


def test_the_probe_reads_two_paths(tmp_path):
    lab = Lab(tmp_path, source="one")
    states, labels = probe._states(lab.subject("toy-blend"), lab, range(12))
    assert labels.tolist() == [0, 1] * 6
    for before, after in zip(states["original"], states["official"], strict=True):
        assert before.shape == (12, 256)
        assert not torch.equal(before, after)


def test_forced_masks_are_those_of_other_samples(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(repairs, "permuted", lambda masks: forced.append(masks) or masks.roll(1, 0))
    (cell, *_) = cells_of(["harm"], FAMILY, "small")
    seen = []
    renoise = repairs.renoise
    monkeypatch.setattr(repairs, "renoise", lambda s, p, mask, *rest: seen.append(mask) or renoise(s, p, mask, *rest))
    repairs.harm(cell, Lab(tmp_path, source="one"))
    (own,), (used,) = forced, seen
    some = used.flatten(1).any(1)
    assert bool(some.any())
    assert torch.equal(used[some], own.roll(1, 0)[some])
    assert not torch.equal(used[some], own[some])


def test_twins_made_at_load_have_a_second_judge(tmp_path, few_grids, monkeypatch):
    models = {name: families.load(name, root=write_untrained(tmp_path)) for name in ("F5", "F5-W4")}
    monkeypatch.setitem(plan.ROLES, "F5-W4", plan.Role(of="F5"))
    lab = Lab(tmp_path, source="one", subjects={name: model.with_steps(4) for name, model in models.items()})
    assert [steps.second_judge(lab, name) for name in ("F5", "F1-early", "toy-blend")] == [None] * 3
    real = models["F5"].real(50)
    flagged, marks = steps.second_judge(lab, "F5-W4")(real)
    assert marks.shape == (50, 32, 32)
    assert torch.equal(flagged, marks.flatten(1).any(1))
    cell = suites.Cell("evaluations", "F5-W4", "12", "small", REPORTING_START, 6, (("steps", 12),))
    found = {one["measure"]: one for one in repairs.evaluations(cell, lab)["figures"]}
    assert found["defect rate, second judge"]["n"] == 6


def test_harm_is_of_all_images_and_of_the_clean(tmp_path):
    (cell, *_) = cells_of(["harm"], FAMILY, "small")
    result = repairs.harm(cell, Lab(tmp_path, source="one"))
    forced, original = (result["values"][name] for name in ("forced", "original"))
    flags = {name: np.array([one == "1" for one in text]) for name, text in result["flags"].items()}
    assert all(len(one) == cell.count for one in flags.values())
    assert forced["newly defective, of the clean"] == pytest.approx(flags["forced"][~flags["original"]].mean())
    assert forced["defect rate"] == pytest.approx(flags["forced"].mean())
    assert original["change outside"] == 0
    assert result["values"]["real against real"]["fd_local"] >= 0


def test_each_seed_set_has_real_images_of_its_own(tmp_path):
    cells = cells_of(["harm"], FAMILY, "small")
    lab = Lab(tmp_path, source="one")
    subject = lab.subject(FAMILY[0])
    (first, beside), (second, _) = (repairs._real(subject, cell, lab) for cell in cells[:2])
    assert not torch.equal(first, second)
    assert torch.equal(beside, second)


def test_flags_that_never_differ_leave_a_limit():
    none = np.zeros(1000, bool)
    found = difference_of(none, none)
    assert found.value == 0
    assert found.high == -found.low == pytest.approx(0.0038, abs=1e-4)
    one = none.copy()
    one[:50] = True
    assert 0.03 < difference_of(one, none).low < 0.05 < difference_of(one, none).high < 0.07


def test_a_probe_learns_a_line_and_not_noise():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(600, 10, generator=generator)
    labels = (states[:, 0] > 0).long()
    weights = probe.fit(states[:300], labels[:300])
    assert float((probe.predict(weights, states[300:]) == labels[300:]).double().mean()) > 0.9
    random = torch.randint(2, (600,), generator=generator)
    weights = probe.fit(states[:300], random[:300])
    assert abs(float((probe.predict(weights, states[300:]) == random[300:]).double().mean()) - 0.5) < 0.1


def invoke(*words):
    return CliRunner().invoke(app, ["lab", *map(str, words)])


def test_the_command_line_runs_resumes_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "source_hash", lambda: "two")
    where = ("--family", "toy", "--size", "small", "--out", tmp_path)
    done = invoke("run", "--suite", "calls", "--suite", "evaluations", *where, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["cells"] == 4
    monkeypatch.setattr(suites, "load", lambda *_: pytest.fail("a cell was computed again"))
    assert invoke("run", "--suite", "calls", *where).exit_code == 0
    other = invoke("run", "--suite", "calls", *where, "--batch", "8")
    assert other.exit_code != 0
    assert "--batch 500" in other.output.replace("\n", " ")
    done = invoke("claims", *where, "--benchmarks", tmp_path)
    assert done.exit_code == 2
    assert "ascedfast lab run --suite" in done.output.replace("\n", " ")
    done = invoke("report", *where, "--benchmarks", tmp_path, "--json")
    assert json.loads(done.stdout)["verdicts"] is None
    assert "No verdicts" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "figures.json").read_text())[0]["n"] >= 1
    monkeypatch.setattr(sources, "source_hash", lambda: "three")
    done = invoke("run", "--suite", "calls", *where)
    assert done.exit_code == 2
    assert "made by other code" in done.output


def test_several_runs_fill_one_folder(tmp_path):
    words = [sys.executable, "-m", "ascedfast", "lab", "run", "--out", str(tmp_path), "--suite", "calls", "--family"]
    runs = [subprocess.Popen([*words, name], stderr=subprocess.PIPE, text=True) for name in ("toy", "toy-blend", "toy")]
    for run in runs:
        assert run.wait() == 0, run.stderr.read()
        run.stderr.close()
    assert len(list((tmp_path / "calls").glob("Cell-*.json"))) == 2
    assert len(read_results(tmp_path, ["toy", "toy-blend"], "small", sources.source_hash(), ["calls"])) == 2
    assert {look["cell"].split()[0] for look in read_looks(tmp_path / "looks.jsonl")} == {"toy", "toy-blend"}
    assert json.loads((tmp_path / "batch.json").read_text()) == 500
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_damaged_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "source_hash", lambda: "two")
    where = ("--family", "toy", "--size", "small", "--out", tmp_path, "--benchmarks", tmp_path)
    assert invoke("run", "--suite", "calls", *where[:6]).exit_code == 0
    (path,) = (tmp_path / "calls").glob("Cell-*.json")
    whole = json.loads(path.read_text())
    for text in (
        path.read_text()[:200],
        json.dumps(whole | {"result": []}),
        json.dumps(whole | {"result": {"figures": [{"measure": "x"}]}}),
        json.dumps(whole | {"result": {"flags": ["01"]}}),
    ):
        path.write_text(text)
        done = invoke("report", *where)
        assert done.exit_code == 2
        assert "moveitaway" in "".join(done.output.split())  # lines are broken anywhere
    path.write_text(json.dumps(whole))
    (tmp_path / "parity.json").write_text("{")
    assert "parity.jsonisnoJSON" in "".join(invoke("report", *where).output.split())
    (tmp_path / "parity.json").unlink()
    (tmp_path / "batch.json").write_text("")
    assert "batch.jsonisnoJSON" in "".join(invoke("run", "--suite", "calls", *where[:6]).output.split())


def test_the_weights_of_a_folder_are_part_of_its_source(tmp_path):
    assert sources.source_of("toy", "one") == sources.source_of(str(tmp_path), "one") == "one"
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "net.safetensors").write_bytes(b"1")
    before = sources.source_of(str(tmp_path), "one")
    (tmp_path / "samples.png").write_bytes(b"1")
    assert sources.source_of(str(tmp_path), "one") == before != sources.source_of(str(tmp_path), "two")
    (tmp_path / "net.safetensors").write_bytes(b"2")
    assert sources.source_of(str(tmp_path), "one") != before


def test_a_folder_of_a_pipeline_is_measured_as_far_as_it_goes(tmp_path):
    net = quietly(lambda: UNet2DModel(16, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                  down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2))  # fmt: skip
    folder = tmp_path / "pipe"
    DDIMPipeline(net, DDIMScheduler()).save_pretrained(folder)
    name = str(folder)
    done = invoke("run", "--suite", "calls", "--suite", "harm", "--family", name, "--size", "small", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "has no defects" in done.output
    subject = load(name)
    assert isinstance(subject, Subject)
    assert (subject.shape, len(subject.schedule), subject.schedule.linear_beta) == ((1, 16, 16), 25, True)
    assert len(subject.with_steps(10).schedule) == 10
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    done = invoke("run", "--suite", "calls", "--family", name, "--size", "small", "--out", tmp_path)
    assert done.exit_code == 2
    assert "error:" in done.output


def test_what_cannot_be_used_is_refused_in_words(tmp_path, monkeypatch):
    for words, expected in (
        (("run", "--suite", "nothing"), "unknown suite"),
        (("run", "--family", "F9"), "unknown family"),
        (("run", "--size", "huge"), "size must be"),
        (("report", "--size", "small"), "no results of size small"),
    ):
        done = invoke(*words, "--out", tmp_path)
        assert done.exit_code == 2
        assert expected in done.output.replace("\n", " ")
    monkeypatch.setattr(cli, "NEEDED", ("scipy", "no_such_package"))
    done = invoke("run", "--out", tmp_path)
    assert done.exit_code == 2
    assert "pip install 'ascedfast[lab]'" in done.output.replace("\n", " ")


def test_the_command_line_stays_light():
    code = "import sys, ascedfast.cli; print([m for m in ('torchmetrics', 'scipy', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

# SPDX-License-Identifier: MIT
"""Reports: values, files and the page, on a run whose masks are known."""

import base64
import json
import re

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

import ascedfast
from ascedfast import AscedConfig, Schedule, process, report_files

STEPS, T_C, SIDE = 12, 6, 64


@pytest.fixture(scope="module")
def report():
    """Two rows: in the first a square jumps at step 4, the second stays calm."""
    levels = [process.flow(1 - k / STEPS) for k in range(STEPS)]
    config = AscedConfig.fast(t_c=T_C, window_start=1, record="run")
    run = ascedfast.begin(Schedule.from_levels(levels), config, seeds=[5, 6])
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(2, 3, SIDE, SIDE)
    for k in range(STEPS):
        x0 = 0.02 * torch.randn(2, 3, SIDE, SIDE, generator=g)
        if k >= 4:
            x0[0, :, 20:36, 8:24] += 0.8
        run.observe(x, x0=x0)
        run.correct_(x)
    return run.report


def test_values(report):
    hit, calm = report
    assert hit.status == "corrected"
    assert calm.status == "clean"
    assert calm.severity == 0
    assert hit.severity > 1
    assert hit.mask[20:36, 8:24].all()
    assert hit.mask.sum() < 2 * 16 * 16
    kept = [region for region in hit.regions if region.kept]
    assert len(kept) == 1
    top, left, bottom, right = kept[0].box
    assert top <= 20
    assert left <= 8
    assert bottom >= 36
    assert right >= 24
    assert kept[0].severity == pytest.approx(hit.severity)
    assert [step for step, _ in hit.dynamics] == list(range(1, STEPS))
    inside, outside = hit.curves["inside"], hit.curves["outside"]
    assert inside[3] > 5 * outside[3]  # the jump, step 4
    assert inside[8] < 2 * outside[8]
    shares = dict(hit.abnormal)
    assert shares[4] > 0.06 > shares[9]


def test_json_is_plain_and_repeats_the_run(report, tmp_path):
    report.save_json(tmp_path / "r.json")
    saved = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    row = saved["rows"][0]
    assert row["seed"] == 5
    assert AscedConfig.from_dict(row["config"]) == report[0].config
    assert row["severity"] == report[0].severity


def test_saved_files(report, tmp_path):
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    report.attach(before=images, after=images)
    folder = tmp_path / "new" / "folder"
    files = {path.relative_to(folder).as_posix() for path in report.save(folder)}
    expected = {"report.html", "report.json", "maps.safetensors"}
    expected |= {"before.png", "after.png", "overview.png", "masks.png", "dynamics.png"}
    assert expected | {f"images/{name}-{i}.png" for name in ("before", "after") for i in range(2)} == files
    assert Image.open(folder / "images" / "after-1.png").size == (SIDE, SIDE)
    maps = load_file(tmp_path / "new" / "folder" / "maps.safetensors")
    assert torch.equal(maps["row0.mask"].bool(), report[0].mask)
    assert torch.equal(maps["row1.labels"], report[1].labels)
    assert maps["row0.dynamics"].shape == (STEPS - 1, SIDE, SIDE)
    assert Image.open(tmp_path / "new" / "folder" / "masks.png").size[0] > 2 * SIDE


def test_another_report_leaves_no_picture_behind(report, tmp_path):
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    report.attach(before=images, after=images).save(tmp_path)
    (tmp_path / "images" / "my-own.png").touch()
    (tmp_path / "holiday.png").touch()
    report.images.clear()
    kept = {path.name for path in report.save(tmp_path)} | {"images", "holiday.png"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["my-own.png"]
    elsewhere = tmp_path / "elsewhere"  # not ours: nothing is removed
    elsewhere.mkdir()
    for name in ("before.png", "overview.png", "report.json"):
        (elsewhere / name).write_text("{}")
    report.save(elsewhere)
    assert (elsewhere / "before.png").read_text() == (elsewhere / "overview.png").read_text() == "{}"


def test_a_run_left_alone_says_why_where_it_is_printed():
    levels = [process.flow(1 - k / STEPS) for k in range(STEPS)]
    run = ascedfast.begin(Schedule.from_levels(levels), AscedConfig(t_c=2), seeds=[0])
    assert "2 predictions precede step 2, 3 are needed: take more steps" in repr(run.report)


def test_page_is_self_contained(report):
    page = report.to_html()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert not re.search(r"url\(", page)
    sources = re.findall(r'src="data:image/([a-z+]+);base64,([^"]+)"', page)
    assert len(sources) >= 7
    for _, encoded in sources:
        assert len(base64.b64decode(encoded, validate=True)) > 100
    assert page.count("<img ") == len(re.findall(r'<img [^>]*alt="[^"]+', page))


def test_text_in_notes_is_escaped(report):
    report.notes = ["<script>alert(1)</script>"]
    assert "<script>alert(1)" not in report.to_html()
    report.notes = []


def test_attach_checks_its_images(report):
    with pytest.raises(ValueError, match="3 images"):
        report.attach(after=torch.rand(3, 3, 8, 8))
    with pytest.raises(ValueError, match="1 or 3"):
        report.attach(after=torch.rand(2, 4, 8, 8))
    with pytest.raises(TypeError, match="PIL"):
        report.attach(after=["a", "b"])


def test_plot_shows_the_curves(report):
    figure = report.plot(0)
    lines = figure.axes[0].get_lines()
    assert any(list(line.get_ydata()) == report[0].curves["inside"] for line in lines)


def test_masks_at_image_resolution(report):
    masks = report.masks_image((2 * SIDE, 2 * SIDE))
    assert torch.equal(masks[:, :, ::2, ::2], report.masks)
    assert torch.equal(masks[:, :, 1::2, 1::2], report.masks)
    assert torch.equal(report.masks_image((SIDE, SIDE), grown=True), report.masks_grown)


def test_a_run_left_alone_still_makes_a_page(tmp_path):
    levels = [process.flow(1 - k / 4) for k in range(4)]
    run = ascedfast.begin(Schedule.from_levels(levels), seeds=[1])
    for _ in range(4):
        run.observe(torch.zeros(1, 3, 8, 8), x0=torch.zeros(1, 3, 8, 8))
    report = run.report
    assert report.severity == ["unavailable"]
    report.save(tmp_path)
    assert "are needed" in (tmp_path / "report.html").read_text()


def test_a_full_disk_costs_the_maps_and_not_the_images(report, tmp_path, monkeypatch):
    def full(tensors, path):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(report_files, "save_file", full)
    report.attach(after=torch.rand(2, 3, SIDE, SIDE))
    with pytest.raises(OSError, match="No space left"):
        report.save(tmp_path)
    assert (tmp_path / "images" / "after-1.png").exists()
    assert (tmp_path / "report.html").exists()


def test_a_film_of_many_steps_fits_into_one_strip(report):
    frames = {k: torch.rand(2, 3, SIDE, SIDE) for k in range(STEPS)}
    many = {k: frames[k % STEPS] for k in range(1100)}
    report.attach_frames({"long": many})
    film = report_files._narrow([report.frames["long"][k][0] for k in many])
    assert sum(image.width for image in film) <= 30000
    assert film[0].height == film[0].width
    assert "data:image/jpeg" in report.to_html()
    report.frames.clear()


def test_what_attach_refuses(report):
    with pytest.raises(ValueError, match="draws itself"):
        report.attach(masks=torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match="uint8"):
        report.attach(after=torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="several sizes"):
        report.attach(after=[Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9))])


def test_the_page_says_what_was_done():
    levels = [process.flow(1 - k / STEPS) for k in range(STEPS)]
    for correct, last, words in ((False, 0.0, "found, but not corrected"), (True, float("nan"), "NaN or Inf was seen")):
        config = AscedConfig.fast(t_c=T_C, window_start=1, correct=correct, record="run")
        run = ascedfast.begin(Schedule.from_levels(levels), config, seeds=[5])
        g = torch.Generator().manual_seed(0)
        x = torch.zeros(1, 3, SIDE, SIDE)
        for k in range(STEPS):
            x0 = 0.02 * torch.randn(1, 3, SIDE, SIDE, generator=g)
            x0[0, :, 20:36, 8:24] += last if k == STEPS - 1 else 0.8 * (k >= 4)
            run.observe(x, x0=x0)
            run.correct_(x)
        page = " ".join(run.report.to_html().split())
        assert words in page
        assert ("corrected between steps 5 and 6 of 12" in page) == correct

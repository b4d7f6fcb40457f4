# SPDX-License-Identifier: MIT
"""A report as files that people look at: pictures, one self-contained page, maps for programs."""

import json
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ascedfast import pictures, plots
from ascedfast.report import SHEETS, Report, RowReport

IMAGES = "images"
"""Folder of the single images, as large as they are."""
LARGE, MOST_REGIONS, WIDEST_FILM = 512, 200, 30000
"""Of the page: sides of pictures from which they are JPEG, regions of a table, pixels of a film (a JPEG has 65,500)."""
Z_SHOWN = 8.0
"""Robust z at which the heat maps saturate."""


def write(report: Report, folder: Path) -> list[Path]:
    """Write the report into ``folder`` (made if missing) and return the files, images first: a disk that fills up then
    costs the least. What another report left there goes. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    pages = [folder / "report.json", folder / "report.html"]
    written = []
    singles = {f"{IMAGES}/{name}-{i}": one for name, images in report.images.items() for i, one in enumerate(images)}
    for name, image in {**singles, **_sheets(report)}.items():
        written.append(folder / f"{name}.png")
        written[-1].parent.mkdir(exist_ok=True)
        image.save(written[-1])
    report.save_json(pages[0])
    pages[1].write_text(page(report), encoding="utf-8")
    maps = _maps(report)
    if maps:
        written.append(folder / "maps.safetensors")
        try:
            save_file(maps, written[-1])
        except SafetensorError as error:
            raise OSError(f"{written[-1].name}: {error}") from error
        written[-1].chmod(pages[0].stat().st_mode)  # safetensors leaves it to its owner alone
    return pages + written


def _clear(folder: Path) -> None:
    """Remove the pictures of an earlier report: beside those of this one they would look like theirs."""
    try:
        json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no report of ours
    for name in (*SHEETS, "before", "after"):
        (folder / f"{name}.png").unlink(missing_ok=True)
    for path in (folder / IMAGES).glob("*-*.png"):
        if path.stem.rpartition("-")[2].isdigit():
            path.unlink()
    (folder / "maps.safetensors").unlink(missing_ok=True)


def page(report: Report) -> str:
    """One HTML page with everything in it; nothing is fetched from anywhere."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("ascedfast"), autoescape=True, trim_blocks=True)
    steps = sorted({step for row in report for step, _ in row.dynamics})
    return environment.get_template("report.html").render(
        rows=[_row_view(report, i, steps) for i in range(len(report))],
        steps=steps,
        start=_first_shown(report, steps),
        mode=report.mode or "several modes",
        notes=report.notes,
        histogram=plots.svg_uri(plots.abnormal_histogram(report)) if steps else None,
        repeat=json.dumps(_without_regions(report.to_dict()), indent=2),
        most_regions=MOST_REGIONS,
    )


def _without_regions(values: dict[str, Any]) -> dict[str, Any]:
    """Regions stand in tables, and in report.json to the last one."""
    return {**values, "rows": [{name: row[name] for name in row if name != "regions"} for row in values["rows"]]}


def _first_shown(report: Report, steps: list[int]) -> int:
    """Where the slider stands at first: the first step after a correction, else the last one before it."""
    planned = [row.plan.t_c for row in report if row.plan.reason is None]
    return next((steps.index(k) for t_c in planned for k in (t_c, t_c - 1) if k in steps), 0)


def _row_view(report: Report, index: int, steps: list[int]) -> dict[str, Any]:
    row = report[index]
    view: dict[str, Any] = {"row": row, "index": index, "pictures": [], "films": []}
    for name, images in report.images.items():
        view["pictures"].append((name, _uri(pictures.enlarge(images[index]))))
    if row.mask is not None and row.mask.dim() == 2:
        overlay = pictures.draw_mask(_ground(report, index), row.mask, row.mask_grown)
        view["pictures"].append(("mask", _uri(overlay)))
        view["pictures"].append(("largest z", pictures.data_uri(pictures.enlarge(_heat(row.z)))))
    for name, film in report.frames.items() if steps else ():
        blank = Image.new("RGB", next(iter(film.values()))[index].size, "lightgrey")
        sheet = pictures.strip(_narrow([film[step][index] if step in film else blank for step in steps]))
        view["films"].append((f"x0_hat {name}", pictures.data_uri(sheet, "JPEG"), len(steps)))
    if row.dynamics and row.dynamics[0][1].dim() == 2:
        maps = {step: _heat(row.step_z(d)) for step, d in row.dynamics}
        blank = Image.new("RGB", next(iter(maps.values())).size, "lightgrey")
        film = pictures.strip(_narrow([maps.get(step, blank) for step in steps]))
        view["films"].append(("dynamics, z", pictures.data_uri(film), len(steps)))
        view["curves"] = plots.svg_uri(plots.curves(row))
    return view


def _uri(image: Image.Image) -> str:
    return pictures.data_uri(image, "JPEG" if min(image.size) >= LARGE else "PNG")


def _narrow(film: list[Image.Image]) -> list[Image.Image]:
    """Frames no wider than fit into one strip that browsers show."""
    width, height = film[0].size
    if width * len(film) <= WIDEST_FILM:
        return film
    width, height = max(1, WIDEST_FILM // len(film)), max(1, height * WIDEST_FILM // (width * len(film)))
    return [image.resize((width, height)) for image in film]


def _heat(values: Tensor) -> Image.Image:
    return pictures.heat_map(values, 0.0, Z_SHOWN)


def _ground(report: Report, index: int) -> Image.Image:
    """What a mask is drawn over: the image before the correction, else the final one, else the z map."""
    for name in ("before", "after"):
        if name in report.images:
            return report.images[name][index]
    return _heat(report[index].z)


def _sheets(report: Report) -> dict[str, Image.Image]:
    sheets = {name: pictures.grid(list(map(pictures.enlarge, images))) for name, images in report.images.items()}
    planar = [i for i, row in enumerate(report) if row.mask is not None and row.mask.dim() == 2]
    if planar:
        drawn = [pictures.draw_mask(_ground(report, i), report[i].mask, report[i].mask_grown) for i in planar]
        sheets["masks"] = pictures.grid(drawn)
        if {"before", "after"} <= report.images.keys():
            before, after = ([pictures.enlarge(report.images[name][i]) for i in planar] for name in ("before", "after"))
            sheets["overview"] = pictures.grid([*before, *drawn, *after], columns=len(planar))
    recorded = [row for row in report if row.dynamics and row.dynamics[0][1].dim() == 2]
    if recorded:
        rows = [pictures.strip([_heat(row.step_z(d)) for _, d in row.dynamics]) for row in recorded]
        width = max(row.width for row in rows)
        sheets["dynamics"] = pictures.grid([row.crop((0, 0, width, row.height)) for row in rows], columns=1)
    return sheets


def _maps(report: Report) -> dict[str, Tensor]:
    """Every map as a tensor: masks uint8 [*grid], labels int32, z float32, dynamics float32 [S, *grid] a row."""
    maps: dict[str, Tensor] = {}
    for i, row in enumerate(report):
        maps |= {f"row{i}.{name}": tensor.contiguous().cpu() for name, tensor in _row_maps(row).items()}
    return maps


def _row_maps(row: RowReport) -> dict[str, Tensor]:
    maps = {}
    if row.detection is not None:
        maps["mask"] = row.mask.to(torch.uint8)
        maps["mask_grown"] = row.mask_grown.to(torch.uint8)
        maps["labels"] = row.labels.clone()
        maps["z"] = row.z.float().clone()
    if row.dynamics:
        maps["dynamics"] = torch.stack([d.float() for _, d in row.dynamics])
        maps["dynamics_steps"] = torch.tensor([step for step, _ in row.dynamics])
    return maps

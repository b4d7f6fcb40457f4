# SPDX-License-Identifier: MIT
"""A report as files that people look at: pictures, one self-contained page, maps for programs."""

import json
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ascedfast import pictures, plots
from ascedfast.report import Report, RowReport

Z_SHOWN = 8.0
"""Robust z at which the heat maps saturate."""


def write(report: Report, folder: Path) -> list[Path]:
    """Write the report into ``folder`` (made if missing) and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json", folder / "report.html"]
    report.save_json(written[0])
    written[1].write_text(page(report), encoding="utf-8")
    maps = _maps(report)
    if maps:
        save_file(maps, folder / "maps.safetensors")
        (folder / "maps.safetensors").chmod(written[0].stat().st_mode)  # safetensors leaves it to its owner alone
        written.append(folder / "maps.safetensors")
    for name, image in _sheets(report).items():
        image.save(folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    return written


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
        repeat=json.dumps(report.to_dict(), indent=2),
    )


def _first_shown(report: Report, steps: list[int]) -> int:
    """Where the slider stands at first: the last step before a correction."""
    planned = [row.plan.t_c - 1 for row in report if row.plan.reason is None]
    return steps.index(planned[0]) if planned and planned[0] in steps else 0


def _row_view(report: Report, index: int, steps: list[int]) -> dict[str, Any]:
    row = report[index]
    view: dict[str, Any] = {"row": row, "index": index, "pictures": [], "films": []}
    for name, images in report.images.items():
        view["pictures"].append((name, pictures.data_uri(pictures.enlarge(images[index]))))
    if row.mask is not None and row.mask.dim() == 2:
        overlay = pictures.draw_mask(_ground(report, index), row.mask, row.mask_grown)
        view["pictures"].append(("mask", pictures.data_uri(overlay)))
        view["pictures"].append(("largest z", pictures.data_uri(pictures.enlarge(_heat(row.z)))))
    for name, film in report.frames.items() if steps else ():
        blank = Image.new("RGB", next(iter(film.values()))[index].size, "lightgrey")
        sheet = pictures.strip([film[step][index] if step in film else blank for step in steps])
        view["films"].append((f"x0_hat {name}", pictures.data_uri(sheet, "JPEG"), len(steps)))
    if row.dynamics and row.dynamics[0][1].dim() == 2:
        maps = {step: _heat(row.step_z(d)) for step, d in row.dynamics}
        blank = Image.new("RGB", next(iter(maps.values())).size, "lightgrey")
        film = pictures.strip([maps.get(step, blank) for step in steps])
        view["films"].append(("dynamics, z", pictures.data_uri(film), len(steps)))
        view["curves"] = plots.svg_uri(plots.curves(row))
    return view


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

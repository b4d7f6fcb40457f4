# SPDX-License-Identifier: MIT
"""The page and the pictures in a trained network's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ascedfast.lab import families
from ascedfast.lab.cards import FIGURES_FILE, draw_loss, tenths, thin, write_atomically
from ascedfast.lab.sampling import sample

if TYPE_CHECKING:
    from ascedfast.lab.jobs import Job
    from ascedfast.lab.loop import Loop

SAMPLES, COLUMNS = 32, 8

SOURCES = {
    "fashion32": "Fashion-MNIST (Debian package `dataset-fashion-mnist`), 28x28 with a border of 2 pixels, grey levels "
    "in [-1, 1]; the training part only. MIT licence; Xiao, Rasul, Vollgraf, arXiv 1708.07747.",
    "emoji64": "Bitmaps of the font Noto Color Emoji (Debian package `fonts-noto-color-emoji`) on white, 64x64, RGB in "
    "[-1, 1]; nine tenths of them, drawn by the weights of `ascedfast.lab.emoji`, moved by up to 2 pixels. The images "
    "are by Google and others under the Apache License 2.0, the font file is under the SIL Open Font License 1.1; "
    "neither is part of this folder.",
    "glyphs32": "4x4 grids of 8 glyphs, no glyph twice in a row, 32x32, grey levels in [-1, 1], made by "
    "`ascedfast.lab.glyphs` (MIT).",
}

CARD = """---
license: mit
library_name: diffusers
---
# {folder}

{summary}. Written by `python -m ascedfast.lab.training --family {command}`; loaded by `ascedfast.lab.{loader}`.
{pictures}
{parameters:,} parameters, stored as fp16: the running average of the weights.

## Data
{data} {images:,} training images or latents.

## Training
| | |
|---|---|
| iterations | {iterations:,} of batch {batch} |
| time | {seconds:,.0f} s on {device} |
| precision | {precision} |
| optimiser | AdamW, peak learning rate {learning_rate:g}, cosine to 0 |
| seed | {seed} |
| loss, mean of the first and of the last tenth | {first_loss:.4f}, {last_loss:.4f} |
{checks}| software | PyTorch {torch_version}, diffusers {diffusers_version} |

![loss](loss.png)

## Limits
A small network, trained for minutes on one narrow set of images: a test subject for samplers, or an instrument made for
such subjects. What it shows does not carry over to large models.{early}
"""

EARLY = " This one is an early checkpoint, kept because it is weak."


def write_model_card(folder: Path, job: Job, loop: Loop, checks: dict[str, float], images: int, root: Path) -> None:
    """Figures, loss curve, samples where the network draws, and README.md, into the folder of its weights."""
    on_gpu = loop.device.type == "cuda"
    curve = thin(loop.curve)
    figures = {
        "folder": folder.name,
        "summary": job.summary,
        "data": job.source,
        "images": images,
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        "iterations": loop.iteration,
        "batch": len(loop.x0),
        "seconds": round(loop.seconds, 1),
        "device": torch.cuda.get_device_name(loop.device) if on_gpu else "the CPU",
        "precision": "bf16 autocast" if on_gpu else "float32",
        "learning_rate": loop.learning_rate,
        "seed": loop.seed,
        "checks": checks,
        "torch_version": torch.__version__,
        "diffusers_version": diffusers.__version__,
        "curve": curve,
    }
    figures["first_loss"], figures["last_loss"] = tenths([loss for *_, loss in curve]) if curve else (0.0, 0.0)
    write_atomically(folder / FIGURES_FILE, json.dumps(figures))
    draw_loss(curve, folder.name, folder / "loss.png")
    early = job.early is not None and folder.name == job.early[1]
    pictures = ""
    if job.family is not None:
        name = f"{job.family}-early" if early else job.family
        Image.fromarray(samples(families.load(name, loop.device, root))).save(folder / "samples.png", optimize=True)
        pictures = f"\n![{SAMPLES} samples](samples.png)\n\nUnselected samples: seeds 0 to {SAMPLES - 1}, 25 steps.\n"
    text = CARD.format(
        **figures
        | {
            "data": SOURCES[job.source],
            "command": job.command,
            "loader": "families" if job.part != "net" else "extractors",
            "pictures": pictures,
            "checks": "".join(f"| {name} | {value:.4g} |\n" for name, value in checks.items()),
            "early": EARLY if early else "",
        }
    )
    write_atomically(folder / "README.md", text)


def samples(model: families.Model) -> np.ndarray:
    """Images of the seeds 0 to SAMPLES - 1, uint8 [rows*S, COLUMNS*S] or [..., 3]. Raises: FloatingPointError."""
    images = model.decode(sample(model.denoise, model.schedule, model.start(range(SAMPLES))))
    if not bool(images.isfinite().all()):
        raise FloatingPointError("the model samples values that are not finite")
    return _tiles(images)


def _tiles(images: Tensor) -> np.ndarray:
    n, channels, size, _ = images.shape
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    rows = pixels.reshape(n // COLUMNS, COLUMNS, channels, size, size).permute(0, 3, 1, 4, 2)
    return rows.reshape(n // COLUMNS * size, COLUMNS * size, channels).squeeze(-1).numpy()

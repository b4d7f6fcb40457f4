# SPDX-License-Identifier: MIT
"""What a trained emoji model's folder holds beside the weights: figures, model card, loss curve and samples."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import DiffusionPipeline

from ascedfast.lab.cards import FIGURES_FILE, draw_loss, tenths, thin, write_atomically

SAMPLES = 64

CARD = """---
license: mit
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# {folder}

A small diffusion model of the Noto colour emoji at {size}x{size} pixels, made to test and to demonstrate samplers on
any machine. Written by `examples/train_emoji.py`.

    {load}

![{samples} samples](samples.png)

{samples} unselected samples: seeds 0 to {last_seed}, {steps} steps with fresh noise at each (DDIM's formula at eta 1;
`python examples/sample_emoji.py FOLDER` draws them again). With 25 steps of {sampler} and no noise, as in the
demonstration, fewer can be recognised.

## Model
{summary}. {parameters:,} parameters, stored as fp16: the running average of the weights. Images are RGB on white, in
[-1, 1].

## Data
{images:,} bitmaps of the font Noto Color Emoji (Debian package `fonts-noto-color-emoji`), set on white, padded to a
square and resized. Draws are balanced so that skin tones, genders and directions of one emoji do not crowd out the
others (`examples/emoji/data.py` gives the weights). Shifted by up to 2 pixels at random; never flipped.

The emoji images are by Google and others, licensed under the Apache License 2.0; the font file is licensed under the
SIL Open Font License 1.1. Neither is part of this folder.

## Training
| | |
|---|---|
| iterations | {iterations:,} of batch {batch}{continued} |
| time | {seconds:,.0f} s on {device}, {sharing} |
| precision | {precision} |
| optimiser | AdamW, peak learning rate {learning_rate:g}, cosine to 0 |
| seed | {seed} |
| loss, mean of the first and of the last tenth | {first_loss:.4f}, {last_loss:.4f} |
| software | PyTorch {torch_version}, diffusers {diffusers_version} |

![loss](loss.png)

## Limits
A few thousand pictures are a tiny data set: the model repeats much of what it saw, mixes emoji that do not belong
together, and draws objects worse than faces and people. It takes no prompt. It is a test subject for samplers, not for
production, and its samples say nothing about large models.
"""


def write_folder(pipeline: DiffusionPipeline, folder: Path, figures: dict) -> None:
    """Saves the pipeline and writes its card and loss curve.

    Args:
        pipeline: holds the network in the dtype that is to be stored.
        folder: where to; files of an earlier run are replaced.
        figures: see `Trainer.export`; its `curve` holds (iteration, seconds, loss) of short stretches of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors leaves it to its owner alone
    write_card(folder, figures)


def write_card(folder: Path, figures: dict) -> None:
    """Writes figures, model card and loss curve of a saved pipeline; arguments as for `write_folder`."""
    name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    source = "ascedfast.pipelines" if name == "PixelFlowPipeline" else "diffusers"
    load = f'from {source} import {name}\n    pipe = {name}.from_pretrained("path/to/{folder.name}")'
    figures = figures | {"curve": thin(figures["curve"])}
    figures["first_loss"], figures["last_loss"] = tenths([loss for *_, loss in figures["curve"]])
    write_atomically(folder / FIGURES_FILE, json.dumps(figures))
    card = CARD.format(load=load, samples=SAMPLES, last_seed=SAMPLES - 1, **figures)
    write_atomically(folder / "README.md", card)
    draw_loss(figures["curve"], figures["folder"], folder / "loss.png")

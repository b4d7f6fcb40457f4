# SPDX-License-Identifier: MIT
"""What a trained emoji model's folder holds beside the weights: figures, model card, loss curve and samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from PIL import Image

from ascedfast.lab.cards import FIGURES_FILE, draw_loss, tenths, thin, write_atomically

SAMPLES = 64
STEPS = 25

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

{samples} unselected samples: seeds 0 to {last_seed}, {sampler}, {steps} steps.

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


def write_folder(pipeline: DiffusionPipeline, load_line: str, folder: Path, figures: dict, device: str) -> None:
    """Saves the pipeline, samples what was saved, and writes the card and the pictures around it.

    Args:
        pipeline: holds the network in the dtype that is to be stored.
        load_line: Python that loads the folder, for the card.
        folder: where to; files of an earlier run are replaced.
        figures: see `Trainer.figures`; its `curve` holds (iteration, seconds, loss) of short stretches of the run.
        device: where the samples are drawn. The noise comes from the CPU, so the seeds mean the same everywhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors leaves it to its owner alone
    write_card(load_line, folder, figures)
    logging.disable_progress_bar()
    grid = sample_grid(type(pipeline).from_pretrained(folder).to(device))
    Image.fromarray(grid).save(folder / "samples.png", optimize=True)


def write_card(load_line: str, folder: Path, figures: dict) -> None:
    """Writes figures, model card and loss curve; arguments as for `write_folder`."""
    figures = figures | {"curve": thin(figures["curve"])}
    figures["first_loss"], figures["last_loss"] = tenths([loss for *_, loss in figures["curve"]])
    write_atomically(folder / FIGURES_FILE, json.dumps(figures))
    card = CARD.format(load=load_line, samples=SAMPLES, last_seed=SAMPLES - 1, steps=STEPS, **figures)
    write_atomically(folder / "README.md", card)
    draw_loss(figures["curve"], figures["folder"], folder / "loss.png")


def sample_grid(pipeline: DiffusionPipeline, count: int = SAMPLES, columns: int = 8) -> np.ndarray:
    """Samples of the seeds 0 to count - 1, uint8 (count / columns * S, columns * S, 3)."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    images = pipeline(
        batch_size=count, generator=generators, num_inference_steps=STEPS, output_type="np", return_dict=False
    )[0]
    if not np.isfinite(images).all():
        raise FloatingPointError("the model samples values that are not finite")
    size = images.shape[1]
    tiles = (images * 255).round().astype(np.uint8).reshape(count // columns, columns, size, size, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(count // columns * size, columns * size, 3)

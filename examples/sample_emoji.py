# SPDX-License-Identifier: MIT
"""Draws the samples of trained emoji models again, and their cards: a quarter of an hour on 2 cores.

python examples/sample_emoji.py ascedfast/assets/emoji64-unet ascedfast/assets/emoji64-dit
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DDIMPipeline
from diffusers.utils import logging
from emoji.card import FIGURES_FILE, write_card
from emoji.samples import STEPS, draw_samples
from rich.console import Console

from ascedfast.pipelines import PixelFlowPipeline


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders that examples/train_emoji.py wrote.")],
    steps: Annotated[int, typer.Option(help="Steps, each with fresh noise.")] = STEPS,
) -> None:
    """Draws the samples of trained models again, and their cards."""
    logging.disable_progress_bar()
    for folder in folders:
        if not (folder / FIGURES_FILE).is_file():
            Console(stderr=True).print(f"[red]{folder} holds no {FIGURES_FILE}: no folder of a trained emoji model[/]")
            raise typer.Exit(1)
        figures = json.loads((folder / FIGURES_FILE).read_text(encoding="utf-8"))
        kind = PixelFlowPipeline if (folder / "transformer").is_dir() else DDIMPipeline
        device = "cuda" if torch.cuda.is_available() else "cpu"
        draw_samples(kind.from_pretrained(folder).to(device), folder, steps)
        write_card(folder, figures | {"steps": steps})


if __name__ == "__main__":
    typer.run(main)

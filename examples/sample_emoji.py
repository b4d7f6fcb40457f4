# SPDX-License-Identifier: MIT
"""Draws the samples of trained emoji models again, and their cards: about ten minutes for both on 2 cores.

python examples/sample_emoji.py ascedfast/assets/emoji64-unet ascedfast/assets/emoji64-dit
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers.utils import logging
from emoji.card import FIGURES_FILE, write_card
from emoji.nets import RECIPES
from emoji.samples import draw_samples
from rich.console import Console


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders that examples/train_emoji.py wrote.")],
    steps: Annotated[
        int | None, typer.Option(help="Steps, each with fresh noise. Default: the model's own, as in emoji/nets.py.")
    ] = None,
) -> None:
    """Draws the samples of trained models again, and their cards."""
    logging.disable_progress_bar()
    for folder in folders:
        if not (folder / FIGURES_FILE).is_file():
            Console(stderr=True).print(f"[red]{folder} holds no {FIGURES_FILE}: no folder of a trained emoji model[/]")
            raise typer.Exit(1)
        figures = json.loads((folder / FIGURES_FILE).read_text(encoding="utf-8"))
        recipe = RECIPES["dit" if (folder / "transformer").is_dir() else "unet"]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        figures["steps"] = recipe.sample_steps if steps is None else steps
        draw_samples(recipe.pipeline_class.from_pretrained(folder).to(device), folder, figures["steps"])
        write_card(folder, figures)


if __name__ == "__main__":
    typer.run(main)

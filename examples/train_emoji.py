# SPDX-License-Identifier: MIT
"""Trains the two bundled emoji models: a U-Net (noise, linear beta) and a DiT (rectified flow), 64x64 pixels.

    python examples/train_emoji.py --model both --minutes 30 --out asced-run/models
    python examples/train_emoji.py --model unet --minutes 1 --small --out /tmp/tiny      # a minute on a laptop

Needs a font (Debian package fonts-noto-color-emoji). A run told to end (SIGTERM) writes what it has. One that is killed
goes on at its last checkpoint with `--resume CHECKPOINT`, and so does a finished one with more `--minutes`. That is the
budget of each model, all of its runs together; the learning rate follows it and reaches 0 at its end, however fast the
machine is. On a GPU the two models train side by side, on two GPUs each on its own, on a CPU one after the other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from emoji.data import load_emoji
from emoji.nets import RECIPES
from emoji.trainer import Trainer
from rich.console import Console

from ascedfast.lab.loop import follow

DEFAULT_CHECKPOINTS = Path("asced-run/train-emoji")
SMALL_IMAGES, SMALL_SIZE, SMALL_BATCH, SMALL_RATE = 64, 32, 16, 2e-3


class Model(StrEnum):
    unet = "unet"
    dit = "dit"
    both = "both"


def train_both(device: str) -> None:
    """Runs this command once for each model: together on a GPU, in turn where they would fight for the cores."""
    commands = []
    for name in RECIPES:
        arguments = [a for a in sys.argv[1:] if not a.startswith("--model=")]
        if "--model" in arguments:
            at = arguments.index("--model")
            del arguments[at : at + 2]
        commands.append([sys.executable, __file__, "--model", name, "--plain", *arguments])
    together = device == "cuda"
    running: list[subprocess.Popen] = []
    ended = []

    def end(*_) -> None:
        ended.append(True)
        for process in running:
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    gpus = 0 if "CUDA_VISIBLE_DEVICES" in os.environ else torch.cuda.device_count()
    for i, command in enumerate(commands):
        if ended:
            break
        chosen = {"CUDA_VISIBLE_DEVICES": str(i % gpus)} if gpus > 1 else {}
        running.append(subprocess.Popen(command, env={**os.environ, **chosen}))
        if not together:
            running[-1].wait()
    if any(process.wait() for process in running):
        raise typer.Exit(1)


def main(
    model: Annotated[Model, typer.Option(help="Which model to train.")] = Model.both,
    minutes: Annotated[float, typer.Option(help="Training time of each model, earlier runs counted in.")] = 9.0,
    device: Annotated[str, typer.Option(help="cuda or cpu. Default: cuda where there is one.")] = "",
    out: Annotated[Path, typer.Option(help="The models' folders are written into this one.")] = Path("asced-run"),
    font: Annotated[Path | None, typer.Option(help="NotoColorEmoji.ttf, or a .npz written by emoji/data.py.")] = None,
    checkpoints: Annotated[Path, typer.Option(help="Folder of the checkpoints.")] = DEFAULT_CHECKPOINTS,
    resume: Annotated[
        Path | None, typer.Option(help="Go on from this checkpoint, model folder, or folder that holds either.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and noise.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Images in a batch. Default: the model's own.")] = None,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate. Default: the model's own.")] = None,
    small: Annotated[bool, typer.Option(help="Tiny networks, few images of 32x32: a test of the script.")] = False,
    eager: Annotated[bool, typer.Option(help="Neither compile the network nor use a CUDA graph.")] = False,
    plain: Annotated[bool, typer.Option(help="Lines instead of a progress bar.")] = False,
) -> None:
    """Trains the emoji models and writes their folders."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if model is Model.both:
        train_both(device)
        return
    console = Console(highlight=False)
    recipe = RECIPES[model]
    if small:
        recipe = replace(recipe, batch=SMALL_BATCH, learning_rate=SMALL_RATE)
    recipe = replace(recipe, batch=batch or recipe.batch, learning_rate=rate or recipe.learning_rate)
    try:
        emoji = load_emoji(font, SMALL_SIZE if small else 64, SMALL_IMAGES if small else None)
    except (FileNotFoundError, ValueError) as reason:
        console.print(f"[red]{reason}[/]")
        raise typer.Exit(1) from None

    if small:
        torch.set_num_threads(1)  # a tiny network gains nothing from more, and loses much where the cores are busy
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(recipe, emoji, torch.device(device), seed, small)
    if device == "cuda" and not eager:
        console.print(f"{model}: {trainer.compile()}")
    if resume is not None:
        found = (resume / f"{recipe.folder}.pt", resume / recipe.folder, resume)
        trainer.load(next(path for path in found if path.exists()))
        console.print(f"{model}: going on at iteration {trainer.iteration}, {trainer.seconds:.0f} s")
    if device == "cuda" and not eager:
        console.print(f"{model}: {trainer.capture()}")
    signal.signal(signal.SIGTERM, lambda *_: setattr(trainer, "stopped", True))
    follow(trainer.run(minutes, checkpoints / f"{recipe.folder}.pt"), trainer, model, console, plain)
    console.print(f"{model}: {trainer.iteration} iterations in {trainer.seconds:.0f} s; sampling")
    sharing = "training alone" if not plain or device == "cpu" else "shared with the other model's training"
    trainer.export(out / recipe.folder, len(emoji.names), sharing)
    console.print(f"{model}: wrote {out / recipe.folder}")


if __name__ == "__main__":
    typer.run(main)

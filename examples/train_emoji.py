# SPDX-License-Identifier: MIT
"""Trains the two bundled emoji models: a U-Net (noise, linear beta) and a DiT (rectified flow), 64x64 pixels.

    python examples/train_emoji.py --model both --minutes 9 --out ascedfast/assets
    python examples/train_emoji.py --model unet --minutes 1 --small --out /tmp/tiny      # a minute on a laptop

Needs a font (Debian package fonts-noto-color-emoji). A run can be cut off: `--resume CHECKPOINT` goes on at the saved
iteration, and with more `--minutes` a finished run goes on too. `--minutes` is the budget of each model, all of its
runs together; the learning rate follows it and reaches 0 at its end, however fast the machine is. On a GPU two models
train side by side, on a CPU one after the other.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import diffusers
import torch
import typer
from emoji_card import FIGURES_FILE, write_folder
from emoji_data import EmojiSet, load_emoji
from emoji_nets import RECIPES, Recipe
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

EMA_LIMIT = 0.9995
MAX_SHIFT = 2  # pixels
CHECKPOINT_EVERY = 60.0  # seconds
PLAIN_LINE_EVERY = 20.0  # seconds
DEFAULT_CHECKPOINTS = Path("asced-run/train-emoji")
SMALL_IMAGES, SMALL_SIZE, SMALL_BATCH, SMALL_RATE = 64, 32, 16, 2e-3


class Batches:
    """Draws training batches on the device: weighted, with replacement, shifted by up to MAX_SHIFT pixels."""

    def __init__(self, emoji: EmojiSet, device: torch.device):
        images = torch.from_numpy(emoji.images).permute(0, 3, 1, 2)
        self.size = images.shape[-1]
        white = torch.nn.functional.pad(images, [MAX_SHIFT] * 4, value=255)
        self.images = white.contiguous().to(device)  # uint8 (N, 3, S + 4, S + 4): 54 MB for the whole font
        self.cumulative = torch.from_numpy(emoji.weights).cumsum(0).float().to(device)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float32 (count, 3, S, S) in [-1, 1]."""
        device = self.images.device
        chance = torch.rand(count, device=device, generator=generator)
        # Rounding may leave the last sum below 1.
        rows = torch.searchsorted(self.cumulative, chance).clamp_(max=len(self.cumulative) - 1)
        shift = torch.randint(2 * MAX_SHIFT + 1, (2, count, 1), device=device, generator=generator)
        y, x = shift + torch.arange(self.size, device=device)
        channel = torch.arange(3, device=device)[None, :, None, None]
        picked = self.images[rows[:, None, None, None], channel, y[:, None, :, None], x[:, None, None, :]]
        return picked.float() / 127.5 - 1


class Trainer:
    """Network, running average, optimiser and the one training step: compiled and captured in a graph on a GPU."""

    def __init__(self, recipe: Recipe, emoji: EmojiSet, device: torch.device, seed: int, small: bool):
        torch.manual_seed(seed)
        self.recipe, self.device, self.seed = recipe, device, seed
        self.batches = Batches(emoji, device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.model = recipe.build(self.batches.size, small).to(device).train()
        # Where an image lies in memory: channels_last spares cuDNN the reordering around each bf16 convolution.
        layout = torch.channels_last if recipe.channels_last and device.type == "cuda" else torch.contiguous_format
        self.model.to(memory_format=layout)
        self.network = self.model  # or its compiled form, which shares the parameters
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        on_gpu = device.type == "cuda"
        # Tensors rather than numbers, so that a captured step reads them anew at each replay.
        self.rate = torch.zeros((), device=device)
        self.average_pull = torch.zeros((), device=device)
        self.loss_sum = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate if on_gpu else 0.0, betas=(0.9, 0.99), fused=on_gpu, capturable=on_gpu
        )
        shape = (recipe.batch, 3, self.batches.size, self.batches.size)
        self.x0 = torch.empty(shape, device=device).to(memory_format=layout)
        self.noise = torch.empty_like(self.x0)
        self.t = torch.empty(recipe.batch, device=device)
        self.iteration, self.seconds, self.curve, self.continued = 0, 0.0, [], ""
        self.graph: torch.cuda.CUDAGraph | None = None

    def refill(self) -> None:
        """New images, noise and levels, written where a captured step reads them."""
        self.x0.copy_(self.batches.draw(self.recipe.batch, self.generator))
        self.noise.normal_(generator=self.generator)
        self.t.copy_(self.recipe.draw_levels(self.recipe.batch, self.device, self.generator))

    def step(self) -> None:
        """Forward, backward, clip, update, running average. No value comes back to the host."""
        self.optimizer.zero_grad(set_to_none=True)
        # The cache would keep casts made inside a capture alive outside of it.
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda", cache_enabled=False):
            loss = self.recipe.loss(self.network, self.x0, self.noise, self.t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.loss_sum += loss.detach()
            pull = torch._foreach_sub(self.parameters, self.average)
            torch._foreach_mul_(pull, self.average_pull)
            torch._foreach_add_(self.average, pull)

    def advance(self, rate: float) -> None:
        """One iteration at this learning rate."""
        self.refill()
        self.rate.fill_(rate)
        if self.device.type == "cpu":
            self.optimizer.param_groups[0]["lr"] = rate
        # A running average with a constant decay would remember the untrained weights for thousands of iterations.
        self.average_pull.fill_(1 - min(EMA_LIMIT, (5 + self.iteration) / (50 + self.iteration)))
        self.step() if self.graph is None else self.graph.replay()
        self.iteration += 1

    def take_loss(self, iterations: int) -> float:
        """Mean loss since the last call; waits for the device."""
        mean = self.loss_sum.item() / iterations
        self.loss_sum.zero_()
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is not finite at iteration {self.iteration}")
        return mean

    def compile(self) -> str:
        """Compiles the network; it stays as it is where that fails. Returns what came of it, for the log.

        The step is bound by memory: fusing norm, activation and cast saves most of the traffic between convolutions.
        """
        began = time.monotonic()
        self.network = torch.compile(self.model, dynamic=False)
        try:
            self.refill()
            self.step()  # at rate 0: no weight moves
        except Exception as reason:  # a missing compiler, an unknown GPU: nothing here is worth losing the run for
            self.network, verdict = self.model, f"not compiled: {type(reason).__name__}: {str(reason)[:200]}"
        else:
            verdict = f"compiled in {time.monotonic() - began:.0f} s"
        self.optimizer.state.clear()
        self.loss_sum.zero_()
        return verdict

    def capture(self) -> str:
        """Captures the step, checks one replay against one eager step, and puts all weights back as they were.

        Launching some 1,500 small kernels from Python takes longer than running them, hence the graph. Returns what
        came of it, for the log; on any failure the trainer stays eager.
        """
        saved = self.tensors()
        before = [tensor.clone() for tensor in saved]
        fresh = not self.optimizer.state
        self.refill()
        self.rate.fill_(1e-4)
        self.average_pull.fill_(0.1)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # cuDNN picks its algorithms, the optimiser makes its state
                self.step()
            self.put_back(saved, before, fresh)
            self.loss_sum.zero_()
            self.step()
            eager_loss, eager_average = self.loss_sum.item(), [a.clone() for a in self.average]
            self.put_back(saved, before, fresh)
            self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(side)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step()
            self.loss_sum.zero_()
            graph.replay()
            loss = self.loss_sum.item()
            moved = sum((e - b).norm() for e, b in zip(eager_average, before[len(self.parameters) :], strict=False))
            error = sum((a - e).norm() for a, e in zip(self.average, eager_average, strict=True))
            ratio = (error / moved).item()
            if not (abs(loss - eager_loss) < 0.02 * eager_loss and ratio < 0.5):
                raise RuntimeError(f"a replay differs from the eager step: loss {loss} and {eager_loss}, {ratio=:.3f}")
            self.graph, verdict = graph, f"one CUDA graph a step; replay and eager differ by {ratio:.1e} of the update"
        except RuntimeError as reason:
            verdict = f"no CUDA graph, the step stays eager: {reason}"
        self.put_back(saved, before, fresh)
        self.loss_sum.zero_()
        return verdict

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes: weights, running average, then the optimiser's state if there is one."""
        state = [t for p in self.parameters for t in self.optimizer.state.get(p, {}).values()]
        return [p.data for p in self.parameters] + self.average + state

    def put_back(self, saved: list[Tensor], before: list[Tensor], fresh: bool) -> None:
        """Undoes steps in place: a captured step holds the addresses of these very tensors."""
        torch._foreach_copy_(saved, before)
        if fresh:
            torch._foreach_zero_([t for state in self.optimizer.state.values() for t in state.values()])

    def save(self, path: Path) -> None:
        """Writes a checkpoint; a crash while writing leaves the old one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + ".part")
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": [self.optimizer.state[p] for p in self.parameters],
            "random": self.generator.get_state(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "curve": self.curve,
            "continued": self.continued,
        }
        torch.save(state, scratch)
        os.replace(scratch, path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint, or from a folder that an earlier run wrote (weights and figures only)."""
        if path.is_dir():
            self._load_folder(path)
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        torch._foreach_copy_(self.average, state["average"])
        for parameter, moments in zip(self.parameters, state["optimizer"], strict=True):
            self.optimizer.state[parameter] = moments
        if self.generator.get_state().shape == state["random"].shape:  # a CPU's and a GPU's generators differ
            self.generator.set_state(state["random"].cpu())
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.curve, self.continued = state["curve"], state["continued"]

    def _load_folder(self, folder: Path) -> None:
        pipeline = self.recipe.pipeline_class.from_pretrained(folder)
        stored = next(m for m in pipeline.components.values() if isinstance(m, torch.nn.Module))
        self.model.load_state_dict(stored.float().state_dict())
        torch._foreach_copy_(self.average, [p.detach() for p in self.parameters])
        figures = json.loads((folder / FIGURES_FILE).read_text(encoding="utf-8"))
        self.iteration, self.seconds = figures["iterations"], figures["seconds"]
        self.curve = [tuple(point) for point in figures["curve"]]
        self.generator.manual_seed(self.seed + self.iteration)  # not the same batches again
        self.continued = f"; went on from the fp16 weights of iteration {self.iteration:,} with a new optimiser"

    def run(self, minutes: float, checkpoint: Path) -> Iterator[tuple[float, float, float]]:
        """Trains until the budget is spent; yields (share of the budget, loss, iterations a second) now and then."""
        budget = 60 * minutes
        every = 10 if self.device.type == "cuda" else 1  # the loss is read, and the device waited for, this often
        warm_up = 20 if self.device.type == "cpu" else 300
        began, base, first = time.monotonic(), self.seconds, self.iteration
        saved = last = began
        while self.seconds < budget:
            progress = self.seconds / budget
            ramp = min(1.0, (self.iteration - first + 1) / warm_up)
            self.advance(self.recipe.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * progress)))
            now = time.monotonic()
            self.seconds = base + now - began
            if self.iteration % every:
                continue
            loss, now = self.take_loss(every), time.monotonic()
            self.seconds = base + now - began
            self.curve.append((self.iteration, round(self.seconds, 2), loss))
            if now - saved > CHECKPOINT_EVERY:
                self.save(checkpoint)
                saved = now
            yield min(1.0, self.seconds / budget), loss, every / max(now - last, 1e-9)
            last = now
        self.save(checkpoint)

    def export(self, folder: Path, images: int, sharing: str) -> None:
        """Writes the averaged weights as a pipeline folder, in fp16, with card and pictures."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        recipe = self.recipe
        on_gpu = self.device.type == "cuda"
        figures = {
            "folder": recipe.folder,
            "summary": recipe.summary,
            "sampler": recipe.sampler,
            "size": self.batches.size,
            "images": images,
            "parameters": sum(p.numel() for p in self.parameters),
            "iterations": self.iteration,
            "batch": recipe.batch,
            "seconds": round(self.seconds, 1),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "the CPU",
            "sharing": sharing,
            "precision": "bf16 autocast" if on_gpu else "float32",
            "learning_rate": recipe.learning_rate,
            "continued": self.continued,
            "seed": self.seed,
            "torch_version": torch.__version__,
            "diffusers_version": diffusers.__version__,
            "curve": self.curve,
        }
        model = self.model.to(memory_format=torch.contiguous_format).eval().half()
        load_line = f'{recipe.pipeline_class.__name__}.from_pretrained("{recipe.folder}")'
        write_folder(recipe.pipeline(model), load_line, folder, figures, self.device.type)


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
    running = []
    for command in commands:
        running.append(subprocess.Popen(command))
        if not together:
            running[-1].wait()
    if any(process.wait() for process in running):
        raise typer.Exit(1)


def main(
    model: Annotated[Model, typer.Option(help="Which model to train.")] = Model.both,
    minutes: Annotated[float, typer.Option(help="Training time of each model, earlier runs counted in.")] = 9.0,
    device: Annotated[str, typer.Option(help="cuda or cpu. Default: cuda where there is one.")] = "",
    out: Annotated[Path, typer.Option(help="The models' folders are written into this one.")] = Path("asced-run"),
    font: Annotated[Path | None, typer.Option(help="NotoColorEmoji.ttf, or a .npz written by emoji_data.py.")] = None,
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
    follow(trainer.run(minutes, checkpoints / f"{recipe.folder}.pt"), trainer, model, console, plain)
    console.print(f"{model}: {trainer.iteration} iterations in {trainer.seconds:.0f} s; sampling")
    sharing = "training alone" if not plain or device == "cpu" else "shared with the other model's training"
    trainer.export(out / recipe.folder, len(emoji.names), sharing)
    console.print(f"{model}: wrote {out / recipe.folder}")


def follow(steps: Iterator, trainer: Trainer, name: str, console: Console, plain: bool) -> None:
    """Shows a run: a bar on a terminal, a line now and then elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  loss {task.fields[loss]:.4f}  {task.fields[speed]:.1f} it/s"),
        TimeRemainingColumn(),
    )
    plain = plain or not console.is_terminal
    loss = speed = None
    with Progress(*columns, console=console, disable=plain) as bar:
        task = bar.add_task(name, total=1.0, loss=math.nan, speed=0.0)
        spoken = 0.0
        for share, new_loss, new_speed in steps:
            # Smoothed: one reading covers a few iterations.
            loss = new_loss if loss is None else loss + 0.05 * (new_loss - loss)
            speed = new_speed if speed is None else speed + 0.1 * (new_speed - speed)
            bar.update(task, completed=share, loss=loss, speed=speed)
            if plain and time.monotonic() - spoken > PLAIN_LINE_EVERY:
                spoken = time.monotonic()
                left = trainer.seconds * (1 / share - 1)
                state = f"iteration {trainer.iteration}  loss {loss:.4f}  {speed:.1f} it/s  {left:.0f} s left"
                console.print(f"{name}: {share:4.0%}  {state}")


if __name__ == "__main__":
    typer.run(main)

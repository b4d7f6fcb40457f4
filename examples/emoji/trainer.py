# SPDX-License-Identifier: MIT
"""Batches and the training loop of the emoji models."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
from emoji.card import FIGURES_FILE, write_folder
from emoji.data import EmojiSet
from emoji.nets import Recipe
from torch import Tensor

EMA_LIMIT = 0.9995
MAX_SHIFT = 2  # pixels
CHECKPOINT_EVERY = 60.0  # seconds


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
        self.schedule_from = 0.0  # seconds; where the cosine of the learning rate starts
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stopped = False  # set it to end the run early, with all that it has learnt

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
        """Compiles the network if the recipe says so; it stays eager where that fails. Returns a line for the log.

        The transformer's step is bound by memory: fusing modulation, activation and casts doubled its speed.
        """
        if self.recipe.compile is None:
            return "not compiled, as its recipe says"
        began = time.monotonic()
        try:
            self.network = self.recipe.compile(self.model)
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
            "schedule_from": self.schedule_from,
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
        self.schedule_from = state["schedule_from"]

    def _load_folder(self, folder: Path) -> None:
        pipeline = self.recipe.pipeline_class.from_pretrained(folder)
        stored = next(m for m in pipeline.components.values() if isinstance(m, torch.nn.Module))
        self.model.load_state_dict(stored.float().state_dict())
        torch._foreach_copy_(self.average, [p.detach() for p in self.parameters])
        figures = json.loads((folder / FIGURES_FILE).read_text(encoding="utf-8"))
        self.iteration, self.seconds = figures["iterations"], figures["seconds"]
        self.curve = [tuple(point) for point in figures["curve"]]
        self.generator.manual_seed(self.seed + self.iteration)  # not the same batches again
        self.schedule_from = self.seconds
        self.continued = (
            f"; the first {self.iteration:,} in an earlier run of batch {figures['batch']}, continued from its stored "
            "weights with a new optimiser and a new cosine"
        )

    def run(self, minutes: float, checkpoint: Path) -> Iterator[tuple[float, float, float]]:
        """Trains until the budget is spent; yields (share of the budget, loss, iterations a second) now and then."""
        budget = 60 * minutes
        every = 10 if self.device.type == "cuda" else 1  # the loss is read, and the device waited for, this often
        warm_up = 20 if self.device.type == "cpu" else 300
        began, base, first = time.monotonic(), self.seconds, self.iteration
        saved = last = began
        while self.seconds < budget and not self.stopped:
            progress = (self.seconds - self.schedule_from) / (budget - self.schedule_from)
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
        name, module = recipe.pipeline_class.__name__, recipe.pipeline_class.__module__.split(".")
        source = ".".join(module[:2]) if module[0] == "ascedfast" else module[0]
        load_line = f'from {source} import {name}\n    pipe = {name}.from_pretrained("path/to/{recipe.folder}")'
        write_folder(recipe.pipeline(model), load_line, folder, figures, self.device.type)

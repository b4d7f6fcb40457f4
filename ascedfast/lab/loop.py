# SPDX-License-Identifier: MIT
"""The training loop of the bundled and the laboratory's models: one captured step, a running average, resume."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

CHECKPOINT_EVERY = 60.0  # seconds
PLAIN_LINE_EVERY = 20.0  # seconds


def average_decay(iteration: int, limit: float) -> float:
    """Share of the running average that one iteration keeps: min(limit, (5 + i)/(50 + i))."""
    return min(limit, (5 + iteration) / (50 + iteration))


class Loop:
    """Network, running average, optimiser and one training step: compiled and captured in a graph on request.

    A subclass says what is learnt. ``refill`` writes a new batch into tensors that stay where they are, since a
    captured step reads them there; ``loss`` computes a scalar from ``self.network`` and these tensors.

    Args:
        model: on its device already; trained in place, ends in train mode.
        seed: of the batches. learning_rate: its peak, reached after a warm-up, then a cosine to 0 over the budget.
        average_limit: highest decay of the running average, see ``average_decay``.
    Attributes: iteration; seconds and curve, [(iteration, seconds, loss)], of all runs together; stopped: set it to end
        a run early, with all that it has learnt; average: list of tensors, in the order of the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        seed: int,
        *,
        learning_rate: float,
        average_limit: float,
        channels_last: bool = False,
        weight_decay: float = 1e-2,
    ) -> None:
        self.device, self.seed = device, seed
        self.learning_rate, self.average_limit = learning_rate, average_limit
        self.generator = torch.Generator(device).manual_seed(seed)
        on_gpu = device.type == "cuda"
        # Where an image lies in memory: channels_last spares cuDNN the reordering around each bf16 convolution.
        self.layout = torch.channels_last if channels_last and on_gpu else torch.contiguous_format
        self.model = model.train().to(memory_format=self.layout)
        self.network = self.model  # or its compiled form, which shares the parameters
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        # Tensors rather than numbers, so that a captured step reads them anew at each replay.
        self.rate = torch.zeros((), device=device)
        self.average_pull = torch.zeros((), device=device)
        self.loss_sum = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.rate if on_gpu else 0.0,
            betas=(0.9, 0.99),
            weight_decay=weight_decay,
            fused=on_gpu,
            capturable=on_gpu,
        )
        self.iteration, self.seconds, self.curve, self.continued = 0, 0.0, [], ""
        self.schedule_from = 0.0  # seconds; where the cosine of the learning rate starts
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stopped = False

    def refill(self) -> None:
        """New images, noise and levels, written where a captured step reads them."""
        raise NotImplementedError

    def loss(self) -> Tensor:
        """Of ``self.network`` on what ``refill`` wrote."""
        raise NotImplementedError

    def step(self) -> None:
        """Forward, backward, clip, update, running average. No value comes back to the host."""
        self.optimizer.zero_grad(set_to_none=True)
        # The cache would keep casts made inside a capture alive outside of it.
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda", cache_enabled=False):
            loss = self.loss()
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
        self.average_pull.fill_(1 - average_decay(self.iteration, self.average_limit))
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
        """Compiles the network; it stays eager where that fails. Returns a line for the log."""
        began = time.monotonic()
        try:
            self.network = torch.compile(self.model, dynamic=False)
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
        """Goes on from a checkpoint."""
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
            self.advance(self.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * progress)))
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

    def use_average(self) -> None:
        """Puts the running average in the place of the trained weights."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)


def follow(steps: Iterator, loop: Loop, name: str, console: Console, plain: bool) -> None:
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
                left = loop.seconds * (1 / share - 1)
                state = f"iteration {loop.iteration}  loss {loss:.4f}  {speed:.1f} it/s  {left:.0f} s left"
                console.print(f"{name}: {share:4.0%}  {state}")

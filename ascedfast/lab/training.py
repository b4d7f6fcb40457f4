# SPDX-License-Identifier: MIT
"""Trains the laboratory's families, their feature extractors and the judges.

    python -m ascedfast.lab.training --family all --device cuda --out ascedfast/lab/weights     # 23 minutes of an H100
    python -m ascedfast.lab.training --family F1 --minutes 1 --small --out /tmp/tiny            # a test of the script

A run that is told to end (SIGTERM) or is killed goes on with the same command and ``--resume``; a checkpoint is written
every minute. The budget counts the training of all runs together; the learning rate follows it and reaches 0 at its
end, however fast the machine is. Sampling for the cards and the judges come on top, some seconds each on a GPU.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DDIMPipeline
from rich.console import Console

from ascedfast.lab import families, judge
from ascedfast.lab.jobs import JOBS, SMALL_LIMIT, Job
from ascedfast.lab.loop import Loop, follow
from ascedfast.lab.model_cards import write_model_card

DEFAULT_CHECKPOINTS = Path("asced-run/train-lab")
TERMINATED = 143  # 128 + SIGTERM, as a shell says it


class Ended(Exception):
    """The run was told to end; its checkpoint is written."""


class Session:
    """One command: jobs in turn, with what they share.

    Args: device; root: where the folders are written; small: tiny networks on few images; eager: no CUDA graph.
    """

    def __init__(
        self, device: torch.device, root: Path, console: Console, *, seed=0, small=False, eager=False, plain=False
    ) -> None:
        self.device, self.root, self.console = device, root, console
        self.seed, self.small, self.eager, self.plain = seed, small, eager, plain
        self.loop: Loop | None = None
        self.ended = False

    def end(self, *_: object) -> None:
        """For a signal: the loop stops after its iteration."""
        self.ended = True
        if self.loop is not None:
            self.loop.stopped = True

    def run(self, job: Job, minutes: float, checkpoint: Path, resume: bool) -> None:
        """Train one network and write its folder. Raises: Ended; families.MissingWeightsError where an earlier job's
        weights are needed."""
        if self.ended:
            raise Ended
        self.loop = loop = job.make(self.device, self.seed, self.small, self.root)
        loop.stopped = self.ended
        if resume and checkpoint.exists():
            loop.load(checkpoint)
            self.console.print(f"{job.name}: going on at iteration {loop.iteration}, {loop.seconds:.0f} s")
        if self.device.type == "cuda" and not self.eager:
            self.console.print(f"{job.name}: {loop.capture()}")
        kept = checkpoint.with_name(f"{job.name}-early.pt")
        kept.parent.mkdir(parents=True, exist_ok=True)
        steps = self._keep_early(loop.run(minutes, checkpoint), loop, job, 60 * minutes, kept)
        follow(steps, loop, job.name, self.console, self.plain)
        if loop.stopped:
            self.console.print(f"{job.name}: stopped at iteration {loop.iteration}; go on with --resume")
            raise Ended
        loop.use_average()
        self._export(loop, job, job.name)
        done = f"{loop.iteration} iterations in {loop.seconds:.0f} s"
        self.console.print(f"{job.name}: {done}; wrote {self.root / job.name}")
        self._export_early(loop, job, kept)

    @staticmethod
    def _keep_early(steps: Iterator, loop: Loop, job: Job, budget: float, kept: Path) -> Iterator:
        """Stores the running average beside the checkpoints when the job's early share of the budget is passed."""
        before = loop.seconds / budget
        for step in steps:
            if job.early is not None and before < job.early[0] <= step[0]:
                state = {name: getattr(loop, name) for name in ("average", "iteration", "seconds", "curve")}
                torch.save(state, kept)
            before = step[0]
            yield step

    def _export_early(self, loop: Loop, job: Job, kept: Path) -> None:
        if job.early is None or not kept.exists():
            return
        for name, value in torch.load(kept, map_location=self.device, weights_only=True).items():
            setattr(loop, name, value)
        loop.use_average()
        self._export(loop, job, job.early[1])

    def _export(self, loop: Loop, job: Job, name: str) -> None:
        """The network in fp16, its scheduler, figures, card and pictures."""
        folder = self.root / name
        model = copy.deepcopy(loop.model).to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
        with torch.no_grad():
            job.finish(model, self.small)
            checks = job.check(model, self.small)
        model = model.half()
        family = families.FAMILIES.get(job.family or "")
        if family is None:
            model.save_pretrained(folder / job.part)
        elif family.data != "emoji64" and family.classes is None:
            DDIMPipeline(model, family.scheduler()).save_pretrained(folder)
        else:
            model.save_pretrained(folder / job.part)
            family.scheduler().save_pretrained(folder / "scheduler")
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors leaves it to its owner alone
        write_model_card(folder, job, loop, checks, len(loop.images), self.root)


def main(
    family: Annotated[str, typer.Option(help=f"One of {', '.join(JOBS)}, or all.")] = "all",
    minutes: Annotated[
        float | None, typer.Option(help="Training time of this command's networks together. Default: of each its own.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu. Default: cuda where there is one.")] = "",
    out: Annotated[Path, typer.Option(help="The networks' folders are written into this one.")] = families.WEIGHTS,
    checkpoints: Annotated[Path, typer.Option(help="Folder of the checkpoints.")] = DEFAULT_CHECKPOINTS,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints that are there.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, batches and noise.")] = 0,
    small: Annotated[bool, typer.Option("--small", help="Tiny networks, few images: a test of the script.")] = False,
    eager: Annotated[bool, typer.Option("--eager", help="No CUDA graph.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a progress bar.")] = False,
) -> None:
    """Trains what the laboratory needs and writes it, with model cards, in diffusers' folder format."""
    console = Console(highlight=False, soft_wrap=True)
    if family not in (*JOBS, "all"):
        console.print(f"[red]unknown family {family!r}: choose one of {', '.join(JOBS)}, or all[/]")
        raise typer.Exit(2)
    jobs = [job for name, group in JOBS.items() if family in (name, "all") for job in group]
    scale = 1.0 if minutes is None else minutes / sum(job.minutes for job in jobs)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if small:
        torch.set_num_threads(1)  # a tiny network gains nothing from more, and loses much where the cores are busy
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    session = Session(chosen, out, console, seed=seed, small=small, eager=eager, plain=plain)
    signal.signal(signal.SIGTERM, session.end)
    try:
        for job in jobs:
            session.run(job, scale * job.minutes, checkpoints / f"{job.name}.pt", resume)
        if family in ("extractors", "all"):
            for source in judge.SOURCES:
                record = judge.freeze(source, out, chosen, SMALL_LIMIT if small else None)
                console.print(judge.summary(record))
    except Ended:
        raise typer.Exit(TERMINATED) from None
    except (families.MissingWeightsError, FileNotFoundError) as reason:
        console.print(f"[red]{reason}[/]")
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)

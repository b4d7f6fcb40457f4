# SPDX-License-Identifier: MIT
"""What the commands share: messages and exit code 2, checks before any work, progress bars, and common options."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

err = Console(stderr=True)

Out = Annotated[Path, typer.Option(help="Folder to write into; made if missing.")]
Seed = Annotated[int, typer.Option(help="Seed of the first sample; sample i has seed + i.")]
Steps = Annotated[int, typer.Option(min=1, help="Solver steps.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def fail(message: str) -> NoReturn:
    err.print(f"[red]error:[/red] {escape(message)}", highlight=False)
    raise typer.Exit(2)


def check_seed(seed: int, samples: int) -> None:
    if not 0 <= seed <= (1 << 63) - samples:
        fail(f"--seed must lie in 0..{(1 << 63) - samples}, got {seed}")


def check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device fails in its own way
        fail(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}")


def counter(advance: Callable[[int, int], None], total: int) -> Callable[..., None]:
    """A callback that advances a bar by one at each call."""
    done = itertools.count(1)
    return lambda *_: advance(next(done), total)


def quiet_diffusers() -> None:
    """Its bar for loading would run into ours."""
    from diffusers.utils import logging

    logging.disable_progress_bar()


def check_writable(out: Path, advice: str = "") -> None:
    """Before any work, and without making the folder: it can be written, or its nearest parent that is there."""
    try:
        there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        probe = there / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        fail(f"cannot write into {out}: {error.strerror or error}{advice}")


@contextmanager
def progress_bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars on standard error; yields (title) -> progress(done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:

        def start(title: str) -> Callable[[int, int], None]:
            task = bar.add_task(title, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield start


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """One of them; yields progress(done, total)."""
    with progress_bars() as start:
        yield start(title)


def printable(text: str) -> str:
    """Of a text from a file: what does no more than show on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)

# SPDX-License-Identifier: MIT
"""The command line. Exit codes: 0 done, 2 the arguments or what they point to cannot be used (the message says why)."""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ascedfast._version import __version__
from ascedfast.config import MODES, AscedConfig
from ascedfast.lab.cli import app as lab_app
from ascedfast.report import Report

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(lab_app, name="lab")
err = Console(stderr=True)

Mode = Annotated[str, typer.Option(help=f"One of {', '.join(MODES)}.")]
Out = Annotated[Path, typer.Option(help="Folder to write into; made if missing.")]
Seed = Annotated[int, typer.Option(help="Seed of the first sample; sample i has seed + i.")]
Steps = Annotated[int, typer.Option(min=1, help="Solver steps.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def fail(message: str) -> NoReturn:
    err.print(f"[red]error:[/red] {escape(message)}", highlight=False)
    raise typer.Exit(2)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Watch a diffusion sampler and repair emerging artifacts in the same run."""


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="unet (noise prediction, DDIM) or dit (rectified flow).")] = "unet",
    out: Out = Path("asced-demo"),
    seed: Seed = 0,
    samples: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 8,
    steps: Steps = 25,
    mode: Mode = "fast",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Sample a packaged model with and without correction and write a report. Works offline."""
    from ascedfast.demo import MODELS, load_model, paired_run

    if model not in MODELS:
        fail(f"unknown model {model!r}: choose one of {', '.join(MODELS)}")
    config = checked_config(mode)
    check_seed(seed, samples)
    check_device(device)
    check_writable(out)
    quiet_diffusers()
    denoiser, scheduler = load_model(model, device)
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        fail(f"--steps {steps}: {error}")
    with progress_bar(f"{samples} emoji, both ways, mode {mode}") as advance:
        result = paired_run(denoiser, scheduler, config, seed=seed, samples=samples, steps=steps, progress=advance)
    share = result.asced_seconds / result.seconds
    report = result.report
    report.notes = [
        f"Model {model}, {steps} steps, made by: ascedfast demo --model {model} --seed {seed} "
        f"--samples {samples} --steps {steps} --mode {mode}.",
        f"One corrected run took {result.seconds:.1f} s, {share:.1%} of it inside ASCED ({device}).",
    ]
    finish(report, out, as_json, {"seconds": result.seconds, "asced_share": share})


@app.command()
def generate(
    pipeline: Annotated[Path, typer.Option(help="Folder of a diffusers pipeline, weights in safetensors.")],
    prompt: Annotated[str | None, typer.Option(help="For pipelines that take one.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1,
    out: Out = Path("asced-run"),
    seed: Seed = 0,
    steps: Steps = 25,
    mode: Mode = "fast",
    device: Device = "cpu",
    rate: Annotated[float, typer.Option(help="Mode calibrated: share of sound images that may be flagged.")] = 0.05,
    table: Annotated[Path | None, typer.Option(help="Of sound runs. Default: asced_null.json in the folder.")] = None,
    compare: Annotated[bool, typer.Option(help="Also run without correction, for the report.")] = False,
    as_json: Json = False,
) -> None:
    """Draw images with a local pipeline, corrected, and write a report."""
    from ascedfast.adapters.diffusers import asced
    from ascedfast.adapters.pipeline_folder import FolderError, call_arguments, images_of, load_pipeline

    calibrated = {"rate": rate, "table": table_of(pipeline, table)} if mode == "calibrated" else {}
    config = checked_config(mode, record="run", **calibrated)
    check_seed(seed, n)
    check_device(device)
    check_writable(out)
    seeds = [seed + i for i in range(n)]

    quiet_diffusers()
    try:
        pipe = load_pipeline(pipeline, device)
        call_arguments(pipe, n=n, steps=steps, prompt=prompt, seeds=seeds)
        runs = {"before": dataclasses.replace(config, correct=False)} if compare else {}
        images: dict[str, list] = {}
        for name, settings in {**runs, "after": config}.items():
            title = f"drawing {n} images, {mode}, {'with' if settings.correct else 'without'} correction"
            with (
                progress_bar(title) as advance,
                asced(pipe, settings, seeds=seeds, on_x0=counter(advance, steps)) as handle,
            ):
                arguments = call_arguments(pipe, n=n, steps=steps, prompt=prompt, seeds=seeds)
                images[name] = images_of(pipe(**arguments))
                report = handle.report
    except (FolderError, ValueError) as error:
        fail(str(error))
    except Exception as error:  # settings of a foreign folder that its classes choke on
        fail(f"{pipeline} cannot be run: {type(error).__name__}: {str(error)[:500]}")
    report.attach(**images)
    report.notes = [
        f"Pipeline {pipeline.resolve().name}, {steps} steps{'' if prompt is None else f', prompt {prompt!r}'}."
    ]
    shares = p_values(pipeline, table, report)
    finish(report, out, as_json, {} if shares is None else {"p_values": shares})


@app.command()
def calibrate(
    pipeline: Annotated[Path, typer.Option(help="Folder of a diffusers pipeline, weights in safetensors.")],
    runs: Annotated[int, typer.Option(min=1, help="Sound runs for each number of steps.")] = 2000,
    steps: Annotated[
        str, typer.Option(help="Numbers of solver steps, with commas; others are interpolated.")
    ] = "12,25,50",
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line, for pipelines that take one.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples of one call.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the first run; far from those of images to be judged.")] = 1 << 40,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="The table's file. Default: asced_null.json in the folder.")] = None,
    as_json: Json = False,
) -> None:
    """Learn what sound runs of a pipeline score, for a chosen rate of false alarms. Goes on where it was stopped."""
    from ascedfast.calibration import command

    check_seed(seed, runs)
    check_device(device)
    check_writable(pipeline if out is None else out.absolute().parent, "; give --out FILE" * (out is None))
    quiet_diffusers()
    try:
        numbers = [int(one) for one in steps.split(",") if one.strip()]
    except ValueError:
        fail(f"--steps takes numbers with commas, as 12,25,50, got {steps!r}")
    try:
        lines = prompts.read_text(encoding="utf-8").splitlines() if prompts else []
    except (OSError, ValueError) as error:
        fail(f"--prompts {prompts} cannot be read: {error}")
    try:
        with progress_bars() as bar:
            table, path = command.calibrate(
                pipeline,
                steps=numbers,
                count=runs,
                batch=batch,
                seed=seed,
                prompts=[line.strip() for line in lines if line.strip()],
                device=device,
                out=out,
                progress=bar,
            )
    except (OSError, ValueError) as error:
        fail(str(error))
    except Exception as error:  # settings of a foreign folder that its classes choke on
        fail(f"{pipeline} cannot be run: {type(error).__name__}: {str(error)[:500]}")
    rows = [
        {"changes": len(null.profile), "runs": null.runs, "1 %": null.threshold(0.01), "5 %": null.threshold(0.05)}
        for null in table.nulls
    ]
    if as_json:
        typer.echo(json.dumps({"table": str(path), "nulls": rows}))
        return
    shown = Table("changes before T_c", "sound runs", "severity of 5 %", "severity of 1 %")
    for row in rows:
        shown.add_row(str(row["changes"]), str(row["runs"]), f"{row['5 %']:.2f}", f"{row['1 %']:.2f}")
    Console().print(shown)
    Console().print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder that a report was saved into.")],
    as_json: Json = False,
) -> None:
    """Print a saved report."""
    path = folder if folder.suffix == ".json" else folder / "report.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        table, notes = report_table(saved["rows"]), [str(note) for note in saved["notes"]]
    except (FileNotFoundError, NotADirectoryError):
        fail(f"{path} does not exist: give the folder that a report was saved into, or its .json file")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        fail(f"{path} cannot be read: {error}")
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        fail(f"{path} holds no report: {error!r}")
    if as_json:
        typer.echo(json.dumps(saved))
        return
    for note in notes:
        Console().print(printable(note), highlight=False, markup=False)
    Console().print(table)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def printable(text: str) -> str:
    """Of a text from a file: what does no more than show on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


@app.command()
def doctor(as_json: Json = False) -> None:
    """List versions and backends, and why the others are absent."""
    from ascedfast.doctor import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    console.print(f"ascedfast {found['ascedfast']}, noise version {found['noise_version']}, Python {found['python']}")
    console.print(", ".join(f"{name} {version or 'not installed'}" for name, version in found["packages"].items()))
    holds = "C++ and CUDA ops" if found["extension_has_cuda"] else "no CUDA ops"
    console.print(f"GPU: {found['gpu'] or 'none'}\nextension: {found['extension']} ({holds})", highlight=False)
    table = Table("op", "device", "backend", "why not the others")
    for row in found["ops"]:
        others = "\n".join(f"{name}: {'; '.join(causes)}" for name, causes in row["others"].items())
        table.add_row(row["op"], row["device"], row["backend"], others)
    console.print(table)


def table_of(pipeline: Path, path: Path | None) -> Any:
    """The table of sound runs in a pipeline's folder, or exit with a message."""
    from ascedfast.calibration.folder import load_table

    try:
        return load_table(pipeline, path)
    except (OSError, ValueError) as error:
        fail(str(error))


def p_values(pipeline: Path, path: Path | None, report: Report) -> list[float | None] | None:
    """Of each sample the share of sound runs that are as severe, told in the report's notes too. None where the
    pipeline's folder has no table of sound runs, or one of an earlier pipeline (then a line says so)."""
    from ascedfast.calibration.folder import load_table
    from ascedfast.calibration.judge import judge

    try:
        table = load_table(pipeline, path)
    except FileNotFoundError as error:
        return fail(str(error)) if path else None
    except (OSError, ValueError) as error:
        err.print(f"[yellow]not compared with sound runs:[/yellow] {escape(str(error))}", highlight=False)
        return None
    found: list[float | None] = []
    for row in report:
        try:
            found.append(judge(row, table).p_value)
        except ValueError as error:
            found.append(None)
            why = str(error)
    if found and all(p is None for p in found):
        err.print(f"[yellow]not compared with sound runs:[/yellow] {escape(why)}", highlight=False)
        return found
    words = ", ".join(f"{i}: {'-' if p is None else f'{p:.3g}'}" for i, p in enumerate(found))
    report.notes.append(f"Share of sound runs as severe, by sample: {words} ({table.note}).")
    err.print(escape(report.notes[-1]), highlight=False)
    return found


def checked_config(mode: str, **changes: Any) -> AscedConfig:
    """The preset, or exit with its own message."""
    try:
        return AscedConfig.for_mode(mode, **changes)
    except (TypeError, ValueError) as error:
        fail(str(error))


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


def finish(report: Report, out: Path, as_json: bool, figures: dict[str, Any]) -> None:
    """Save the report and print it, as a table or as JSON."""
    try:
        files = report.save(out)
    except OSError as error:
        fail(f"cannot write into {out}: {error.strerror or error}")
    if as_json:
        typer.echo(json.dumps({**report.to_dict(), **figures, "files": [str(path) for path in files]}))
        return
    console = Console()
    console.print(report_table(report.to_dict()["rows"]))
    if "seconds" in figures:
        console.print(
            f"one corrected run of them all: {figures['seconds']:.1f} s, {figures['asced_share']:.1%} of it in ASCED",
            highlight=False,
        )
    console.print(f"open {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


def report_table(rows: list[dict[str, Any]]) -> Table:
    """A saved report's rows. Raises: KeyError, TypeError, ValueError where they are none."""
    table = Table("sample", "status", "area masked", "severity", "regions", "seed")
    for i, row in enumerate(rows):
        severity = row["severity"] if isinstance(row["severity"], str) else f"{row['severity']:.3f}"
        kept = sum(region["kept"] for region in row["regions"])
        status = row["status"] if row["reason"] is None else f"{row['status']}: {row['reason']}"
        status += "; NaN or Inf after it" * (row.get("finite_after") is False)
        texts = [escape(printable(text)) for text in (status, severity, str(row["seed"]))]
        table.add_row(str(i), texts[0], f"{row['area']:.1%}", texts[1], str(kept), texts[2])
    return table

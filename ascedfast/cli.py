# SPDX-License-Identifier: MIT
"""The command line. Exit codes: 0 done, 2 the arguments or what they point to cannot be used (the message says why)."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ascedfast._version import __version__
from ascedfast.batch.cli import batch
from ascedfast.calibration.cli import calibrate, p_values, table_of
from ascedfast.config import MODES, AscedConfig
from ascedfast.console import (
    Device,
    Json,
    Out,
    Seed,
    Steps,
    check_device,
    check_seed,
    check_writable,
    counter,
    fail,
    printable,
    progress_bar,
    quiet_diffusers,
)
from ascedfast.lab.cli import app as lab_app
from ascedfast.report import Report
from ascedfast.server.cli import serve

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(lab_app, name="lab")
Mode = Annotated[str, typer.Option(help=f"One of {', '.join(MODES)}.")]


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


app.command()(calibrate)
app.command()(batch)
app.command()(serve)


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


def checked_config(mode: str, **changes: Any) -> AscedConfig:
    """The preset, or exit with its own message."""
    try:
        return AscedConfig.for_mode(mode, **changes)
    except (TypeError, ValueError) as error:
        fail(str(error))


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

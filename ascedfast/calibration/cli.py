# SPDX-License-Identifier: MIT
"""``ascedfast calibrate``, and what other commands print of a table of sound runs. Heavy imports wait for a command."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ascedfast.calibration import FIRST_SEED, STEPS
from ascedfast.console import (
    Device,
    Json,
    check_device,
    check_seed,
    check_writable,
    err,
    fail,
    progress_bars,
    quiet_diffusers,
)
from ascedfast.report import Report


def calibrate(
    pipeline: Annotated[Path, typer.Option(help="Folder of a diffusers pipeline, weights in safetensors.")],
    runs: Annotated[int, typer.Option(min=1, help="Sound runs for each number of steps.")] = 2000,
    steps: Annotated[
        str, typer.Option(help="Numbers of solver steps, with commas; others are interpolated.")
    ] = ",".join(map(str, STEPS)),
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line, for pipelines that take one.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples of one call.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the first run, far from those of images.")] = FIRST_SEED,
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


def table_of(pipeline: Path, path: Path | None) -> Any:
    """The table of sound runs in a pipeline's folder, or exit with a message."""
    from ascedfast.calibration.folder import load_table

    try:
        return load_table(pipeline, path)
    except (OSError, ValueError) as error:
        fail(str(error))

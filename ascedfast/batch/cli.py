# SPDX-License-Identifier: MIT
"""``ascedfast batch``: its options and what it prints. Heavy imports wait for the command."""

import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ascedfast.console import Json, check_writable, fail, progress_bar


def batch(
    source: Annotated[
        Path, typer.Option("--in", help="Parquet: id, seed; as wished steps, mode, ... (docs/batch.md).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results; one that was begun so goes on.")],
    pipeline: Annotated[
        Path | None,
        typer.Option(help="Folder of a diffusers pipeline, safetensors. Default: the packaged transformer."),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Of sound runs. Default: asced_null.json in the folder.")] = None,
    num_workers: Annotated[int | None, typer.Option(min=1, help="Default: one a core, or what the GPUs serve.")] = None,
    num_gpus: Annotated[float, typer.Option(min=0, help="Of each worker, a part too; 0: on the CPU.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that are finished together.")] = 4,
    exact: Annotated[
        bool,
        typer.Option("--exact/--together", help="A request by itself, or those of a batch that agree in one call."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Draw a table of requests with Ray Data, each exactly once. The same command goes on where it was stopped."""
    try:
        import pyarrow  # noqa: F401
        import ray.data
    except ModuleNotFoundError as error:
        fail(f"ascedfast batch needs {error.name}: pip install -c constraints.txt -e '.[serve]'")
    from ascedfast.batch.command import StoppedError, run_batch

    check_writable(out)
    began = time.perf_counter()
    options = {
        "pipeline": pipeline,
        "table": table,
        "num_workers": num_workers,
        "num_gpus": num_gpus,
        "batch_size": batch_size,
        "exact": exact,
    }
    try:
        # Ray tells of a worker's death on standard output, which is for the result.
        with redirect_stdout(sys.stderr), progress_bar(f"requests of {source.name}") as advance:
            summary = run_batch(source, out, progress=advance, **options)
    except KeyboardInterrupt:
        typer.echo("interrupted: what was finished is kept, the same command goes on", err=True)
        raise typer.Exit(130) from None
    except (StoppedError, ray.exceptions.RayError) as error:
        fail(f"stopped: {error}; what was finished is kept, the same command goes on")
    except (OSError, ValueError) as error:
        fail(str(error))
    seconds = time.perf_counter() - began
    told = {"statuses": summary.statuses, "drawn": summary.drawn, "seconds": seconds, "results": str(summary.results)}
    if as_json:
        typer.echo(json.dumps(told))
        return
    counts = ", ".join(f"{count} {status}" for status, count in summary.statuses.items()) or "none"
    line = f"{sum(summary.statuses.values())} requests: {counts}; {summary.drawn} drawn now, {seconds:.1f} s"
    Console().print(line, highlight=False, markup=False, soft_wrap=True)
    Console().print(f"wrote {summary.results}", highlight=False, markup=False, soft_wrap=True)

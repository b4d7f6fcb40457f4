# SPDX-License-Identifier: MIT
"""``python -m benchmarks``: measure, save, check and draw."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks import results, table
from benchmarks.measurement import Bench
from benchmarks.results import Record, RefusedToSave
from benchmarks.runner import all_cases, run
from benchmarks.source import ROOT
from benchmarks.targets import GROUPS, TARGETS

CHART = ROOT / "docs" / "benchmarks.png"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)


def main(
    save: Annotated[bool, typer.Option("--save", help="Run the GPU tests first; write results/<gpu>.json.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Do saved results belong to this code? Exit 1 if not.")
    ] = False,
    chart: Annotated[bool, typer.Option("--chart", help="Draw docs/benchmarks.png from the saved results.")] = False,
    only: Annotated[str, typer.Option(help="Groups or beginnings of ids, as P1,P3 or P1/DDIM.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to see that it works; also on a CPU.")] = False,
) -> None:
    """Measure targets P1 to P7 on the CUDA device (see benchmarks/README.md). Bars missed do not fail a run."""
    if check or chart:
        raise typer.Exit(_check() if check else _chart())
    prefixes = [name.strip() for name in only.split(",") if name.strip()] or list(GROUPS)
    unknown = [prefix for prefix in prefixes if not any(id.startswith(prefix) for id in TARGETS)]
    if unknown:
        raise typer.BadParameter(f"no id begins with {', '.join(unknown)}; groups: {', '.join(GROUPS)}")
    cuda = torch.cuda.is_available()
    if not cuda and not quick:
        console.print("no CUDA device: the targets are about one; --quick tries the harness on the CPU")
        raise typer.Exit(2)
    if save and quick:
        console.print("--quick measures tiny sizes: nothing to save")
        raise typer.Exit(2)
    bench = Bench(torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"), quick)
    if not cuda:
        torch.set_num_threads(1)  # tiny tensors: a second thread costs more than its work
    raise typer.Exit(_measure(bench, prefixes, save))


def _measure(bench: Bench, prefixes: list[str], save: bool) -> int:
    try:
        if save:
            results.run_gate(bench.device)
    except RefusedToSave as refusal:
        console.print(f"[red]{refusal}[/]")
        return 1
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    groups = [group for group in GROUPS if any(prefix.startswith(group) for prefix in prefixes)]
    cases = all_cases(bench, groups)
    cases = {id: case for id, case in cases.items() if any(id.startswith(prefix) for prefix in prefixes)}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=len(cases))

        def done(entry: Record) -> None:
            progress.update(task, advance=1, description=entry["id"])
            if not console.is_terminal:  # a log that is cut off keeps what was measured
                console.print(table.line(entry))
            if save:  # at once: a run that is cut off keeps what it has
                results.save([entry], results.FOLDER)

        records = run(cases, bench, command, done)
    console.print(table.rich_table(records, results.gpu_name(bench.device)))
    console.print(table.summary(records))
    return 0


def _check() -> int:
    files = results.saved(results.FOLDER)
    for path, records in files.items():
        console.print(table.rich_table(records, path.name))
        console.print(table.summary(records))
    problems = results.problems(files)
    for problem in problems:
        console.print(f"[red]{problem}[/]")
    return 1 if problems else 0


def _chart() -> int:
    from benchmarks import chart

    files = results.saved(results.FOLDER)
    if not files:
        console.print("no results are saved")
        return 1
    records = results.explain(_latest(files))
    console.print(f"wrote {chart.draw(records, CHART)}")
    tables = {"benchmarks": table.markdown, "misses": table.misses, "ceilings": table.ceilings}
    for path in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        for name, make in tables.items():
            if table.write_between_marks(path, name, make(records)):
                console.print(f"wrote the table of {name} in {path.relative_to(ROOT)}")
    return 0


def _latest(files: dict[Path, list[Record]]) -> Path:
    """The file to show: an H100's, which the targets name, else the first."""
    return next((path for path in files if "h100" in path.name), next(iter(files)))


if __name__ == "__main__":
    typer.run(main)

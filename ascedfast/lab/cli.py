# SPDX-License-Identifier: MIT
"""``ascedfast lab``: run suites, write the report, decide the claims. Heavy imports wait until a command runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Measure what the method detects and repairs, with error bars.")
err = Console(stderr=True)
NEEDED = ("scipy", "torchmetrics", "matplotlib", "jinja2", "safetensors")

Suites = Annotated[list[str] | None, typer.Option("--suite", help="A suite; may be given again. Default: all.")]
Families = Annotated[
    list[str] | None, typer.Option("--family", help="A family, or a pipeline's folder; may be given again.")
]
Size = Annotated[str, typer.Option(help="small (a CPU, minutes) or full (a GPU, about two hours).")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the results; runs go on where they stopped.",
        show_default="of small suites asced-lab, else benchmarks/results/lab",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
RESULTS = {"small": Path("asced-lab"), "full": Path("benchmarks/results/lab")}
"""Small suites stay out of the record of the full ones."""


def _folder(out: Path | None, size: str) -> Path:
    return out or RESULTS.get(size, RESULTS["small"])


def fail(message: str) -> NoReturn:
    err.print(f"[red]error:[/red] {escape(message)}", highlight=False)
    raise typer.Exit(2)


def check_extra() -> None:
    """Exit unless the laboratory's extra is installed."""
    import importlib.util

    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        how = "pip install 'ascedfast[lab]' (in a checkout: pip install -c constraints.txt -e '.[lab]')"
        fail(f"the laboratory needs {', '.join(absent)}: {how}")


@app.command()
def run(
    suite: Suites = None,
    family: Families = None,
    size: Size = "small",
    device: Device = "cpu",
    out: Out = None,
    batch: Annotated[int, typer.Option(min=2, help="Rows at once; results of two sizes are not the same.")] = 500,
    features: Annotated[bool, typer.Option(help="Keep the features of the corrections compared.")] = True,
    as_json: Json = False,
) -> None:
    """Compute the cells that have no result yet."""
    check_extra()
    out = _folder(out, size)
    from ascedfast.console import check_device, check_writable, quiet_diffusers
    from ascedfast.lab.cells import StaleResultError
    from ascedfast.lab.sources import source_hash
    from ascedfast.lab.suites import SUITES, Lab, cells_of, run_suite

    names = list(suite or SUITES)
    try:
        wanted = cells_of(names, family or None, size)
    except ValueError as error:
        fail(str(error))
    check_device(device)
    check_writable(out)
    lab = Lab(out, device, source_hash(), batch, features)
    _keep_batch(out, batch)
    quiet_diffusers()
    try:
        for name in family or ():
            if Path(name).is_dir():  # what a user points to is tried before anything is computed
                lab.subject(name)
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
    results: dict[Any, Any] = {}
    try:
        for name in names:
            results |= run_suite(name, family or None, size, lab, err)
    except (StaleResultError, FileNotFoundError) as error:
        fail(str(error))
    absent = sorted({f"{cell.suite}, {cell.family}: {r['absent']}" for cell, r in results.items() if "absent" in r})
    if as_json:
        typer.echo(json.dumps({"cells": len(wanted), "absent": absent, "out": str(out), "source": lab.source}))
        return
    for line in absent:
        Console().print(f"not measured: {line}", highlight=False, markup=False, soft_wrap=True)
    Console().print(f"{len(wanted)} cells in {out}", highlight=False, markup=False, soft_wrap=True)


def _keep_batch(out: Path, batch: int) -> None:
    """Results of two batch sizes must not meet in one folder: permuted masks come from the next row of the batch.

    Several runs may begin in one folder at once."""
    from ascedfast.lab.cells import keep_first

    file = out / "batch.json"
    if not file.is_file():
        keep_first(file, json.dumps(batch))
    kept = _read(file)
    if kept != batch:
        fail(f"the results in {out} were computed with --batch {kept}: use that, or another folder for --batch {batch}")


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A JSON list, a line a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _read(path: Path) -> Any:
    """The JSON in a file, or an exit with words."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fail(f"{path} is no JSON ({error}): move it away and make it again")


def _figures(out: Path, families: list[str] | None, size: str) -> Any:
    from ascedfast.lab.cells import StaleResultError
    from ascedfast.lab.figures import Figures
    from ascedfast.lab.sources import source_hash
    from ascedfast.lab.suites import read_results

    try:
        results = read_results(out, families, size, source_hash())
    except (StaleResultError, ValueError) as error:
        fail(str(error))
    if not results:
        fail(f"no results of size {size} in {out}: make them with `ascedfast lab run --size {size} --out {out}`")
    return Figures(results, source_hash())


def _parity(out: Path, wanted: bool) -> dict[str, Any] | None:
    from ascedfast.lab.parity import NoCheckout, count

    path = out / "parity.json"
    if wanted:
        try:
            found = count(Path.cwd())
        except NoCheckout as error:
            fail(str(error))
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return _read(path) if path.exists() else None


@app.command()
def claims(
    family: Families = None,
    size: Size = "small",
    out: Out = None,
    parity: Annotated[bool, typer.Option(help="Run the parity tests of a checkout first, for C17.")] = False,
    benchmarks: Annotated[Path, typer.Option(help="Saved benchmarks, for C10.")] = Path("benchmarks/results"),
    table: Annotated[Path | None, typer.Option(help="Markdown page whose table is written anew.")] = None,
    as_json: Json = False,
) -> None:
    """Decide the 17 claims and write claims.json and figures.json beside the results."""
    check_extra()
    out = _folder(out, size)
    from ascedfast.lab.claims import MissingResults, decide
    from ascedfast.lab.report import write_table

    figures = _figures(out, family or None, size)
    try:
        verdicts, _ = decide(figures, size, family or None, benchmarks=benchmarks, parity=_parity(out, parity))
        if table is not None:
            write_table(table, verdicts)
    except (MissingResults, ValueError) as error:
        fail(str(error))
    _write_rows(out / "claims.json", verdicts)
    figures.save(out / "figures.json")
    if as_json:
        typer.echo(json.dumps(verdicts))
        return
    shown = Table("id", "verdict", "value", "low", "high", "n")
    for row in verdicts:
        shown.add_row(*(str(row[name]) for name in ("id", "verdict", "value", "low", "high", "n")))
    Console().print(shown)


@app.command()
def detector(
    family: Families = None,
    size: Size = "small",
    out: Out = None,
    table: Annotated[Path | None, typer.Option(help="Markdown page whose table is written anew.")] = None,
    as_json: Json = False,
) -> None:
    """Decide the bars of mode "calibrated" and write detector.json beside the results."""
    check_extra()
    out = _folder(out, size)
    from ascedfast.lab.bar_page import decided, missing_lines, write_bars
    from ascedfast.lab.cells import StaleResultError
    from ascedfast.lab.sources import source_hash

    try:
        rows, parts, missing = decided(out, family or None, size, source_hash())
        if table is not None:
            write_bars(table, rows, parts)
    except (StaleResultError, ValueError) as error:
        fail(str(error))
    _write_rows(out / "detector.json", rows)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    shown = Table("id", "met", "value", "low", "high", "n", "bar")
    for row in rows:
        shown.add_row(*(str(row[name]) for name in ("id", "met", "value", "low", "high", "n", "bar")))
    Console().print(shown)
    for line in missing_lines(missing):
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


@app.command("table")
def null_table(
    out: Annotated[Path, typer.Option(help="File to write.")],
    runs: Annotated[int, typer.Option(min=100, help="Tuning runs of each model, for each number of steps.")] = 2000,
    device: Device = "cpu",
) -> None:
    """Make the table of sound runs that comes with the package (a GPU, a minute or two)."""
    check_extra()
    from ascedfast.console import check_device
    from ascedfast.lab.bar_suites import PACKAGE_TABLE
    from ascedfast.lab.nulls import pooled_table
    from ascedfast.lab.seeds import TuningSeeds
    from ascedfast.lab.subject import load

    check_device(device)
    steps = [int(one) for one in PACKAGE_TABLE[1].split()]
    try:
        made = pooled_table([load(name, device) for name in ("F1", "F3")], TuningSeeds.of(0, runs), steps)
        made.save(out)
    except (OSError, ValueError) as error:
        fail(str(error))
    Console().print(f"wrote {out}: {made.note}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def report(
    family: Families = None,
    size: Size = "small",
    out: Out = None,
    benchmarks: Annotated[Path, typer.Option(help="Saved benchmarks, for C10.")] = Path("benchmarks/results"),
    as_json: Json = False,
) -> None:
    """Write report.html and figures.json from what is there, the verdicts too where nothing is missing."""
    check_extra()
    out = _folder(out, size)
    from ascedfast.lab.claims import MissingResults, decide
    from ascedfast.lab.report import write_page

    figures = _figures(out, family or None, size)
    verdicts, cases, notes = None, None, [f"Size {size}."]
    try:
        verdicts, cases = decide(figures, size, family or None, benchmarks=benchmarks, parity=_parity(out, False))
    except ValueError as error:
        fail(str(error))
    except MissingResults as error:
        notes.append(f"No verdicts: {error}")
    figures.save(out / "figures.json")
    path = write_page(out / "report.html", figures, verdicts, cases, notes)
    if as_json:
        typer.echo(json.dumps({"report": str(path), "figures": len(figures.all), "verdicts": verdicts}))
        return
    Console().print(f"open {path}", highlight=False, markup=False, soft_wrap=True)

# SPDX-License-Identifier: MIT
"""The laboratory's page for people, and the table of ``docs/lab.md``, both from the same results."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ascedfast.lab.claims import CLAIMS, Case
from ascedfast.lab.figures import Figure, Figures
from ascedfast.lab.lab_plots import plots
from ascedfast.lab.suites import SUITES

BEGIN, END = "<!-- table of the claims: begin -->", "<!-- table of the claims: end -->"
ROWS_SHOWN = 400
"""Rows a table of the page at the most; figures.json has all."""


def write_page(
    path: Path,
    figures: Figures,
    verdicts: Sequence[Mapping[str, Any]] | None = None,
    cases: Mapping[str, Sequence[Case]] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """One HTML file that fetches nothing: verdicts, plots with alternative texts, and every figure with its interval.

    Args: verdicts, cases: of ``claims.decide``; None where results are missing. Returns: the file.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("ascedfast"), autoescape=True, trim_blocks=True)
    environment.filters["figure"] = number
    words = {claim.id: claim.words for claim in CLAIMS}
    drawn = plots(figures)
    suites = []
    for name, suite in SUITES.items():
        found = [one for one in figures.all if one.suite == name]
        absent = sorted(
            {
                f"{cell.family}: {r['absent']}"
                for cell, r in figures.results.items()
                if cell.suite == name and "absent" in r
            }
        )
        if found or absent:
            views = [plot for plot in drawn if plot.suite == name]
            suites.append(
                {"suite": suite, "figures": found[:ROWS_SHOWN], "more": max(0, len(found) - ROWS_SHOWN)}
                | {"plots": views, "absent": absent, "command": found[0].command if found else ""}
            )
    page = environment.get_template("lab.html").render(
        verdicts=[dict(row) | {"words": words[row["id"]]} for row in verdicts or ()],
        cases=cases or {},
        suites=suites,
        source=figures.source,
        notes=notes,
        label=label,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def label(figure: Figure) -> str:
    """What tells a figure from the others of its part: the settings that are words."""
    return ", ".join(f"{name} {value}" for name, value in figure.settings if isinstance(value, str))


def number(value: float | str | None) -> str:
    """Three digits; words for what is no number."""
    if value is None:
        return "-"
    value = float(value)
    if math.isnan(value):
        return "none"
    return f"{value:.3g}" if math.isfinite(value) else ("unbounded" if value > 0 else "-unbounded")


def claims_table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a row a claim."""
    known = {claim.id: claim for claim in CLAIMS}
    heads = ("id", "claim", "verdict", "value", "95 % interval", "n", "unit; what n counts", "made by")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in verdicts:
        interval = "-" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"
        claim = known[row["id"]]
        cells = (claim.id, claim.words, row["verdict"], number(row["value"]), interval, row["n"] or "-", claim.unit)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + f" | `{row['command']}` |")
    return "\n".join(lines)


def write_table(path: Path, verdicts: Sequence[Mapping[str, Any]]) -> Path:
    """Put the table between its marks in a Markdown page, or make a page that holds it alone."""
    return put_between(path, claims_table(verdicts), BEGIN, END, "What the published method does")


def put_between(path: Path, text: str, begin: str, end: str, title: str) -> Path:
    """Put text between two marks of a page, or make a page of that title that holds it alone.

    Raises: ValueError where the page does not hold each mark once."""
    page = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n\n{begin}\n{end}\n"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{path} must hold the marks {begin!r} and {end!r} once each")
    before, _, rest = page.partition(begin)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    return path

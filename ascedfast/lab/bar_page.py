# SPDX-License-Identifier: MIT
"""The verdicts on the detector's bars from a folder of results, and their table in a page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ascedfast.lab.bar_suites import BAR_SUITES
from ascedfast.lab.bars import BARS, IDS, Part, decide
from ascedfast.lab.evidence import left_out, weighed
from ascedfast.lab.report import number, put_between
from ascedfast.lab.suites import cells_of, command_of, read_results

BEGIN, END = "<!-- table of the detector: begin -->", "<!-- table of the detector: end -->"
SUITES = tuple(row[0] for row in BAR_SUITES)


def decided(
    folder: Path, families: Sequence[str] | None, size: str, source: str
) -> tuple[list[dict[str, Any]], list[Part], dict[str, str]]:
    """Rows for ``detector.json`` (``bars.decide``, with "note": what was left out, and why), the parts behind them, and
    by id what is missing, in words.

    Raises: StaleResultError, ValueError."""
    cells = cells_of(SUITES, families, size)
    results = read_results(folder, families, size, source, SUITES)
    parts, dropped = weighed(results)
    missing, commands, notes = {}, {}, {}
    for id in IDS:
        suites = suites_of(id)
        absent = [cell for cell in cells if cell.suite in suites and cell not in results]
        commands[id] = command_of(suites, families or [], size)
        notes[id] = left_out(results, suites) + [one.words for one in dropped if one.id == id]
        if absent:
            names = list(dict.fromkeys(cell.family for cell in absent))
            some = [name for name in suites if name in {cell.suite for cell in absent}]
            command = command_of(some, names if len(names) <= 3 else [], size)
            missing[id] = f"{len(absent)} cells. Make them with: {command} --out {folder}"
    rows = decide(parts, missing, commands)
    for row in rows:
        row["note"] = "; ".join(notes.get(row["id"], ()))
    return rows, parts, missing


def suites_of(id: str) -> list[str]:
    """What an id is measured by, in the order of the suites."""
    needed = {suite for bar in BARS if bar.of == id for suite in bar.suites}
    return [name for name in SUITES if name in needed]


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """One line an id."""
    return [f"{id} is open: {words}" for id, words in missing.items()]


def bars_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown, a row a bar; the weakest part speaks."""
    lines = ["| id | bar | met | value | 95 % interval | n | weakest at |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        interval = "-" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"
        met = {None: "open", True: "yes", False: "no"}[row["met"]]
        cells = (row["id"], row["bar"], met, number(row["value"]), interval, row["n"] or "-", row["where"] or "-")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def ways_table(parts: Iterable[Part]) -> str:
    """Markdown of D11: a row a way, empty without any."""
    lines = []
    for part in parts:
        if part.bar == "D11":
            value, low, high = (number(one) for one in part.estimate[:3])
            lines.append(f"| {part.label} | {value} | {low} to {high} | {part.estimate.n} |")
    head = ["", "| D11: way | defect rate | 95 % interval | n |", "|---|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""


def write_bars(path: Path, rows: Sequence[Mapping[str, Any]], parts: Sequence[Part]) -> Path:
    """Put the tables between their marks in a page, or make one. Raises: ValueError without the marks."""
    text = "\n".join(one for one in (bars_table(rows), ways_table(parts)) if one)
    return put_between(path, text, BEGIN, END, "Detection at a chosen rate")

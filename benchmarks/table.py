# SPDX-License-Identifier: MIT
"""Saved or fresh records as a table for the terminal, and as Markdown for the README."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from rich.markup import escape
from rich.table import Table

from benchmarks.results import Record
from benchmarks.source import source_sha256

BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"
SIGNS = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}


def rich_table(records: Sequence[Record], title: str) -> Table:
    """One row a record, met or missed; older code is named."""
    now = source_sha256()
    table = Table(title=title, title_justify="left")
    table.add_column("id", no_wrap=True)
    for column in ("value", "bar"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in ("ours us", "baseline us", "GB/s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note", max_width=48)
    for entry in records:
        older = "[yellow]older code[/] " if entry["source_sha256"] != now else ""
        note = escape(shorten(entry["note"] or "", 48))
        numbers = [_figure(entry[name]) for name in ("ours_us", "baseline_us", "gbps")]
        sign = SIGNS[entry["met"]] if entry["value"] is not None else "[yellow]not measured[/]"
        table.add_row(entry["id"], _figure(entry["value"]), _figure(entry["bar"]), sign, *numbers, older + note)
    return table


def summary(records: Sequence[Record]) -> str:
    """How many bars are met, missed and not measured."""
    held = [entry for entry in records if entry["bar"] is not None]
    if not held:
        return "no bar to hold them against"
    blank = sum(entry["value"] is None for entry in held)
    met = sum(entry["met"] for entry in held)
    return f"{met} of {len(held)} bars met, {len(held) - met - blank} missed, {blank} not measured"


def markdown(records: Sequence[Record]) -> str:
    """A row a target group: bars met, and the worst value by its bar; says "older code" where the hash differs."""
    now = source_sha256()
    gpu = records[0]["gpu"]
    lines = [f"| {gpu} | bars met | worst by its bar | value | bar | unit |", "|---|---|---|---|---|---|"]
    for group in sorted({entry["id"].partition("/")[0] for entry in records}):
        held = [e for e in records if e["id"].startswith(f"{group}/") and e["bar"] is not None]
        seen = [entry for entry in held if entry["value"] is not None]
        older = " (older code)" if any(entry["source_sha256"] != now for entry in held) else ""
        score = f"| {group}{older} | {sum(bool(entry['met']) for entry in held)} of {len(held)} |"
        if not seen:
            lines.append(f"{score} not measured | | | |")
            continue
        worst = max(seen, key=badness)
        figures = f"{_figure(worst['value'])} | {_figure(worst['bar'])} | {worst['unit']}"
        lines.append(f"{score} {worst['id'].partition('/')[2]} | {figures} |")
    return "\n".join(lines)


def badness(entry: Record) -> float:
    """Value over bar, or bar over value where more is better: above 1 is a miss."""
    value, bar = entry["value"], entry["bar"]
    if bar == 0:
        return min(1.0, 1.0 + value) if value <= 0 else 1.0 + value
    if entry["id"].startswith("P3"):
        value, bar = bar, value
    return value / bar if bar > 0 else float("inf")


def misses(records: Sequence[Record]) -> str:
    """A row a missed bar, the farthest first: by how much, and what stands in the way."""
    missed = [entry for entry in records if entry["met"] is False and entry["value"] is not None]
    lines = ["| id | value | bar | over the bar by | what stands in the way |", "|---|---|---|---|---|"]
    for entry in sorted(missed, key=badness, reverse=True):
        figures = f"{_figure(entry['value'])} | {_figure(entry['bar'])} | {badness(entry) - 1:.1%}"
        lines.append(f"| {entry['id']} | {figures} | {entry['limit'] or 'not known'} |")
    return "\n".join(lines)


def ceilings(records: Sequence[Record]) -> str:
    """A row an op and size: its time, its ceiling (one launch, or its bytes) and the distance between them."""
    lines = ["| op | plane | us | ceiling, us | times its ceiling |", "|---|---|---|---|---|"]
    for entry in records:
        if entry["id"].startswith("P2/op/") and entry["value"] is not None:
            op, plane = entry["id"].split("/")[2:]
            figures = " | ".join(_figure(entry[name]) for name in ("ours_us", "baseline_us", "value"))
            lines.append(f"| {op} | {plane} | {figures} |")
    return "\n".join(lines)


def write_between_marks(path: Path, name: str, text: str) -> bool:
    """Replace what stands between the BEGIN and END of this name in a file; whether it has these marks."""
    before, begin, end = path.read_text(), BEGIN.format(name), END.format(name)
    if begin not in before or end not in before:
        return False
    head, tail = before.partition(begin)[0], before.partition(end)[2]
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
    return True


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def line(entry: Record) -> str:
    """One record in a line of a log."""
    value = "not measured" if entry["value"] is None else f"{entry['value']:.4g} {entry['unit']}"
    bar = "" if entry["bar"] is None else f", bar {entry['bar']:g}: {'met' if entry['met'] else 'missed'}"
    us = "" if entry["ours_us"] is None else f"; {entry['ours_us']:.4g} us"
    against = "" if entry["baseline_us"] is None else f" against {entry['baseline_us']:.4g}"
    return f"{entry['id']}: {value}{bar}{us}{against}" + (f" ({entry['note']})" if entry["note"] else "")

# SPDX-License-Identifier: MIT
"""A figure of the server, and the file of all of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import FOLDER, SERVING, gpu_name
from benchmarks.source import ROOT, server_sha256
from benchmarks.table import write_between_marks

FILE = FOLDER / SERVING
PAGE = ROOT / "docs" / "serving.md"


@dataclass(frozen=True)
class Outcome:
    """value against bar: met where value <= bar; bar None: stated, held against nothing. n: how many were looked at."""

    id: str
    value: float
    bar: float | None
    n: int
    unit: str
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.bar is None else self.value <= self.bar


def save(outcomes: Sequence[Outcome], command: str, path: Path = FILE) -> None:
    """Write the figures into the file; those of other ids stay as they are."""
    old = load(path) if path.exists() else []
    records = {entry["id"]: entry for entry in old}
    for one in outcomes:
        records[one.id] = {
            "id": one.id,
            "value": float(f"{one.value:.6g}"),
            "bar": one.bar,
            "met": one.met,
            "n": one.n,
            "unit": one.unit,
            "note": one.note,
            "device": gpu_name(torch.device("cpu")),
            "command": command,
            "source_sha256": server_sha256(),
        }
    path.write_text("[\n" + ",\n".join(json.dumps(records[id]) for id in sorted(records)) + "\n]\n")


def load(path: Path = FILE) -> list[dict[str, Any]]:
    """The records of the file."""
    return json.loads(path.read_text())


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """S1 to S5 as a table, a figure a row."""
    lines = ["| | value | bar | | n | |", "|---|---|---|---|---|---|"]
    for one in records:
        if one["id"].startswith("S6"):  # of rows without a server
            continue
        bar = "" if one["bar"] is None else f"{one['bar']:g}"
        met = {True: "met", False: "missed", None: "stated"}[one["met"]]
        said = "; ".join(filter(None, (one["unit"], one["note"])))
        lines.append(f"| {one['id']} | {one['value']:.4g} | {bar} | {met} | {one['n']} | {said} |")
    return "\n".join(lines)


def write_page(page: Path = PAGE, path: Path = FILE) -> None:
    """Put the table of the file into the page."""
    write_between_marks(page, "figures", markdown(load(path)))

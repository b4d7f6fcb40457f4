# SPDX-License-Identifier: MIT
"""A figure of the server, and the file of all of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER
from benchmarks.source import server_sha256

FILE = FOLDER / "serving.json"


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


def save(outcomes: Sequence[Outcome], command: str, device: str, path: Path = FILE) -> None:
    """Write the figures into the file; those of other ids stay as they are."""
    old: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
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
            "device": device,
            "command": command,
            "source_sha256": server_sha256(),
        }
    path.write_text("[\n" + ",\n".join(json.dumps(records[id]) for id in sorted(records)) + "\n]\n")

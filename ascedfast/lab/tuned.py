# SPDX-License-Identifier: MIT
"""What is made once of tuning seeds and used by many cells: kept in memory, and as JSON beside the results.

Files carry the source hash of the family in their name, so other code or weights never meet what they did not make.
Several processes may make one of them at once: the first one's stays, and all go by it.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ascedfast.calibration import packaged
from ascedfast.calibration.table import NullTable
from ascedfast.lab.cells import keep_first
from ascedfast.lab.nulls import nulls_at, pooled_table, table_of
from ascedfast.lab.plan import role_of
from ascedfast.lab.seeds import TuningSeeds
from ascedfast.lab.sources import source_of
from ascedfast.lab.suites import Lab


def kept(lab: Lab, family: str, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, plain values for JSON, made where it is not there yet.

    Args: name: tells it from the family's others, settings included."""
    key = ("tuned", family, name)
    if key not in lab.cache:
        source = source_of(family, lab.source)
        words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{family}-{name}")
        path = lab.folder / "tuned" / f"{words}-{source[:12]}.json"
        found = _read(path)
        if found is None:
            text = json.dumps(make())
            keep_first(path, text + "\n")  # all cells go by one table
            found = json.loads(path.read_text(encoding="utf-8"))
        lab.cache[key] = found
    return lab.cache[key]


def _read(path: Path) -> Any | None:
    """None where nothing is there; what is damaged is taken away."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        path.unlink(missing_ok=True)
        return None


def sound(family: str) -> str:
    """The full-quality model whose runs a family is compared with: of a weak twin, what it is the twin of. A toy's
    denoiser is exact or hazy and nothing is wrong with either: its own."""
    return family if family.startswith("toy") else role_of(family).of or family


def own_table(lab: Lab, family: str, runs: int, steps: Sequence[int] = ()) -> NullTable:
    """Of so many tuning runs of the sound model for each number of steps; default: its own. Raises: ValueError."""
    name = f"table {runs} runs {' '.join(map(str, steps))}"
    of = sound(family)

    def make() -> dict[str, Any]:
        return table_of(lab.subject(of), TuningSeeds.of(0, runs), steps, min(lab.batch, runs)).to_dict()

    return NullTable.from_dict(kept(lab, of, name, make))


def tables_at(lab: Lab, family: str, runs: int, times: Sequence[int]) -> dict[int, NullTable]:
    """Of the sound model at its own number of steps, a table for each T_c, all of the same tuning runs."""
    of = sound(family)

    def make() -> dict[str, Any]:
        nulls = nulls_at(lab.subject(of), TuningSeeds.of(0, runs), times, min(lab.batch, runs))
        return {str(t_c): NullTable((null,)).to_dict() for t_c, null in nulls.items()}

    found = kept(lab, of, f"tables {runs} runs at {' '.join(map(str, times))}", make)
    return {int(t_c): NullTable.from_dict(table) for t_c, table in found.items()}


def packaged_table(lab: Lab, family: str, runs: int, steps: Sequence[int]) -> NullTable:
    """The package's; of a toy one that is made of the toys as the package's is of F1 and F3."""
    if not family.startswith("toy"):
        return packaged.packaged_table()
    names = ("toy", "toy-blend")

    def make() -> dict[str, Any]:
        return pooled_table([lab.subject(name) for name in names], TuningSeeds.of(0, runs), steps).to_dict()

    return NullTable.from_dict(kept(lab, names[0], f"packaged {runs} runs {' '.join(map(str, steps))}", make))

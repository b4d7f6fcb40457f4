# SPDX-License-Identifier: MIT
"""Long experiments as cells: one frozen dataclass, one JSON file, done once, resumed where they stopped."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CellT = TypeVar("CellT")


class StaleResultError(ValueError):
    """A result on disk belongs to other code, or to another cell."""


def run_cells(
    cells: Sequence[CellT],
    compute: Callable[[CellT], dict[str, Any]],
    folder: str | os.PathLike,
    progress: Console | None = None,
    *,
    source: str,
    command: str = "",
    title: str = "cells",
) -> dict[CellT, dict[str, Any]]:
    """Compute the cells that have no result yet, one after another, and return the results of all.

    Args:
        cells: instances of frozen dataclasses whose fields JSON can hold (numbers, words, None, tuples of them); no
            two equal.
        compute: from a cell to a dict for JSON. What it raises ends the run; finished cells stay.
        folder: a file a cell, ``file_name``; made where missing.
        progress: where to report; default: standard error. A bar on a terminal, a line a cell elsewhere.
        source: hash of the code that the results depend on. command: what to type to make them again.
    Returns: {cell: result}, in the order of ``cells``.
    Raises: StaleResultError before anything is computed, where a file was made by another source; TypeError or
        ValueError for a bad cell or a result that JSON cannot hold.
    """
    folder = Path(folder)
    results = read_cells(cells, folder, source=source)
    missing = [cell for cell in cells if cell not in results]
    folder.mkdir(parents=True, exist_ok=True)
    with _reporter(progress or Console(stderr=True), title, len(cells), len(results)) as report:
        for cell in missing:
            began = time.monotonic()
            report(cell, None)
            result = compute(cell)
            seconds = time.monotonic() - began
            entry = {
                "cell": _key(cell),
                "source": source,
                "command": command,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
                "result": result,
            }
            # Through JSON, so that a fresh result and a resumed one are the same.
            results[cell] = json.loads(_write(folder / file_name(cell), entry))["result"]
            report(cell, seconds)
    return {cell: results[cell] for cell in cells}


def read_cells(cells: Sequence[CellT], folder: str | os.PathLike, *, source: str) -> dict[CellT, dict[str, Any]]:
    """The results that are there. Raises: StaleResultError, TypeError, ValueError."""
    if not source:
        raise ValueError("source must be the hash of the code that the results depend on")
    if len(set(cells)) != len(cells):
        raise ValueError("two cells are equal")
    results, stale = {}, []
    for cell in cells:
        path = Path(folder) / file_name(cell)
        if not path.exists():
            continue
        entry = _read(path)
        if entry["cell"] != _key(cell):
            raise StaleResultError(f"{path} holds another cell: {entry['cell']}")
        if entry["source"] != source:
            stale.append(f"{path} (source {entry['source'][:12]})")
        results[cell] = entry["result"]
    if stale:
        raise StaleResultError(
            f"{len(stale)} results were made by other code than {source[:12]}: read them with the code that made them, "
            "or move them away to compute them anew: " + ", ".join(stale[:5])
        )
    return results


def merge_cells(folders: Iterable[str | os.PathLike], into: str | os.PathLike, *, source: str) -> int:
    """Bring the results of several machines into one folder; returns how many came new.

    A cell that stands in two folders must have the same result there. Nothing is written unless all fits.

    Raises: StaleResultError for another source or for results that differ.
    """
    into = Path(into)
    known: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in (into, *map(Path, folders)):
        for path in sorted(folder.glob("*.json")):
            entry = _read(path)
            if entry["source"] != source:
                raise StaleResultError(f"{path} was made by source {entry['source'][:12]}, not {source[:12]}")
            first = known.setdefault(path.name, (path, entry))
            if (first[1]["cell"], first[1]["result"]) != (entry["cell"], entry["result"]):
                raise StaleResultError(f"{first[0]} and {path} differ")
    new = [(name, entry) for name, (path, entry) in known.items() if path.parent != into]
    into.mkdir(parents=True, exist_ok=True)
    for name, entry in new:
        _write(into / name, entry)
    return len(new)


def file_name(cell: Any) -> str:
    """Readable, and unique by a digest of type and fields.

    Raises: TypeError where the cell is no frozen dataclass, ValueError where JSON cannot hold a field."""
    key = _key(cell)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    words = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(str(value) for value in key["fields"].values()))
    return f"{key['type']}-{words[:80].strip('-.')}-{digest}.json"


def _key(cell: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cell) or isinstance(cell, type) or not cell.__dataclass_params__.frozen:
        raise TypeError(f"a cell must be an instance of a frozen dataclass, got {cell!r}")
    try:
        fields = json.loads(json.dumps(dataclasses.asdict(cell), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"JSON cannot hold the fields of {cell!r}: {error}") from error
    return {"type": type(cell).__name__, "fields": fields}


def _read(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if not {"cell", "source", "result"} <= entry.keys():
            raise ValueError("cell, source or result is missing")
        if not isinstance(entry["result"], dict):
            raise ValueError("the result is no object")
    except (ValueError, AttributeError) as error:
        raise StaleResultError(
            f"{path} is no result of a cell ({error}): move it away, and the cell is computed anew"
        ) from error
    return entry


def _write(path: Path, entry: dict[str, Any]) -> str:
    """Write as a whole or not at all; returns the text."""
    try:
        text = json.dumps(entry, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"JSON cannot hold the result of {entry['cell']}: {error}") from error
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # a temporary file is its owner's alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return text


def keep_first(path: Path, text: str) -> None:
    """Write a file that is not there yet, whole; of several processes the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.stem}-", suffix=".part", delete=False
    ) as new:
        new.write(text)
    os.chmod(new.name, 0o644)  # a temporary file is its owner's alone
    with contextlib.suppress(FileExistsError):
        os.link(new.name, path)
    os.unlink(new.name)


@contextlib.contextmanager
def _reporter(console: Console, title: str, total: int, done: int) -> Iterator[Callable[[Any, float | None], None]]:
    """Yields report(cell, seconds), seconds None when it begins."""
    if not console.is_terminal:
        if done:
            console.print(f"{title}: {done}/{total} were there", highlight=False, markup=False, soft_wrap=True)

        def line(cell: Any, seconds: float | None) -> None:
            nonlocal done
            if seconds is not None:
                done += 1
                text = f"{title}: {done}/{total} {file_name(cell)} {seconds:.1f} s"
                console.print(text, highlight=False, markup=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done)

        def advance(cell: Any, seconds: float | None) -> None:
            name = file_name(cell).rpartition("-")[0].replace("[", r"\[")
            bar.update(task, description=f"{title}: {name[:40]}", advance=seconds is not None)

        yield advance

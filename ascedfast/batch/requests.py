# SPDX-License-Identifier: MIT
"""The table of requests: its columns, what a row may hold, and which rows cannot be run."""

import difflib
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ascedfast.calibration.table import NullTable
from ascedfast.config import AscedConfig, Mode

MOST_STEPS = 1000
LONGEST_ID = 256
EXACT_FLOATS = 1 << 53
"""Whole numbers beyond it have neighbours that a float64 column cannot tell apart."""
SHOWN = 5
"""Of many, as many are named in a message."""


class TableError(ValueError):
    """A table of which nothing is run, and why."""


def _no_path(id: str) -> str:
    if "/" in id or "\\" in id or ".." in id or not id.isprintable():
        raise ValueError("a path or an unprintable character is no id: leave out '/', '\\' and '..'")
    return id


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a whole number is needed, not true or false")
    if isinstance(value, float) and abs(value) > EXACT_FLOATS:
        raise ValueError("a float does not hold so large a number exactly: store the column as int64")
    return value


class Request(BaseModel):
    """One row: one image.

    Attributes:
        id: names the image; unique. seed: of its initial noise and of its correction. steps: of the solver. prompt: for
            pipelines that take one. asced: False leaves the run alone. mode: one of ``config.MODES``. rate: mode
            "calibrated": share of sound images that may be flagged, default .05. report: what is told of the row;
            "none" reads nothing back, "masks" writes its mask too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(min_length=1, max_length=LONGEST_ID), AfterValidator(_no_path)]
    seed: Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=1 << 63)]
    steps: Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MOST_STEPS)] = 25
    prompt: str | None = None
    asced: bool = True
    mode: Mode = "fast"
    rate: Annotated[float, Field(gt=0, le=0.5)] | None = None
    report: Literal["none", "severity", "masks"] = "severity"

    @model_validator(mode="after")
    def _rate_has_a_meaning(self) -> Self:
        if self.rate is not None and self.mode != "calibrated":
            raise ValueError(f"a rate is of mode 'calibrated', not of {self.mode!r}: leave it empty")
        return self

    def config(self, table: NullTable | None) -> AscedConfig | None:
        """Its settings; None where it is left alone. Raises: ValueError where the table cannot serve it."""
        if not self.asced:
            return None
        if self.mode != "calibrated":
            return AscedConfig.for_mode(self.mode)
        if table is None:
            raise ValueError("mode 'calibrated' needs a table of sound runs: ascedfast calibrate makes one, or --table")
        return AscedConfig.calibrated(table, **({} if self.rate is None else {"rate": self.rate}))


@dataclass(frozen=True)
class Refused:
    """A row that cannot be run. row: its place in the table, from 0. id: as it stands there."""

    row: int
    id: str | None
    error: str


@dataclass(frozen=True)
class Requests:
    """good: (row, request), in the table's order. bad: the other rows. sha256: of the file."""

    good: tuple[tuple[int, Request], ...]
    bad: tuple[Refused, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.good) + len(self.bad)


def read_requests(path: Path, table: NullTable | None = None) -> Requests:
    """Check every row of a parquet file.

    Args: table: of sound runs, for rows of mode "calibrated".
    Raises: TableError for a file that is no such table, a column that is missing or unknown, and ids that stand twice.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        # Not read_table: it makes columns of a path's "name=value" folders.
        with pq.ParquetFile(path) as parquet:
            found = parquet.read()
        found.validate(full=True)
        _check_columns(found.schema, path)
        rows = _rows(found)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise TableError(f"{path} cannot be read as a parquet file: {error}") from error
    twice = sorted(id for id, count in Counter(row["id"] for row in rows).items() if count > 1 and id is not None)
    if twice:
        named = ", ".join(f"{id!r} (rows {_places(rows, id)})" for id in twice[:SHOWN])
        raise TableError(f"{path}: {len(twice)} ids stand twice or more, an id names one image: {named}")
    good, bad = [], []
    for place, row in enumerate(rows):
        try:
            request = Request.model_validate({name: value for name, value in row.items() if value is not None})
            request.config(table)
        except ValidationError as error:
            bad.append(Refused(place, row["id"], "; ".join(map(_told, error.errors()))))
        except ValueError as error:
            bad.append(Refused(place, row["id"], str(error)))
        else:
            good.append((place, request))
    return Requests(tuple(good), tuple(bad), sha256)


@dataclass(frozen=True)
class Unreadable:
    """A cell that has no value in Python, such as a date beyond its years."""

    kind: str

    def __repr__(self) -> str:
        return f"a {self.kind} that cannot be read"


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    columns = [_cells(column) for column in table.columns]
    return [dict(zip(table.column_names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _cells(column: pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError):
        return [_cell(scalar) for scalar in column]


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        return Unreadable(str(scalar.type))


def _check_columns(schema: pa.Schema, path: Path) -> None:
    known = list(Request.model_fields)
    for name in schema.names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TableError(f"{path} has a column {name!r}, which is unknown{hint} (known: {', '.join(known)})")
        if schema.names.count(name) > 1:
            raise TableError(f"{path} has {schema.names.count(name)} columns {name!r}: leave one")
    for name in ("id", "seed"):
        if name not in schema.names:
            raise TableError(f"{path} has no column {name!r}: a request needs an id and a seed")
    kind = schema.field("id").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise TableError(f"{path}: ids are strings, the column holds {kind}: write them as strings")


def _places(rows: list[dict[str, Any]], id: str) -> str:
    places = [place for place, row in enumerate(rows) if row["id"] == id]
    return ", ".join(map(str, places[:SHOWN])) + ", ..." * (len(places) > SHOWN)


def _told(error: Any) -> str:
    """One of pydantic's errors, in words: which column, what it wants, what it got."""
    said = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return said
    column = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{column}: is empty, a request needs one"
    return f"{column}: {said}, got {repr(error['input'])[:80]}"

# SPDX-License-Identifier: MIT
"""The folder of a batch: images, masks, and what is told of each request, a shard of the table a file.

    manifest.json  images/<id>.png  masks/<id>.png  shards/00000000.parquet ...  results.parquet

A shard is written last, and by its own name: where it is, its requests are done, and whoever draws them again writes
the same files. Nothing is seen half written.
"""

import contextlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL.Image import Image

from ascedfast.batch.requests import Requests

FOLDERS = ("images", "masks", "shards", "unfinished")
RESULTS = "results.parquet"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # in the table of requests, from 0
        ("id", pa.string()),
        ("status", pa.string()),  # refused, failed, done (nothing was asked), or a RowReport's
        ("severity", pa.float64()),
        ("area", pa.float64()),  # share of the locations that the mask holds
        ("image", pa.string()),  # relative to the folder; null where there is none
        ("mask", pa.string()),
        ("reason", pa.string()),  # why there is no severity
        ("error", pa.string()),  # why there is no image
    ]
)
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def file_name(id: str) -> str:
    """Of a request's files, without the suffix: the id, or where that is no name of a file everywhere, a hash of it.

    A hash begins with "_", which no plain id does.
    """
    return id if PLAIN.fullmatch(id) else "_" + sha256(id.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Folder:
    """path: the folder of one batch, which is made by ``make``."""

    path: Path

    def make(self) -> None:
        for name in FOLDERS:
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """A file below the folder: all of it, on the disk, or none of it."""
        part = self.path / "unfinished" / secrets.token_hex(8)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        target = self.path / name
        os.replace(part, target)
        parent = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def write_image(self, kind: str, id: str, image: Image) -> str:
        """kind: "images" or "masks". Returns: the file's name, relative to the folder."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        name = f"{kind}/{file_name(id)}.png"
        self.write(name, buffer.getvalue())
        return name

    def write_shard(self, shard: int, rows: Sequence[dict[str, Any]]) -> None:
        self._write_table(_shard_name(shard), pa.Table.from_pylist(list(rows), SCHEMA))

    def read_shard(self, shard: int) -> pa.Table | None:
        """None where it, or a file that it names, is missing or damaged: its requests are to be drawn.

        Raises: PermissionError."""
        try:
            with pq.ParquetFile(self.path / _shard_name(shard)) as parquet:
                table = parquet.read()
            table.validate(full=True)
        except PermissionError:
            raise
        except (OSError, pa.ArrowException):  # of a damaged footer pyarrow raises either
            return None
        if not table.schema.equals(SCHEMA):
            return None
        files = [name for column in ("image", "mask") for name in table[column].to_pylist() if name is not None]
        return table if all((self.path / name).is_file() for name in files) else None

    def write_results(self, requests: Requests, shards: Sequence[pa.Table]) -> pa.Table:
        """The table of all requests, in their order. Raises: ValueError where an id is not in it exactly once."""
        bad = [{"row": one.row, "id": one.id, "status": "refused", "error": one.error} for one in requests.bad]
        table = pa.concat_tables([pa.Table.from_pylist(bad, SCHEMA), *shards]).sort_by("row")
        wanted = sorted([(one.row, one.id) for one in requests.bad] + [(row, one.id) for row, one in requests.good])
        if list(zip(table["row"].to_pylist(), table["id"].to_pylist(), strict=True)) != wanted:
            raise ValueError(f"{self.path}/shards are not of these requests: give another --out")
        self._write_table(RESULTS, table)
        return table

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[int]:
        """While something is tried that may kill the process. Yields: how often ``name`` is being tried elsewhere, or
        was when its process died, in this run."""
        mark = self.path / "unfinished" / f"{name}.{secrets.token_hex(8)}"
        before = sum(1 for _ in mark.parent.glob(f"{name}.*"))
        mark.touch()
        try:
            yield before
        finally:
            mark.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what workers that were killed left half written or half tried."""
        for part in (self.path / "unfinished").iterdir():
            part.unlink(missing_ok=True)

    def read_manifest(self) -> dict[str, Any] | None:
        """None where there is none. Raises: ValueError for one that is damaged."""
        try:
            found = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        return found

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        self.write("manifest.json", json.dumps(manifest, indent=2).encode() + b"\n")

    def _write_table(self, name: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self.write(name, buffer.getvalue())


def _shard_name(shard: int) -> str:
    return f"shards/{shard:08d}.parquet"

# SPDX-License-Identifier: MIT
"""Tables of requests: what is read, and of which nothing is run."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_case import write_table

from ascedfast.batch.command import run_batch
from ascedfast.batch.requests import TableError, read_requests
from ascedfast.calibration.packaged import packaged_table


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"id": ["a", "b", "a"], "seed": [1, 2, 3]}), "'a' (rows 0, 2)"),
        (pa.table({"id": ["a"]}), "no column 'seed'"),
        (pa.table({"id": ["a"], "seed": [1], "step": [3]}), "did you mean 'steps'"),
        (pa.table({"id": [1], "seed": [1]}), "ids are strings"),
        (pa.table([["a"], [1], [2]], names=["id", "seed", "seed"]), "2 columns 'seed'"),
        (None, "cannot be read as a parquet file"),
    ],
    ids=["twice", "no seeds", "unknown column", "numbers", "two columns", "no parquet"],
)
def test_tables_of_which_nothing_is_run(table, words, tmp_path):
    path = tmp_path / "in.parquet"
    path.write_bytes(b"id,seed\na,1\n") if table is None else pq.write_table(table, path)
    with pytest.raises(TableError) as caught:
        run_batch(path, tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_columns_of_other_types(tmp_path):
    """Categories, floats and words for yes and no are read; a folder named like a value adds no column."""
    folder = tmp_path / "day=3"
    folder.mkdir()
    ids = pa.array(["a", "b"]).dictionary_encode()
    table = pa.table({"id": ids, "seed": [1.0, 2.0], "asced": ["off", "on"], "steps": pa.array([None, 7], pa.int32())})
    pq.write_table(table, folder / "in.parquet")
    found = read_requests(folder / "in.parquet")
    assert [(row, one.id, one.seed, one.asced, one.steps) for row, one in found.good] == [
        (0, "a", 1, False, 25),
        (1, "b", 2, True, 7),
    ]


def test_calibrated_rows(tmp_path):
    rows = [{"id": "a", "seed": 1, "mode": "calibrated", "rate": 0.1}, {"id": "b", "seed": 1, "rate": None}]
    rows += [{"id": "c", "seed": 1, "mode": "calibrated", "rate": 1e-9}]
    found = read_requests(write_table(tmp_path / "in.parquet", rows), packaged_table())
    assert found.good[0][1].config(packaged_table()).rate == 0.1
    assert [one.id for one in found.bad] == ["c"]


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([10**8, 1], pa.date32()),
        pa.array([10**15, 1], pa.timestamp("ms")),
        pa.array([1 << 62, 1], pa.duration("s")),
    ],
    ids=["date", "timestamp", "duration"],
)
@pytest.mark.parametrize("name", ["seed", "prompt"])
def test_cells_that_python_has_no_value_for(name, cells, tmp_path):
    columns = {"id": ["a", "b"], "seed": [1, 2], name: cells}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", version="2.6")
    found = read_requests(tmp_path / "in.parquet")
    assert [one.id for one in found.bad] == ["a", "b"]
    assert found.bad[0].error.startswith(f"{name}: ")
    assert "that cannot be read" in found.bad[0].error

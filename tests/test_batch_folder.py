# SPDX-License-Identifier: MIT
"""Folders of ``ascedfast batch`` that are damaged, or someone else's: told in a line, and gone on with where it can."""

import shutil

import pytest
from batch_case import write_table
from typer.testing import CliRunner

from ascedfast.batch import results
from ascedfast.batch.manifest import FolderInUseError, claimed
from ascedfast.batch.requests import read_requests
from ascedfast.batch.results import Folder
from ascedfast.cli import app


def invoke(*arguments):
    return CliRunner().invoke(app, ["batch", *map(str, arguments)])


@pytest.mark.parametrize(
    ("index", "words"), [("[]", "it holds no object"), ("{", "is damaged"), (None, "has no model_index.json")]
)
def test_an_index_that_is_none(index, words, tmp_path):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    if index is not None:
        (folder / "model_index.json").write_text(index)
    table = write_table(tmp_path / "in.parquet", [{"id": "a", "seed": 1}])
    done = invoke("--in", table, "--out", tmp_path / "out", "--pipeline", folder)
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.output.split())


@pytest.fixture
def shards(tmp_path):
    """A folder with the shards of two requests, and the table of them."""
    folder = Folder(tmp_path / "out")
    folder.make()
    for number, name in enumerate("ab"):
        folder.write_shard(number, [{"row": number, "id": name, "status": "done"}])
    table = write_table(tmp_path / "in.parquet", [{"id": "a", "seed": 1}, {"id": "b", "seed": 2}])
    return folder, read_requests(table)


def test_a_shard_under_another_number(shards):
    folder, requests = shards
    shutil.copy(folder.path / "shards" / "00000000.parquet", folder.path / "shards" / "00000001.parquet")
    with pytest.raises(ValueError, match="not of these requests: give another --out"):
        folder.write_results(requests, [folder.read_shard(0), folder.read_shard(1)])


@pytest.mark.parametrize("offset", [-9, -12, -1000, 10])
def test_a_shard_with_flipped_bytes_is_drawn_again(offset, shards):
    folder, _ = shards
    path = folder.path / "shards" / "00000001.parquet"
    data = bytearray(path.read_bytes())
    for place in range(offset - 4, offset + 4):
        data[place] ^= 0xFF
    path.write_bytes(data)
    assert folder.read_shard(1) is None
    assert folder.read_shard(0) is not None


def test_a_shard_of_other_columns_is_drawn_again(shards):
    folder, _ = shards
    write_table(folder.path / "shards" / "00000001.parquet", [{"row": 1, "id": "b"}])
    assert folder.read_shard(1) is None


def test_a_shard_that_may_not_be_read_is_told(shards, monkeypatch):
    folder, _ = shards

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(results.pq, "ParquetFile", refused)
    with pytest.raises(PermissionError):
        folder.read_shard(1)


def test_nothing_is_left_in_a_folder_of_someone_else(tmp_path):
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(FolderInUseError, match="holds other files"), claimed(Folder(tmp_path), {"requests": "a"}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_results_of_refused_rows_alone_are_not_written_over(tmp_path):
    folder = Folder(tmp_path / "out")
    table = write_table(tmp_path / "in.parquet", [{"id": "a", "seed": -1}])
    with claimed(folder, {"requests": "a"}):
        folder.write_results(read_requests(table), [])
    with claimed(folder, {"requests": "a"}):
        pass
    with pytest.raises(FolderInUseError, match="another table of requests"), claimed(folder, {"requests": "b"}):
        pass

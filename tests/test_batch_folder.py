# SPDX-License-Identifier: MIT
"""Folders of ``ascedfast batch`` that are damaged, or someone else's: told in a line, and gone on with where it can."""

import shutil

import pytest
from batch_case import write_table
from typer.testing import CliRunner

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

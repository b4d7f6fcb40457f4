# SPDX-License-Identifier: MIT
"""Folders of ``ascedfast batch`` that are damaged, or someone else's: told in a line, and gone on with where it can."""

import pytest
from batch_case import write_table
from typer.testing import CliRunner

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

# SPDX-License-Identifier: MIT
"""``ascedfast batch`` below Ray: what a table and a folder may hold, and what a request's bits depend on."""

import contextlib
import errno
import fcntl
import json
import math
import os
import random
import shutil
import signal
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_case import drawn_alone, results_of, same_as_alone, save_flow, save_prompted, write_table
from PIL import Image
from typer.testing import CliRunner

from ascedfast.batch import command
from ascedfast.batch.results import file_name
from ascedfast.batch.worker import Worker
from ascedfast.cli import app


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return save_flow(tmp_path_factory.mktemp("batch") / "flow")


@pytest.fixture
def loads(monkeypatch):
    """Shards are drawn in this process; the list of the pipelines loaded for it."""
    from ascedfast.batch import drawing

    loaded, load = [], drawing.load_pipeline

    def counted(folder, device):
        loaded.append(folder)
        return load(folder, device)

    def drawn(shards, settings, num_gpus):
        worker = Worker(settings)
        for number, shard in shards.items():
            text = json.dumps([(row, one.model_dump(exclude_none=True)) for row, one in shard])
            yield worker({"shard": np.array([number]), "requests": np.array([text])})

    monkeypatch.setattr(drawing, "load_pipeline", counted)
    monkeypatch.setattr(command, "cluster", lambda *_: contextlib.nullcontext(1))
    monkeypatch.setattr(command, "_drawn", drawn)
    return loaded


@pytest.fixture
def run(tmp_path, pipeline, loads):
    def run(rows, out="out", **options):
        source = rows if hasattr(rows, "suffix") else write_table(tmp_path / f"{out}.parquet", rows)
        return command.run_batch(source, tmp_path / out, **{"pipeline": pipeline, **options})

    return run


def mixed(count=12):
    """Requests of three settings, in a random order."""
    rows = [
        {
            "id": f"r{i}",
            "seed": i,
            "steps": (20, 30)[i % 2],
            "asced": i % 3 != 2,
            "mode": ("fast", "paper")[i % 4 // 2],
            "report": ("severity", "masks", "none")[i // 4 % 3],
        }
        for i in range(count)
    ]
    random.Random(0).shuffle(rows)
    return rows


def test_bits_do_not_depend_on_the_company(run, tmp_path, pipeline):
    rows = mixed()
    alone = drawn_alone(pipeline, rows)
    assert sum(one.status == "corrected" for one in alone.values()) >= 4
    run(rows, batch_size=5)
    same_as_alone(tmp_path / "out", rows, alone)
    run(rows[::-1], "other", batch_size=2)
    same_as_alone(tmp_path / "other", rows, alone)


def test_drawn_together(run, tmp_path, pipeline, loads, monkeypatch):
    """One call for all of a shard that agree, another for the others; what is lost is drawn with the same company."""
    from ascedfast.batch import drawing

    calls, arguments_of = [], drawing.call_arguments

    def counted(pipe, **options):
        calls.append(options["n"])
        return arguments_of(pipe, **options)

    monkeypatch.setattr(drawing, "call_arguments", counted)
    rows = [{"id": f"r{i}", "seed": i, "steps": 20, "asced": i != 3} for i in range(8)]
    run(rows, batch_size=4, exact=False)
    assert calls == [1, 3, 1, 4]  # the first is a trial
    alone = drawn_alone(pipeline, rows)
    found = results_of(tmp_path / "out")
    first = {name: (tmp_path / "out" / name).read_bytes() for name in (row["image"] for row in found.values())}
    for row in found.values():
        pixels = np.asarray(Image.open(tmp_path / "out" / row["image"])).astype(int)
        assert np.abs(pixels - alone[row["id"]].pixels).mean() < 3
    (tmp_path / "out" / "shards" / "00000000.parquet").unlink()
    (tmp_path / "out" / "images" / "r1.png").unlink()
    assert run(rows, batch_size=4, exact=False).drawn == 4
    assert {name: (tmp_path / "out" / name).read_bytes() for name in first} == first
    assert len(results_of(tmp_path / "out")) == 8


def test_what_is_finished_is_kept(run, tmp_path, loads, monkeypatch):
    rows, out = [{"id": f"r{i}", "seed": i, "steps": 8} for i in range(6)], tmp_path / "out"
    told = []
    assert run(rows, batch_size=2, progress=lambda *at: told.append(at)).drawn == 6
    assert told == [(0, 6), (2, 6), (4, 6), (6, 6)]
    before = {path: path.stat() for folder in ("images", "shards") for path in (out / folder).iterdir()}
    (out / "images" / "r2.png").unlink()  # of the second shard
    (out / "shards" / "00000002.parquet").write_bytes(b"torn")
    assert run(rows, batch_size=2).drawn == 4
    same = {path.name for path, was in before.items() if path.stat().st_mtime_ns == was.st_mtime_ns}
    assert same == {"r0.png", "r1.png", "00000000.parquet"}
    assert len(loads) == 2
    monkeypatch.setattr(command, "cluster", None)  # which would not survive a call
    assert run(rows, batch_size=2).drawn == 0
    assert len(results_of(out)) == 6


def test_a_shard_that_is_there_is_not_drawn_again(run, tmp_path, loads):
    """Ray gives a dead worker's shards again, all of them."""
    rows = [{"id": "a", "seed": 1, "steps": 8}]
    run(rows)
    settings = command.Settings(tmp_path / "no pipeline", tmp_path / "out", None, True, "cpu", 1)
    text = json.dumps([[0, rows[0]]])
    done = Worker(settings)({"shard": np.array([0]), "requests": np.array([text])})
    assert done["requests"].tolist() == [1]


def died(out, name, times):
    """Processes are killed while they try something."""
    for _ in range(times):
        if (child := os.fork()) == 0:
            with command.Folder(out).attempt(name):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_request_that_kills_its_workers(run, tmp_path, monkeypatch):
    out, drawn = tmp_path / "out", command._drawn

    def after_deaths(*arguments):
        died(out, "row-1", 3)
        died(out, "row-2", 2)
        died(out, "row-10", 9)
        return drawn(*arguments)

    monkeypatch.setattr(command, "_drawn", after_deaths)
    rows = [{"id": f"r{i}", "seed": i, "steps": 8} for i in range(4)]
    run(rows)
    found = results_of(out)
    assert [found[row["id"]]["error"] for row in rows] == [None, "killed 3 workers", None, None]
    assert found["r1"]["status"] == "failed"
    monkeypatch.setattr(command, "_drawn", drawn)
    (out / "shards" / "00000000.parquet").unlink()  # what a person does who wants it tried again
    run(rows)
    assert results_of(out)["r1"]["error"] is None


def test_a_pipeline_that_kills_its_workers(run, tmp_path, monkeypatch, loads):
    out, drawn = tmp_path / "out", command._drawn
    for times, stops in [(4, True), (3, False)]:  # one of them may be loading now

        def after_deaths(*arguments, times=times):
            died(out, "load", times)
            return drawn(*arguments)

        monkeypatch.setattr(command, "_drawn", after_deaths)
        with pytest.raises(command.StoppedError, match="num-workers") if stops else contextlib.nullcontext():
            run([{"id": "a", "seed": 1, "steps": 4}])
        assert len(loads) == (not stops)


BAD_ROWS = {
    "../up": ({}, "path"),
    "a/b": ({}, "path"),
    "..": ({}, "path"),
    "a\\b": ({}, "path"),
    "a\nb": ({}, "unprintable"),
    "x" * 257: ({}, "at most 256"),
    "": ({}, "at least 1"),
    "no seed": ({"seed": None}, "seed: is empty"),
    "NaN seed": ({"seed": math.nan}, "seed: "),
    "infinite seed": ({"seed": math.inf}, "seed: "),
    "negative seed": ({"seed": -1.0}, "seed: "),
    "half a seed": ({"seed": 0.5}, "seed: "),
    "large float": ({"seed": 2.0**60}, "store the column as int64"),
    "negative steps": ({"steps": -5}, "steps: "),
    "no steps": ({"steps": 0}, "steps: "),
    "endless": ({"steps": 10**9}, "steps: "),
    "mode": ({"mode": "fasst"}, "mode: "),
    "report": ({"report": "all"}, "report: "),
    "rate": ({"mode": "calibrated", "rate": 0.7}, "rate: "),
    "NaN rate": ({"mode": "calibrated", "rate": math.nan}, "rate: "),
    "rate of fast": ({"rate": 0.1}, "mode 'calibrated'"),
    "no table": ({"mode": "calibrated", "rate": 0.1}, "ascedfast calibrate"),
}


def test_bad_rows_are_told_and_stop_nothing(run, tmp_path):
    rows = [
        {"id": id, "seed": 1.0, "steps": 8, "mode": None, "rate": None, **more} for id, (more, _) in BAD_ROWS.items()
    ]
    rows = [{"id": "good", "seed": 3.0, "steps": 8}, *rows, {"id": None, "seed": 1.0}, {"id": "fine", "seed": 4.0}]
    columns = {"id": None, "seed": None, "steps": None, "mode": None, "rate": None, "report": None}
    summary = run([{**columns, **row} for row in rows])
    assert summary.statuses["refused"] == len(BAD_ROWS) + 1
    found = results_of(tmp_path / "out")
    for id, (_, words) in BAD_ROWS.items():
        assert found[id]["status"] == "refused"
        assert words in found[id]["error"], id
        assert found[id]["image"] is None
    assert found[None]["error"] == "id: is empty, a request needs one"
    assert [found[id]["error"] for id in ("good", "fine")] == [None, None]
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {"out", "out.parquet"}
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"good.png", "fine.png"}


def test_only_bad_rows(run, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "cluster", None)
    assert run([{"id": "a", "seed": -1}]).statuses == {"refused": 1}
    pq.write_table(pa.table({"id": pa.array([], pa.string()), "seed": pa.array([], pa.int64())}), tmp_path / "none")
    assert run(tmp_path / "none", "empty").statuses == {}
    assert results_of(tmp_path / "empty") == {}


def test_ids_that_are_no_file_names(run, tmp_path):
    ids = ["plain-1.x", "_", "two words", "émoji 😀", ".hidden", "x" * 200, "_" + "0" * 32]
    names = [file_name(id) for id in ids]
    assert names[0] == "plain-1.x"
    assert len(set(names)) == len(ids)
    assert all(name.isascii() and len(name) < 110 and name[0] != "." for name in names)
    assert [name[0] for name in names[1:]] == ["_"] * 6
    assert not set(names) & set(ids[1:])
    run([{"id": id, "seed": i, "steps": 4} for i, id in enumerate(ids)])
    found = results_of(tmp_path / "out")
    assert [found[id]["image"] for id in ids] == [f"images/{name}.png" for name in names]
    assert all((tmp_path / "out" / row["image"]).is_file() for row in found.values())


def test_prompts_and_what_a_pipeline_cannot_run(run, tmp_path, pipeline):
    folder = save_prompted(tmp_path / "prompted")
    rows = [
        {"id": "cat", "seed": 1, "steps": 8, "prompt": "cat", "report": "masks"},
        {"id": "none", "seed": 1, "steps": 8, "prompt": None, "report": None},
        {"id": "long", "seed": 1, "steps": 51, "prompt": "dog", "report": None},
        {"id": "dog", "seed": 1, "steps": 8, "prompt": "dog", "report": None},
    ]
    run(rows, pipeline=folder)
    found = results_of(tmp_path / "out")
    assert [found[id]["status"] for id in ("none", "long")] == ["failed"] * 2
    assert found["none"]["error"] == "prompt: a StableDiffusionPipeline needs one"
    assert "cannot be larger" in found["long"]["error"]
    assert [found[id]["image"] for id in ("none", "long")] == [None, None]
    good = [rows[0], rows[3]]
    alone = drawn_alone(folder, good)
    assert not np.array_equal(alone["cat"].pixels, alone["dog"].pixels)
    for row in good:
        pixels = np.asarray(Image.open(tmp_path / "out" / found[row["id"]]["image"]))
        assert np.array_equal(pixels, alone[row["id"]].pixels)
    mask = np.asarray(Image.open(tmp_path / "out" / found["cat"]["mask"]))
    assert np.array_equal(mask, alone["cat"].mask)
    run([{"id": "a", "seed": 1, "prompt": "cat"}], "flow", pipeline=pipeline)
    assert results_of(tmp_path / "flow")["a"]["error"] == "prompt: a PixelFlowPipeline takes none"


def test_other_settings_into_the_same_folder(run, tmp_path):
    rows = [{"id": "a", "seed": 1, "steps": 4}]
    run(rows)
    for options, words in [
        ({"batch_size": 9}, "batch_size 4, not 9"),
        ({"exact": False}, "exact True, not False"),
        ({"pipeline": save_prompted(tmp_path / "sd")}, "another pipeline"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            run(rows, **options)
        assert "give another --out" in str(caught.value)
    (tmp_path / "out.parquet").unlink()
    with pytest.raises(ValueError, match="another table of requests"):
        run([{"id": "a", "seed": 2, "steps": 4}])
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        run(rows)
    assert results_of(tmp_path / "out")["a"]["status"] != "refused"


def test_a_folder_of_someone_else(run, tmp_path):
    for name in ("notes.txt", "images/cat.png"):
        file = tmp_path / f"taken {len(name)}" / name
        file.parent.mkdir(parents=True)
        file.write_text("kept")
        with pytest.raises(ValueError, match="holds other files"):
            run([{"id": "cat", "seed": 1}], f"taken {len(name)}")
        assert file.read_text() == "kept"


def test_one_run_at_a_time(run, tmp_path):
    rows = [{"id": "a", "seed": 1, "steps": 4}]
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is writing"):
            run(rows)
    assert run(rows).drawn == 1


def invoke(*arguments):
    return CliRunner().invoke(app, ["batch", *map(str, arguments)])


def test_command(run, tmp_path, pipeline):
    table = write_table(
        tmp_path / "in.parquet", [{"id": "a", "seed": 1, "steps": 4}, {"id": "b", "seed": -1, "steps": 4}]
    )
    arguments = ["--in", table, "--out", tmp_path / "out", "--pipeline", pipeline]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert "2 requests: 1 " in done.stdout
    assert "1 refused; 1 drawn now" in done.stdout
    told = json.loads(invoke(*arguments, "--json").stdout)
    assert told["drawn"] == 0
    assert told["results"] == str(tmp_path / "out" / "results.parquet")


def test_command_refuses(run, tmp_path):
    table = write_table(tmp_path / "in.parquet", [{"id": "a", "seed": 1}])
    for arguments, words in [
        (["--in", tmp_path / "none.parquet", "--out", tmp_path / "out"], "cannot be read"),
        (["--in", table, "--out", tmp_path / "out", "--pipeline", tmp_path], "model_index.json"),
        (["--in", table, "--out", table], "cannot write"),
        (["--in", table, "--out", tmp_path / "out", "--table", tmp_path / "t.json"], "t.json"),
    ]:
        done = invoke(*arguments)
        assert done.exit_code == 2, done.output
        assert words in " ".join(done.output.split())
        assert not (tmp_path / "out").exists()


def test_a_pipeline_that_cannot_be_loaded(run, tmp_path, pipeline):
    folder = shutil.copytree(pipeline, tmp_path / "damaged")
    weights = next(folder.rglob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    table = write_table(tmp_path / "in.parquet", [{"id": "a", "seed": 1, "steps": 4}])
    done = invoke("--in", table, "--out", tmp_path / "out", "--pipeline", folder)
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "is damaged" in said
    assert "what was finished is kept" in said
    weights.write_bytes(whole)  # another pipeline, but nothing was drawn with the first
    assert run(table, pipeline=folder).drawn == 1


def test_a_disk_that_is_full(run, tmp_path, monkeypatch):
    """The run stops, and goes on when there is room."""
    rows, write = [{"id": f"r{i}", "seed": i, "steps": 4} for i in range(3)], command.Folder.write

    def full(folder, name, data):
        if name == "images/r1.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, name, data)

    monkeypatch.setattr(command.Folder, "write", full)
    with pytest.raises(command.StoppedError, match="No space left"):
        run(rows, batch_size=1)
    monkeypatch.setattr(command.Folder, "write", write)
    assert run(rows, batch_size=1).drawn == 2


@pytest.mark.parametrize("name", ["ray", "pyarrow"])
def test_command_names_the_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    done = invoke("--in", tmp_path / "in.parquet", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert f"needs {name}: pip install -c constraints.txt -e '.[serve]'" in " ".join(done.output.split())

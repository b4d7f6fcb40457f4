# SPDX-License-Identifier: MIT
"""``ascedfast batch`` on Ray Data: killed and gone on with, every request drawn once, with the bits it has alone."""

import json
import shutil
import signal
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from batch_case import Command, drawn_alone, results_of, same_as_alone, save_flow, write_table

pytestmark = [
    pytest.mark.timeout(900),  # a busy machine takes a minute to import what three processes need
    pytest.mark.xdist_group("ray"),
]
STEPS = 100
GOOD = [
    {"id": f"r{i}", "seed": 7 * i, "steps": STEPS + i % 3, "asced": i % 5 != 4, "report": ("severity", "masks")[i % 2]}
    for i in range(24)
]
BAD = [{"id": "../out", "seed": 1, "steps": 5}, {"id": "steps", "seed": 1, "steps": -5}]
PER_SHARD = 2


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return save_flow(tmp_path_factory.mktemp("batch") / "flow")


@pytest.fixture(scope="module")
def alone(pipeline):
    found = drawn_alone(pipeline, GOOD)
    assert sum(one.status == "corrected" for one in found.values()) > 10
    return found


@pytest.fixture
def ray_folder():
    """Short: the path of a socket has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ab", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(tmp_path, pipeline, ray_folder):
    """Start the command on GOOD and BAD; the folder of its results is tmp_path / "out"."""
    table = write_table(tmp_path / "in.parquet", [GOOD[0], BAD[0], *GOOD[1:], BAD[1]])
    started = []

    def start():
        arguments = ["--in", table, "--out", tmp_path / "out", "--pipeline", pipeline]
        started.append(Command(*arguments, "--num-workers", 2, "--batch-size", PER_SHARD, ray_folder=ray_folder))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            command.kill()
        command.wait_for_the_rest(10)


def shards(out):
    return sorted((out / "shards").glob("*.parquet")) if (out / "shards").exists() else []


def files(out):
    """Every finished file of the shards that are there: a file that is written anew has another inode."""
    names = [path.relative_to(out).as_posix() for path in shards(out)]
    for path in shards(out):
        table = pq.read_table(path)
        names += [name for column in ("image", "mask") for name in table[column].to_pylist() if name is not None]
    return {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in names}


def complete(out, alone):
    """The whole table, bit for bit what each request gives by itself, and nothing else in the folder."""
    found = same_as_alone(out, GOOD, alone)
    assert {row["id"] for row in found.values() if row["status"] == "refused"} == {"../out", "steps"}
    assert len(found) == len(GOOD) + len(BAD)
    assert {path.stem for path in (out / "images").iterdir()} == {one["id"] for one in GOOD}
    assert not list((out / "unfinished").iterdir())
    assert {path.name for path in out.parent.iterdir()} == {"out", "in.parquet"}


def test_killed_driver(tmp_path, start, alone):
    out = tmp_path / "out"
    first = start()
    first.wait_for(lambda: len(shards(out)) >= 2)
    first.kill()
    first.wait_for_the_rest()
    kept = files(out)
    left = len(GOOD) - PER_SHARD * len(shards(out))
    assert left > 0, "it was killed too late"
    assert not (out / "results.parquet").exists()
    status, printed, errors = start().finish()
    assert status == 0, errors
    told = json.loads(printed)
    assert told["drawn"] == left
    assert sum(told["statuses"].values()) == len(GOOD) + len(BAD)
    assert kept.items() <= files(out).items()
    complete(out, alone)


def test_killed_worker(tmp_path, start, alone):
    out = tmp_path / "out"
    command = start()
    command.wait_for(lambda: len(shards(out)) >= 2)
    victim = command.wait_for(command.workers)[0]
    kept = files(out)
    victim.send_signal(signal.SIGKILL)
    status, printed, errors = command.finish()
    assert status == 0, errors
    assert json.loads(printed)["drawn"] == len(GOOD)
    assert kept.items() <= files(out).items()
    complete(out, alone)
    assert len(shards(out)) == len(GOOD) // PER_SHARD
    assert len(results_of(out)) == len(GOOD) + len(BAD)

# SPDX-License-Identifier: MIT
"""Tuning and reporting seeds do not mix, and no look at the reporting seeds goes unseen."""

import datetime
import subprocess
import sys

import pytest

from ascedfast.lab.seeds import ReportingSeeds, SeedRange, TuningSeeds, check_apart, read_looks

WHO = {"suite": "full", "cell": "F1-official", "source": "0123abcd"}


def test_ranges_lie_where_their_kind_does():
    assert list(TuningSeeds(0, 3).seeds) == [0, 1, 2]
    assert len(TuningSeeds(0, 100_000)) == 100_000
    for kind, start, stop in (
        (TuningSeeds, 99_999, 100_001),
        (TuningSeeds, -1, 5),
        (TuningSeeds, 5, 5),
        (TuningSeeds, 1_000_000, 1_000_010),
        (ReportingSeeds, 999_999, 1_000_010),
        (ReportingSeeds, 0, 10),
        (ReportingSeeds, 1_000_000, (1 << 63) + 1),
    ):
        with pytest.raises(ValueError, match="lie in"):
            kind(start, stop)
    with pytest.raises(TypeError, match="int"):
        TuningSeeds(0, 5.0)
    with pytest.raises(TypeError, match="choose"):
        SeedRange(0, 5)


def test_kinds_do_not_mix():
    tuning, reporting = TuningSeeds(0, 10), ReportingSeeds.of(1_000_000, 10)
    check_apart([tuning, TuningSeeds(10, 20)])
    with pytest.raises(TypeError, match="must not be mixed"):
        check_apart([tuning, reporting])
    with pytest.raises(ValueError, match="share"):
        check_apart([TuningSeeds(15, 30), tuning, TuningSeeds(9, 12)])
    assert not hasattr(reporting, "seeds")
    with pytest.raises(TypeError):
        iter(reporting)


def test_seed_sets_are_disjoint_and_of_one_size():
    parts = ReportingSeeds.of(1_000_000, 5000).split(10)
    check_apart(parts)
    assert {len(part) for part in parts} == {500}
    assert {type(part) for part in parts} == {ReportingSeeds}
    assert (parts[0].start, parts[-1].stop) == (1_000_000, 1_005_000)
    with pytest.raises(ValueError, match="equal sets"):
        TuningSeeds(0, 7).split(2)


def test_every_look_leaves_a_line(tmp_path):
    log = tmp_path / "new" / "looks.jsonl"
    assert read_looks(log) == []
    assert ReportingSeeds.of(1_000_000, 3).look(log, **WHO) == range(1_000_000, 1_000_003)
    first = log.read_bytes()
    ReportingSeeds.of(2_000_000, 5).look(log, **WHO)
    assert log.read_bytes().startswith(first)
    looks = read_looks(log)
    assert [(look["start"], look["stop"]) for look in looks] == [(1_000_000, 1_000_003), (2_000_000, 2_000_005)]
    assert all({**look, **WHO} == look for look in looks)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(looks[0]["date"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5)


@pytest.mark.parametrize("missing", ["suite", "cell", "source"])
def test_a_look_without_a_reason_is_refused(tmp_path, missing):
    with pytest.raises(ValueError, match=missing):
        ReportingSeeds.of(1_000_000, 3).look(tmp_path / "looks", **{**WHO, missing: ""})
    assert not (tmp_path / "looks").exists()


def test_no_seeds_where_the_log_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        ReportingSeeds.of(1_000_000, 3).look(tmp_path / "file" / "looks", **WHO)


def test_lines_of_several_processes_do_not_mix(tmp_path):
    code = (
        "import sys; from ascedfast.lab.seeds import ReportingSeeds\n"
        "for i in range(50): ReportingSeeds.of(1_000_000 + i, 1).look("
        "sys.argv[1], suite='s' * 300, cell=sys.argv[2], source='x')"
    )
    log = str(tmp_path / "looks")
    running = [subprocess.Popen([sys.executable, "-c", code, log, name]) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    looks = read_looks(log)
    for name in "ab":
        assert [look["start"] - 1_000_000 for look in looks if look["cell"] == name] == list(range(50))
